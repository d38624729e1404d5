"""The command `isouq`, on a tiny random Llama that is made here without torch."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

pytest.importorskip("tyro")
tokenizers = pytest.importorskip("tokenizers")
safetensors = pytest.importorskip("safetensors.numpy")

from isouq import text  # noqa: E402
from isouq.cli import _rows, _score, main  # noqa: E402
from isouq.cli._closing import Tally  # noqa: E402
from isouq.cli._output import Output  # noqa: E402
from isouq.cli._progress import Screen  # noqa: E402

ROOT = Path(__file__).parents[1]
NUMBERS = ("log_probability", "probability", "aleatoric", "epistemic", "log_aleatoric", "log_epistemic", "token_log_p")
WORDS = "the capital of France is Paris and the capital of Norway is Oslo; das schöne Zürich 🐎\n"
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"


def make_llama(folder, seed=0, end_bias=False, layers=2, context=64):
    """Layers of width 16. end_bias: the likeliest token is always the end."""
    folder.mkdir()
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([WORDS] * 3, trainer)
    backend.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<end>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    vocab, width, inner = backend.get_vocab_size(), 16, 24
    config = {
        "architectures": ["LlamaForCausalLM"], "vocab_size": vocab, "hidden_size": width, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (vocab, width), "lm_head.weight": (vocab, width)}
    for i in range(layers):
        layer = f"model.layers.{i}"
        shapes |= {f"{layer}.self_attn.{n}_proj.weight": (width if n in "qo" else 8, width) for n in "qkvo"}
        shapes |= {f"{layer}.mlp.{n}_proj.weight": (inner, width) for n in ("gate", "up")}
        shapes[f"{layer}.mlp.down_proj.weight"] = (width, inner)
    tensors = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    norms = [f"model.layers.{i}.{n}_layernorm.weight" for i in range(layers) for n in ("input", "post_attention")]
    tensors |= {name: np.ones(width, np.float32) for name in [*norms, "model.norm.weight"]}
    tensors["lm_head.weight"] *= 2
    if end_bias:
        tensors["model.norm.weight"] *= 0  # all logits are 0, and the lowest id among equals is the end's
    safetensors.save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def model(llama):
    return text.load(str(llama))


@pytest.fixture(scope="module", autouse=True)
def without_cache():
    """JAX's own belongs to the process; a subprocess tests it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_score, "keep_compiled_programs", lambda: None)
        patch.delenv("ISOUQ_TRACEBACK", raising=False)
        yield


def write(path, rows):
    lines = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def parse(line):
    return json.loads(line, parse_constant=pytest.fail)


def read(path):
    return [parse(line) for line in path.read_bytes().splitlines()]


def arguments(llama, source, out, *more):
    return ["score", "--model", str(llama), "--input", str(source), "--output", str(out), "--batch-size", "2",
            "--max-new-tokens", "6", *more]  # fmt: skip


def assert_same(rows, others):
    """Equal but for rounding."""
    assert len(rows) == len(others)
    for a, b in zip(rows, others, strict=True):
        assert {k: v for k, v in a.items() if k not in NUMBERS} == {k: v for k, v in b.items() if k not in NUMBERS}
        assert list(a) == list(b)
        for name in NUMBERS:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-5, atol=1e-7)


MESSAGES = [{"role": "user", "content": "the capital of Norway"}]
ROWS = [
    {"prompt": "the capital of France is", "answer": " Paris", "id": "a", "gold": ["Paris", 1.5, None]},
    {"prompt": MESSAGES, "answer": " Oslo; das schöne 🐎"},
    {"prompt": "the capital of Norway is the capital of", "tag": "schön\u2028🐎"},
    {"prompt": "das", "answer": [5, 9, 11]},
    {"prompt": MESSAGES, "answer": None},
]


@pytest.fixture(scope="module")
def scored(llama, tmp_path_factory):
    """ROWS and what an uninterrupted run makes of them."""
    folder = tmp_path_factory.mktemp("scored")
    source = write(folder / "in.jsonl", ROWS)
    assert main([*arguments(llama, source, folder / "out.jsonl"), "--quiet"]) == 0
    return source, folder / "out.jsonl"


