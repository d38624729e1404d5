"""What the site takes over from the rest of the repository, and where it puts it."""

import json
from pathlib import Path
from typing import Any

from experiments.command import EXPERIMENTS

ROOT = Path(__file__).resolve().parents[2]


def sources() -> dict[str, str]:
    """Place in the site -> file of the repository that is copied there."""
    found = {
        "changelog.md": "CHANGELOG.md",
        "benchmarks/index.md": "benchmarks/README.md",
        "lab-book.md": "experiments/README.md",
    }
    for path in sorted((ROOT / "results").glob("*/summary.md")):
        found[f"results/{path.parent.name}.md"] = _relative(path)
    for path in sorted((ROOT / "benchmarks" / "results").glob("*")):
        if path.suffix in (".md", ".png"):
            found[f"benchmarks/{path.name}"] = _relative(path)
    for path in sorted((ROOT / "figures").rglob("*.png")):
        found[_relative(path)] = _relative(path)
    return found


def provenance(experiment: str) -> dict[str, Any] | None:
    """How the committed results of an experiment were made; None where there are none."""
    path = ROOT / "results" / experiment / "provenance.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def experiments() -> list[str]:
    """The experiments in the order of the command line."""
    return list(EXPERIMENTS)


def _relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()
