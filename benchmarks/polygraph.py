"""Measures the scores of language models' answers that isouq and lm-polygraph both have: CPU seconds a question.

Both run SmolLM2-135M (with --preset smoke a tiny random Llama) from one transformers folder of float32 weights and
one tokenizer, with the same questions in one batch, at most 20 new tokens, and 10 samples at temperature 1 from all
tokens. A call generates the greedy answer, draws the samples if the score needs them, and computes the score; isouq's
is `generate` and `baselines`, lm-polygraph's is a UEManager with one estimator, or with all of them. Loading the
model, building the manager and compiling isouq's programs are not counted; the first call of isouq, which compiles
what no earlier row did, has a column of its own. Seconds are CPU seconds of the whole process with its threads,
medians over alternating rounds, divided by the number of questions. Ratios are lm-polygraph's to isouq's of the same
round, with their 10–90 % range: above 1, lm-polygraph is slower.

The work is not the same in every respect. isouq reads its own answer once more in a forward pass, and the samples for
EigenScore; lm-polygraph takes both from the generation. lm-polygraph draws the samples of a question one after
another and keeps the hidden states of all their tokens for every score, because no option turns this off; isouq reads
the prompt once and draws the samples of all questions together. For RAUQ lm-polygraph keeps the attention of all
layers, which needs the plain attention of transformers; for TokenSAR it draws samples too, because one pass of it
measures all similarities. Its attentions and hidden states of the greedy answer are off where no estimator of the
call needs them, although they are on by default. P(True) of isouq compares "A" with "B" and lm-polygraph reads
"True"; it is one more forward pass in both. The mean log p of lm-polygraph includes the token that ends an answer,
which it forbids among the first two tokens; isouq does neither, so that answers of one token and nll_mean differ.
Pairs: how many pairs of texts a question the similarity is asked for; it is the share of common words in both instead
of a cross-encoder, whose time is therefore not in the table.
"""

import functools
import json
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import cases, child, provenance, report, text_models, timing
from benchmarks.polygraph_cases import MODEL, PAIRS, PROMPT, QUESTIONS, Pair, write_model
from benchmarks.polygraph_similarity import shared_words
from isouq import text

COLUMNS = (
    "score", "estimator", "samples", "status", "isouq_seconds", "polygraph_seconds", "ratio", "ratio_p10", "ratio_p90",
    "isouq_wall_seconds", "polygraph_wall_seconds", "rounds", "isouq_first_seconds", "isouq_pairs", "polygraph_pairs",
)  # fmt: skip
ALL = "all of these in one call"
Row = dict[str, Any]


class Preset(NamedTuple):
    """How much is measured: the model (none: a random one), questions, new tokens, samples, rounds."""

    model: str
    questions: int
    tokens: int
    samples: int
    rounds: int


PRESETS = {"full": Preset(MODEL, 4, 20, 10, 3), "smoke": Preset("", 2, 4, 10, 1)}  # lm-polygraph draws 10


def run(preset: str, folder: Path, record: Row, python: Path | None, rounds: int | None, only: str) -> None:
    """Measure all pairs; write polygraph.csv, .md and .json. python: an interpreter that has lm-polygraph, or None."""
    settings = PRESETS[preset]
    settings = settings._replace(rounds=rounds or settings.rounds)
    small = cases.text_cases("smoke", (), ())[0]
    path = write_model(text_models.scratch() / "polygraph") if settings.model else text_models.path(small)
    model = text.load(str(path))
    prompts = _prompts(model, settings)
    pairs = [pair for pair in PAIRS if only.lower() in pair.label]
    peer = _Peer(python, path, prompts, settings.tokens) if python else None
    record |= {"model": settings.model or "random", "lm-polygraph": peer.versions if peer else None}
    rows = [_row(pair.label, pair.estimator, pair.samples, pair.missing) for pair in pairs]
    for row, group in [*zip(rows, ([pair] for pair in pairs), strict=True), (_row(ALL, "", True, ""), pairs)]:
        if row["score"] == ALL:  # of those that ran; a call has one P(True), here that with samples
            ran = {one["score"] for one in rows if one["status"] == "ok"}
            group = [pair for pair in pairs if pair.label in ran and pair.estimator != "PTrue"]
            rows.append(row)
        if row["status"] != "ok" or not group:
            continue
        ours = functools.partial(_measure, model, prompts, group, settings)
        theirs = functools.partial(peer.measure, group) if peer else None
        first = _time(row, ours, theirs, settings.rounds, len(prompts))
        if first and row["score"] == "nll_mean":
            record["agreement"] = _agreement(*first)
        print({key: value for key, value in row.items() if value is not None}, flush=True)
        report.write_files("polygraph", COLUMNS, rows, record, _page(rows, record, settings), folder)
    print((folder / "polygraph.md").read_text(), flush=True)


def _prompts(model: Any, settings: Preset) -> list[str]:
    """Return the first questions to which the model's answer is not empty."""
    prompts = [PROMPT.format(question) for question in QUESTIONS]
    answers = text.generate(model, prompts, settings.tokens)
    return [prompt for prompt, answer in zip(prompts, answers, strict=True) if answer.ids][: settings.questions]


