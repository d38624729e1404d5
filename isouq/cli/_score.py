"""Run `isouq score`: read, score and write rows window by window, so that memory does not grow with the file."""

import functools
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from isouq import _checks
from isouq.cli import _rows
from isouq.cli._output import Output
from isouq.cli._progress import Rows, Screen
from isouq.cli._rows import BadRow, InputRow
from isouq.cli.options import Score
from isouq.text import generation, language_model, prompts, scoring, selection
from isouq.text._batches import batches_by_length
from isouq.text.language_model import LanguageModel, Opened
from isouq.text.loading import sources

WINDOW = 64  # number of batches whose rows are sorted by length together
GROUP = 4  # number of batches that are answered, scored and written together; a kill loses at most their rows
RESULTS = (  # the fields that the run writes, which replace fields of the same name in the input
    "line", "answer", "generated", "num_tokens", "token_ids", "log_probability", "probability", "aleatoric",
    "epistemic", "log_aleatoric", "log_epistemic", "token_log_p", "error", "reduction", "select", "model", "dtype",
    "settings", "chat_template_kwargs",
)  # fmt: skip


class Survey(NamedTuple):
    """What input and output contain before the run.

    total: number of lines of the input that are not blank. bad: number of those that are no valid row.
    failed: number of rows of the output that record an error. models: the models that the output names.
    unknown: fields of the input that are not read. chats: whether any prompt is a list of messages.
    """

    total: int
    bad: int
    failed: int
    models: set[str]
    unknown: set[str]
    chats: bool


class Ready(NamedTuple):
    """A row and its token ids: of prompt and answer, or of the prompt alone where `first` is None."""

    row: InputRow
    ids: Sequence[int]
    first: int | None


def run(options: Score) -> int:
    """Score every row that the output lacks; return the exit status."""
    screen = Screen(options.quiet)
    source_path, out_path = _check(options)
    with Output(out_path, _rows.count_lines(source_path)) as output:
        try:
            survey = _survey(options, source_path, output, screen)
            failed, before = survey.bad + survey.failed, len(output)
            todo = survey.total - survey.bad - before
            opened = _resolve(options, survey.models)
            done = ", nothing was left to do"
            if todo and survey.unknown:
                screen.error(f"isouq: note: {_rows.unknown_fields(survey.unknown)}")
            if todo and options.chat_template_kwargs is not None and not survey.chats:
                screen.error("isouq: note: --chat-template-kwargs has no effect: no prompt is a list of messages")
            if todo:
                model = _load(options, opened, screen)
                with screen.rows(survey.total, before + survey.bad) as progress:
                    run = _Run(options, model, output, screen, progress, min(options.batch_size, todo))
                    for window in _rows.chunks(_missing(source_path, output), WINDOW * options.batch_size):
                        failed += run.window(window)
                done = (f", {before} of them from before; this run took " if before else " in ") + progress.rate()
            output.finish()
        except KeyboardInterrupt:
            screen.error(
                f"isouq: interrupted; the {len(output)} rows in {options.output} are kept, "
                "the same command goes on from there"
            )
            return 130
        screen.note(f"isouq: {len(output)} rows in {options.output}{done}")
    if failed:
        screen.error(f"isouq: {survey.total - failed} of {survey.total} rows scored; {failed} rows had errors")
    return 1 if failed else 0


def _check(options: Score) -> tuple[Path, Path]:
    """Return the paths of input and output; raise for every option that is wrong by itself."""
    _checks.positive_int("--batch-size", options.batch_size)
    _checks.positive_int("--max-new-tokens", options.max_new_tokens)
    _checks.positive_int("--seed", options.seed, 0)
    if options.seed >= 2**32:
        raise ValueError(f"--seed is {options.seed}; expected less than 2**32")
    if not 0 <= options.temperature < math.inf:
        raise ValueError(f"--temperature is {options.temperature}; expected 0 (greedy) or a finite number above 0")
    if not all(options.stop):
        raise ValueError("--stop has an empty text; expected at least one character")
    if options.select is not None:
        try:
            re.compile(options.select)
        except re.error as error:
            raise ValueError(f"--select is {options.select!r}, not a regular expression: {error}") from None
    _parse_variables(options.chat_template_kwargs)
    source, out = Path(options.input), Path(options.output)
    if not source.exists():
        raise FileNotFoundError(f"--input {source} does not exist; expected a file of JSON lines")
    if not source.is_file():
        raise ValueError(f"--input {source} is not a file; it is read twice, so a pipe will not do")
    if out.exists() and os.path.samefile(source, out):
        raise ValueError(f"--output {out} is the input; choose another")
    return source, out


