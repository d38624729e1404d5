"""Compare input and output before the run: which rows are bad, which are done, and by which options."""

import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from isouq.cli import _rows
from isouq.cli._output import Output
from isouq.cli._progress import Screen
from isouq.cli._rows import BadRow, InputRow
from isouq.cli.options import Score

RESULTS = (  # the fields that the run writes, which replace fields of the same name in the input
    "line", "answer", "generated", "num_tokens", "token_ids", "log_probability", "probability", "aleatoric",
    "epistemic", "log_aleatoric", "log_epistemic", "token_log_p", "error", "reduction", "select", "model", "dtype",
    "settings", "chat_template_kwargs",
)  # fmt: skip
NUMBERS = RESULTS[RESULTS.index("log_probability") : RESULTS.index("error")]
SCORES = ("scores", "score_settings")  # written too where --scores is given


class Survey(NamedTuple):
    """What input and output contain before the run.

    total: number of lines of the input that are not blank. bad: number of those that are no valid row.
    failed: lines of the rows of the output that record an error. models: the models that the output names.
    scores: the names and settings of --scores that the output records, as JSON.
    unknown: fields of the input that are not read. chats: whether any prompt is a list of messages.
    """

    total: int
    bad: int
    failed: set[int]
    models: set[str]
    scores: set[str]
    unknown: set[str]
    chats: bool


def survey(options: Score, path: Path, output: Output, screen: Screen) -> Survey:
    """Look at every row, name the bad ones, and compare the others with those that the output holds."""
    if misnamed := _rows.misnamed(path, output.lines):
        fields = " or ".join(f'"{name}"' for name in sorted(misnamed))
        raise ValueError(f'no row of --input {path} has a field "prompt"; rename {fields} to "prompt"')
    total = bad = compared = 0
    chats = False
    failed: set[int] = set()
    replaced: set[str] = set()
    unknown: set[str] = set()
    models: set[str] = set()
    scores: set[str] = set()
    results = set(_results(options))
    for row in _rows.read(path, output.lines):
        total += 1
        if isinstance(row, BadRow):
            bad += 1
            report(options, screen, row.line, row.reason)
            if row.line in output:
                raise ValueError(_differs(options, row.line))
            continue
        replaced |= row.fields.keys() & results - set(_rows.FIELDS)
        chats |= not isinstance(row.prompt, str)
        unknown |= row.fields.keys() - results - set(_rows.FIELDS)
        if row.line in output:
            done = output[row.line]
            _compare(options, row, done)
            compared += 1
            failed |= {row.line} if done.get("error") is not None else set()
            models.add(str(done.get("model")))
            scores.add(json.dumps(_recorded(done) if options.scores else None))
    if not total:
        raise ValueError(f'--input {path} has no rows; expected JSON lines such as {{"prompt": "..."}}')
    if compared < len(output):
        raise ValueError(
            f"{options.output} scores a line that is blank in {path}; choose another --output or delete it"
        )
    if replaced:
        names = ", ".join(sorted(replaced))
        screen.note(f"isouq: note: the input's fields {names} are replaced in the output by those of this run")
    return Survey(total, bad, failed, models, scores, unknown, chats)


def check_scores(options: Score, survey: Survey, names: Iterable[str], settings: Mapping[str, Any]) -> None:
    """Raise where rows of the output have other scores, or scores by other settings."""
    now = {"scores": list(names), **settings}
    for text in survey.scores:
        before = json.loads(text) or {"scores": None}
        if before == now:
            continue
        if before["scores"] in (None, now["scores"]):
            raise _other_options(options, *_first_difference("scores", before, now))
        more = [name for name in before["scores"] if name not in now["scores"]]
        less = [name for name in now["scores"] if name not in before["scores"]]
        parts = [f"{verb} {', '.join(list_)}" for verb, list_ in (("has also", more), ("lacks", less)) if list_]
        raise ValueError(
            f"{options.output} was written with other options (there --scores {' and '.join(parts)}); "
            "choose another --output or delete it"
        )


