"""Right, wrong, refused or empty: hand-made cases, a slow twin of ROUGE-L, a model that knows half of the answers."""

from itertools import combinations

import numpy as np
import pytest

from experiments.answers import correctness

# aliases


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("The  Beatles!", "beatles"),
        ("an apple a day", "apple day"),
        ("Theatre, a", "theatre"),
        ("rock-and-roll_music", "rock and roll music"),
        ("“Les Misérables”…", "les misérables"),
        ("Rubik's / Rubik’s", "rubik s rubik s"),
        ("¿Qué? 東京。", "qué 東京"),
        ("A", "a"),
        (" the a ", "the a"),
        ("?!", ""),
        ("", ""),
        ("\n", ""),
    ],
)
def test_texts_are_normalised_as_in_triviaqa(text, normalised):
    assert correctness.normalise(text) == normalised
    assert correctness.normalise(normalised) == normalised


@pytest.mark.parametrize(
    ("answer", "answers", "match", "contained"),
    [
        ("the Moon.", ["Moon"], True, True),
        ("It is the Moon", ["Sun", "Moon"], False, True),
        ("Moonlight", ["Moon"], False, False),
        ("New York City", ["York, New"], False, False),
        ("U.S.A.", ["U S A"], True, True),
        ("vitamin A", ["A"], False, False),
        ("A", ["A"], True, True),
        ("", ["Moon"], False, False),
        ("...", ["?"], False, False),
        ("anything", ["!"], False, False),
        ("anything", [], False, False),
    ],
)
def test_aliases(answer, answers, match, contained):
    assert correctness.alias_match(answer, answers) is match
    assert correctness.alias_contained(answer, answers) is contained


# refusals


@pytest.mark.parametrize(
    "answer",
    [
        "I don't know", "I don’t know.", "i do not know what you mean", "Don't know", "I don't know, sorry",
        "I'm sorry, but I", "Sorry, no", "I cannot answer that", "I can't", "I cannot.", "I can't really say",
        "I have no comment", "No comment.", "As an AI language model, I", "I am not sure", "I'm unsure about it",
        "No idea", "I have no idea!", "Unknown.", "N/A", "I don't have enough information", "I don't have an answer",
        "I apologize for the confusion", '"I don\'t know"', "I'm unable to say", "I am not able to answer this",
        "Not enough information", "There is not enough information to tell", "I cannot help with that", "I can't tell",
        "Sorry", "I am sorry that",
    ],
)  # fmt: skip
def test_refusals(answer):
    assert correctness.state(answer) == "refused"


@pytest.mark.parametrize(
    "answer",
    [
        "Paris", "No", "Nobody knows", "I Don't Know How to Love Him", "I Can't Get No Satisfaction", "Sorrow",
        "Unknown Pleasures", "The Unknown", "It is not known", "A", "I", "No ideas but in things", "None", "42", "東京",
        "Yes, I cannot answer that", "I can't believe it's not butter", "We don't know",
        "Sorry Seems to Be the Hardest Word", "I Can't Help Myself", "I cannot tell a lie", "I'm Not in Love",
    ],
)  # fmt: skip
def test_what_only_sounds_like_a_refusal_is_an_answer(answer):
    assert correctness.state(answer) == "answered"


@pytest.mark.parametrize("answer", ["", " ", "\n", ".", "?!...", "“”"])
def test_nothing_is_empty(answer):
    assert correctness.state(answer) == "empty"


# ROUGE-L


def slow_common(ours, theirs):
    """The longest word sequence that stands in both, by trying all."""
    for size in range(min(len(ours), len(theirs)), 0, -1):
        if set(combinations(ours, size)) & set(combinations(theirs, size)):
            return size
    return 0


def test_rouge_equals_the_f_score_of_the_longest_common_subsequence():
    rng = np.random.default_rng(0)
    for _ in range(200):
        ours, theirs = (list(rng.choice(["a", "b", "c", "d"], rng.integers(1, 8))) for _ in range(2))
        length = slow_common(ours, theirs)
        precision, recall = length / len(ours), length / len(theirs)
        expected = 2 * precision * recall / (precision + recall) if length else 0.0
        assert correctness.rouge_l(" ".join(ours), " ".join(theirs)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("candidate", "reference", "value"),
    [
        ("police killed the gunman", "police kill the gunman", 3 / 4),  # Lin 2004, section 3.1
        ("the gunman kill police", "police kill the gunman", 2 / 4),
        ("The cat.", "the CAT", 1.0),
        ("one two", "one", 2 / 3),
        ("don't", "don t", 1.0),
        ("naïve 東京", "Naïve, 東京!", 1.0),
        ("one", "two", 0.0),
        ("", "one", 0.0),
        ("one", "?", 0.0),
        ("", "", 0.0),
    ],
)
def test_rouge_of_known_pairs(candidate, reference, value):
    assert correctness.rouge_l(candidate, reference) == pytest.approx(value, abs=1e-12)


def test_rouge_difference_is_of_the_nearest_references():
    true, false = ["the earth is round", "no"], ["the earth is flat", "yes"]
    assert correctness.rouge_difference("no", true, false) == 1
    assert correctness.rouge_difference("yes", true, false) == -1
    assert correctness.rouge_difference("the earth is", true, false) == 0
    assert correctness.rouge_difference("the earth is round", true, false) == pytest.approx(1 / 4)


# embeddings


def test_similarity_difference_is_of_the_largest_cosines():
    true, false = np.array([[2.0, 0.0], [0.0, -1.0]], np.float32), np.array([[1.0, 1.0]], np.float32)
    found = correctness.similarity_difference(np.array([3.0, 0.0], np.float32), true, false)
    assert found == pytest.approx(1 - 0.5**0.5, abs=1e-12)
    assert correctness.similarity_difference(np.array([0.0, 5.0], np.float32), true, false) == pytest.approx(
        -(0.5**0.5)
    )


def test_a_vector_of_zeros_is_similar_to_nothing():
    zero, some = np.zeros(2, np.float32), np.ones((1, 2), np.float32)
    assert correctness.similarity_difference(zero, some, some) == 0
    assert correctness.similarity_difference(some[0], some, np.zeros((1, 2), np.float32)) == pytest.approx(1)
