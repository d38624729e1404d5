"""Rotary positions: every variant against transformers' tables, and both ways in which a config.json describes it."""

import importlib

import jax.numpy as jnp
import numpy as np
import pytest
from twins_text import (
    LLAMA3,
    LONG,
    LONGROPE,
    PARTIAL,
    SHORT,
    SMALL,
    build,
    random_ids,
    torch_log_p,
    torch_logits,
)

from isouq.text import load, score
from isouq.text.models import decoder_config, rope

YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=16)
VARIANTS = {
    "default": ("Llama", dict(rope_type="default", rope_theta=500.0)),
    "linear": ("Llama", dict(rope_type="linear", rope_theta=1e4, factor=3.0)),
    "dynamic": ("Llama", dict(rope_type="dynamic", rope_theta=1e4, factor=2.0)),
    "yarn": ("Llama", YARN),
    "yarn, cut nowhere": ("Llama", YARN | dict(truncate=False, beta_fast=8, beta_slow=2)),
    "yarn, mscale": ("Llama", YARN | dict(mscale=0.7, mscale_all_dim=1.3)),
    "yarn, attention": ("Llama", YARN | dict(attention_factor=1.4)),
    "llama3": ("Llama", LLAMA3),
    "longrope": ("Phi3", LONGROPE),
    "longrope, part": ("Phi3", PARTIAL),
    "longrope, attention": ("Phi3", LONGROPE | dict(attention_factor=1.2)),
    "part": ("Phi3", dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.5)),
}


def read(family, **changes):
    config = {k: v for k, v in SMALL.items() if not k.endswith("_id")} | changes
    return decoder_config.from_config(config | {"architectures": [f"{family}ForCausalLM"]}).rope


def tables(found, length):
    return found.tables(jnp.arange(length), jnp.asarray(length))