def settings(options: Score, row: InputRow, model: str | None) -> dict[str, Any]:
    """Return the options that a row of the output records; "settings" are those of an answer that was generated."""
    generated = {
        "max_new_tokens": options.max_new_tokens,
        "temperature": options.temperature,
        "seed": options.seed if options.temperature else None,  # a greedy answer has none
        "stop": list(options.stop),
    }
    return {
        "reduction": options.reduction,
        "select": options.select,
        "dtype": options.dtype,
        "model": model,
        "settings": generated if row.answer is None else None,
        "chat_template_kwargs": chat_variables(options, row) or None,
    }


def copied_fields(options: Score, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that are copied from the input."""
    return {name: value for name, value in fields.items() if name not in _results(options)}


def chat_variables(options: Score, row: InputRow) -> dict[str, Any]:
    """Return the variables for a row's chat template: those of the option, replaced by the row's own."""
    return {} if isinstance(row.prompt, str) else parse_variables(options.chat_template_kwargs) | row.variables


@functools.cache  # called for every row
def parse_variables(text: str | None) -> dict[str, Any]:
    """Return the variables that --chat-template-kwargs gives to every row; raise ValueError where it is no object."""
    if text is None:
        return {}
    try:
        variables = _rows.strict_object(text.encode())
    except ValueError as error:
        raise ValueError(
            f"--chat-template-kwargs: {error}; expected an object such as '{{\"enable_thinking\": false}}'"
        ) from None
    if "messages" in variables:
        raise ValueError("--chat-template-kwargs has messages; expected other variables of the chat template")
    return variables


def report(options: Score, screen: Screen, line: int, reason: str) -> None:
    """Print the line and the reason of a row that has an error."""
    text = " ".join(reason.split())
    screen.error(f"{options.input}:{line}: {text if len(text) <= 300 else text[:300] + '…'}")


def _results(options: Score) -> tuple[str, ...]:
    """Return the fields that a run with these options writes."""
    return RESULTS + SCORES if options.scores else RESULTS


def _recorded(done: dict[str, Any]) -> dict[str, Any] | None:
    """Return the names of the scores of a row of the output, with their settings; None where it has none.

    The run writes them last. Fields of the same names that stand elsewhere were copied from the input.
    """
    scores, settings = done.get("scores"), done.get("score_settings")
    if next(reversed(done)) != "score_settings" or not isinstance(scores, dict) or not isinstance(settings, dict):
        return None
    return {"scores": list(scores), **settings}


def _compare(options: Score, row: InputRow, done: dict[str, Any]) -> None:
    """Raise unless a row of the output came from this row of the input, by these options."""
    if not options.scores and _recorded(done) is not None:
        raise _other_options(options, "--scores", "given", "not")
    if row.answer is None:
        same = done.get("generated") is True
    else:
        answer = done.get("answer" if isinstance(row.answer, str) else "token_ids")
        same = done.get("generated") is False and answer == row.answer
    if copied_fields(options, row.fields) != copied_fields(options, done) or not same:
        raise ValueError(_differs(options, row.line))
    for name, value in settings(options, row, done.get("model")).items():  # the model is compared once it is known
        if done.get(name) != value:
            raise _other_options(options, *_first_difference(name, done.get(name), value))


def _first_difference(name: str, before: Any, now: Any) -> tuple[str, Any, Any]:
    """Return (name, before, now) of an option, or of the first inside that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        inside = next(key for key in (now | before) if now.get(key) != before.get(key))
        return inside, before.get(inside), now.get(inside)
    return name, before, now


def _other_options(options: Score, name: str, before: Any, now: Any) -> ValueError:
    return ValueError(
        f"{options.output} was written with other options (there {name} is {before}, now {now}); "
        "choose another --output or delete it"
    )


def _differs(options: Score, line: int) -> str:
    return (
        f"line {line} of {options.input} is not what {options.output} holds a score of; "
        "choose another --output or delete it"
    )
