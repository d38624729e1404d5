"""The tiny model, and with it `qa` end to end: cells, scores, traces, kills, and questions that cannot be judged."""

import csv
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import command
from experiments.answers import correctness
from experiments.answers.inputs import Judges, Models, load_questions, open_encoder
from experiments.answers.measure.choices import score_choices
from experiments.answers.measure.judgements import judge
from experiments.answers.measure.published import score_published
from experiments.answers.measure.scores import score_answers
from experiments.answers.measure.traces import trace_answers
from experiments.answers.numbers import trace as trace_numbers
from experiments.answers.presets import qa
from experiments.answers.prompts import STOP, answer_prompt, answer_text
from experiments.answers.questions import Question
from experiments.answers.study import STUDIES, QaCell
from experiments.answers.tiny_model import CONFIG, TINY, tiny_model
from experiments.domains.inputs import digest_of
from experiments.run.errors import RunError
from isouq.text import Answer, LanguageModel, baselines, generate, language_model, score

ROOT = Path(__file__).resolve().parents[1]
CELL = QaCell("tiny", "sample_trivia", "alias", None, "abc", 0, 3, samples=2, max_new_tokens=4)


def run(arguments, capsys):
    status = command.main(["qa", "--preset", "smoke", "--executor", "local", *map(str, arguments)])
    return status, capsys.readouterr()


def table(out, name="table.csv"):
    with open(out / "qa" / name, encoding="utf-8") as file:
        return list(csv.DictReader(file))


# cells


OTHER = {
    "model": "hf:a/b", "kind": "references", "digest": "x", "start": 20, "count": 4, "prompt": "chat", "samples": 3,
    "temperature": 0.5, "max_new_tokens": 5, "seed": 1, "encoder": "e", "entailment": "n", "judges": "j",
    "study": "scores",
}  # fmt: skip


def test_the_key_depends_on_all_but_where_the_questions_lie():
    assert {field.name for field in fields(QaCell)} == OTHER.keys() | {"benchmark", "data"}
    keys = {replace(CELL, **{name: value}).key() for name, value in OTHER.items()} | {CELL.key()}
    assert len(keys) == len(OTHER) + 1
    assert replace(CELL, data="moved.jsonl", benchmark="moved").key() == CELL.key()


def test_all_studies_of_a_block_read_the_same_answers():
    jobs = [replace(CELL, study=study, encoder="e", judges="j", entailment="n") for study in STUDIES]
    assert {job.reference() for job in jobs} == {CELL}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": "poem"}, "prompt is 'poem'"),
        ({"study": "poem"}, "study is 'poem'"),
        ({"count": 0}, "count is 0"),
        ({"start": -1}, "start is -1"),
        ({"temperature": 0.0}, "temperature is 0.0"),
    ],
)
def test_a_wrong_cell_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        replace(CELL, **change)


def test_blocks_hold_every_question_once():
    cells = qa.blocks("paper", models=["tiny"], limit=45)
    trivia = [cell for cell in cells if cell.benchmark == "sample_trivia"]
    assert [(cell.start, cell.count) for cell in trivia] == [(0, 20), (20, 20), (40, 5)]
    assert {cell.kind for cell in cells} == {"alias", "references"}
    assert all(cell.study != "choices" or cell.kind == "references" for cell in qa.jobs("smoke"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"questions": ["nowhere.jsonl"]}, "nowhere.jsonl does not exist"),
        ({"models": ["nowhere/at/all"]}, "nowhere/at/all does not exist"),
        ({"models": ["pypi:no-such"]}, "pypi:no-such"),
    ],
)
def test_what_is_missing_is_said_before_anything_runs(arguments, words):
    with pytest.raises(RunError, match=words) as error:
        qa.blocks("smoke", **arguments)
    assert "\n" not in str(error.value)


def test_a_local_model_is_known_by_its_files_and_shown_by_its_name(tmp_path):
    model = tmp_path / "mine"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"one")
    before = digest_of("d", str(model))
    (model / "model.safetensors").write_bytes(b"two")
    assert before != digest_of("d", str(model)) != "d"
    assert digest_of("d", "hf:a/b@1") == "d"
    assert replace(CELL, model=str(model)).row()["model"] == "mine"


# the tiny model


@pytest.fixture(scope="module")
def model():
    """The tiny model; its training runs longer than it compiles."""
    jax.config.update("jax_disable_most_optimizations", False)
    trained = tiny_model()
    jax.config.update("jax_disable_most_optimizations", os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] != "0")
    return trained


def greedy(model, found, style):
    prompts = [answer_prompt(item.question, found.kind, style) for item in found.items]
    return [answer_text(one.text) for one in generate(model, prompts, 8, stop=STOP, batch_size=20)]


