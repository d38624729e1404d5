"""`isouq score --scores`, on tiny random models: against quantities measured row by row, resumed, and counted."""

import json
import shutil

import jax
import pytest
import test_entailment
from safetensors.numpy import load_file, save_file
from test_cli import assert_same, make_llama, parse, read, start, wait_for_rows, write

from isouq import text
from isouq.cli import _score, main
from isouq.text import generation
from isouq.text.prompts import encode_pairs, encode_prompt
from isouq.text.scores import passes
from isouq.text.scores.baselines import passes_of

ALL = list(text.SCORES)
NO_SIMILARITY = ["token_sar", "sar", "cocoa_sum", "cocoa_mean", "cocoa_entropy"]
MESSAGES = [{"role": "user", "content": "the capital of Norway"}]
ROWS = [
    {"prompt": "the capital of France is", "answer": " Paris"},
    {"prompt": MESSAGES, "answer": " Oslo; das schöne"},
    {"prompt": "the capital of Norway is the capital of"},
    {"prompt": "das", "answer": [5, 9, 11]},
    {"prompt": MESSAGES},
    {"prompt": "the capital of France is"},
    {"prompt": "schöne"},
]
NUM_SAMPLES = 3


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of a language model of four layers, a classifier of entailment, and an encoder."""
    folder = tmp_path_factory.mktemp("models")
    make_llama(folder / "llama", layers=4, context=256)
    for name, changes in {"nli": {}, "encoder": {"architectures": ["BertModel"]}}.items():
        (folder / name).mkdir()
        test_entailment.write(folder / name, **changes)
    return folder


@pytest.fixture(scope="module", autouse=True)
def without_cache():
    """JAX's own belongs to the process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_score, "keep_compiled_programs", lambda: None)
        yield


def arguments(folders, source, out, *more, scores="all", model="llama"):
    given = ["score", "--model", str(folders / model), "--input", str(source), "--output", str(out)]
    given += ["--batch-size", "2", "--max-new-tokens", "6", *more]
    return [*given, "--scores", scores] if scores else given


def everything(folders):
    return ["--samples", str(NUM_SAMPLES), "--entailment", str(folders / "nli"), "--similarity",
            str(folders / "encoder")]  # fmt: skip


def assert_scores(rows, others, rtol=2e-3):
    assert len(rows) == len(others)
    for row, other in zip(rows, others, strict=True):
        assert list(row["scores"]) == list(other["scores"])
        for name, value in row["scores"].items():
            if value is None or other["scores"][name] is None:
                assert value == other["scores"][name], name
            else:
                assert value == pytest.approx(other["scores"][name], rel=rtol, abs=1e-4), (row["line"], name)


def without_scores(rows):
    return [{name: value for name, value in row.items() if name not in ("scores", "score_settings")} for row in rows]


@pytest.fixture(scope="module")
def scored(folders, tmp_path_factory):
    """ROWS with all scores, by an uninterrupted run."""
    folder = tmp_path_factory.mktemp("scored")
    source = write(folder / "in.jsonl", ROWS)
    assert main(arguments(folders, source, folder / "out.jsonl", *everything(folders), "--quiet")) == 0
    return source, folder / "out.jsonl"


def test_rows_have_the_scores_of_the_library_row_by_row(folders, scored):
    rows = read(scored[1])
    model = text.load(str(folders / "llama"))
    entailment, encoder = text.load_entailment(str(folders / "nli")), text.load_encoder(str(folders / "encoder"))
    for line, row in enumerate(rows, 1):
        prompt = ROWS[line - 1]["prompt"]
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), line)
        ids = encode_prompt(model, prompt)
        samples = [
            generation.generate_rows(model, [ids], jax.random.fold_in(key, j)[None], 6, (1.0, 1.0), ())[0]
            for j in range(NUM_SAMPLES)
        ]
        wanted = text.baselines(
            model, [prompt], [row["token_ids"]], [samples], entailment=entailment, similarity=encoder
        ).scores
        assert list(row["scores"]) == ALL == list(wanted)
        for name, value in row["scores"].items():
            assert value == pytest.approx(wanted[name][0], rel=2e-3, abs=1e-4), (line, name)
        assert row["scores"]["epistemic"] == pytest.approx(row["log_epistemic"], abs=1e-4)
        assert row["score_settings"] == {
            "samples": NUM_SAMPLES, "seed": 0, "max_new_tokens": 6, "stop": [], "entailment": str(folders / "nli"),
            "similarity": str(folders / "encoder"),
        }  # fmt: skip


