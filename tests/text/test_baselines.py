"""All scores in one call: against quantities measured one by one, with the passes and what they cost."""

from collections.abc import Sequence

import jax
import numpy as np
import pytest
from test_entailment import write
from twins_text import write_model

from isouq.text import (
    SCORES,
    Answer,
    Entailment,
    baselines,
    generate,
    load,
    load_encoder,
    load_entailment,
    p_true,
    read,
    score,
    similarity_by_encoder,
)
from isouq.text.prompts import encode_pairs
from isouq.text.scores import _inside, graphs, likelihood
from isouq.text.scores import baselines as module
from isouq.text.scores.likelihood import joint_relation, middle_layers
from isouq.text.scores.passes import PASSES

PROMPTS, QUESTIONS = ["who is x", "what is ab", "the moon c"], ["who", "what", "why"]
NUM_SAMPLES = 3
KEY = jax.random.key(0)
LABELS = ("CONTRADICTION", "Entailment", "neutral")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random Llama whose tokenizer knows "A" and "B"."""
    folder = write_model(
        tmp_path_factory.mktemp("llama"), 3, 0.3, max_position_embeddings=256, num_hidden_layers=4, eos_token_id=5
    )
    text = (folder / "tokenizer.json").read_text().replace('"y":', '"A":').replace('"z":', '"B":')
    (folder / "tokenizer.json").write_text(text)
    return load(str(folder))


def number(text):
    """A number from 0 to 1 that a text decides."""
    return sum(map(ord, text)) * 37 % 101 / 101


def similarity(pairs):
    return np.array([1.0 if a == b else number(f"{a}|{b}") for a, b in pairs])


def classify(pairs, batch_size=32):
    return np.array([[number(a + "1" + b), number(a + "2" + b), number(a + "3" + b)] for a, b in pairs], np.float32) * 4


class Classifier(Entailment):
    """One whose logits a formula gives."""

    def logits(self, pairs, batch_size=32):
        return classify(pairs)


@pytest.fixture(scope="module")
def entailment(tmp_path_factory):
    found = load_entailment(str(write(tmp_path_factory.mktemp("nli"))))
    return Classifier(found.encoder, found.label)


@pytest.fixture(scope="module")
def answers(model):
    return generate(model, PROMPTS, 6)


@pytest.fixture(scope="module")
def samples(model):
    flat = generate(model, [p for p in PROMPTS for _ in range(NUM_SAMPLES)], 5, temperature=1.0, key=KEY)
    return [flat[i : i + NUM_SAMPLES] for i in range(0, len(flat), NUM_SAMPLES)]


@pytest.fixture(scope="module")
def table(model, answers, samples, entailment):
    return baselines(
        model, PROMPTS, answers, samples, questions=QUESTIONS, entailment=entailment, similarity=similarity
    )


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum()


def without(question, ids, decode):
    whole = f"{question} {decode(ids)}"
    return similarity([(whole, f"{question} {decode(ids[:t] + ids[t + 1 :])}") for t in range(len(ids))])


def relations(model, row):
    """What `ccp` takes, word by word."""
    tokens = []
    for ids, log_p in _inside.alternatives(model, [row], 10, 1)[0]:
        words = [model.tokenizer.decode([int(i)]).strip(" .,<>/") for i in ids]
        sides = [
            [LABELS[classify([pair])[0].argmax()].lower() for pair in ((words[0], w), (w, words[0]))] for w in words
        ]
        tokens.append((log_p, [joint_relation(*both) for both in sides]))
    return tokens


def quantities(model, i, answer, drawn):
    """Everything of one answer, measured alone and slowly."""
    pair, decode = (PROMPTS[i], answer.ids), model.tokenizer.decode
    reading, row = read(model, [pair])[0], encode_pairs(model, [pair])[0]
    statements = [f"{QUESTIONS[i]} {one.text.strip()}" for one in drawn]
    texts = [one.text.strip() for one in drawn]
    lower = [text.lower() for text in texts]
    entails = [[a == b or classify([(a, b)])[0].argmax() == 1 for b in statements] for a in statements]
    firsts, clusters = [], []
    for j in range(len(drawn)):
        same = [k for k, first in enumerate(firsts) if entails[j][first] and entails[first][j]]
        clusters.append(same[0] if same else len(firsts))
        firsts += [] if same else [j]
    head = _inside.head_gradients(model, [row], 1)[0]
    sample_rows = encode_pairs(model, [(PROMPTS[i], one.ids) for one in drawn])
    return {
        "log_p": reading.log_p,
        "entropy": reading.entropy,
        "attention": _inside.attention_to_previous(model, [row], middle_layers(4), 1)[0],
        "gradient_log_p": reading.log_p,
        "log_grad_sq_norm": score(model, [pair]).log_grad_sq_norm[0],
        "head_gradient": head[0],
        "weighted_head_gradient": head[1],
        "state_gradient": _inside.state_gradients(model, [row], -1, 1)[0],
        "p_true": p_true(model, [QUESTIONS[i]], [answer.text.strip()], [texts])[0],
        "sample_texts": texts,
        "sample_token_log_p": [one.log_p for one in drawn],
        "sample_log_p": [sum(one.log_p) for one in drawn],
        "sample_mean_log_p": [sum(one.log_p) / len(one.ids) for one in drawn],
        "sample_lengths": [len(one.ids) for one in drawn],
        "sample_states": [_inside.last_states(model, [one.ids], 2, 1)[0] for one in sample_rows],
        "sample_jaccard": [
            [
                1 if a == b else len(set(a.split()) & set(b.split())) / len(set(a.split()) | set(b.split()))
                for b in lower
            ]
            for a in lower
        ],
        "clusters": clusters,
        "entailment": [[1 if a == b else softmax(classify([(a, b)])[0])[1] for b in statements] for a in statements],
        "alternatives": relations(model, row),
        "token_similarity": without(QUESTIONS[i], answer.ids, decode),
        "sample_token_similarity": [without(QUESTIONS[i], one.ids, decode) for one in drawn],
        "sample_similarity": [[similarity([(a, b)])[0] for b in texts] for a in texts],
        "answer_similarity": [
            (similarity([(answer.text.strip(), t)])[0] + similarity([(t, answer.text.strip())])[0]) / 2 for t in texts
        ],
    }


@pytest.fixture(scope="module")
def slowly(model, answers, samples):
    return [quantities(model, i, *pair) for i, pair in enumerate(zip(answers, samples, strict=True))]


@pytest.mark.parametrize("name", SCORES)
def test_every_score_is_that_of_quantities_measured_alone(table, slowly, name):
    function, needs = SCORES[name]
    wanted = [function(*(one[quantity] for quantity in needs)) for one in slowly]
    np.testing.assert_allclose(table.scores[name], wanted, rtol=2e-3, atol=1e-4)
    assert np.isfinite(table.scores[name]).all()


def test_every_pass_runs_once_and_says_what_it_cost(table, samples):
    assert list(table.scores) == list(SCORES)
    assert list(table.costs) == list(PASSES)
    assert {name: cost[:2] for name, cost in table.costs.items() if any(cost[:2])} == {
        "reading": (3, 0),
        "attention": (3, 0),
        "gradient": (3, 3),
        "head_gradient": (3, 0),
        "state_gradient": (3, 3),
        "truth": (3, 0),
        "sample_states": (9, 0),
        "alternatives": (3, 0),
    }
    assert all(cost.seconds > 0 for cost in table.costs.values())
    distinct = [len({one.text.strip() for one in group}) for group in samples]
    assert table.costs["entailment"].encoder == sum(n * (n - 1) for n in distinct)
    assert table.cost("hybridgrad")[:2] == (9, 3)
    assert table.cost("nll") == table.costs["reading"]
    assert {q for one in PASSES.values() for q in one.gives} == {q for one in SCORES.values() for q in one.needs}
    with pytest.raises(ValueError, match="name is 'neither'; expected one of"):
        table.cost("neither")


def test_only_the_passes_that_are_needed_run(model, answers, table):
    few = baselines(model, PROMPTS, answers, scores=["paragrad", "nll", "nll"])
    assert list(few.scores) == ["paragrad", "nll"]
    assert list(few.costs) == ["reading", "head_gradient"]
    np.testing.assert_array_equal(few.scores["nll"], table.scores["nll"])
    plain = baselines(model, PROMPTS, [one.text for one in answers], batch_size=2)
    assert "p_true" in plain.scores
    assert not {"sar", "token_sar", "eigv", "ccp", "naive_entropy"} & set(plain.scores)
    assert baselines(model, PROMPTS, answers, scores="nll").scores.keys() == {"nll"}


def test_samples_that_are_drawn_are_those_of_generate(model, answers, samples, table):
    names = ["naive_entropy", "lexical_similarity"]
    drawn = baselines(model, PROMPTS, answers, NUM_SAMPLES, names, key=KEY, max_new_tokens=5)
    for name in names:
        np.testing.assert_allclose(drawn.scores[name], table.scores[name], rtol=1e-5)
    assert drawn.costs["samples"].tokens == sum(len(one.ids) for group in samples for one in group)
    assert table.costs["samples"].tokens == 0


def test_an_answer_without_samples_or_room_has_nan(model, answers, samples, table, entailment):
    empty = Answer("", [], np.zeros(0), True)
    given = [[empty], [empty, *samples[1]], []]
    found = baselines(
        model, PROMPTS, answers, given, questions=["m" * 300, *QUESTIONS[1:]], entailment=entailment,
        similarity=similarity,
    )  # fmt: skip
    for name, (_, needs) in SCORES.items():
        sampled = any(need.startswith(("sample", "clusters", "entailment", "answer_s")) for need in needs)
        assert np.isnan(found.scores[name]).tolist() == [sampled or name == "p_true", False, sampled], name
        if name not in ("p_true", "token_sar"):
            np.testing.assert_allclose(found.scores[name][1], table.scores[name][1], rtol=2e-3, atol=1e-4)


def test_prompts_that_are_messages(model):
    prompts = [[{"role": "user", "content": question}] for question in QUESTIONS]
    found = baselines(model, prompts, ["me", "tea", "no"], scores=["p_true", "semgrad"], position=-2)
    wanted = p_true(model, QUESTIONS, ["me", "tea", "no"], [[]] * 3, chat=True)
    np.testing.assert_allclose(found.scores["p_true"], 1 - wanted, atol=1e-5)


def test_similarity_by_encoders(tmp_path):
    texts = ["abc", "the moon", "x", "abc"]
    pairs = [(a, b) for a in texts for b in texts]
    (tmp_path / "cross").mkdir()
    cross = load_encoder(str(write(tmp_path / "cross", id2label={"0": "similar"}, label2id={"similar": 0})))
    found = similarity_by_encoder(cross)(pairs)
    for pair, value in zip(pairs, found, strict=True):
        logit = cross.predict(cross.params, {k: v[0] for k, v in cross.encode_texts([pair]).items()})
        np.testing.assert_allclose(value, jax.nn.sigmoid(logit[0]), rtol=1e-4)
    (tmp_path / "plain").mkdir()
    plain = load_encoder(str(write(tmp_path / "plain", architectures=["BertModel"])))
    vectors = plain.embed(texts)
    np.testing.assert_allclose(
        similarity_by_encoder(plain)(pairs), np.maximum(vectors @ vectors.T, 0).ravel(), atol=1e-5
    )
    (tmp_path / "nli").mkdir()
    classifier = load_encoder(str(write(tmp_path / "nli")))
    with pytest.raises(ValueError, match="has a head of 3 outputs; expected a sentence encoder without a head, or"):
        similarity_by_encoder(classifier)


def test_a_real_classifier_and_encoder(model, answers, samples, tmp_path):
    entailment = load_entailment(str(write(tmp_path)))
    names = ["degmat", "semantic_entropy_discrete", "ccp", "cocoa_mean"]
    found = baselines(
        model, PROMPTS, answers, samples, names, entailment=entailment, similarity=lambda pairs: [0.25] * len(pairs)
    )
    statements = [f"{PROMPTS[0]} {one.text.strip()}" for one in samples[0]]
    logits = entailment.logits([(a, b) for a in statements for b in statements])
    matrix = jax.nn.softmax(logits, axis=1)[:, 1].reshape(NUM_SAMPLES, -1)
    same = np.equal.outer(statements, statements)
    np.testing.assert_allclose(found.scores["degmat"][0], graphs.degmat(np.where(same, 1, matrix)), rtol=1e-4)
    log_p = read(model, [(PROMPTS[0], answers[0].ids)])[0].log_p
    np.testing.assert_allclose(found.scores["cocoa_mean"][0], 0.75 * likelihood.nll_mean(log_p), rtol=1e-5)
    assert np.all((found.scores["ccp"] >= -1) & (found.scores["ccp"] < 0))


def test_it_goes_on_after_an_interruption_from_its_checkpoint(model, answers, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SECONDS", 0.0)
    names = ["nll", "epistemic", "naive_entropy", "p_true"]
    file = tmp_path / "scores.npz"

    def call(prompts=PROMPTS, **more):
        return baselines(model, prompts, answers, 2, names, key=KEY, max_new_tokens=4, batch_size=1, **more)

    whole, told, batches = call(), [], []

    def interrupt(count):
        told.append(count)
        if count == 2:
            raise KeyboardInterrupt

    score_batch = module.score_batch
    monkeypatch.setattr(module, "score_batch", lambda *given: batches.append(1) or score_batch(*given))
    with pytest.raises(KeyboardInterrupt):
        call(on_batch=interrupt, checkpoint=file)
    assert told == [1, 2]
    assert len(batches) == 2
    resumed = call(on_batch=told.append, checkpoint=file)
    assert told == [1, 2, 1, 2, 3]
    assert len(batches) == 3
    assert list(resumed.scores) == names
    for name in names:
        np.testing.assert_array_equal(resumed.scores[name], whole.scores[name])
    assert {name: cost[:4] for name, cost in resumed.costs.items()} == {n: c[:4] for n, c in whole.costs.items()}
    call(checkpoint=file)
    assert len(batches) == 3
    with pytest.warns(UserWarning, match="belongs to another run"):
        other = call(["who is b", *PROMPTS[1:]], checkpoint=file)
    assert len(batches) == 6
    assert other.scores["nll"][0] != whole.scores["nll"][0]


def test_a_checkpoint_of_samples_with_other_log_p_is_another(model, answers, samples, tmp_path):
    file, names = tmp_path / "scores.npz", ["naive_entropy"]
    baselines(model, PROMPTS, answers, samples, names, checkpoint=file)
    other = [[one._replace(log_p=2 * one.log_p) for one in group] for group in samples]
    with pytest.warns(UserWarning, match="belongs to another run"):
        found = baselines(model, PROMPTS, answers, other, names, checkpoint=file)
    wanted = baselines(model, PROMPTS, answers, other, names)
    np.testing.assert_array_equal(found.scores["naive_entropy"], wanted.scores["naive_entropy"])


class Column(Sequence):
    """Values with an index of their own, as a column of a table has them: [i] is by that index, not by the place."""

    def __init__(self, values):
        self.values = list(values)

    def __iter__(self):
        return iter(self.values)

    def __len__(self):
        return len(self.values)

    def __getitem__(self, i):
        return self.values[-1 - i]


def test_lists_may_be_columns_and_numbers_may_be_of_numpy(model, answers, samples, tmp_path):
    names = ["nll", "naive_entropy"]
    wanted = baselines(model, PROMPTS, answers, samples, names, batch_size=1).scores
    found = baselines(model, *map(Column, (PROMPTS, answers, samples)), names, batch_size=1).scores
    for name in names:
        np.testing.assert_array_equal(found[name], wanted[name])
    old, file = jax.random.PRNGKey(0), tmp_path / "scores.npz"
    three = baselines(model, PROMPTS, answers, np.int64(3), names, key=old, max_new_tokens=5, checkpoint=file)
    drawn = baselines(model, PROMPTS, answers, 3, names, key=KEY, max_new_tokens=5).scores
    np.testing.assert_array_equal(three.scores["naive_entropy"], drawn["naive_entropy"])


def test_a_position_before_the_prompt_is_said_before_anything_runs(model, answers, monkeypatch):
    monkeypatch.setattr(module, "score_batch", pytest.fail)
    with pytest.raises(ValueError, match="pair 0: the prompt has 8 tokens; position is -9"):
        baselines(model, PROMPTS, answers, scores=["semgrad"], position=-9)


def test_what_a_prompt_asks():
    parts = [{"type": "text", "text": "who"}, {"type": "image"}, {"type": "text", "text": "is"}]
    assert module.question_of("who is") == "who is"
    assert module.question_of([{"role": "user", "content": "who"}]) == "who"
    assert module.question_of([{"role": "user", "content": parts}]) == "who is"
    assert module.question_of([{"role": "assistant", "content": None, "tool_calls": [{}]}]) == ""


BAD = {
    "other lengths": (dict(answers=["a"]), "answers has 1 entries; expected one for each of 3 prompts"),
    "a single text": (dict(prompts="abc", answers="abc"), "prompts is a single text; expected a list"),
    "an unknown score": (dict(scores=["nil"]), "scores is 'nil'; expected one of 'nll', "),
    "a misspelt score": (dict(scores=["epistemc"]), "; did you mean 'epistemic'[?]$"),
    "no samples": (
        dict(scores=["eigv"]),
        "the score eigv needs samples=, n lists of answers from generate or",
    ),
    "no classifier": (dict(scores=["ccp"]), "the score ccp needs entailment=, from load_entailment"),
    "no similarity": (dict(scores=["token_sar"]), "the score token_sar needs similarity=, from load_encoder or"),
    "texts as samples": (dict(samples=[["a"]] * 3), "the samples of prompt 0 are not all answers from generate"),
    "no key": (dict(samples=2), "samples are to be drawn and key is missing; give key="),
    "no samples at all": (dict(samples=0), "samples is 0; expected a whole number of at least 1"),
    "an empty answer": (dict(answers=["a", "", "b"]), "pair 1: the answer is empty"),
    "no samples of a prompt": (dict(samples=[[], None, []]), "the samples of prompt 1 are not all answers from"),
    "no score": (dict(scores=[]), "scores is empty; expected names of isouq.text.SCORES, or None for all"),
    "a number as key": (dict(samples=2, key=3), "key is of type int; expected one random key, such as"),
    "no new token": (dict(samples=2, key=KEY, max_new_tokens=0), "max_new_tokens is 0; expected a whole number of"),
    "a text as stop": (dict(samples=2, key=KEY, stop="ab"), "stop is 'ab'; expected a list of non-empty strings"),
    "no checkpoint": (dict(checkpoint=""), "the checkpoint is '.'; expected the name of a file"),
    "a position of 0": (dict(position=0), "position is 0; expected -1 for the prompt's last token"),
    "a similarity of 2": (
        dict(scores=["token_sar"], similarity=lambda pairs: [2.0] * len(pairs)),
        r"similarity gave shape \(4,\) for 4 pairs, from 1 to 2; expected one number from 0 to 1",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said_in_one_line(model, name):
    changes, message = BAD[name]
    with pytest.raises(ValueError, match=message) as error:
        baselines(**dict(model=model, prompts=PROMPTS, answers=["a", "b", "cab"]) | changes)
    assert "\n" not in str(error.value)


def test_a_shallow_model_and_a_classifier_without_contradiction(model, answers, tmp_path):
    shallow = load(str(write_model(tmp_path, num_hidden_layers=2)))
    with pytest.raises(ValueError, match="the score semgrad needs a model of at least 3 layers"):
        baselines(shallow, PROMPTS, ["a", "b", "c"], scores=["semgrad"])
    (tmp_path / "two").mkdir()
    two = load_entailment(str(write(tmp_path / "two", id2label={"0": "entailment", "1": "not_entailment"})))
    with pytest.raises(ValueError, match='the score ccp needs entailment= with a label "contradiction"'):
        baselines(model, PROMPTS, answers, scores=["ccp"], entailment=two)