def test_the_tiny_model_answers_some_questions_right_and_others_wrong(model):
    found = load_questions("sample_trivia")
    texts = greedy(model, found, "few_shot")
    right = [correctness.alias_match(text, item.answers) for text, item in zip(texts, found.items, strict=True)]
    assert sum(right[::2]) >= 35
    assert sum(right[1::2]) <= 5
    assert 8 <= sum(right[:24]) <= 16


def test_the_tiny_model_answers_with_some_truth_and_some_error(model):
    found = load_questions("sample_truthful")
    texts = greedy(model, found, "few_shot")
    differences = [
        correctness.rouge_difference(text, item.answers, item.incorrect)
        for text, item in zip(texts, found.items, strict=True)
    ]
    assert np.sum(np.array(differences[::2]) > 0) >= 10
    assert np.sum(np.array(differences[:24]) <= 0) >= 4


def test_the_tiny_model_is_a_language_model_like_any_other(model):
    assert isinstance(model, LanguageModel)
    assert (model.name, model.config.num_layers) == (TINY, CONFIG["num_hidden_layers"])
    assert model.config.vocab_size == model.tokenizer.vocab_size
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(model.params))
    assert tiny_model() is model
    prompt = answer_prompt("What is the capital of Portugal?", "alias", "chat")
    assert generate(model, [prompt], 2)[0].ids
    prompt = answer_prompt("What is the capital of Portugal?", "alias", "few_shot")
    scores = score(model, [(prompt, " Lisbon"), (prompt, " Ottawa")])
    assert scores.log_probability[0] > scores.log_probability[1] + 2


def test_the_words_of_the_tiny_model_spell_the_samples(model):
    tokenizer = model.tokenizer
    unknown = tokenizer.token_id(tokenizer.special_tokens["unk_token"])
    for name in ("sample_trivia", "sample_truthful"):
        found = load_questions(name)
        for item in found.items:
            texts = [answer_prompt(item.question, found.kind, "few_shot"), *item.answers, *item.incorrect]
            for text in (*texts, *(f" {text}\n" for text in texts)):
                ids = tokenizer.encode(text)
                assert tokenizer.decode(ids) == text
                assert "".join(tokenizer.pieces(ids)) == text
                assert unknown not in ids
    assert tokenizer.encode("zyzzyva") == [unknown]


# scores


@pytest.fixture(scope="module")
def answered(model):
    cell = replace(CELL, digest=load_questions("sample_trivia").digest)
    items = load_questions("sample_trivia").items[:3]
    return cell, items, cell.run().numbers["questions"]


def test_an_answer_is_kept_with_log_p_of_every_token(model, answered):
    cell, items, questions = answered
    for item, one in zip(items, questions, strict=True):
        assert (one["index"], one["question"], len(one["samples"])) == (item.index, item.question, cell.samples)
        start = model.tokenizer.encode(answer_prompt(item.question, "alias", "few_shot"))
        for answer in (one["greedy"], *one["samples"]):
            log_p = jax.nn.log_softmax(model.logits(jnp.array([*start, *answer["ids"]])))
            at = np.arange(len(answer["ids"])) + len(start) - 1
            np.testing.assert_allclose(answer["log_p"], log_p[at, np.array(answer["ids"], int)], atol=1e-4)


def test_scores_are_those_of_the_library_and_of_the_full_gradient(model, answered):
    cell, items, questions = answered
    rows = score_answers(cell, model, items, questions, lambda share: None).numbers["questions"]
    for item, one, row in zip(items, questions, rows, strict=True):
        ids = one["greedy"]["ids"]
        prompt = answer_prompt(item.question, "alias", "few_shot")
        start = model.tokenizer.encode(prompt)
        whole = jnp.array([*start, *ids])

        count = len(ids)

        def log_p(params, whole=whole, count=count):
            logits = jax.nn.log_softmax(language_model.module(model.config, params)(whole))
            at = jnp.arange(len(whole) - count, len(whole))
            return logits[at - 1, whole[at]].mean()

        value, grad = jax.value_and_grad(log_p)(model.params)
        squared = sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(grad))
        assert row["nll_mean"] == pytest.approx(-float(value), abs=1e-4)
        assert row["nll_answer"] == pytest.approx(-float(value) * len(ids), abs=1e-3)
        assert row["grad_log_mean"] == pytest.approx(np.log(squared), abs=1e-3)
        assert row["epistemic_mean"] == pytest.approx(2 * float(value) + np.log(squared), abs=1e-3)
        assert row["aleatoric_mean"] == pytest.approx(float(value) + np.log(-np.expm1(float(value))), abs=1e-2)
        first = score(model, [(prompt, ids)], reduction="first")
        assert row["epistemic_first"] == pytest.approx(first.log_epistemic[0], abs=1e-3)
        assert row["head_grad_log_mean"] < row["grad_log_mean"]
        assert 0 <= row["p_true"] <= 1
        assert row["num_params"] == sum(leaf.size for leaf in jax.tree.leaves(model.params))


