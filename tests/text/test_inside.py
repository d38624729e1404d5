"""What scores read from inside a model, against autograd, hidden states and attention of transformers."""

import jax.numpy as jnp
import numpy as np
import pytest
from twins_text import build, random_ids, tensor, write_model

from isouq.text import load
from isouq.text.prompts import Row
from isouq.text.scores import _inside
from isouq.text.scores.gradients import preservation_scores, upper_layers
from isouq.text.scores.position import semantic_position

KINDS = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"]
FAMILIES = {
    "qwen2": dict(num_hidden_layers=6, max_window_layers=2),
    "llama3": dict(num_hidden_layers=5),
    "gemma2": dict(num_hidden_layers=5, layer_types=KINDS),  # scaled embeddings, capped scores and logits
    "gemma3": dict(num_hidden_layers=5, layer_types=KINDS),
}
ROWS = [Row(random_ids(length, seed), first) for seed, (length, first) in enumerate([(12, 7), (9, 8), (17, 4)])]


@pytest.fixture(scope="module", params=FAMILIES)
def models(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    theirs = build(folder, request.param, scale=0.2, **FAMILIES[request.param])
    theirs.set_attn_implementation("eager")
    return load(str(folder)), theirs


def run(theirs, row):
    """Outputs of torch, and log p and entropies of the answer's tokens."""
    outputs = theirs(tensor(row.ids), output_hidden_states=True, output_attentions=True)
    log_p = outputs.logits[0].log_softmax(-1)[row.first - 1 : -1]
    entropy = -(log_p.exp() * log_p).sum(-1).detach()
    return outputs, log_p.gather(1, tensor(row.ids)[0, row.first :, None])[:, 0], entropy


def test_gradients_of_the_output_layer(models):
    ours, theirs = models
    torch = pytest.importorskip("torch")
    found = _inside.head_gradients(ours, ROWS, 2)
    for row, values in zip(ROWS, found, strict=True):
        outputs, _, entropy = run(theirs, row)
        head = theirs.lm_head.weight.detach().clone().requires_grad_()
        logits = outputs.hidden_states[-1][0, row.first - 1 : -1].detach() @ head.T
        cap = ours.config.logits_cap
        log_p = (cap * (logits / cap).tanh() if cap else logits).log_softmax(-1)
        own = log_p.gather(1, tensor(row.ids)[0, row.first :, None])[:, 0]
        for value, weights in zip(values, (torch.ones_like(entropy), entropy), strict=True):
            wanted = torch.autograd.grad((weights * own).sum(), head, retain_graph=True)[0].abs().mean()
            np.testing.assert_allclose(value, wanted, rtol=1e-4)


@pytest.mark.parametrize("position", [-1, -4])
def test_gradients_of_hidden_states(models, position):
    ours, theirs = models
    torch = pytest.importorskip("torch")
    found = _inside.state_gradients(ours, ROWS, position, 2)
    for row, value in zip(ROWS, found, strict=True):
        outputs, log_p, entropy = run(theirs, row)
        states = [outputs.hidden_states[number] for number in upper_layers(ours.config.num_layers)]
        each = torch.autograd.grad((entropy * log_p).sum(), states)
        wanted = torch.stack([one[0, row.first + position] for one in each]).abs().mean()
        np.testing.assert_allclose(value, wanted, rtol=1e-4)


def test_alternatives_begin_with_the_token_itself(models):
    ours, theirs = models
    for row, tokens in zip(ROWS, _inside.alternatives(ours, ROWS, 4, 2), strict=True):
        log_p = run(theirs, row)[0].logits[0].log_softmax(-1)[row.first - 1 : -1].detach().numpy()
        assert len(tokens) == len(row.ids) - row.first
        for own, distribution, (ids, values) in zip(row.ids[row.first :], log_p, tokens, strict=True):
            order = [int(i) for i in np.argsort(-distribution) if i != own]
            assert ids == [own, *order[:3]]
            np.testing.assert_allclose(values, distribution[ids], rtol=1e-4)


def test_attention_of_the_position_that_predicts_a_token(models):
    ours, theirs = models
    layers = range(1, 4)
    for row, found in zip(ROWS, _inside.attention_to_previous(ours, ROWS, layers, 2), strict=True):
        attentions = [run(theirs, row)[0].attentions[i][0].detach().numpy() for i in layers]
        at = np.arange(row.first, len(row.ids) - 1)  # tokens 1 … T − 1, which predict tokens 2 … T
        np.testing.assert_allclose(found, np.stack([one[:, at, at] for one in attentions]), atol=1e-5)


def test_states_of_the_last_tokens(models):
    ours, theirs = models
    ids = [row.ids for row in ROWS]
    middle = _inside.last_states(ours, ids, 2, 2)
    upper = _inside.prompt_states(ours, ids, 3, 2)
    for i, row in enumerate(ROWS):
        states = [state[0].detach().numpy() for state in run(theirs, row)[0].hidden_states]
        np.testing.assert_allclose(middle[i], states[2][-1], rtol=1e-3, atol=1e-4)
        wanted = np.stack([states[number][-3:] for number in upper_layers(ours.config.num_layers)], axis=1)
        np.testing.assert_allclose(upper[i], wanted, rtol=1e-3, atol=1e-4)


def test_preservation_scores_are_their_formula():
    states, question = np.random.default_rng(0).normal(size=(5, 4, 3, 6)), [0, 0, 1, 1, 1]
    for position, found in enumerate(preservation_scores(states, question)):
        same, others = [], []
        for i in range(5):
            for j in range(i):
                a, b = states[i, position], states[j, position]
                cosines = [x @ y / np.sqrt((x @ x) * (y @ y)) for x, y in zip(a, b, strict=True)]
                (same if question[i] == question[j] else others).append(np.mean(cosines))
        np.testing.assert_allclose(found, np.mean(same) - np.mean(others), rtol=1e-10)


def test_the_position_is_the_one_that_tells_questions_apart(models):
    """The last token is the same everywhere; the one before it is the question's own, whatever stands in front."""
    ours, _ = models
    assert semantic_position(ours, [["a x", "b x", "ab x"], ["a z", "b z"]], num_positions=1) == -1
    found = semantic_position(ours, [["nmzq", "opzq"], ["nmxq", "opxq"]], num_positions=4)
    states = _inside.prompt_states(ours, [ours.tokenizer.encode(t) for t in ("nmzq", "opzq", "nmxq", "opxq")], 4, 8)
    assert found == np.argmax(preservation_scores(states, [0, 0, 1, 1])) - 4


BAD = {
    "a position of 0": (lambda model: _inside.state_gradients(model, ROWS, 0, 2), "position is 0; expected -1"),
    "a short prompt": (lambda model: _inside.state_gradients(model, ROWS, -5, 2), "pair 2: the prompt has 4 tokens"),
    "one question": (lambda model: semantic_position(model, [["a", "b"]]), "paraphrases holds no two questions"),
    "no paraphrases": (lambda model: semantic_position(model, [["a"], ["b"]]), "paraphrases holds no two questions"),
    "an empty prompt": (lambda model: semantic_position(model, [["a", ""]]), "question 0, paraphrase 1: the prompt is"),
    "two layers": (lambda model: upper_layers(2), "the model has 2 layers; semgrad needs at least 3"),
    "flat states": (lambda model: preservation_scores(np.ones(3), [0, 0, 1]), r"states has shape \(3,\)"),
    "one group": (lambda model: preservation_scores(np.ones((2, 1, 1, 1)), [0, 0]), "question holds no two"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said_in_one_line(models, name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message) as error:
        call(models[0])
    assert "\n" not in str(error.value)


def test_parameters_in_bfloat16_give_nearly_the_same(tmp_path_factory):
    folder = tmp_path_factory.mktemp("half")
    write_model(folder, scale=0.15, num_hidden_layers=4)
    whole, half = load(str(folder)), load(str(folder), dtype=jnp.bfloat16)
    for measure in (
        lambda model: _inside.head_gradients(model, ROWS, 2),
        lambda model: _inside.state_gradients(model, ROWS, -1, 2),
        lambda model: _inside.last_states(model, [row.ids for row in ROWS], 2, 2),
        lambda model: np.concatenate(
            [one.ravel() for one in _inside.attention_to_previous(model, ROWS, range(4), 2)]
        ).astype(np.float32),
    ):
        one, other = np.asarray(measure(whole)), np.asarray(measure(half))
        assert np.linalg.norm(one - other) < 0.05 * np.linalg.norm(one)