def _survey(options: Score, path: Path, output: Output, screen: Screen) -> Survey:
    """Look at every row, name the bad ones, and compare the others with those that the output holds."""
    total = bad = compared = failed = 0
    chats = False
    replaced: set[str] = set()
    unknown: set[str] = set()
    models: set[str] = set()
    for row in _rows.read(path, output.lines):
        total += 1
        if isinstance(row, BadRow):
            bad += 1
            _report(options, screen, row.line, row.reason)
            if row.line in output:
                raise ValueError(_differs(options, row.line))
            continue
        replaced |= row.fields.keys() & set(RESULTS) - set(_rows.FIELDS)
        chats |= not isinstance(row.prompt, str)
        unknown |= row.fields.keys() - set(RESULTS) - set(_rows.FIELDS)
        if row.line in output:
            done = output[row.line]
            _compare(options, row, done)
            compared += 1
            failed += done.get("error") is not None
            models.add(str(done.get("model")))
    if not total:
        raise ValueError(f'--input {path} has no rows; expected JSON lines such as {{"prompt": "..."}}')
    if compared < len(output):
        raise ValueError(
            f"{options.output} scores a line that is blank in {path}; choose another --output or delete it"
        )
    if replaced:
        names = ", ".join(sorted(replaced))
        screen.note(f"isouq: note: the input's fields {names} are replaced in the output by those of this run")
    return Survey(total, bad, failed, models, unknown, chats)


def _compare(options: Score, row: InputRow, done: dict[str, Any]) -> None:
    """Raise unless a row of the output came from this row of the input, by these options."""
    if row.answer is None:
        same = done.get("generated") is True
    else:
        answer = done.get("answer" if isinstance(row.answer, str) else "token_ids")
        same = done.get("generated") is False and answer == row.answer
    if _copied_fields(row.fields) != _copied_fields(done) or not same:
        raise ValueError(_differs(options, row.line))
    for name, value in _settings(options, row, done.get("model")).items():  # the model is compared once it is known
        if done.get(name) != value:
            name, before, now = _first_difference(name, done.get(name), value)
            raise ValueError(
                f"{options.output} was written with other options (there {name} is {before}, now {now}); "
                "choose another --output or delete it"
            )


def _first_difference(name: str, before: Any, now: Any) -> tuple[str, Any, Any]:
    """Return (name, before, now) of an option, or of the first inside that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        inside = next(key for key in (now | before) if now.get(key) != before.get(key))
        return inside, before.get(inside), now.get(inside)
    return name, before, now


def _differs(options: Score, line: int) -> str:
    return (
        f"line {line} of {options.input} is not what {options.output} holds a score of; "
        "choose another --output or delete it"
    )


def _copied_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that are copied from the input."""
    return {name: value for name, value in fields.items() if name not in RESULTS}


def _settings(options: Score, row: InputRow, model: str | None) -> dict[str, Any]:
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
        "chat_template_kwargs": _chat_variables(options, row) or None,
    }


def _chat_variables(options: Score, row: InputRow) -> dict[str, Any]:
    """Return the variables for a row's chat template: those of the option, replaced by the row's own."""
    return {} if isinstance(row.prompt, str) else _parse_variables(options.chat_template_kwargs) | row.variables


@functools.cache  # called for every row
def _parse_variables(text: str | None) -> dict[str, Any]:
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


def _report(options: Score, screen: Screen, line: int, reason: str) -> None:
    """Print the line and the reason of a row that has an error."""
    text = " ".join(reason.split())
    screen.error(f"{options.input}:{line}: {text if len(text) <= 300 else text[:300] + '…'}")


def _resolve(options: Score, before: set[str]) -> Opened:
    """Return the opened model; raise if --select matches no parameter or the output has another model's scores."""
    opened = language_model.open_model(
        options.model, adapter=options.adapter, merge=not options.adapter_apart, progress=not options.quiet
    )
    for name in before - {opened.name}:
        raise ValueError(
            f"{options.output} was written with the model {name}, and this is {opened.name}; "
            "choose another --output or delete it"
        )
    selection.select(opened.config, options.select)
    return opened


def _load(options: Score, opened: Opened, screen: Screen) -> LanguageModel:
    _keep_compiled_programs()
    with screen.working(f"loading {opened.name}"):
        return language_model.read(opened, jnp.dtype(options.dtype))


def _keep_compiled_programs() -> None:
    """Set JAX's persistent cache of compiled programs unless the user has: then the next run compiles nothing."""
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        folder = sources.cache_folder() / "xla"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))


def _missing(path: Path, output: Output) -> Iterator[InputRow]:
    return (row for row in _rows.read(path, output.lines) if isinstance(row, InputRow) and row.line not in output)


