"""The files of the repository that the site copies, and their places in the site."""

import json
from pathlib import Path
from typing import Any

from experiments.command import EXPERIMENTS

ROOT = Path(__file__).resolve().parents[2]


def sources() -> dict[str, str]:
    """Return the file of the repository that is copied to each place in the site."""
    files = {
        "changelog.md": "CHANGELOG.md",
        "benchmarks/index.md": "benchmarks/README.md",
        "lab-book.md": "experiments/README.md",
    }
    for path in sorted((ROOT / "results").glob("*/summary.md")):
        files[f"results/{path.parent.name}.md"] = _relative(path)
    for path in sorted((ROOT / "benchmarks" / "results").glob("*")):
        if path.suffix in (".md", ".png"):
            files[f"benchmarks/{path.name}"] = _relative(path)
    for path in sorted((ROOT / "figures").rglob("*.png")):
        files[_relative(path)] = _relative(path)
    return files


def provenance(experiment: str) -> dict[str, Any] | None:
    """Return how the committed results of an experiment were made, or None if there are none."""
    path = ROOT / "results" / experiment / "provenance.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def experiments() -> list[str]:
    """Return the names of the experiments in the order of the command line."""
    return list(EXPERIMENTS)


def _relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()
