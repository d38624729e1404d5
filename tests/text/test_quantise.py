"""A GGUF model written with another quantisation loads, holds what was rounded, and is refused where it cannot be."""

import gguf
import numpy as np
import pytest
from test_gguf_families import converted

from experiments.answers import quantise
from isouq.text import load
from isouq.text.loading.checkpoint import open_checkpoint


@pytest.mark.parametrize("name", ["gemma2", "mixtral"])
def test_quantised_matrices_are_rounded_again_and_all_else_is_kept(tmp_path, name):
    converted(tmp_path, name, "Q8_0")
    quantise.quantise(tmp_path / "m.gguf", "Q4_0", tmp_path / "q4.gguf")
    one, other = (open_checkpoint(tmp_path / file) for file in ("m.gguf", "q4.gguf"))
    assert one.config == other.config
    assert one.tokenizer_parts() == other.tokenizer_parts()
    assert one.shapes == other.shapes
    source, written = (gguf.GGUFReader(tmp_path / file).tensors for file in ("m.gguf", "q4.gguf"))
    kinds = {tensor.tensor_type.name for tensor in written}
    assert kinds == {"F32", "Q4_0"}
    for before, after in zip(source, written, strict=True):
        values = gguf.dequantize(before.data, before.tensor_type)
        kept = before.tensor_type == gguf.GGMLQuantizationType.F32
        assert after.tensor_type.name == ("F32" if kept else "Q4_0")
        wanted = values if kept else gguf.dequantize(gguf.quantize(values, after.tensor_type), after.tensor_type)
        np.testing.assert_array_equal(gguf.dequantize(after.data, after.tensor_type), wanted)
    ids = np.arange(7)
    logits, rounded = (load(str(tmp_path / file)).logits(ids) for file in ("m.gguf", "q4.gguf"))
    assert np.isfinite(rounded).all()
    assert np.abs(logits - rounded).max() > 1e-3


def test_the_command_line_and_what_it_refuses(tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["quantise", *map(str, arguments)])
        return quantise.main(), capsys.readouterr()

    converted(tmp_path, "llama3", "Q8_0")
    assert run(tmp_path / "m.gguf", "Q5_1", tmp_path / "q5.gguf")[0] == 0
    assert load(str(tmp_path / "q5.gguf")).config == load(str(tmp_path / "m.gguf")).config
    for source, target, message in [
        (tmp_path, tmp_path / "x.gguf", "is no GGUF file"),
        (tmp_path / "m.gguf", tmp_path / "m.gguf", "is the source itself"),
        (tmp_path / "nowhere.gguf", tmp_path / "x.gguf", "does not exist"),
        (tmp_path / "m.gguf", tmp_path / "no" / "x.gguf", "No such file"),
    ]:
        status, said = run(source, "Q4_0", target)
        (line,) = said.err.splitlines()
        assert (status, message in line) == (1, True), line
    assert not list(tmp_path.glob("*.tmp"))