def test_the_other_fields_are_those_of_a_run_without_scores(folders, scored, tmp_path):
    assert main(arguments(folders, scored[0], tmp_path / "out.jsonl", "--quiet", scores=None)) == 0
    assert_same(without_scores(read(scored[1])), read(tmp_path / "out.jsonl"))


@pytest.fixture
def counted(monkeypatch):
    """How often each pass ran, and how many rows were answered and scored."""
    counts = dict.fromkeys([*passes.PASSES, "generate_rows", "score_rows"], 0)
    for name, each in passes.PASSES.items():

        def counting(inputs, values, name=name, function=each.function):
            counts[name] += 1
            return function(inputs, values)

        monkeypatch.setitem(passes.PASSES, name, each._replace(function=counting))

    def rows_of(module, name, kept):
        function = getattr(module, name)

        def counting(model, rows, *more):
            counts[kept] += len(rows)
            return function(model, rows, *more)

        monkeypatch.setattr(module, name, counting)

    rows_of(_score.generation, "generate_rows", "generate_rows")
    rows_of(_score.scoring, "score_rows", "score_rows")
    return counts


def test_each_pass_runs_once_a_group_and_answers_are_generated_once(folders, scored, tmp_path, counted, capsys):
    rows = [row | {"prompt": "the capital of France is"} for row in ROWS[:1] * 2] + [{"prompt": "das schöne"}] * 4
    source = write(tmp_path / "in.jsonl", rows)
    assert main(arguments(folders, source, tmp_path / "out.jsonl", *everything(folders))) == 0
    groups = 3
    # The gradient is that of the other fields; samples are drawn in `passes`, which has its own generate_rows.
    assert counted == dict.fromkeys(passes.PASSES, groups) | {"gradient": 0, "generate_rows": 4, "score_rows": 6}
    table = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().err.splitlines() if line.strip()}
    assert table["nll"][:4] == ["1", "0", "0", "0"]
    assert table["grad_log_p"][:4] == ["1", "1", "0", "0"]
    assert table["eigenscore"][:2] == [str(1 + NUM_SAMPLES), "0"]
    assert float(table["naive_entropy"][2]) > 1
    assert float(table["degmat"][3]) == NUM_SAMPLES * (NUM_SAMPLES - 1)
    assert all(0 < float(table[name][4]) < 100 for name in ALL)


@pytest.mark.parametrize(("option", "passes_run"), [(("--reduction", "answer"), 0), (("--reduction", "first"), 1),
                                                    (("--select", "norm"), 1)])  # fmt: skip
def test_scores_mean_the_same_under_every_reduction_and_selection(
    folders, scored, tmp_path, counted, option, passes_run
):
    source = write(tmp_path / "in.jsonl", ROWS[:1])
    run = arguments(folders, source, tmp_path / "out.jsonl", *option, "--quiet", scores="epistemic,grad_log_p")
    assert main(run) == 0
    (row,) = read(tmp_path / "out.jsonl")
    wanted = read(scored[1])[0]["scores"]
    assert row["scores"] == pytest.approx({name: wanted[name] for name in ("epistemic", "grad_log_p")}, abs=1e-4)
    assert row["log_epistemic"] != pytest.approx(wanted["epistemic"], abs=1e-2)
    assert counted["gradient"] == passes_run


def test_samples_depend_on_the_seed_and_the_line_alone(folders, tmp_path):
    row = {"prompt": "das schöne", "answer": " Paris"}
    more = ("--quiet", "--samples", "2")
    whole = write(tmp_path / "in.jsonl", [ROWS[0], *[row] * 4])
    assert main(arguments(folders, whole, tmp_path / "all.jsonl", *more, scores="naive_entropy")) == 0
    values = [each["scores"]["naive_entropy"] for each in read(tmp_path / "all.jsonl")[1:]]
    assert len(set(values)) == 4
    alone = write(tmp_path / "alone.jsonl", [b"", b"", row])
    for seed, same in (("0", True), ("1", False)):
        out = tmp_path / f"{seed}.jsonl"
        assert main(arguments(folders, alone, out, *more, "--seed", seed, scores="naive_entropy")) == 0
        (found,) = read(out)
        assert (found["scores"]["naive_entropy"] == pytest.approx(values[1], rel=1e-4)) is same


