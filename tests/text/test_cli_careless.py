"""`isouq score --scores` in the hands of a careless user."""

import pytest
from test_cli import arguments, make_llama, read, write

from isouq.cli import _score, main


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module", autouse=True)
def without_cache():
    """JAX's own belongs to the process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_score, "keep_compiled_programs", lambda: None)
        yield


ROW = {"prompt": "das", "answer": " Paris"}


@pytest.fixture(scope="module")
def scored(llama, tmp_path_factory):
    """A row of an output with the score nll, which an earlier run wrote and a later one reads."""
    folder = tmp_path_factory.mktemp("scored")
    out = folder / "out.jsonl"
    assert main([*arguments(llama, write(folder / "in.jsonl", [ROW]), out), "--scores", "nll", "--quiet"]) == 0
    (row,) = read(out)
    return row


def test_scores_that_were_copied_from_the_input_are_not_taken_for_those_of_the_run(llama, scored, tmp_path, capsys):
    old = ROW | {"scores": {"nll": -9.0}, "score_settings": scored["score_settings"]}
    source, out = write(tmp_path / "in.jsonl", [old]), tmp_path / "out.jsonl"
    assert main(arguments(llama, source, out)) == 0
    assert read(out)[0]["scores"] == {"nll": -9.0}
    capsys.readouterr()
    assert main([*arguments(llama, source, out), "--scores", "nll"]) == 2
    assert "(there scores is None, now ['nll'])" in capsys.readouterr().err
    out.unlink()
    assert main([*arguments(llama, source, out), "--scores", "nll"]) == 0
    assert read(out)[0]["scores"] == scored["scores"]
    capsys.readouterr()
    assert main(arguments(llama, source, out)) == 2
    assert "there --scores is given, now not" in capsys.readouterr().err


@pytest.mark.parametrize("settings", [5, None, "x", {}])
@pytest.mark.parametrize("more", [[], ["--scores", "nll"]])
def test_a_field_score_settings_of_the_user_is_only_copied(llama, tmp_path, capsys, settings, more):
    source, out = write(tmp_path / "in.jsonl", [ROW | {"score_settings": settings}]), tmp_path / "out.jsonl"
    assert main(arguments(llama, source, out)) == 0
    assert read(out)[0]["score_settings"] == settings
    capsys.readouterr()
    assert main([*arguments(llama, source, out), *more]) == (2 if more else 0)
    assert ("(there scores is None, now ['nll'])" in capsys.readouterr().err) == bool(more)


@pytest.mark.parametrize("more", [[], ["--scores", "nll"]])
def test_a_damaged_row_with_settings_and_no_scores(llama, tmp_path, capsys, more):
    source, out = write(tmp_path / "in.jsonl", [ROW]), tmp_path / "out.jsonl"
    out.write_text('{"line": 1, "score_settings": 5}\n')
    assert main([*arguments(llama, source, out), *more]) == 2
    assert "line 1 of " in (text := capsys.readouterr().err)
    assert "is not what" in text


def test_more_new_tokens_than_an_int32_holds(llama, tmp_path):
    source = write(tmp_path / "in.jsonl", [{"prompt": "das"}])
    tokens = {}
    for count in (10**12, 60):
        out = tmp_path / f"{count}.jsonl"
        assert main([*arguments(llama, source, out), "--max-new-tokens", str(count)]) == 0
        tokens[count] = read(out)[0]["token_ids"]
    assert tokens[10**12][:60] == tokens[60]
