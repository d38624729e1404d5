"""Chat templates: Jinja text that came with the weights, rendered in a sandbox."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from importlib import metadata
from typing import Any

from isouq.text.loading._extras import require
from isouq.text.loading._reading import one_line


def render(template: str, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
    """The text of a conversation, equal to transformers' `apply_chat_template(..., tokenize=False)`.

    messages: dictionaries such as `{"role": "user", "content": "..."}`. variables: what the template
    may use besides. Raises ValueError of one line where the messages are malformed, a variable is not plain data, or
    the template refuses them, fails, or tries to leave the sandbox.
    """
    plain = [_plain_message(message) for message in _as_list(messages)]
    known = {"tools": None, "documents": None}
    for name, value in variables.items():
        known[name] = _plain(value, f"the chat template's variable {name!r}")
    environment = _environment()
    try:
        return environment.from_string(template).render({**known, "messages": plain})
    except Exception as error:  # a template is a foreign program: it may fail in any way
        reason = one_line(error).rstrip(".")
        raise ValueError(
            f"the chat template fails on these messages: {reason}; change the messages, or give a plain prompt"
        ) from None


def _as_list(messages: Any) -> list[Any]:
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise ValueError(
            f"messages is {messages!r}; expected a list of dictionaries such as {{'role': 'user', 'content': 'Hello'}}"
        )
    return list(messages)


def _plain_message(message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise ValueError(
            f"a message is {message!r}; expected a dictionary such as {{'role': 'user', 'content': 'Hello'}}"
        )
    return {key: _plain(value, "a message") for key, value in message.items() if value is not None}


def _plain(value: Any, where: str) -> Any:
    """The value if it is plain data: an object's methods must not reach a template."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, where) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, where) for item in value]
    raise ValueError(f"{where} holds a {type(value).__name__}; expected text, numbers, lists and dictionaries only")


@cache
def _environment() -> Any:
    """Jinja as transformers sets it up for chat templates."""
    jinja2 = require("jinja2")
    version = metadata.version("jinja2")
    if tuple(int(part) for part in version.split(".")[:3] if part.isdigit()) < (3, 1, 6):
        raise ImportError(f"jinja2 is {version}, whose sandbox leaks; pip install 'jinja2>=3.1.6'")
    sandbox = require("jinja2.sandbox")
    utils = require("jinja2.utils")
    require("jinja2.ext")

    class Generation(jinja2.ext.Extension):
        """Accepts `{% generation %} ... {% endgeneration %}`, which only marks the assistant's text."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_show"), [], [], body).set_lineno(line)

        def _show(self, caller: Any) -> str:
            return caller()

    class Namespace(utils.Namespace):
        """Refuses names with a leading underscore, which could reach Python's internals."""

        def __init__(*args: Any, **kwargs: Any) -> None:
            for name in dict(*args[1:], **kwargs):
                _public(name)
            utils.Namespace.__init__(*args, **kwargs)

        def __setitem__(self, name: str, value: Any) -> None:
            _public(name)
            super().__setitem__(name, value)

    def _public(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise sandbox.SecurityError(f"the name {name!r} starts with an underscore")

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(
        raise_exception=raise_exception,
        strftime_now=lambda form: datetime.now().strftime(form),
        dict=lambda *args, **kwargs: dict(*args, **kwargs),
        namespace=Namespace,
    )
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the HTML escapes of Jinja's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