class _Run:
    """Scores windows of rows with one model. fill: the batch size that every program is compiled for."""

    def __init__(
        self, options: Score, model: LanguageModel, output: Output, screen: Screen, progress: Rows, fill: int
    ) -> None:
        self.options, self.model, self.output, self.screen = options, model, output, screen
        self.progress, self.fill = progress, fill
        self.key = jax.random.key(options.seed)

    def window(self, rows: list[InputRow]) -> int:
        """Score and write the rows; return how many had errors."""
        ready = []
        for row in rows:
            try:
                ready.append(self._encode(row))
            except ValueError as error:
                _report(self.options, self.screen, row.line, str(error))
                self.progress.advance(1)
        failed = len(rows) - len(ready)
        lengths = [len(r.ids) for r in ready]
        for indices, _ in batches_by_length(lengths, GROUP * self.options.batch_size):
            failed += self._group([ready[i] for i in indices])
        return failed

    def _encode(self, row: InputRow) -> Ready:
        variables = _chat_variables(self.options, row)
        if row.answer is None:
            return Ready(row, prompts.encode_prompt(self.model, row.prompt, variables), None)
        ids, first = prompts.encode_pair(self.model, row.prompt, row.answer, variables)
        return Ready(row, ids.tolist(), first)

    def _group(self, group: list[Ready]) -> int:
        answered = [ready for ready in group if ready.first is not None]
        failed = 0
        unanswered = [ready for ready in group if ready.first is None]
        for indices, filled in batches_by_length([len(ready.ids) for ready in unanswered], self.fill):
            answers = self._answers([unanswered[i] for i in filled])
            for ready, ids in zip((unanswered[i] for i in indices), answers, strict=False):
                if ids:
                    answered.append(Ready(ready.row, [*ready.ids, *ids], len(ready.ids)))
                else:
                    failed += self._fail(ready, "the model gave an empty answer")
        if not answered:
            return failed
        o = self.options
        rows = [prompts.Row(np.asarray(r.ids, np.int32), int(r.first or 0)) for r in answered]
        for indices, scores in scoring.score_rows(self.model, rows, o.reduction, self.fill, o.select, not o.no_remat):
            batch = [(i, answered[at]) for i, at in enumerate(indices)]
            bad = [ready for i, ready in batch if np.isnan(scores.log_epistemic[i])]
            results = [self._result(ready, scores, i) for i, ready in batch if ready not in bad]
            self.output.append(results)
            self.progress.advance(len(results))
            failed += sum(self._fail(ready, "the score is not a number") for ready in bad)
        return failed

    def _answers(self, batch: list[Ready]) -> list[list[int]]:
        """Return the token ids of an answer to each prompt; the draws of a row depend on the seed and its line."""
        o = self.options
        keys = jax.vmap(jax.random.fold_in, (None, 0))(self.key, jnp.asarray([r.row.line for r in batch]))
        ids = [list(r.ids) for r in batch]
        answers = generation.generate_rows(self.model, ids, keys, o.max_new_tokens, (o.temperature, 1.0), o.stop)
        return [answer.ids for answer in answers]

    def _result(self, ready: Ready, scores: scoring.Scores, i: int) -> dict[str, Any]:
        names = ("log_probability", "probability", "aleatoric", "epistemic", "log_aleatoric", "log_epistemic")
        numbers: dict[str, Any] = {name: _rows.number(getattr(scores, name)[i]) for name in names}
        numbers["token_log_p"] = [_rows.number(log_p) for log_p in scores.token_log_p[i]]
        return self._row(ready, numbers)

    def _fail(self, ready: Ready, reason: str) -> int:
        """Write a row without scores, so that it is not tried again; return 1."""
        empty = dict.fromkeys(RESULTS[RESULTS.index("log_probability") : RESULTS.index("error")])
        self.output.append([self._row(ready, empty | {"error": reason})])
        _report(self.options, self.screen, ready.row.line, reason)
        self.progress.advance(1)
        return 1

    def _row(self, ready: Ready, numbers: dict[str, Any]) -> dict[str, Any]:
        """Return a row of the output around its numbers."""
        row = ready.row
        ids = [] if ready.first is None else [int(token) for token in ready.ids[ready.first :]]
        return {
            "line": row.line,
            **_copied_fields(row.fields),
            "answer": row.answer if isinstance(row.answer, str) else self.model.tokenizer.decode(ids),
            "generated": row.answer is None,
            "num_tokens": len(ids),
            "token_ids": ids,
            **numbers,
            **_settings(self.options, row, self.model.name),
        }
