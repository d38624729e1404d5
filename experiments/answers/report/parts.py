"""What the summaries of `qa` and `trace` share."""

from collections.abc import Sequence

from experiments.answers.numbers.groups import Group
from experiments.report import tables


def answers_section(
    header: Sequence[str], body: Sequence[Sequence[str]], groups: Sequence[Group], notes: Sequence[Sequence[str]]
) -> str:
    """Return the table of the answers, one row a group, and below it the notes on each group."""
    lines = [f"\n{group.title}: {note}\n" for group, own in zip(groups, notes, strict=True) for note in own]
    return "## Answers\n\n" + tables.table(header, body) + "".join(lines)


def explain_missing_auroc(group: Group) -> str:
    """Return in a sentence why the group has no AUROC; empty where it has right and wrong answers."""
    right, wrong = group.counts
    if right + wrong == 0:
        return "no answer could be judged, so there is no AUROC."
    if not group.has_both_classes:
        return f"all {right + wrong} answers are {'wrong' if wrong else 'right'}, so there is no AUROC."
    return ""
