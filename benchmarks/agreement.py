"""Measures how bfloat16 changes the scores of generated answers, compared with float32."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import text_models
from benchmarks.cases import Case
from benchmarks.report import number, table
from isouq import stats

RESAMPLES = 2000
QUESTIONS = (
    "What is the capital of Canada?",
    "Which planet is closest to the sun?",
    "Who wrote the play Hamlet?",
    "What gas do plants take in from the air?",
    "In which year did the Second World War end?",
    "What is the largest ocean on Earth?",
    "How many legs does a spider have?",
    "Which metal is liquid at room temperature?",
    "Who painted the Mona Lisa?",
    "What is the square root of 144?",
    "Which river flows through Cairo?",
    "What is the chemical symbol of gold?",
    "Which country has the city of Kyoto?",
    "Who developed the theory of general relativity?",
    "What is the longest bone in the human body?",
    "How many strings does a violin have?",
    "Which language is spoken in Brazil?",
    "What do bees make from nectar?",
    "Which instrument measures air pressure?",
    "What is the freezing point of water in Fahrenheit?",
    "Who was the first person to walk on the Moon?",
    "Which organ pumps blood through the body?",
    "What is the tallest mountain on Earth?",
    "How many continents are there?",
    "Which vitamin does sunlight help the body to make?",
    "What is the currency of Japan?",
    "Who discovered penicillin?",
    "Which animal is the largest that has ever lived?",
    "What is the smallest prime number?",
    "In which sport is a shuttlecock used?",
    "Which sea lies between Europe and Africa?",
    "What is the main ingredient of bread?",
)


def measure(case: Case, questions: Sequence[str] = QUESTIONS, answers: int = 160, tokens: int = 24) -> dict[str, Any]:
    """Return Spearman's ρ between the scores in both dtypes with its bootstrap interval, and the errors of bfloat16.

    The float32 model samples the answers at temperature 1. If there are fewer questions than answers, each question is
    answered several times. Empty answers are left out.
    """
    from isouq import text

    exact, coarse = (text_models.load(text_models.path(case), dtype) for dtype in ("float32", "bfloat16"))
    prompts = [f"Question: {questions[i % len(questions)]}\nAnswer:" for i in range(answers)]
    print(f"bfloat16 against float32: {answers} answers are generated", flush=True)
    drawn = text.generate(exact, prompts, tokens, temperature=1.0, key=jax.random.key(case.seed), stop=("\n",))
    pairs = [(prompt, answer.ids) for prompt, answer in zip(prompts, drawn, strict=True) if answer.ids]
    print(f"bfloat16 against float32: {len(pairs)} answers are scored", flush=True)
    one, other = (text.score(model, pairs) for model in (exact, coarse))
    results: dict[str, Any] = {"answers": len(pairs), "questions": min(len(questions), answers)}
    results["tokens"] = [int(n) for n in np.percentile(one.num_tokens, (0, 50, 100))]
    for reduction in ("mean", "answer"):
        a, b = one.under(reduction), other.under(reduction)
        results[f"epistemic, {reduction}"] = _rank(a.log_epistemic, b.log_epistemic)
        results[f"log p, {reduction}"] = _rank(a.log_probability, b.log_probability)
    for name, error in (
        ("relative error of the squared norm", np.expm1(other.log_grad_sq_norm - one.log_grad_sq_norm)),
        ("error of log p, mean", other.log_probability - one.log_probability),
    ):
        results[name] = {"median": float(np.median(np.abs(error))), "largest": float(np.max(np.abs(error)))}
    return results


def read(path: Path) -> list[str]:
    """Return the questions of a file that has one JSON object per line."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line)["question"] for line in file]


def in_words(results: dict[str, Any], source: str) -> str:
    """Return the section of the report."""
    lines = [
        (name, f"{value['rho']:.4f}", f"{value['low']:.4f}–{value['high']:.4f}")
        for name, value in results.items()
        if isinstance(value, dict) and "rho" in value
    ]
    norm, log_p = results["relative error of the squared norm"], results["error of log p, mean"]
    low, median, high = results["tokens"]
    return (
        "## bfloat16 against float32\n\n"
        f"{results['answers']} answers to {results['questions']} questions ({source}), sampled by the float32 model, "
        f"{low} to {high} tokens, median {median}. Spearman's ρ over answers, 95 % bootstrap interval:\n\n"
        + table(("score", "ρ", "95 %"), lines)
        + f"\nRelative error of ‖∇ log p‖²: median {number(norm['median'])}, largest {number(norm['largest'])}. "
        f"Error of log p per token: median {number(log_p['median'])}, largest {number(log_p['largest'])}.\n\n"
    )


def _rank(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(a), size=(RESAMPLES, len(a)))
    low, high = np.nanquantile([stats.spearman(a[rows], b[rows]) for rows in drawn], (0.025, 0.975))
    return {"rho": stats.spearman(a, b), "low": float(low), "high": float(high)}