def test_rows_are_those_of_the_library_in_the_order_of_the_input(llama, model, scored):
    rows = read(scored[1])
    assert [row["line"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["generated"] for row in rows] == [False, False, True, False, True]
    answers = text.generate(model, [ROWS[2]["prompt"], ROWS[4]["prompt"]], max_new_tokens=6)
    assert [rows[2]["token_ids"], rows[4]["token_ids"]] == [a.ids for a in answers]
    assert [rows[2]["answer"], rows[4]["answer"]] == [a.text for a in answers]
    given = [row.get("answer") for row in ROWS]
    given[2], given[4] = (a.ids for a in answers)
    assert [rows[0]["answer"], rows[1]["answer"], rows[3]["token_ids"]] == [given[0], given[1], given[3]]
    scores = text.score(model, [(row["prompt"], answer) for row, answer in zip(ROWS, given, strict=True)])
    for name in NUMBERS[:-1]:
        np.testing.assert_allclose([row[name] for row in rows], getattr(scores, name), rtol=1e-5)
    for row, log_p in zip(rows, scores.token_log_p, strict=True):
        np.testing.assert_allclose(row["token_log_p"], log_p, rtol=1e-5, atol=1e-7)
        assert row["num_tokens"] == len(row["token_ids"]) == len(row["token_log_p"])
    assert [rows[0]["id"], rows[0]["gold"], rows[2]["tag"]] == ["a", ["Paris", 1.5, None], "schön\u2028🐎"]
    settings = {"max_new_tokens": 6, "temperature": 0.0, "seed": None, "stop": []}
    assert [row["settings"] for row in rows] == [None, None, settings, None, settings]
    assert {(r["model"], r["reduction"], r["select"], r["dtype"]) for r in rows} == {
        (str(llama), "mean", None, "float32")
    }


def test_options_reach_the_library(llama, model, tmp_path):
    source = write(tmp_path / "in.jsonl", ROWS[:1])
    options = ["--reduction", "first", "--select", r"layers\.1", "--no-remat", "--quiet"]
    assert main(arguments(llama, source, tmp_path / "new folder" / "out.jsonl", *options)) == 0
    (row,) = read(tmp_path / "new folder" / "out.jsonl")
    expected = text.score(model, [(ROWS[0]["prompt"], " Paris")], "first", r"layers\.1")
    np.testing.assert_allclose(row["log_epistemic"], expected.log_epistemic[0], rtol=1e-5)
    assert (row["reduction"], row["select"]) == ("first", r"layers\.1")


def test_samples_depend_on_the_seed_and_the_line_alone(llama, tmp_path):
    sampling = ("--temperature", "1", "--seed", "3", "--quiet")
    source = write(tmp_path / "in.jsonl", [ROWS[0], *[{"prompt": "das schöne"}] * 3])
    assert main(arguments(llama, source, tmp_path / "all.jsonl", *sampling)) == 0
    answers = [row["token_ids"] for row in read(tmp_path / "all.jsonl")[1:]]
    assert len(set(map(tuple, answers))) > 1
    alone = write(tmp_path / "one.jsonl", [b"", b" ", *[{"prompt": "das schöne"}] * 2])
    assert main(arguments(llama, alone, tmp_path / "out.jsonl", *sampling)) == 0
    assert [(row["line"], row["token_ids"]) for row in read(tmp_path / "out.jsonl")] == [
        (3, answers[1]),
        (4, answers[2]),
    ]


def test_broken_rows_are_named_and_the_rest_goes_on(llama, tmp_path, capsys):
    broken = [
        (b"{", "not JSON"),
        (b"[1]", "a JSON object is expected, not a list"),
        (b'{"answer": "x"}', '"prompt" is missing'),
        (b'{"prompt": 3}', '"prompt" is a number'),
        (b'{"prompt": ""}', '"prompt" is empty'),
        (b'{"prompt": []}', "no messages"),
        (b'{"prompt": [{"role": "user"}]}', 'lacks a "role" or a "content"'),
        (b'{"prompt": "das", "answer": ""}', '"answer" is empty'),
        (b'{"prompt": "das", "answer": 3}', '"answer" is neither'),
        (b'{"prompt": "das", "answer": [1, true]}', '"answer" is neither'),
        (b'{"prompt": "das", "answer": [100000]}', "token ids below"),
        (b'{"prompt": "das", "chat_template_kwargs": {"a": 1}}', 'needs a "prompt" of messages'),
        (b'{"prompt": "das", "chat_template_kwargs": [1]}', "is no object of variables"),
        (b'{"prompt": "das \xff"}', "not UTF-8: byte 0xff at position 16"),
        (b'{"prompt": "das \\ud83d"}', "surrogate"),
        (b'{"prompt": "das", "x": NaN}', "NaN is no JSON number"),
        (b'{"prompt": "das", "x": 1e999}', "beyond the range"),
        (b'{"prompt": ' + b"[" * 100_000, "nested too deep"),
        (json.dumps({"prompt": "x" * 100}).encode(), "the model's context is 64"),
        (json.dumps({"prompt": "das", "answer": "x" * 100}).encode(), "the model's context is 64"),
    ]
    source = write(tmp_path / "in.jsonl", [b"\xef\xbb\xbf" + json.dumps(ROWS[0]).encode(), *(raw for raw, _ in broken)])
    assert main(arguments(llama, source, tmp_path / "out.jsonl")) == 1
    assert [row["line"] for row in read(tmp_path / "out.jsonl")] == [1]
    err = capsys.readouterr().err.splitlines()
    for line, (_, reason) in enumerate(broken, 2):
        (told,) = [text for text in err if text.startswith(f"{source}:{line}: ")]
        assert reason in told
    assert err[-1].startswith(
        f"isouq: 1 of {len(broken) + 1} rows scored in {tmp_path / 'out.jsonl'}; {len(broken)} rows had errors; "
        "this run went through 4 rows in "  # the others were no rows
    )


@pytest.mark.parametrize(
    ("names", "shown"), [(["question"] * 3, '"question"'), (["text", "Prompt", "text"], '"Prompt" or "text"')]
)
def test_a_prompt_of_another_name_in_every_row_is_one_line(llama, tmp_path, capsys, monkeypatch, names, shown):
    monkeypatch.setattr(_score, "_load", pytest.fail)
    source = write(tmp_path / "in.jsonl", [{"id": 1, name: "das"} for name in names])
    assert main(arguments(llama, source, tmp_path / "out.jsonl")) == 2
    assert capsys.readouterr().err == (
        f'isouq: no row of --input {source} has a field "prompt"; rename {shown} to "prompt"\n'
    )
    assert not (tmp_path / "out.jsonl").exists()


def test_a_prompt_of_another_name_in_one_row_is_an_error_of_that_row(llama, tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", [{"question": "das"}, ROWS[0], {"Instruction": "das", "answer": "x"}])
    assert main(arguments(llama, source, tmp_path / "out.jsonl")) == 1
    err = capsys.readouterr().err.splitlines()
    assert err[0] == f'{source}:1: the field "prompt" is missing; rename "question" to "prompt"'
    assert err[1] == f'{source}:3: the field "prompt" is missing; rename "Instruction" to "prompt"'


@pytest.mark.parametrize(
    ("total", "kept", "refused", "failed", "scored", "timing", "interrupted", "expected"),
    [
        (3, 0, 0, (), (1, 2, 3), "in 6 s", False, "3 of 3 rows scored in out; in 6 s"),
        (3, 1, 0, (), (1, 2, 3), "in 6 s", False, "3 of 3 rows scored in out, 1 of them before this run; in 6 s"),
        (3, 3, 0, (), (1, 2, 3), None, False, "3 of 3 rows scored in out; nothing was left to do"),
        (12, 0, 2, (3, 4), range(5, 13), "in 6 s", False, "8 of 12 rows scored in out; 4 rows had errors, 2 of them "
         "kept in the file without scores; in 6 s"),
        (2, 0, 2, (), (), None, False, "0 of 2 rows scored; 2 rows had errors; nothing was left to do"),
        (2, 0, 0, (1, 2), (), "in 6 s", False, "0 of 2 rows scored in out; 2 rows had errors, kept in the file without "
         "scores; in 6 s"),
        (2, 1, 1, (), (2,), None, False, "1 of 2 rows scored in out; 1 row had an error; nothing was left to do"),
        (9, 1, 1, (2,), (1, 3), None, True, "interrupted; 2 of 9 rows scored in out, 1 of them before this run; 2 rows "
         "had errors, 1 of them kept in the file without scores; 5 left, and the same command goes on from there"),
        (9, 0, 0, (4,), (), None, True, "interrupted; 0 of 9 rows scored; 9 left, and the same command goes on from "
         "there"),  # killed before the row with the error was written
    ],
)  # fmt: skip
def test_the_closing_line_counts_every_row_once(
    tmp_path, total, kept, refused, failed, scored, timing, interrupted, expected
):
    with Output(tmp_path / "out", total) as output:
        written = [*scored, *(() if expected.endswith("9 left, and the same command goes on from there") else failed)]
        output.append([{"line": line} for line in written])
        tally = Tally(total, kept, refused, set(failed))
        assert tally.closing(output, "out", timing, interrupted) == expected


def test_line_numbers_are_no_emoji_and_lines_added_during_the_run_are_left_out(tmp_path, capsys):
    screen = Screen(quiet=False)
    screen.error("in.jsonl:100: :smile:")
    assert capsys.readouterr().err == "in.jsonl:100: :smile:\n"
    path = write(tmp_path / "in.jsonl", ROWS)
    assert [row.line for row in _rows.read(path, 2)] == [1, 2]


def test_a_second_run_waits_outside_while_the_first_orders_its_rows(tmp_path, monkeypatch):
    path = tmp_path / "out.jsonl"
    with Output(path, 2) as first:
        first.append([{"line": 2}])
        first.append([{"line": 1}])
        replace = os.replace

        def meanwhile(*names):
            with pytest.raises(ValueError, match="another isouq score is writing"):
                Output(path, 2)
            replace(*names)

        monkeypatch.setattr(os, "replace", meanwhile)
        first.finish()
    assert [json.loads(line)["line"] for line in path.read_text().splitlines()] == [1, 2]


def test_an_empty_answer_is_an_error_and_not_asked_for_again(tmp_path, capsys, monkeypatch):
    ending = make_llama(tmp_path / "ending", end_bias=True)
    source = write(tmp_path / "in.jsonl", [{"prompt": "das"}])
    run = arguments(ending, source, tmp_path / "out.jsonl")
    assert main(run) == 1
    (row,) = read(tmp_path / "out.jsonl")
    assert row["error"] == (
        'the model gave an empty answer to a prompt that is text; it is a chat model: write "prompt": '
        '[{"role": "user", "content": "..."}], so that its chat template is used'
    )
    assert all(row[name] is None for name in NUMBERS)
    before = (tmp_path / "out.jsonl").read_bytes()
    monkeypatch.setattr(_score, "_load", pytest.fail)
    assert main(run) == 1
    assert (tmp_path / "out.jsonl").read_bytes() == before
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"isouq: 0 of 1 rows scored in {tmp_path / 'out.jsonl'}; 1 row had an error, kept in the file without scores; "
        "nothing was left to do"
    )
    (ending / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    (tmp_path / "out.jsonl").unlink()
    monkeypatch.undo()
    assert main(run) == 1
    assert read(tmp_path / "out.jsonl")[0]["error"] == "the model gave an empty answer"


def test_a_finished_output_is_left_as_it_is_and_no_model_is_loaded(llama, scored, monkeypatch, capsys):
    source, out = scored
    before = out.read_bytes(), out.stat().st_ino
    monkeypatch.setattr(_score, "_load", pytest.fail)
    assert main(arguments(llama, source, out)) == 0
    assert (out.read_bytes(), out.stat().st_ino) == before
    assert "nothing was left to do" in capsys.readouterr().err


def test_kept_rows_a_torn_line_and_any_order_end_in_the_whole(llama, scored, tmp_path):
    source, out = scored
    _, second, _, fourth, fifth = out.read_bytes().splitlines(keepends=True)
    partial = tmp_path / "out.jsonl"
    kept = fifth.replace(b'"num_tokens": 6', b'"num_tokens": 66')  # so that it shows if it is computed again
    assert kept != fifth
    partial.write_bytes(kept + second + fourth[:-20])
    assert main(arguments(llama, source, partial, "--quiet")) == 0
    assert partial.read_bytes().splitlines(keepends=True)[4] == kept
    partial.write_bytes(partial.read_bytes().replace(kept, fifth))
    assert_same(read(partial), read(out))
    assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl"]


@pytest.mark.parametrize(
    ("more", "rows", "expected"),
    [
        (["--reduction", "answer"], ROWS, "there reduction is mean, now answer"),
        (["--select", "norm"], ROWS, "there select is None, now norm"),
        (["--dtype", "bfloat16"], ROWS, "there dtype is float32, now bfloat16"),
        (["--stop", "x"], ROWS, "there stop is [], now ['x']"),
        (["--max-new-tokens", "7"], ROWS, "there max_new_tokens is 6, now 7"),
        (["--temperature", "1"], ROWS, "there temperature is 0.0, now 1.0"),
        ([], [ROWS[0] | {"prompt": "other"}, *ROWS[1:]], "line 1 of"),
        ([], [ROWS[0] | {"answer": " Oslo"}, *ROWS[1:]], "line 1 of"),
        ([], [*ROWS[:3], ROWS[3] | {"answer": [5, 9, 12]}, ROWS[4]], "line 4 of"),
        ([], [*ROWS[:2], ROWS[2] | {"answer": " x"}, *ROWS[3:]], "line 3 of"),
        ([], [b"{", *ROWS[1:]], "line 1 of"),
        ([], [b"", *ROWS[1:]], "line that is blank"),
        ([], ROWS[:4], "holds a score of line 5 and the input has 4"),
    ],
)
def test_an_output_of_another_run_is_refused_and_untouched(llama, scored, tmp_path, capsys, more, rows, expected):
    out, source = tmp_path / "out.jsonl", write(tmp_path / "in.jsonl", rows)
    out.write_bytes(scored[1].read_bytes() + b'{"line": 3, "torn')
    before = out.read_bytes()
    assert main(arguments(llama, source, out, *more)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("isouq: ")
    assert expected in last
    assert "choose another --output or delete it" in last
    assert out.read_bytes() == before


def test_another_model_is_refused(scored, tmp_path, capsys):
    other = make_llama(tmp_path / "other", seed=1)
    before = scored[1].read_bytes()
    assert main(arguments(other, *scored)) == 2
    assert f"and this is {other}" in capsys.readouterr().err
    assert scored[1].read_bytes() == before


@pytest.mark.parametrize("content", [b"notes\n", b'{"prompt": "mine"}\n', b"notes", b'{"line": "x"}\n'])
def test_a_file_of_the_user_is_refused_and_untouched(llama, scored, tmp_path, capsys, content):
    (tmp_path / "out.jsonl").write_bytes(content)
    assert main(arguments(llama, scored[0], tmp_path / "out.jsonl")) == 2
    assert "no row of isouq score" in capsys.readouterr().err
    assert (tmp_path / "out.jsonl").read_bytes() == content


def test_what_can_be_checked_is_checked_before_the_model(llama, scored, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(_score, "_load", pytest.fail)
    source, out = scored[0], tmp_path / "out.jsonl"
    (tmp_path / "empty").write_bytes(b"\n\n")
    cases = [
        (arguments(llama, tmp_path / "none", out), "does not exist"),
        (arguments(llama, tmp_path, out), "is not a file"),
        (arguments(llama, tmp_path / "empty", out), "has no rows"),
        (arguments(llama, source, tmp_path), "is not a file"),
        (arguments(llama, source, source), "is the input"),
        (arguments(llama, source, source / "out"), "cannot write to --output"),
        (arguments(llama, source, "/dev/full"), "is not a file"),
        (arguments(llama, source, out, "--batch-size", "0"), "--batch-size is 0"),
        (arguments(llama, source, out, "--temperature", "nan"), "--temperature is nan"),
        (arguments(llama, source, out, "--seed", "-1"), "--seed is -1"),
        (arguments(llama, source, out, "--select", "("), "not a regular expression"),
        (arguments(llama, source, out, "--chat-template-kwargs", "{"), "--chat-template-kwargs: not JSON"),
        (arguments(llama, source, out, "--chat-template-kwargs", "[1]"), "--chat-template-kwargs: a JSON object"),
        (arguments(llama, source, out, "--chat-template-kwargs", '{"messages": 1}'), "has messages"),
        (arguments(llama, source, out, "--select", "nothing"), "matches none of"),
        (arguments(tmp_path / "nowhere", source, out), "does not exist"),
        (["explain", str(llama), "--prompt-tokens", "60"], "the model's context is 64"),
    ]
    for given, expected in cases:
        assert main(given) == 2, given
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("isouq: ")
        assert expected in line
    assert not out.exists()


@pytest.fixture
def no_compilation_cache():
    """Write no compiled programs: their files would meet the limit too."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", before)
    compilation_cache.reset_cache()


def test_a_full_disk_loses_nothing(llama, tmp_path, capsys, no_compilation_cache):
    source, out = write(tmp_path / "in.jsonl", ROWS * 4), tmp_path / "out.jsonl"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        assert main(arguments(llama, source, out, "--quiet")) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    kept = read(out)
    assert 0 < len(kept) < 20
    assert f"the {len(kept)} rows in it are kept" in capsys.readouterr().err
    assert main(arguments(llama, source, out, "--quiet")) == 0
    rows = read(out)
    assert [row["line"] for row in rows] == list(range(1, 21))
    assert all(row in rows for row in kept)


def test_own_fields_that_are_replaced_are_named(llama, tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", [ROWS[0] | {"model": "mine"}])
    run = arguments(llama, source, tmp_path / "out.jsonl")
    assert main(run) == main(run) == 0
    assert "fields model are replaced" in capsys.readouterr().err


SWITCH = TEMPLATE + "{% if enable_thinking is defined and not enable_thinking %}={% endif %}"
OFF = {"enable_thinking": False}


@pytest.fixture(scope="module")
def switched(llama, tmp_path_factory):
    """The model with a chat template that has a switch."""
    folder = tmp_path_factory.mktemp("models") / "switched"
    shutil.copytree(llama, folder)
    settings = {"eos_token": "<end>", "chat_template": SWITCH}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_variables_reach_the_chat_template_from_the_row_and_the_option(switched, tmp_path, capsys):
    chat = {"prompt": [{"role": "user", "content": "das"}], "answer": "x"}
    rows = [chat, chat | {"chat_template_kwargs": OFF}, chat | {"chat_template_kwargs": {"enable_thinking": True}}]
    source = write(tmp_path / "in.jsonl", [*rows, {"prompt": "das", "answer": "x"}])
    plain = text.load(str(switched))
    scores = [text.score(plain, [(chat["prompt"], "x")], chat_template_kwargs=v).epistemic[0] for v in ({}, OFF)]
    assert scores[0] != scores[1]
    run = arguments(switched, source, tmp_path / "out.jsonl", "--quiet")
    assert main(run) == 0
    assert capsys.readouterr().err == ""
    out = read(tmp_path / "out.jsonl")
    assert [row["chat_template_kwargs"] for row in out] == [None, OFF, {"enable_thinking": True}, None]
    np.testing.assert_allclose([row["epistemic"] for row in out[:3]], [*scores, scores[0]], rtol=1e-5)
    option = ("--chat-template-kwargs", json.dumps(OFF))
    assert main([*run, *option]) == 2
    assert "written with other options (there chat_template_kwargs is None" in capsys.readouterr().err
    assert main([*arguments(switched, source, tmp_path / "other.jsonl", "--quiet"), *option]) == 0
    out = read(tmp_path / "other.jsonl")
    np.testing.assert_allclose([row["epistemic"] for row in out[:3]], [*scores[1:] * 2, scores[0]], rtol=1e-5)


def test_messages_that_call_tools_or_have_parts(switched, tmp_path):
    template = "{% for m in messages %}{{ m.content[0].text if m.content else m.tool_calls[0].name }}{% endfor %}"
    parts = {"role": "user", "content": [{"type": "text", "text": "das"}]}
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "Oslo"}]}
    row = {"prompt": [parts, call], "answer": "x", "chat_template_kwargs": {"chat_template": template}}
    source = write(tmp_path / "in.jsonl", [row, {"prompt": "dasOslo", "answer": "x"}])
    assert main(arguments(switched, source, tmp_path / "out.jsonl")) == 0
    one, other = read(tmp_path / "out.jsonl")
    assert one["epistemic"] == pytest.approx(other["epistemic"], rel=1e-5)


def test_variables_of_the_option_without_a_chat_are_said(llama, tmp_path, capsys):
    run = arguments(llama, write(tmp_path / "in.jsonl", [{"prompt": "das", "answer": "x"}]), tmp_path / "out.jsonl")
    assert main([*run, "--quiet", "--chat-template-kwargs", json.dumps(OFF)]) == 0
    assert "note: --chat-template-kwargs has no effect: no prompt is a list of messages" in capsys.readouterr().err


def test_fields_that_are_not_read_are_named_once(llama, tmp_path, capsys):
    rows = [ROWS[0] | {"id": 1, "anwser": "x"}, ROWS[0] | {"id": 2, "chat_template_kwarg": OFF, "Prompt": "das"}]
    source = write(tmp_path / "in.jsonl", rows)
    assert main(arguments(llama, source, tmp_path / "out.jsonl", "--quiet")) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "isouq: note: fields of the input that are not read, only copied: Prompt (did you mean prompt?), "
        "anwser (did you mean answer?), chat_template_kwarg (did you mean chat_template_kwargs?), gold, id; "
        "read are prompt, answer, chat_template_kwargs"
    )
    assert read(tmp_path / "out.jsonl")[1]["id"] == 2


def start(run, **more):
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"} | more
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # so that the command makes its own
    command = [sys.executable, "-m", "isouq", *run]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    try:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)


def wait_for_rows(process, out, count=4):
    ends = time.monotonic() + 120
    while not (out.exists() and out.read_bytes().count(b"\n") >= count):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < ends
        time.sleep(0.005)


def test_killed_interrupted_and_run_at_once(llama, tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", ROWS * 200)
    out, cache = tmp_path / "out.jsonl", tmp_path / "cache"
    run = arguments(llama, source, out)
    process = start(run, ISOUQ_CACHE=str(cache))
    wait_for_rows(process, out)
    assert main(run) == 2
    assert "another isouq score is writing" in capsys.readouterr().err
    process.kill()
    process.communicate()
    killed = out.read_bytes().count(b"\n")
    assert (cache / "xla").is_dir()

    process = start(run, ISOUQ_CACHE=str(cache))
    wait_for_rows(process, out, killed + 4)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=120)[1]
    kept = out.read_bytes().count(b"\n")
    assert process.returncode == 130, err
    assert (
        f"isouq: interrupted; {kept} of 1000 rows scored in {out}, {killed} of them before this run; "
        f"{1000 - kept} left, and the same command goes on from there" in err
    )
    assert "Traceback" not in err
    assert killed < kept < 1000

    assert main([*run, "--quiet"]) == 0
    whole = tmp_path / "whole.jsonl"
    assert main([*arguments(llama, source, whole), "--quiet"]) == 0
    assert_same(read(out), read(whole))


def test_a_missing_extra_is_named_in_one_line():
    code = "import sys; sys.modules['tyro'] = None; from isouq.cli import main; sys.exit(main(['score']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr == "isouq: isouq.text needs tyro; pip install 'isouq[text]'\n"


def test_fetch_tells_where_the_weights_are(llama, capsys):
    assert main(["fetch", str(llama)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"name: {llama}"
    assert lines[-1] == str(llama)


def test_explain_counts_parameters_and_memory(llama, model, capsys):
    assert main(["explain", str(llama), "--prompt-tokens", "9", "--answer-tokens", "7", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    sizes = [leaf.size for leaf in jax.tree.leaves(model.params)]
    assert facts["total_parameters"] == sum(sizes) == sum(row["parameters"] for row in facts["parameters"])
    assert all(row["parameters"] == np.prod(row["shape"]) * (row["layers"] or 1) for row in facts["parameters"])
    assert (facts["family"], facts["layers"], facts["context"]) == ("llama", 2, 64)
    memory = facts["memory"]
    assert memory["parameter_bytes"] == 4 * sum(sizes)
    assert memory["remat_bytes"] > 0
    assert memory["no_remat_bytes"] > 0
    assert main(["explain", str(llama), "--prompt-tokens", "9", "--answer-tokens", "7", "--no-remat"]) == 0
    table = capsys.readouterr().out
    assert f"{sum(sizes):,}" in table
    assert "layers.*.attention.q.kernel" in table


def test_every_command_and_option_has_help(capsys):
    for command in ("score", "fetch", "explain"):
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0
        assert f"isouq {command}" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["score", "--nonsense"])
    assert ended.value.code == 2


def test_a_traceback_only_on_request(monkeypatch, capsys):
    monkeypatch.setenv("ISOUQ_TRACEBACK", "1")
    assert main(["fetch", "/nowhere/at all"]) == 2
    assert "Traceback" in capsys.readouterr().err