@pytest.fixture(scope="module")
def broken(folders):
    """The language model with one token, "q", whose embedding overflows, so that what follows is not a number."""
    folder = folders / "broken"
    shutil.copytree(folders / "llama", folder)
    tensors = load_file(folder / "model.safetensors")
    (token,) = text.load(str(folder)).tokenizer.encode("q")
    tensors["model.embed_tokens.weight"][token] = 3e38
    save_file(tensors, folder / "model.safetensors")
    return token


def test_a_broken_row_costs_itself_alone(folders, scored, broken, tmp_path, capsys):
    rows = [ROWS[0], {"prompt": "x" * 300}, {"prompt": "das q"}, {"prompt": "das", "answer": [broken, 5]}, ROWS[3]]
    rows += [b"{", {"prompt": "das", "answer": [0, 0]}]
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    assert main(arguments(folders, source, out, *everything(folders), model="broken")) == 1
    found = {row["line"]: row for row in read(out)}
    assert sorted(found) == [1, 3, 4, 5, 7]
    assert found[3]["error"].startswith("the model gave an empty answer")  # it ends where no logit is a number
    assert found[4]["error"] == "the score is not a number"
    assert found[3]["scores"] == found[4]["scores"] == dict.fromkeys(ALL)
    wanted = read(scored[1])
    for name in (name for name in ALL if "samples" not in passes_of([name])):
        for line, other in ((1, wanted[0]), (5, wanted[3])):
            assert found[line]["scores"][name] == pytest.approx(other["scores"][name], rel=2e-3, abs=1e-4), name
    assert found[7]["scores"]["nll"] > 0  # its text is empty
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(
        f"isouq: 3 of 7 rows scored in {out}; 4 rows had errors, 2 of them kept in the file without scores; "
        "this run went through 6 rows in "
    )


def test_kept_rows_go_on_and_the_table_is_of_this_run(folders, scored, tmp_path, capsys):
    source, out = scored[0], tmp_path / "out.jsonl"
    lines = scored[1].read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:5]) + lines[5][:-30])
    assert main(arguments(folders, source, out, *everything(folders))) == 0
    assert out.read_bytes().splitlines(keepends=True)[:5] == lines[:5]
    assert_scores(read(out), read(scored[1]))
    assert_same(without_scores(read(out)), without_scores(read(scored[1])))
    err = capsys.readouterr().err
    assert "means over 2 answers of this run" in err
    assert f"isouq: 7 of 7 rows scored in {out}, 5 of them before this run; this run went through 2 rows in " in err