def test_published_scores_are_those_of_the_library_for_each_answer_alone(model, answered):
    cell, items, questions = answered
    encoder = open_encoder("tiny")
    all_models = Models(model, Judges(encoder, None))
    rows = score_published(cell, all_models, items, questions, lambda share: None).numbers["questions"]
    assert {"rauq", "exgrad", "paragrad", "eigenscore", "sar", "cocoa_sum"} <= rows[0].keys()
    assert not {"degmat", "semgrad"} & rows[0].keys()  # no classifier of entailment, and two layers alone
    for item, one, row in zip(items, questions, rows, strict=True):
        samples = [Answer(each["text"], each["ids"], np.array(each["log_p"]), True) for each in one["samples"]]
        prompt = answer_prompt(item.question, "alias", "few_shot")
        names = [name for name in row if name != "index"]
        alone = baselines(
            model, [prompt], [one["greedy"]["ids"]], [samples], names, questions=[item.question], similarity=encoder
        )
        for name in names:
            assert row[name] == pytest.approx(alone.scores[name][0], rel=1e-3, abs=1e-4), name


def test_an_empty_answer_has_no_score_and_no_label(model, answered):
    cell, items, questions = answered
    empty = [one | {"greedy": {"text": " .", "ids": [], "log_p": [], "ended": True}} for one in questions]
    nothing = lambda share: None  # noqa: E731
    rows = score_answers(cell, model, items, empty, nothing).numbers["questions"]
    assert all("epistemic_mean" not in row for row in rows)
    all_models = Models(model, Judges(open_encoder("tiny"), None))
    assert score_published(cell, all_models, items, empty, nothing).numbers["questions"] == [
        {"index": one["index"]} for one in empty
    ]
    judged = judge(cell, all_models.judges, items, empty, nothing).numbers["questions"]
    assert {row["state"] for row in judged} == {"empty"}
    assert all("right" not in row for row in judged)


def test_an_empty_sample_weighs_nothing_where_log_p_weighs(answered):
    cell, items, questions = answered
    nothing = {"text": "", "ids": [], "log_p": [], "ended": True}
    samples = [
        {"text": text, "ids": [1], "log_p": [log_p], "ended": True} for text, log_p in (("yes", -2.0), ("no", -3.0))
    ]

    def entropies(samples):
        one = questions[0] | {"samples": samples}
        judged = judge(cell, Judges(open_encoder("tiny"), None), items[:1], [one], lambda share: None)
        return {name: value for name, value in judged.numbers["questions"][0].items() if "entropy" in name}

    without, beside = entropies(samples), entropies([*samples, nothing])
    assert without["naive_entropy"] == beside["naive_entropy"] == 2.5
    assert without["semantic_entropy"] == beside["semantic_entropy"] < np.log(2)
    assert beside["semantic_entropy_discrete"] > without["semantic_entropy_discrete"]
    assert entropies([nothing]).keys() == {"semantic_entropy_discrete"}
    assert entropies([]) == {}


def test_multiple_choice_by_the_log_probability_of_every_reference(model):
    asked = load_questions("sample_truthful")
    cell = replace(CELL, kind="references", benchmark="sample_truthful")
    item = asked.items[0]
    (row,) = score_choices(cell, model, [item], [], lambda share: None).numbers["questions"]
    prompt = answer_prompt(item.question, "references", "few_shot")
    found = score(model, [(prompt, f" {answer}") for answer in (*item.answers, *item.incorrect)], reduction="answer")
    p = np.exp(found.log_probability)
    true = len(item.answers)
    assert row["mc1"] == bool(p[0] > p[true:].max())
    assert row["mc2"] == pytest.approx(p[:true].sum() / p.sum(), rel=1e-3)


def test_a_block_is_traced_and_checked_both_ways(model):
    ids = model.tokenizer.encode(" Mercury")
    items = [Question(i, f"Which planet is it? {i}", ("Mercury",), ()) for i in range(3)]
    answered = [{"index": i, "greedy": {"text": "Mercury", "ids": ids}} for i in range(2)]
    answered.append({"index": 2, "greedy": {"text": "", "ids": []}})
    cell = QaCell(TINY, "asked", "alias", None, "0", 0, 3, study="trace")
    seen = []
    found = trace_answers(cell, model, items, answered, seen.append)
    json.dumps(found.numbers, allow_nan=False)
    assert seen[-1] == 1
    assert [set(row) for row in found.numbers["questions"]] == [{"index", "pieces", "features"}] * 2 + [{"index"}]
    series = trace_numbers.split_arrays(found.numbers, found.arrays)
    assert set(series) == {0, 1}
    assert all(len(values) == len(ids) for values in series[1].values())
    (check,) = found.numbers["checks"]
    assert check["worst"] < 4
    assert check["tokens"] == len(ids)
    later = trace_answers(QaCell(TINY, "asked", "alias", None, "0", 20, 1), model, items[:1], answered[:1], seen.append)
    assert later.numbers["checks"] == []


