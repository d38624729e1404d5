"""Every family of encoders against transformers and torch, on small random models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from twins_encoder import CONFIGS, LENGTHS, batch, build, theirs

import isouq
from isouq.text.encoder import load_encoder
from isouq.text.models import deberta, encoder_config, mpnet

CASES = {name: (name, {}) for name in CONFIGS} | {
    "Electra of one width": ("Electra", dict(embedding_size=32)),
    "DebertaV2 with weights for distances": ("DebertaV2", dict(share_att_key=False, pos_att_type="p2c|c2p")),
    "DebertaV2 of p2c": ("DebertaV2", dict(share_att_key=False, pos_att_type=["p2c"], norm_rel_ebd="none")),
    "DebertaV2 of c2p": ("DebertaV2", dict(pos_att_type=["c2p"], type_vocab_size=2)),
    "DebertaV2 without buckets": ("DebertaV2", dict(position_buckets=-1, max_relative_positions=7)),
    "DebertaV2 of far distances": ("DebertaV2", dict(position_buckets=6, max_relative_positions=11)),
    "DebertaV2 of positions": ("DebertaV2", dict(relative_attention=False, position_biased_input=True)),
    "DebertaV2 of both": ("DebertaV2", dict(position_biased_input=True, pooler_hidden_act="tanh")),
    "ModernBert of biases": (
        "ModernBert",
        dict(attention_bias=True, mlp_bias=True, norm_bias=True, classifier_bias=True, classifier_activation="tanh"),
    ),
    "ModernBert of means": ("ModernBert", dict(classifier_pooling="mean", local_attention=5)),
    "ModernBert that sees all": ("ModernBert", dict(layer_types=["full_attention"] * 4)),
    "ModernBert of windows": (
        "ModernBert",
        dict(layer_types=["sliding_attention"] * 4, rope_parameters={"sliding_attention": {"rope_theta": 500.0}}),
    ),
    "ModernBert of an old file": (
        "ModernBert",
        dict(global_attn_every_n_layers=2, global_rope_theta=300.0, local_rope_theta=20.0, hidden_activation="relu"),
    ),
    "MPNet of more buckets": ("MPNet", dict(relative_attention_num_buckets=40)),
    "DebertaV2 of distances that no score reads": ("DebertaV2", dict(pos_att_type=[])),
}

SIZES = [
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "dim",
    "n_layers",
    "n_heads",
    "hidden_dim",
]


@pytest.mark.parametrize("case", CASES)
def test_hidden_states_equal_transformers(tmp_path, case):
    family, changes = CASES[case]
    model = build(tmp_path, f"{family}Model", **changes)
    encoder = load_encoder(str(tmp_path))
    assert encoder.pooling == "mean"
    assert set(encoder.params) == {"encoder"}
    kinds = getattr(model.config, "type_vocab_size", 0)
    ids, length, types = batch(model.config.pad_token_id, max(kinds, 1))
    types = types if kinds else None
    wanted = theirs(model, ids, length, types).last_hidden_state.detach().numpy()
    padded = jax.jit(jax.vmap(encoder.hidden, (None, 0, 0, None if types is None else 0)))(
        encoder.params, ids, length, types
    )
    for i, n in enumerate(LENGTHS):
        np.testing.assert_allclose(padded[i, :n], wanted[i, :n], atol=1e-4)
    n = LENGTHS[0]
    alone = jax.jit(encoder.hidden)(encoder.params, ids[0, :n], None, None if types is None else types[0, :n])
    np.testing.assert_allclose(padded[0, :n], alone, atol=3e-5)


@pytest.mark.parametrize("case", CASES)
def test_logits_and_their_gradients_equal_torch(tmp_path, case):
    family, changes = CASES[case]
    model = build(tmp_path, f"{family}ForSequenceClassification", **changes)
    encoder = load_encoder(str(tmp_path))
    assert encoder.pooling == changes.get("classifier_pooling", "cls")
    assert set(encoder.params) == {"encoder", "head"}
    ids, length, _ = batch(model.config.pad_token_id, 1)
    logits = theirs(model, ids, length).logits

    norms = []
    for row in logits:
        model.zero_grad()
        row[1].backward(retain_graph=True)
        norms.append(sum(float((p.grad**2).sum()) for p in model.parameters() if p.grad is not None))

    def logit(params, x):
        found = encoder.predict(params, x)
        return found[1], found

    norm = jax.vmap(isouq.value_and_grad_sq_norm(logit, has_aux=True), (None, 0))
    (_, found), got = jax.jit(norm)(encoder.params, {"ids": ids, "length": length})
    np.testing.assert_allclose(found, logits.detach(), atol=1e-4)
    np.testing.assert_allclose(got, norms, rtol=1e-4)


@pytest.mark.parametrize("family", ["Electra", "DebertaV2", "ModernBert", "MPNet"])
def test_the_ways_to_run_an_encoder_agree(tmp_path, family):
    build(tmp_path, f"{family}ForSequenceClassification")
    encoder = load_encoder(str(tmp_path))
    texts = ["a", "abc", "a longer text", "another one of more letters"]
    xs = encoder.encode_texts(texts)
    wanted = isouq.uncertainty(encoder.predict, encoder.params, xs, "multiclass", engine="vmap")
    lean = load_encoder(str(tmp_path), remat=True)
    for one in (encoder, lean):
        found = isouq.uncertainty(one.predict, one.params, xs, "multiclass")
        np.testing.assert_allclose(found.epistemic, wanted.epistemic, rtol=1e-4)
        np.testing.assert_allclose(found.probability, wanted.probability, rtol=1e-4)
    vectors = encoder.embed(texts, batch_size=2, normalize=False)
    alone = np.stack([encoder.embed([text], normalize=False)[0] for text in texts])
    np.testing.assert_allclose(vectors, alone, atol=1e-5)

    fresh = encoder.with_head(2, jax.random.key(0))
    logits = jax.jit(jax.vmap(fresh.predict, (None, 0)))(fresh.params, xs)
    np.testing.assert_allclose(logits, vectors @ np.asarray(fresh.params["head"]["out"]["kernel"]), atol=1e-5)

    half = load_encoder(str(tmp_path), dtype=jnp.bfloat16)
    hidden = jax.jit(half.hidden)(half.params, xs["ids"][3])
    assert hidden.dtype == jnp.bfloat16
    wanted = jax.jit(encoder.hidden)(encoder.params, xs["ids"][3])
    np.testing.assert_allclose(hidden.astype(jnp.float32), wanted, atol=0.2)


@pytest.mark.parametrize("change", [{"hidden_act": "gelu_new"}, {"hidden_act": "relu"}, {"pad_token_id": 3}])
def test_variants_of_the_configuration(tmp_path, change):
    name = "RobertaModel" if "pad_token_id" in change else "BertModel"
    model = build(tmp_path, name, **change)
    encoder = load_encoder(str(tmp_path))
    ids, length, _ = batch(model.config.pad_token_id, 1)
    wanted = theirs(model, ids, length).last_hidden_state.detach().numpy()
    np.testing.assert_allclose(jax.jit(encoder.hidden)(encoder.params, ids[1]), wanted[1], atol=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        "BertForMaskedLM",
        "DistilBertForMaskedLM",
        "RobertaForMaskedLM",
        "CamembertForMaskedLM",
        "ElectraForMaskedLM",
        "ElectraForPreTraining",
        "DebertaV2ForMaskedLM",
        "ModernBertForMaskedLM",
        "MPNetForMaskedLM",
    ],
)
def test_masked_language_models_serve_as_encoders(tmp_path, name):
    model = build(tmp_path, name)
    encoder = load_encoder(str(tmp_path))
    ids, length, _ = batch(model.config.pad_token_id, 1)
    wanted = theirs(model, ids, length, output_hidden_states=True).hidden_states[-1].detach().numpy()
    np.testing.assert_allclose(jax.jit(encoder.hidden)(encoder.params, ids[1]), wanted[1], atol=1e-4)


@pytest.mark.parametrize("family", CONFIGS)
def test_keys_that_config_json_leaves_out_have_the_values_of_transformers(family):
    transformers = pytest.importorskip("transformers")
    sizes = {key: value for key, value in CONFIGS[family].items() if key in SIZES}
    full = getattr(transformers, f"{family}Config")(**sizes).to_dict()
    names = {"architectures": [f"{family}ForSequenceClassification"]}
    assert encoder_config.from_config(sizes | names) == encoder_config.from_config(full | names)


@pytest.mark.parametrize(
    ("buckets", "longest"), [(256, 512), (64, 512), (32, 128), (6, 11), (7, 30), (2, 9), (48, 511)]
)
def test_distances_fall_into_the_buckets_of_transformers(buckets, longest):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    distance = torch.arange(1200)[:, None] - torch.arange(1200)[None, :]
    span = buckets
    theirs = (make_log_bucket_position(distance, buckets, longest).to(torch.long) + span).clamp(0, 2 * span - 1)
    config = encoder_config.Disentangled(True, True, True, span, buckets, longest, False, 3)
    np.testing.assert_array_equal(deberta.distance_rows(1200, config), theirs)


def test_distances_have_the_biases_of_transformers():
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

    distance = torch.arange(600)[None, :] - torch.arange(600)[:, None]
    np.testing.assert_array_equal(mpnet.buckets(600), MPNetEncoder.relative_position_bucket(distance))


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("DebertaV2", {"conv_kernel_size": 3}, "conv_kernel_size is 3; expected 0: .*; take a DeBERTa v3"),
        ("DebertaV2", {"embedding_size": 16}, "embedding_size is 16; expected 32"),
        ("DebertaV2", {"pooler_hidden_size": 16}, "pooler_hidden_size is 16; expected 32"),
        ("DebertaV2", {"attention_head_size": 4}, "attention_head_size is 4; expected 8"),
        ("DebertaV2", {"pos_att_type": "p2p|c2p"}, "pos_att_type is 'p2p.c2p'; expected c2p, p2c or both"),
        ("DebertaV2", {"position_buckets": 90}, "position_buckets is 90 and the longest distance 39; expected one of"),
        ("DebertaV2", {"pooler_hidden_act": "mish"}, "pooler_hidden_act is 'mish'; expected one of gelu, .*tanh"),
        ("ModernBert", {"hidden_size": 12}, "hidden_size is 12; expected heads of an even size"),
        ("ModernBert", {"layer_types": ["full_attention"]}, "layer_types is .*; expected one of full_attention, "),
        ("ModernBert", {"layer_types": [[]] * 4}, "layer_types is .*; expected one of full_attention, "),
        ("ModernBert", {"layer_types": ["global"] * 4}, "layer_types is .*; expected one of full_attention, "),
        ("ModernBert", {"classifier_pooling": "max"}, "classifier_pooling is 'max'; expected one of cls, mean"),
        ("ModernBert", {"local_rope_theta": None}, "local_rope_theta is null; expected a number above 0"),
        ("ModernBert", {"rope_scaling": {"rope_type": "yarn"}}, "has rotary positions .*yarn.*; expected plain ones"),
        (
            "ModernBert",
            {"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 2.0}}},
            "full_attention has rotary positions .*yarn.*; expected plain ones",
        ),
        ("MPNet", {"relative_attention_num_buckets": 16}, "relative_attention_num_buckets is 16; expected .* least 32"),
        ("Electra", {"embedding_size": 0}, "embedding_size is 0; expected a whole number of at least 1"),
    ],
)
def test_variants_that_are_not_built_here_are_refused(family, change, message):
    config = CONFIGS[family] | {"architectures": [f"{family}ForSequenceClassification"]} | change
    with pytest.raises(ValueError, match=message):
        encoder_config.from_config(config)
