"""The lab cards: what each experiment asks, its commands, times, hardware, and the numbers to expect."""

import inspect

from docs._site.places import ROOT, experiments, provenance
from experiments.command import EXPERIMENTS

PRESETS = ("smoke", "quick", "paper")
ROWS = 14  # of a table, at most
_HEAD = """# Experiments

One card for each table or figure: what it asks, the commands, how long they take, and what was committed. A finished
cell is kept in `DIR/cells/` and not computed again; an interrupted command goes on where it stopped. All synthetic
experiments at once: `python -m experiments all --preset quick`. [Results](results.md) shows the tables,
[the gallery](gallery.md) the figures.
"""


def page() -> str:
    """The page of all cards."""
    return "\n".join([_HEAD, *map(card, experiments())])


def card(name: str) -> str:
    """One experiment's card, from the docstrings of its presets and of their module, and from its provenance."""
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
        return "Committed: nothing yet."
    versions = facts["versions"]
    return (
        f"Committed: preset `{facts['preset']}`, by `{facts['command']}`, finished {facts['finished'][:10]} on "
        f"{facts['cpu_count']} cores ({', '.join(facts['devices'])}), Python {facts['python']}, jax {versions['jax']}, "
        f"blackjax {versions['blackjax']}. Numbers to expect ([the whole summary](results/{name}.md)):\n\n"
        + _first_table(name)
    )


def _first_table(name: str) -> str:
    """The summary's first table under its heading, as far as it is short."""
    heading, table = "", []
    for line in (ROOT / "results" / name / "summary.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("|"):
            table.append(line)
        elif table:
            break
        elif line.startswith("## "):
            heading = f"*{line.removeprefix('## ')}*\n\n"
    return heading + "\n".join(table[:ROWS]) + ("\n\nand more rows." if len(table) > ROWS else "")


def _line(paragraph: str) -> str:
    return " ".join(paragraph.split())