# the command


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run: its folder, and the paths that it printed."""
    out = tmp_path_factory.mktemp("qa") / "whole"
    process = started(out, stdout=subprocess.PIPE)
    printed = process.communicate()[0].decode().splitlines()
    assert process.returncode == 0
    return out, [Path(line) for line in printed]


@pytest.mark.slow
def test_the_smoke_run_and_again(whole, capsys):
    out, printed = whole
    names = {path.name for path in printed}
    assert {"table.csv", "summary.csv", "summary.md", "auroc.csv", "answers.jsonl"} <= names
    assert {"auroc.png", "provenance.json"} <= names
    rows = table(out)
    assert len(rows) == 8
    assert {row["state"] for row in rows} <= {"answered", "refused", "empty"}
    assert all("question" not in row for row in rows)  # whoever publishes a table does not publish the questions
    lines = [json.loads(line) for line in (out / "qa" / "answers.jsonl").read_text().splitlines()]
    assert len(lines) == 8
    assert {"question", "greedy", "samples"} <= lines[0].keys()
    summary = (out / "qa" / "summary.md").read_text()
    assert not re.search(r"\bnan\b", summary.lower())
    before = (out / "qa" / "table.csv").read_bytes()
    status, said = run(["--out", out, "--limit", "4"], capsys)
    assert status == 0
    assert "jobs are finished already" in said.err
    assert (out / "qa" / "table.csv").read_bytes() == before


def test_broken_lines_are_said_and_the_run_goes_on(tmp_path, capsys):
    good = [{"question": f"What is {i}?", "answer": "seven", "aliases": []} for i in range(3)]
    lines = [json.dumps(row) for row in good]
    path = tmp_path / "own.jsonl"
    long = json.dumps({"question": "Why? " * 2000, "answer": "seven"})
    path.write_text("\n".join([*lines, "{broken", lines[0], '{"question": "No answer?"}', long]) + "\n")
    status, said = run(["--out", tmp_path / "out", "--questions", path], capsys)
    assert status == 0
    for line in (4, 5, 6):
        assert f"own.jsonl line {line}" in said.err
    summary = (tmp_path / "out" / "qa" / "summary.md").read_text()
    assert "own.jsonl line 4" in summary
    assert "own question 6: the prompt has" in summary  # it fills the context; the others are answered
    assert "so there is no AUROC" in summary  # one class only: the tiny model knows none of these
    assert not (tmp_path / "out" / "qa" / "auroc.png").exists()
    assert [row["state"] for row in table(tmp_path / "out")] == ["answered"] * 3 + ["empty"]


def test_two_files_of_one_name_are_refused(tmp_path, capsys):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "own.jsonl").write_text(json.dumps({"question": f"Is it {folder}?", "answer": "yes"}))
    paths = [word for folder in ("a", "b") for word in ("--questions", tmp_path / folder / "own.jsonl")]
    status, said = run(["--out", tmp_path / "out", *paths], capsys)
    assert status == 1
    assert "two files of questions are called own" in said.err
    other = tmp_path / "other.jsonl"
    other.write_bytes(paths[1].read_bytes())
    status, said = run(["--out", tmp_path / "out", *paths[:2], "--questions", other], capsys)
    assert status == 1
    assert f"{paths[1]} and {other} hold the same questions; give one of them" in said.err


@pytest.mark.slow
def test_a_kill_between_the_stages_changes_nothing(whole):
    """kill -9 after 4 finished cells: answers are kept, some of the scores and judgements are not there."""
    whole, out = whole[0], whole[0].with_name("killed")
    process = started(out)
    while finished(out) < 4 and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert 4 <= finished(out) < finished(whole)
    assert started(out).wait() == 0
    for name in ("table.csv", "auroc.csv", "tests.csv", "correlations.csv", "answers.jsonl"):
        one, other = ((folder / "qa" / name) for folder in (whole, out))
        assert one.exists() == other.exists()
        assert not one.exists() or one.read_bytes() == other.read_bytes()


def started(out, stdout=subprocess.DEVNULL):
    """A run in a process of its own."""
    line = [sys.executable, "-m", "experiments", "qa", "--preset", "smoke", "--executor", "local", "--limit", "4"]
    return subprocess.Popen([*line, "--out", str(out)], cwd=ROOT, stdout=stdout, stderr=subprocess.DEVNULL)


def finished(out):
    return len(list((out / "cells").glob("*.json")))
