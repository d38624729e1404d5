"""Every family of encoders against transformers and torch, on small random models."""

import jax
import numpy as np
import pytest
from twins_encoder import CONFIGS, LENGTHS, batch, build, theirs

import isouq
from isouq.text.encoder import load_encoder
from isouq.text.models import encoder_config

CASES = {name: (name, {}) for name in CONFIGS} | {
    "Electra of one width": ("Electra", dict(embedding_size=32)),
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
    np.testing.assert_allclose(padded[0, :n], alone, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_logits_and_their_gradients_equal_torch(tmp_path, case):
    family, changes = CASES[case]
    model = build(tmp_path, f"{family}ForSequenceClassification", **changes)
    encoder = load_encoder(str(tmp_path))
    assert encoder.pooling == "cls"
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
