"""What a language model is asked, in one place: the few-shot and the chat form of a question.

The examples are our own and stand in no data set. They show the form of an answer: a few words for a question of
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
    """What the model reads before it answers; the few-shot form ends with "A:", the chat form is one user message."""
    if style == "chat":
        return [{"role": "user", "content": f"{_INSTRUCTIONS[kind]}\n{question}"}]
    shown = "".join(f"Q: {asked}\nA: {answer}\n" for asked, answer in _EXAMPLES[kind])
    return f"{shown}Q: {question}\nA:"


def answer_text(text: str) -> str:
    """A generated answer without what stands around it: its first line, stripped."""
    return text.strip().split("\n")[0].strip()