@pytest.mark.parametrize("variant", VARIANTS)
def test_tables_equal_transformers(variant):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    family, parameters = VARIANTS[variant]
    changes = {"rope_parameters": parameters} | ({"original_max_position_embeddings": 16} if family == "Phi3" else {})
    config = getattr(transformers, f"{family}Config")(**(SMALL | changes))
    module = importlib.import_module(f"transformers.models.{family.lower()}.modeling_{family.lower()}")
    theirs = getattr(module, f"{family}RotaryEmbedding")(config)
    for length in (12, 16, 17, 64, 65, 100):
        wanted = theirs(torch.zeros(1), torch.arange(length)[None])
        for one, other in zip(tables(read(family, **changes), length), wanted, strict=True):
            assert one.dtype == jnp.float32
            np.testing.assert_allclose(one, other[0, :, : one.shape[1]], atol=2e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_old_and_new_files_say_the_same(variant):
    family, parameters = VARIANTS[variant]
    new = read(family, rope_parameters=parameters, original_max_position_embeddings=16)
    scaling = dict(parameters)
    old = {key: scaling.pop(key) for key in ("rope_theta", "partial_rotary_factor") if key in scaling}
    old["original_max_position_embeddings"] = 16
    assert read(family, rope_scaling=scaling, **old) == new
    scaling["type"] = scaling.pop("rope_type")
    assert read(family, rope_scaling=scaling, **old) == new
    if family == "Phi3" and scaling["type"] == "longrope":
        for name in ("su", "yarn"):
            assert read(family, rope_scaling=scaling | {"type": name}, model_type="phi3", **old) == new


def test_a_divisor_of_each_frequency_as_gguf_files_have_it():
    found = rope.from_config({"rope_scaling": {"rope_type": "frequencies", "factors": LONG}}, 8)
    plain = rope.from_config({"rope_scaling": None}, 8)
    angle = np.arange(9)[:, None] * 10000.0 ** (-np.arange(4) / 4)
    np.testing.assert_allclose(tables(found, 9)[1], np.sin(angle / LONG), atol=1e-5)
    np.testing.assert_allclose(tables(plain, 9)[1], np.sin(angle), atol=1e-5)


def test_a_turn_depends_on_the_distance_and_leaves_the_rest():
    x = np.random.default_rng(0).normal(size=(2, 1, 1, 8)).astype(np.float32)
    cos, sin = tables(read("Llama"), 9)
    q, k = (rope.turn(jnp.tile(one, (9, 1, 1)), cos, sin)[:, 0] for one in jnp.asarray(x))
    np.testing.assert_allclose(q[5] @ k[3], q[8] @ k[6], rtol=1e-4)
    part = rope.turn(jnp.tile(jnp.asarray(x[0]), (9, 1, 1)), cos[:, :3], sin[:, :3])
    np.testing.assert_array_equal(part[:, 0, 6:], np.tile(x[0, 0, 0, 6:], (9, 1)))


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        (dict(rope_type="spiral"), "rope_type is 'spiral'; expected one of default, linear, "),
        (dict(rope_type="linear"), "rope_scaling of type 'linear' lacks 'factor'"),
        (dict(rope_type="linear", factor="two"), "factor is 'two'; expected a finite number above 0"),
        (dict(rope_type="linear", factor=0.0), "factor is 0.0; expected"),
        (dict(rope_type="yarn", factor=-1.0), "factor is -1.0; expected"),
        (dict(rope_type="dynamic", factor=None), "rope_scaling of type 'dynamic' lacks 'factor'"),
        (LLAMA3 | dict(low_freq_factor=None), "lacks 'low_freq_factor'"),
        (LLAMA3 | dict(low_freq_factor=4.0), "high_freq_factor is 4.0; expected a finite number above 4"),
        (YARN | dict(beta_fast=1), "beta_fast is 1; expected a finite number above 1"),
        (dict(rope_type="longrope", short_factor=SHORT), "lacks 'long_factor'"),
        (dict(rope_type="longrope", short_factor=SHORT, long_factor=LONG[:2]), "long_factor has 2 numbers; expected"),
        (dict(rope_type="longrope", short_factor=[], long_factor=[]), "short_factor has 0 numbers; expected a list of"),
        (dict(rope_type="longrope", short_factor=[0.0] * 4, long_factor=LONG), r"short_factor\[0\] is 0.0; expected"),
        (dict(rope_type="longrope", short_factor=3, long_factor=LONG), "short_factor is 3; expected a list of 4"),
        ("linear", "rope_scaling is 'linear'; expected a dictionary"),
        (dict(rope_theta="much"), "rope_theta is 'much'; expected"),
        (dict(rope_theta=0), "rope_theta is 0; expected a finite number above 1"),
        (dict(rope_theta=float("nan")), "rope_theta is nan; expected"),
        (dict(partial_rotary_factor=1.5), "partial_rotary_factor 1.5 of a head of 8 is 12; expected an even number"),
        (dict(partial_rotary_factor=0.1), "partial_rotary_factor 0.1 of a head of 8 is 0; expected an even number"),
        (dict(original_max_position_embeddings="x"), "original_max_position_embeddings is 'x'; expected a whole"),
        (dict(original_max_position_embeddings=-4), "original_max_position_embeddings is -4; expected a whole"),
        (dict(rope_type=["linear"]), r"rope_type is \['linear'\]; expected one of"),
    ],
)
def test_bad_descriptions(scaling, message):
    with pytest.raises(ValueError, match=message) as error:
        read("Llama", rope_scaling=scaling)
    assert "\n" not in str(error.value)


ORIGINAL = "original_max_position_embeddings"
FACTORS = dict(type="longrope", short_factor=SHORT, long_factor=LONG)


