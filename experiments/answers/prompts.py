"""The prompts of a question: the few-shot form and the chat form.

The examples are our own and are part of no data set. They show the form of an answer: a few words for a question of
fact ("alias"), one sentence for a question where people are often wrong ("references").
"""

STYLES = ("few_shot", "chat")
STOP = ("\n",)  # ends an answer

_EXAMPLES = {
    "alias": (
        ("Which planet is closest to the Sun?", "Mercury"),
        ("Who painted The Starry Night?", "Vincent van Gogh"),
        ("What is the chemical symbol of gold?", "Au"),
    ),
    "references": (
        ("How many legs does a spider have?", "A spider has eight legs."),
        ("Does the Sun go around the Earth?", "No, the Earth goes around the Sun."),
        ("Can you see the stars by day from the bottom of a well?", "No, the daylight sky is too bright."),
    ),
}
_INSTRUCTIONS = {
    "alias": "Answer the question with a few words.",
    "references": "Answer the question truthfully with one short sentence.",
}


def answer_prompt(question: str, kind: str, style: str) -> str | list[dict[str, str]]:
    """Return the prompt of a question; the few-shot form ends with "A:", the chat form is one user message."""
    if style == "chat":
        return [{"role": "user", "content": f"{_INSTRUCTIONS[kind]}\n{question}"}]
    shown = "".join(f"Q: {example}\nA: {answer}\n" for example, answer in _EXAMPLES[kind])
    return f"{shown}Q: {question}\nA:"


def answer_text(text: str) -> str:
    """Return the first line of a generated answer, stripped."""
    return text.strip().split("\n")[0].strip()
