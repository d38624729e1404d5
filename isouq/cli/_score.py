"""Run `isouq score`: read, score and write rows window by window, so that memory does not grow with the file."""

import json
import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from isouq import _checks
from isouq.cli import _rows, _scores, _survey
from isouq.cli._closing import Tally
from isouq.cli._output import Output
from isouq.cli._progress import Rows, Screen
from isouq.cli._rows import InputRow
from isouq.cli._scores import Plan
from isouq.cli._survey import Survey
from isouq.cli.options import Score
from isouq.text import generation, language_model, prompts, scoring, selection
from isouq.text._batches import batches_by_length, groups_by_length
from isouq.text._programs import keep_compiled_programs
from isouq.text.language_model import LanguageModel, Opened
from isouq.text.scores.passes import PASSES

WINDOW = 64  # number of batches whose rows are sorted by length together
GROUP = 4  # number of batches that are answered, scored and written together; a kill loses at most their rows


class Ready(NamedTuple):
    """A row and its token ids: of prompt and answer, or of the prompt alone where `first` is None."""

    row: InputRow
    ids: Sequence[int]
    first: int | None


def run(options: Score) -> int:
    """Score every row that the output lacks; return the exit status."""
    screen = Screen(options.quiet)
    source_path, out_path = _check(options)
    tally: Tally | None = None
    with Output(out_path, _rows.count_lines(source_path)) as output:
        try:
            survey = _survey.survey(options, source_path, output, screen)
            tally = Tally(survey.total, len(output) - len(survey.failed), survey.bad, survey.failed)
            todo = survey.total - survey.bad - len(output)
            opened, plan = _resolve(options, survey)
            timing = None
            if todo:
                _note(options, survey, screen)
                model = _load(options, opened, plan, screen)
                with screen.rows(survey.total, len(output) + survey.bad) as progress:
                    run = _Run(options, model, output, screen, progress, min(options.batch_size, todo), tally, plan)
                    size = WINDOW * options.batch_size
                    for window in _rows.chunks(_missing(source_path, output), size, options.batch_size):
                        run.window(window)
                timing = progress.timing()
            output.finish()
        except KeyboardInterrupt:
            closing = tally.closing(output, options.output, None, True) if tally else "interrupted before the first row"
            screen.error(f"isouq: {closing}")
            return 130
        if plan is not None and plan.count:
            screen.show(plan.table())
            if text := plan.note():
                screen.note(f"isouq: note: {text}")
        (screen.error if tally.errors else screen.note)(f"isouq: {tally.closing(output, options.output, timing)}")
    return 1 if tally.errors else 0


def _note(options: Score, survey: Survey, screen: Screen) -> None:
    """Print what of the input and the options has no effect."""
    if survey.unknown:
        screen.error(f"isouq: note: {_rows.unknown_fields(survey.unknown)}")
    if options.chat_template_kwargs is not None and not survey.chats:
        screen.error("isouq: note: --chat-template-kwargs has no effect: no prompt is a list of messages")


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
    _survey.parse_variables(options.chat_template_kwargs)
    _scores.check(options)
    source, out = Path(options.input), Path(options.output)
    if not source.exists():
        raise FileNotFoundError(f"--input {source} does not exist; expected a file of JSON lines")
    if not source.is_file():
        raise ValueError(f"--input {source} is not a file; it is read twice, so a pipe will not do")
    if out.exists() and os.path.samefile(source, out):
        raise ValueError(f"--output {out} is the input; choose another")
    return source, out


def _resolve(options: Score, survey: Survey) -> tuple[Opened, Plan | None]:
    """Return the opened model and the scores to compute; no weights are read.

    Raises ValueError where --select matches no parameter, or the output has another model's scores or other scores.
    """
    opened = language_model.open_model(
        options.model, adapter=options.adapter, merge=not options.adapter_apart, progress=not options.quiet
    )
    for name in survey.models - {opened.name}:
        raise ValueError(
            f"{options.output} was written with the model {name}, and this is {opened.name}; "
            "choose another --output or delete it"
        )
    selection.select(opened.config, options.select)
    if not options.scores:
        return opened, None
    plan = Plan(options, opened.config, progress=not options.quiet)
    _survey.check_scores(options, survey, plan.names, plan.settings)
    return opened, plan