@pytest.mark.parametrize(
    ("longest", "scaling", "more", "context"),
    [
        (4096, None, {}, 4096),
        (4096, dict(type="default"), {}, 4096),
        (2048, None, {"name": "Phi3", ORIGINAL: 4096}, 2048),
        (4096, dict(type="linear", factor=4.0), {}, 16384),
        (4096, dict(rope_type="linear", factor=2.5), {}, 10240),
        (16384, dict(type="linear", factor=4.0, original_max_position_embeddings=4096), {}, 16384),
        (16384, dict(type="linear", factor=4.0), {ORIGINAL: 4096}, 16384),
        (4096, dict(type="dynamic", factor=4.0), {}, 16384),
        (16384, dict(type="dynamic", factor=4.0, original_max_position_embeddings=4096), {}, 16384),
        (4096, dict(type="yarn", factor=4.0), {}, 16384),
        (32768, dict(type="yarn", factor=4.0, original_max_position_embeddings=32768), {}, 131072),
        (40960, dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32768), {}, 131072),  # Qwen 3
        (131072, dict(type="yarn", factor=4.0, original_max_position_embeddings=32768), {}, 131072),
        (131072, dict(type="yarn", factor=4.0), {ORIGINAL: 32768}, 131072),
        (131072, dict(type="yarn", original_max_position_embeddings=32768), {}, 131072),
        (131072, LLAMA3 | dict(factor=32.0, original_max_position_embeddings=8192), {}, 131072),  # Llama 3.2
        (8192, LLAMA3 | dict(factor=8.0, original_max_position_embeddings=8192), {}, 65536),
        (131072, FACTORS, {ORIGINAL: 4096}, 131072),
        (4096, FACTORS | dict(factor=32.0), {ORIGINAL: 4096}, 131072),
        (131072, FACTORS | dict(type="su", factor=32.0, original_max_position_embeddings=4096), {}, 131072),
        (131072, FACTORS | dict(type="yarn", original_max_position_embeddings=4096), {"name": "Phi3"}, 131072),
        (None, None, {}, 2048),
        (None, None, {"name": "Mistral"}, 131072),
        (None, dict(type="yarn", factor=4.0), {"name": "Qwen2"}, 131072),
    ],
)
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_the_context_is_stretched_once(key, longest, scaling, more, context):
    more = dict(more)
    name = more.pop("name", "Llama")
    assert read(name, max_position_embeddings=longest, **{key: scaling}, **more).context == context


def test_one_way_of_turning_for_each_type_of_layer():
    kinds = ["sliding_attention", "full_attention", "full_attention"]
    other = dict(rope_type="default", rope_theta=77.0)
    alike = dict(full_attention=YARN, sliding_attention=YARN)
    assert read("Llama", rope_parameters=alike, layer_types=kinds) == read("Llama", rope_parameters=YARN)
    assert read("Llama", rope_parameters=alike) == read("Llama", rope_parameters=YARN)
    unused = dict(full_attention=YARN, sliding_attention=other)
    full = kinds[1:] + kinds[1:2]
    assert read("Llama", rope_parameters=unused, layer_types=full) == read("Llama", rope_parameters=YARN)
    for layer_types in (kinds, None):
        with pytest.raises(ValueError, match="full_attention, sliding_attention layers are turned in different ways"):
            read("Llama", rope_parameters=unused, layer_types=layer_types)
    with pytest.raises(ValueError, match="sliding_attention layers are turned in different ways"):
        read("Llama", rope_parameters=dict(full_attention=YARN, sliding_attention=None), layer_types=kinds)


def test_the_old_way_counts_where_a_file_has_both():
    old = dict(type="linear", factor=2.0)
    assert read("Llama", rope_scaling=old, rope_parameters=YARN | dict(rope_theta=500.0)) == read(
        "Llama", rope_scaling=old, rope_theta=500.0
    )


@pytest.mark.parametrize(
    "variant", [name for name, (family, _) in VARIANTS.items() if family == "Llama" and name != "default"]
)
def test_logits_beyond_the_original_context_equal_transformers(variant, tmp_path):
    changes = dict(max_position_embeddings=16, num_hidden_layers=1, rope_parameters=dict(VARIANTS[variant][1]))
    if variant == "llama3":
        changes["rope_parameters"][ORIGINAL] = 16
    theirs = build(tmp_path, "Llama", **changes)
    ours, ids, pair = load(str(tmp_path)), random_ids(30), ("dxyz" * 5, "efg")
    assert ours.config.context_length == 16 * VARIANTS[variant][1]["factor"]
    row = ours.tokenizer.encode("".join(pair))  # the shorter first: transformers' dynamic never shrinks again
    log_p = torch_log_p(theirs, row, len(row) - 3)
    np.testing.assert_allclose(score(ours, [pair]).token_log_p[0], log_p.detach(), atol=1e-4)
    np.testing.assert_allclose(ours.logits(ids), torch_logits(theirs, ids), atol=1e-4)