@pytest.mark.parametrize(
    ("scores", "more", "expected"),
    [
        (None, (), "there --scores is given, now not"),
        ("all", ("--samples", "4"), "there samples is 3, now 4"),
        ("all", ("--seed", "1"), "there seed is 0, now 1"),
        ("nll,epistemic", ("--samples",), "there --scores has also nll_mean, perplexity"),
        ("all", ("--similarity",), "there --scores has also token_sar, sar, cocoa_sum, cocoa_mean, cocoa_entropy"),
    ],
)
def test_other_scores_and_settings_are_refused_and_the_file_untouched(
    folders, scored, tmp_path, monkeypatch, capsys, scores, more, expected
):
    monkeypatch.setattr(_score, "_load", pytest.fail)
    out = tmp_path / "out.jsonl"
    out.write_bytes(scored[1].read_bytes())
    options = everything(folders)
    if scores != "all":
        options, more = [], ()
    elif more == ("--similarity",):
        options, more = options[:-2], ()
    assert main(arguments(folders, scored[0], out, *options, *more, scores=scores)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line
    assert "choose another --output or delete it" in line
    assert out.read_bytes() == scored[1].read_bytes()


def test_scores_cannot_be_added_to_an_output_without_them(folders, tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", [ROWS[0] | {"scores": "mine", "id": 1}])
    run = arguments(folders, source, tmp_path / "out.jsonl", scores=None)
    assert main(run) == 0
    assert read(tmp_path / "out.jsonl")[0]["scores"] == "mine"  # a field of the user's, where the run writes none
    assert main(run) == 0
    capsys.readouterr()
    assert main([*run, "--scores", "nll"]) == 2
    assert "(there scores is None, now ['nll'])" in capsys.readouterr().err


def test_what_can_be_checked_is_checked_before_anything_is_loaded(folders, scored, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_score, "_load", pytest.fail)
    shallow, two = tmp_path / "shallow", tmp_path / "two"
    make_llama(shallow)
    two.mkdir()
    test_entailment.write(two, id2label={"0": "entailment", "1": "not_entailment"})
    cases = [
        ("nil", (), "--scores is 'nil'; expected one of 'nll', "),
        ("all,nll", (), "--scores has all and other names"),
        (",", (), "--scores is empty"),
        ("degmat", (), "the score degmat needs --entailment MODEL"),
        ("ccp", ("--entailment", str(two)), 'the score ccp needs an --entailment model with a label "contradiction"'),
        ("sar", (), "the score sar needs --similarity ENCODER"),
        ("eigenscore", ("--samples", "0"), "the score eigenscore needs --samples of at least 1"),
        ("nll", ("--samples", "-1"), "--samples is -1"),
        ("nll", ("--samples", "3"), "--samples is given and none of --scores uses it"),
        ("nll", ("--similarity", "x"), "--similarity is given and none of --scores uses it"),
        ("degmat", ("--entailment", str(tmp_path / "nowhere")), "does not exist"),
        (None, ("--samples", "3"), "--samples is given without --scores"),
        (None, ("--entailment", "x"), "--entailment is given without --scores"),
        ("semgrad", ("--model", str(shallow)), "the score semgrad needs a model of at least 3 layers"),
    ]
    for scores, more, expected in cases:
        assert main(arguments(folders, scored[0], tmp_path / "out.jsonl", *more, scores=scores)) == 2, expected
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("isouq: ")
        assert expected in line
    assert not (tmp_path / "out.jsonl").exists()


def test_all_means_what_inputs_are_given_for_and_names_the_rest(folders, tmp_path, capsys):
    make_llama(tmp_path / "shallow")
    source, out = write(tmp_path / "in.jsonl", ROWS[:1]), tmp_path / "out.jsonl"
    shallow = ("--model", str(tmp_path / "shallow"))
    entailment = ("--entailment", str(folders / "nli"))
    assert main(arguments(folders, source, out, *shallow, *entailment, "--samples", "2")) == 0
    (row,) = read(out)
    upper = ["semgrad", "semgrad_mean", "hybridgrad", "hybridgrad_mean"]
    assert list(row["scores"]) == [name for name in ALL if name not in [*upper, *NO_SIMILARITY]]
    assert row["scores"]["p_true"] is None  # the context of 64 has no room for its prompt
    notes = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert notes == [
        f"isouq: note: scores left out: {', '.join(upper)} (needs a model of at least 3 layers); "
        f"{', '.join(NO_SIMILARITY)} (needs --similarity ENCODER)"
    ]
    quiet = tmp_path / "quiet.jsonl"
    assert main(arguments(folders, source, quiet, "--samples", "0", "--quiet")) == 0
    assert capsys.readouterr().err == ""
    (row,) = read(quiet)
    assert not {"naive_entropy", "eigenscore", *NO_SIMILARITY} & set(row["scores"])
    assert row["score_settings"] == dict.fromkeys(row["score_settings"])


def test_p_true_is_the_same_alone_and_beside_scores_that_draw_samples(folders, scored, tmp_path):
    out = tmp_path / "out.jsonl"
    assert main(arguments(folders, scored[0], out, "--samples", "3", "--quiet", scores="p_true")) == 0
    alone, beside = ([row["scores"]["p_true"] for row in read(path)] for path in (out, scored[1]))
    assert alone == pytest.approx(beside, abs=1e-5)
    none = tmp_path / "none.jsonl"
    assert main(arguments(folders, scored[0], none, "--samples", "0", "--quiet", scores="p_true")) == 0
    assert [row["scores"]["p_true"] for row in read(none)] != pytest.approx(beside, abs=1e-5)
    default = tmp_path / "default.jsonl"
    assert main(arguments(folders, scored[0], default, "--quiet", scores="p_true")) == 0
    assert {row["score_settings"]["samples"] for row in read(default)} == {10}


def test_a_template_variable_of_one_row_reaches_its_samples(folders, tmp_path):
    folder = folders / "switched"
    shutil.copytree(folders / "llama", folder)
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if not deep %} is the capital of{% endif %}"
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>", "chat_template": template}))
    chat = [{"role": "user", "content": "das"}]
    rows = [{"prompt": chat, "answer": "x", "chat_template_kwargs": {"deep": deep}} for deep in (True, False)]
    plain = [{"prompt": "das", "answer": "x"}, {"prompt": "das is the capital of", "answer": "x"}]
    names = "nll,epistemic,semgrad,naive_entropy,eigenscore"
    found = []
    for name, each in {"chat": rows, "plain": plain}.items():
        out = tmp_path / f"{name}.jsonl"
        source = write(tmp_path / f"{name}.in", each)
        assert main(arguments(folders, source, out, "--quiet", scores=names, model="switched")) == 0
        found.append(read(out))
    assert_scores(*found)
    assert found[0][0]["scores"]["nll"] != pytest.approx(found[0][1]["scores"]["nll"])


def test_an_answer_that_changes_the_prompts_last_token_is_read_as_it_is_scored(folders, tmp_path):
    model, prompt, answer = text.load(str(folders / "llama")), "the capital of F", "rance is"
    start, row = encode_prompt(model, prompt), encode_pairs(model, [(prompt, answer)])[0]
    assert row.first < len(start)
    source, out = write(tmp_path / "in.jsonl", [{"prompt": prompt, "answer": answer}]), tmp_path / "out.jsonl"
    assert main(arguments(folders, source, out, "--quiet", scores="nll_mean,epistemic")) == 0
    (found,) = read(out)
    assert found["scores"]["nll_mean"] == pytest.approx(-found["log_probability"], rel=1e-4)
    assert found["scores"]["epistemic"] == pytest.approx(found["log_epistemic"], rel=1e-4)
    whole = text.baselines(model, [prompt], [answer], scores=["nll_mean", "epistemic"]).scores
    assert found["scores"] == pytest.approx({name: values[0] for name, values in whole.items()}, rel=1e-4)


def compilations(function):
    """The number of programs that a call compiles."""
    events = []

    def listen(event, _, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        function()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return len(events)


def test_groups_of_equal_shapes_share_programs(folders, tmp_path):
    names = [name for name in ALL if name not in NO_SIMILARITY]  # how many texts differ is left to chance

    def run(count):
        source = write(tmp_path / f"{count}.in", [{"prompt": "the capital of France is"}] * count)
        out = tmp_path / f"{count}.jsonl"
        more = ("--quiet", "--samples", "2", "--entailment", str(folders / "nli"))
        assert main(arguments(folders, source, out, *more, scores=",".join(names))) == 0

    run(4)
    assert compilations(lambda: run(12)) <= 2


def test_killed_in_the_middle_it_goes_on_to_the_same_file(folders, tmp_path):
    source, out = write(tmp_path / "in.jsonl", ROWS * 6), tmp_path / "out.jsonl"
    run = arguments(folders, source, out, *everything(folders))
    process = start(run, ISOUQ_CACHE=str(tmp_path / "cache"))
    wait_for_rows(process, out)
    process.kill()
    process.communicate()
    killed = [parse(line) for line in out.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    assert 0 < len(killed) < len(ROWS) * 6
    assert main([*run, "--quiet"]) == 0
    rows = read(out)
    assert all(row in rows for row in killed)
    whole = tmp_path / "whole.jsonl"
    assert main([*arguments(folders, source, whole, *everything(folders)), "--quiet"]) == 0
    assert_scores(rows, read(whole))
    assert_same(without_scores(rows), without_scores(read(whole)))