def _load(options: Score, opened: Opened, plan: Plan | None, screen: Screen) -> LanguageModel:
    keep_compiled_programs()
    with screen.working(f"loading {opened.name}"):
        if plan is not None:
            plan.load()
        return language_model.read(opened, jnp.dtype(options.dtype))


def _missing(path: Path, output: Output) -> Iterator[InputRow]:
    return (row for row in _rows.read(path, output.lines) if isinstance(row, InputRow) and row.line not in output)


class _Run:
    """Scores windows of rows with one model. fill: the batch size that every program is compiled for."""

    def __init__(
        self,
        options: Score,
        model: LanguageModel,
        output: Output,
        screen: Screen,
        progress: Rows,
        fill: int,
        tally: Tally,
        plan: Plan | None,
    ) -> None:
        self.options, self.model, self.output, self.screen = options, model, output, screen
        self.progress, self.fill, self.tally, self.plan = progress, fill, tally, plan
        self.key = jax.random.key(options.seed)

    def window(self, rows: list[InputRow]) -> None:
        """Score and write the rows."""
        ready = []
        for row in rows:
            try:
                ready.append(self._encode(row))
            except ValueError as error:
                self.tally.refused += 1
                _survey.report(self.options, self.screen, row.line, str(error))
                self.progress.advance(1)
        for group in self._groups(ready):
            self._group(group)

    def _groups(self, ready: list[Ready]) -> list[list[Ready]]:
        """Return the rows in groups of similar lengths; with --scores smaller ones, of equal chat variables."""
        if self.plan is None:
            groups = batches_by_length([len(one.ids) for one in ready], GROUP * self.options.batch_size)
            return [[ready[i] for i in indices] for indices, _ in groups]
        alike: dict[str, list[Ready]] = {}
        for one in ready:
            variables = json.dumps(_survey.chat_variables(self.options, one.row), sort_keys=True)
            alike.setdefault(variables, []).append(one)
        return [
            [rows[i] for i in numbers]
            for rows in alike.values()
            for numbers in groups_by_length([len(one.ids) for one in rows], self.fill)
        ]

    def _encode(self, row: InputRow) -> Ready:
        variables = _survey.chat_variables(self.options, row)
        if row.answer is None:
            return Ready(row, prompts.encode_prompt(self.model, row.prompt, variables), None)
        ids, first = prompts.encode_pair(self.model, row.prompt, row.answer, variables)
        return Ready(row, ids.tolist(), first)

    def _group(self, group: list[Ready]) -> None:
        answered = self._answered(group)
        if not answered:
            return
        o = self.options
        rows = [prompts.Row(np.asarray(r.ids, np.int32), int(r.first or 0)) for r in answered]
        start = time.perf_counter()
        scored: list[tuple[Ready, prompts.Row, dict[str, Any], tuple[np.ndarray, float]]] = []
        for indices, scores in scoring.score_rows(self.model, rows, o.reduction, self.fill, o.select, not o.no_remat):
            # the published scores are those of the mean over tokens, and "first" has another gradient
            whole = scores if o.reduction == "first" else scores.under("mean")
            for i, at in enumerate(indices):
                if np.isnan(scores.log_epistemic[i]):
                    self._fail(answered[at], "the score is not a number")
                else:
                    measured = whole.token_log_p[i], float(whole.log_grad_sq_norm[i])
                    scored.append((answered[at], rows[at], _numbers(scores, i), measured))
            if self.plan is None:
                self._write([(ready, numbers) for ready, _, numbers, _ in scored])
                scored = []
        if self.plan is not None and scored:
            self._write(self._with_scores(self.plan, scored, time.perf_counter() - start))

    def _with_scores(self, plan: Plan, scored: list[Any], seconds: float) -> list[tuple[Ready, dict[str, Any]]]:
        """Return the rows of a group and their numbers with the published scores. seconds: that their gradient took."""
        ready, rows, numbers, measured = zip(*scored, strict=True)
        known = dict(zip(PASSES["gradient"].gives, map(list, zip(*measured, strict=True)), strict=True))
        scores = plan.measure(
            self.model,
            [one.row.prompt for one in ready],
            rows,
            [one.row.line for one in ready],
            known if plan.shares_gradient() else None,
            seconds,
            self.fill,
            _survey.chat_variables(self.options, ready[0].row),
        )
        return [(row, fields | {"scores": values}) for row, fields, values in zip(ready, numbers, scores, strict=True)]

    def _answered(self, group: list[Ready]) -> list[Ready]:
        """Return the rows with their answers, generated where they have none; a row whose answer is empty fails."""
        answered = [ready for ready in group if ready.first is not None]
        unanswered = [ready for ready in group if ready.first is None]
        for indices, filled in batches_by_length([len(ready.ids) for ready in unanswered], self.fill):
            answers = self._answers([unanswered[i] for i in filled])
            for ready, ids in zip((unanswered[i] for i in indices), answers, strict=False):
                if ids:
                    answered.append(Ready(ready.row, [*ready.ids, *ids], len(ready.ids)))
                else:
                    self._fail(ready, _empty(self.model, ready.row))
        return answered

    def _answers(self, batch: list[Ready]) -> list[list[int]]:
        """Return the token ids of an answer to each prompt; the draws of a row depend on the seed and its line."""
        o = self.options
        keys = jax.vmap(jax.random.fold_in, (None, 0))(self.key, jnp.asarray([r.row.line for r in batch]))
        ids = [list(r.ids) for r in batch]
        answers = generation.generate_rows(self.model, ids, keys, o.max_new_tokens, (o.temperature, 1.0), o.stop)
        return [answer.ids for answer in answers]

    def _write(self, rows: list[tuple[Ready, dict[str, Any]]]) -> None:
        self.output.append([self._row(*one) for one in rows])
        self.progress.advance(len(rows))

    def _fail(self, ready: Ready, reason: str) -> None:
        """Write a row without scores, so that it is not tried again."""
        numbers: dict[str, Any] = dict.fromkeys(_survey.NUMBERS)
        if self.plan is not None:
            numbers["scores"] = dict.fromkeys(self.plan.names)
        self.tally.failed.add(ready.row.line)
        self.output.append([self._row(ready, numbers | {"error": reason})])
        _survey.report(self.options, self.screen, ready.row.line, reason)
        self.progress.advance(1)

    def _row(self, ready: Ready, numbers: dict[str, Any]) -> dict[str, Any]:
        """Return a row of the output around its numbers."""
        row = ready.row
        ids = [] if ready.first is None else [int(token) for token in ready.ids[ready.first :]]
        return {
            "line": row.line,
            **_survey.copied_fields(self.options, row.fields),
            "answer": row.answer if isinstance(row.answer, str) else self.model.tokenizer.decode(ids),
            "generated": row.answer is None,
            "num_tokens": len(ids),
            "token_ids": ids,
            **numbers,
            **_survey.settings(self.options, row, self.model.name),
            **({"score_settings": self.plan.settings} if self.plan else {}),
        }


def _numbers(scores: scoring.Scores, i: int) -> dict[str, Any]:
    """Return the numbers of answer i as the output has them."""
    *names, last = _survey.NUMBERS
    numbers: dict[str, Any] = {name: _rows.number(getattr(scores, name)[i]) for name in names}
    return numbers | {last: [_rows.number(log_p) for log_p in getattr(scores, last)[i]]}


def _empty(model: LanguageModel, row: InputRow) -> str:
    """Return the reason of a row with an empty answer; for a text to a chat model it says how to write messages."""
    reason = "the model gave an empty answer"
    if isinstance(row.prompt, str) and model.tokenizer.chat_template:
        reason += (
            ' to a prompt that is text; it is a chat model: write "prompt": [{"role": "user", "content": "..."}], '
            "so that its chat template is used"
        )
    return reason
