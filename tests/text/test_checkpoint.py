"""Checkpoints: what is written is read back under Hugging Face's names, and damage gives one clear line."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from damage import one_line, opens_or_says_why
from safetensors.numpy import save_file

from isouq.text.loading import _extras
from isouq.text.loading.checkpoint import open_checkpoint


def weights(rng):
    return {
        "a.weight": rng.normal(size=(3, 4)).astype(np.float32),
        "b.weight": rng.normal(size=(5,)).astype(ml_dtypes.bfloat16),
        "c.weight": rng.normal(size=(2, 2)).astype(np.float16),
        "d.weight": rng.normal(size=(2,)),
        "position_ids": np.arange(4)[None],
    }


@pytest.fixture
def single(tmp_path):
    tensors = weights(np.random.default_rng(0))
    (tmp_path / "config.json").write_text('{"model_type": "bert", "auto_map": {}}')
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path, tensors


@pytest.fixture
def sharded(tmp_path):
    tensors = weights(np.random.default_rng(1))
    (tmp_path / "config.json").write_text("{}")
    files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    weight_map = {name: files[i % 2] for i, name in enumerate(tensors)}
    for file in files:
        save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return tmp_path, tensors


@pytest.mark.parametrize("layout", ["single", "sharded"])
def test_safetensors_come_back_as_they_were_stored(layout, request):
    folder, tensors = request.getfixturevalue(layout)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.shapes == {name: value.shape for name, value in tensors.items()}
    for name, value in tensors.items():
        read = checkpoint.read(name)
        assert read.dtype == value.dtype
        np.testing.assert_array_equal(read, value)
    assert checkpoint.tokenizer_parts() == {"folder": folder}
    with pytest.raises(KeyError):
        checkpoint.read("nothing")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[1]", "holds a list"),
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"quantization_config": {"quant_method": "gptq"}}', "quantised (gptq)"),
    ],
)
def test_a_wrong_config_is_named(single, text, said):
    (single[0] / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json") as error:
        open_checkpoint(single[0])
    assert said in one_line(error)


def test_a_config_that_is_not_text(single):
    (single[0] / "config.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match=r"config\.json is not JSON") as error:
        open_checkpoint(single[0])
    one_line(error)


def damage(raw, how):
    header = int.from_bytes(raw[:8], "little")
    if how == "empty":
        return b""
    if how == "cut in the header":
        return raw[:40]
    if how == "cut in the weights":
        return raw[:-3]
    if how == "huge header":
        return struct.pack("<Q", 1 << 62) + raw[8:]
    if how == "not JSON":
        return raw[:8] + b"x" * header + raw[8 + header :]
    if how == "offset beyond the end":
        return raw.replace(b'"data_offsets":[0,', b'"data_offsets":[9,', 1)
    assert how == "fp8"
    text = b'{"a.weight":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}'
    return struct.pack("<Q", len(text)) + text + b"\0\0"


@pytest.mark.parametrize(
    "how",
    ["empty", "cut in the header", "cut in the weights", "huge header", "not JSON", "offset beyond the end", "fp8"],
)
def test_a_damaged_weight_file_is_named(single, how):
    file = single[0] / "model.safetensors"
    raw = file.read_bytes()
    file.write_bytes(damage(raw, how))
    assert file.read_bytes() != raw
    with pytest.raises(ValueError, match=r"model\.safetensors") as error:
        open_checkpoint(single[0])
    assert ("F8_E4M3" if how == "fp8" else "damaged") in one_line(error)


@pytest.mark.parametrize("place", ["../model.safetensors", "/etc/model.safetensors", "..", 3, None, "weights.bin"])
def test_an_index_stays_inside_its_folder(sharded, place):
    (sharded[0] / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a.weight": place}}))
    with pytest.raises(ValueError, match=r"places 'a\.weight' in") as error:
        open_checkpoint(sharded[0])
    one_line(error)


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": []}])
def test_an_index_without_a_map(sharded, index):
    (sharded[0] / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="has no weight_map"):
        open_checkpoint(sharded[0])


def test_a_shard_that_is_missing_or_lacks_a_tensor(sharded):
    folder, tensors = sharded
    second = folder / "model-00002-of-00002.safetensors"
    save_file({"other": tensors["a.weight"]}, second)
    with pytest.raises(ValueError, match=r"lacks 'b\.weight'") as error:
        open_checkpoint(folder)
    one_line(error)
    second.unlink()
    with pytest.raises(FileNotFoundError, match=r"00002-of-00002\.safetensors is missing"):
        open_checkpoint(folder)


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors"):
        open_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match="pickled weights only; isouq never unpickles"):
        open_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="never unpickles"):
        open_checkpoint(tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="weights alone"):
        open_checkpoint(tmp_path / "model.safetensors")


def test_a_missing_extra_is_one_line():
    with pytest.raises(ImportError, match=r"isouq\.text needs nothing_here; pip install 'isouq\[text\]'"):
        _extras.require("nothing_here.inside")


def test_any_damage_of_the_header_is_a_value_error_or_harmless(single):
    file = single[0] / "model.safetensors"
    raw = file.read_bytes()
    opens_or_says_why(file, single[0], raw, 8 + int.from_bytes(raw[:8], "little"))
