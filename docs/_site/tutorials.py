"""Runs the tutorials and writes each as a page and as a notebook, with its output.

Command: python -m docs._site.tutorials [NAME ...]

A tutorial is a Python script that consists of cells: `# %% [markdown]` begins a text cell and `# %%` a code cell. The
output of a cell is what it prints and the figures that it leaves open.
"""

import base64
import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).resolve().parents[1] / "tutorials"


class Cell(NamedTuple):
    """kind: "markdown" or "code". source: without the comment signs of markdown."""

    kind: str
    source: str


class CellRun(NamedTuple):
    """A cell with its printed output and its figures as PNG."""

    cell: Cell
    printed: str
    figures: list[bytes]


def names() -> list[str]:
    """Return the names of the tutorials, which are the names of their scripts."""
    return sorted(path.stem for path in FOLDER.glob("*.py"))


def cells(text: str) -> list[Cell]:
    """Return the cells of a script."""
    parts = []
    for part in ("\n" + text).split("\n# %%")[1:]:
        head, _, body = part.partition("\n")
        if head.strip() == "[markdown]":
            lines = (line[2:] for line in body.strip().splitlines())  # "# text", and "#" for an empty line
            parts.append(Cell("markdown", "\n".join(lines)))
        else:
            parts.append(Cell("code", body.strip("\n")))
    return parts


def run(name: str) -> Iterator[CellRun]:
    """Run the cells of a tutorial in one namespace and yield each with its output."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    namespace: dict[str, Any] = {"__name__": "__main__"}
    for cell in cells((FOLDER / f"{name}.py").read_text(encoding="utf-8")):
        printed = io.StringIO()
        if cell.kind == "code":
            with contextlib.redirect_stdout(printed):
                exec(compile(cell.source, f"{name}.py", "exec"), namespace)
        figures = []
        for number in plt.get_fignums():
            picture = io.BytesIO()
            plt.figure(number).savefig(picture, dpi=80)
            figures.append(picture.getvalue())
        plt.close("all")
        yield CellRun(cell, printed.getvalue(), figures)


def page(name: str, ran: list[CellRun]) -> str:
    """Return the page in Markdown; its figures are files beside it."""
    parts = [f"<!-- written by python -m docs._site.tutorials {name} from {name}.py -->\n"]
    count = 0
    for cell, printed, figures in ran:
        if cell.kind == "markdown":
            parts.append(f"{cell.source}\n")
            continue
        parts.append(f"```python\n{cell.source}\n```\n")
        if printed:
            parts.append(f"```text\n{printed.rstrip()}\n```\n")
        for _ in figures:
            count += 1
            parts.append(f"![What the cell above draws]({name}-{count}.png)\n")
    return "\n".join(parts)


def notebook(ran: list[CellRun]) -> str:
    """Return the notebook as JSON in nbformat 4.5."""
    made = []
    for i, (cell, printed, figures) in enumerate(ran):
        one: dict[str, Any] = {"cell_type": cell.kind, "id": f"cell-{i}", "metadata": {}, "source": _lines(cell.source)}
        if cell.kind == "code":
            outputs: list[dict[str, Any]] = []
            if printed:
                outputs.append({"output_type": "stream", "name": "stdout", "text": _lines(printed)})
            for picture in figures:
                data = {"image/png": base64.b64encode(picture).decode(), "text/plain": ["<Figure>"]}
                outputs.append({"output_type": "display_data", "data": data, "metadata": {}})
            one |= {"execution_count": i + 1, "outputs": outputs}
        made.append(one)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    facts = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return json.dumps({"cells": made, "metadata": facts, "nbformat": 4, "nbformat_minor": 5}, indent=1) + "\n"


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def write(name: str) -> None:
    """Run one tutorial and write its page, figures and notebook."""
    ran = list(run(name))
    for old in FOLDER.glob(f"{name}-*.png"):
        old.unlink()
    for count, picture in enumerate((picture for one in ran for picture in one.figures), 1):
        (FOLDER / f"{name}-{count}.png").write_bytes(picture)
    (FOLDER / f"{name}.md").write_text(page(name, ran), encoding="utf-8")
    (FOLDER / f"{name}.ipynb").write_text(notebook(ran), encoding="utf-8")


def main() -> int:
    """Write the named tutorials, or all of them; return the exit status."""
    chosen = sys.argv[1:] or names()
    unknown = sorted(set(chosen) - set(names()))
    if unknown:
        print(f"tutorials: {', '.join(unknown)} does not exist; expected {', '.join(names())}", file=sys.stderr)
        return 1
    for name in chosen:
        write(name)
        print(os.path.relpath(FOLDER / f"{name}.md"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