def _time(row: Row, ours: Callable[[], Row], theirs: Callable[[], Row] | None, rounds: int, count: int) -> list[Row]:
    """Add the times of alternating rounds to the row; return the first call of each, which is not counted."""
    first = [ours()] + ([theirs()] if theirs else [])
    row["isouq_first_seconds"], row["isouq_pairs"] = first[0]["cpu"] / count, first[0]["pairs"] / count
    if theirs is None:
        row["status"] = "lm-polygraph was not given (--polygraph-python)"
        return []
    if "status" in first[1]:
        row["status"] = first[1]["status"]
        return []
    row["polygraph_pairs"] = first[1]["pairs"] / count
    calls = {"isouq": ours, "polygraph": theirs}
    samples: dict[str, list[Row]] = {name: [] for name in calls}
    for number in range(rounds):
        for name in ("isouq", "polygraph")[:: -1 if number % 2 else 1]:
            samples[name].append(calls[name]())
    times, walls = (
        {name: np.array([one[clock] for one in group]) / count for name, group in samples.items()}
        for clock in ("cpu", "wall")
    )
    ratio = timing.paired_ratio(times["polygraph"], times["isouq"])
    row |= {"ratio": ratio.median, "ratio_p10": ratio.low, "ratio_p90": ratio.high, "rounds": rounds}
    for name in samples:
        row[f"{name}_seconds"] = float(np.median(times[name]))
        row[f"{name}_wall_seconds"] = float(np.median(walls[name]))
    return first


def _agreement(ours: Row, theirs: Row) -> Row:
    """Return how many answers are equal, and how far the mean log p of those are apart."""
    equal = [a.strip() == b.strip() for a, b in zip(ours["texts"], theirs["texts"], strict=True)]
    difference = np.abs(ours["values"]["nll_mean"] - np.array(theirs["values"]["Perplexity"]))[equal]
    return {"answers": len(equal), "equal": sum(equal), "nll_mean": float(np.max(difference, initial=0))}


def _measure(model: Any, prompts: list[str], pairs: Sequence[Pair], settings: Preset) -> Row:
    """Answer the prompts and score the answers once."""
    asked = 0

    def similarity(texts: Sequence[tuple[str, str]]) -> np.ndarray:
        nonlocal asked
        asked += len(texts)
        return np.array(shared_words(texts))

    cpu, wall = time.process_time(), time.perf_counter()
    answers = text.generate(model, prompts, settings.tokens)
    found = text.baselines(
        model, prompts, answers, settings.samples if any(pair.samples for pair in pairs) else None,
        [pair.score for pair in pairs], similarity=similarity, key=jax.random.key(0), max_new_tokens=settings.tokens,
    )  # fmt: skip
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"cpu": cpu, "wall": wall, "pairs": asked, "values": found.scores, "texts": [one.text for one in answers]}


class _Peer:
    """The process that runs lm-polygraph."""

    def __init__(self, python: Path, model: Path, prompts: list[str], tokens: int) -> None:
        self.process = subprocess.Popen(
            [python, "-m", "benchmarks.polygraph_child"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=Path(__file__).parents[1], stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.versions = self._ask({"folder": str(model), "prompts": prompts, "tokens": tokens})

    def measure(self, pairs: Sequence[Pair]) -> Row:
        """Run the estimators of these pairs once."""
        return self._ask([(pair.estimator, pair.settings) for pair in pairs])

    def _ask(self, request: Any) -> Row:
        assert self.process.stdin
        assert self.process.stdout
        print(json.dumps(request), file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if (row := child.read_row(line)) is not None:
                return row
        return {"status": "failed: the process of lm-polygraph ended"}


def _row(score: str, estimator: str, samples: bool, status: str) -> Row:
    values = {"score": score, "estimator": estimator, "samples": samples, "status": status or "ok"}
    return dict.fromkeys(COLUMNS) | values


def _page(rows: list[Row], record: Row, settings: Preset) -> str:
    header = ("score", "estimator", "samples", "isouq", "lm-polygraph", "÷ isouq", "(10–90 %)", "isouq, first call",
              "pairs", "lm-polygraph: pairs", "note")  # fmt: skip
    lines = []
    for row in rows:
        number, duration = report.number, report.duration
        spread = f"({number(row['ratio_p10'])}–{number(row['ratio_p90'])})" if row["rounds"] else "–"
        lines.append([
            row["score"], row["estimator"], str(settings.samples) if row["samples"] else "–",
            duration(row["isouq_seconds"]), duration(row["polygraph_seconds"]), number(row["ratio"]), spread,
            duration(row["isouq_first_seconds"]), *(f"{row[key]:.0f}" if row[key] else "–" for key in COLUMNS[-2:]),
            "" if row["status"] == "ok" and row["rounds"] else row["status"].replace("|", "\\|"),
        ])  # fmt: skip
    peer = ", ".join(f"{name} {version}" for name, version in (record["lm-polygraph"] or {}).items())
    same = record.get("agreement")
    words = f"{settings.questions} questions, {settings.tokens} new tokens at most, {settings.rounds} rounds."
    if same:
        words += f" {same['equal']} of {same['answers']} greedy answers are equal in both libraries"
        words += f", and their nll_mean differs by at most {same['nll_mean']:.1g}." if same["equal"] else "."
    machine = f"{provenance.in_words(record)}{f' The other process: {peer}.' if peer else ''}"
    title = "# Scores of answers, beside lm-polygraph"
    return f"{title}\n\n{machine}\n\n{report.body_of(__doc__)}\n\n{words}\n\n{report.table(header, lines)}"
