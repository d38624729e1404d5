"""The lab cards: the question, commands, times, hardware and expected numbers of each experiment."""

import inspect

from docs._site.places import ROOT, experiments, provenance
from experiments.command import EXPERIMENTS

PRESETS = ("smoke", "quick", "paper")
ROWS = 14  # of a table, at most
_HEAD = """# Lab cards

Each card describes one experiment: its question, its commands, how long they take, and the committed results. Finished
cells are stored in `DIR/cells/` and are not computed again, so an interrupted command resumes where it stopped.
`python -m experiments reproduce --preset quick` runs the studies of the paper. [Results](results.md)
shows the tables and [the gallery](gallery.md) the figures.
"""


def page() -> str:
    """Return the page of all cards."""
    return "\n".join([_HEAD, *map(card, experiments())])


def card(name: str) -> str:
    """Return one experiment's card, from the docstrings of its `jobs` and of their module, and from its provenance."""
    jobs = EXPERIMENTS[name].jobs
    about = inspect.getdoc(inspect.getmodule(jobs)) or ""
    paragraphs = [part for part in about.split("\n\n") if not part.startswith("Command:")]
    title, *rest = paragraphs
    commands = "\n".join(f"python -m experiments {name} --preset {preset}" for preset in PRESETS)
    parts = [
        f"## {name}\n\n**{_line(title)}**",
        *map(_line, rest),
        f"```sh\n{commands}\n```",
        "Presets and times: " + " ".join(map(_line, _times(inspect.getdoc(jobs) or ""))),
        _committed(name),
    ]
    return "\n\n".join(parts) + "\n"


def _times(docstring: str) -> list[str]:
    """Return the paragraphs after the one that says what the function returns."""
    return [part for part in docstring.split("\n\n") if not part.startswith("Return the jobs")]


def _committed(name: str) -> str:
    facts = provenance(name)
    if facts is None:
        return "No results are committed yet."
    versions = facts["versions"]
    return (
        f"Committed: preset `{facts['preset']}`, by `{facts['command']}`, finished {facts['finished'][:10]} on "
        f"{facts['cpu_count']} cores ({', '.join(facts['devices'])}), Python {facts['python']}, jax {versions['jax']}, "
        f"blackjax {versions['blackjax']}. Expected numbers ([the complete summary](results/{name}.md)):\n\n"
        + _first_table(name)
    )


def _first_table(name: str) -> str:
    """Return the first table of the summary under its heading, at most ROWS lines of it."""
    heading, table = "", []
    for line in (ROOT / "results" / name / "summary.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("|"):
            table.append(line)
        elif table:
            break
        elif line.startswith("## "):
            heading = f"*{line.removeprefix('## ')}*\n\n"
    return heading + "\n".join(table[:ROWS]) + ("\n\nThe summary has more rows." if len(table) > ROWS else "")


def _line(paragraph: str) -> str:
    return " ".join(paragraph.split())
