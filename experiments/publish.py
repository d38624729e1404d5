"""Copy a run into the repository: figures/, results/, and the numbers in the pages made from *.md.in, README.md too.

Command: python -m experiments.publish [OUT]
OUT is the --out folder of a finished run; experiments that it lacks keep their committed results. Without OUT the
pages are written again from results/.
"""

import argparse
import csv
import json
import math
import re
import shutil
import sys
from pathlib import Path

from experiments.command import EXPERIMENTS
from experiments.report import tables
from experiments.report.outputs import group_numbers, read_summary
from experiments.synthetic.report.page import p_value
from isouq.stats import Interval, bootstrap_mean

ROOT = Path(__file__).resolve().parent.parent
# The sections of summary.md, by the beginning of their titles, that docs/results.md shows.
_SECTIONS = {
    "validation": ("Epistemic", "Laplace", "Aleatoric", "Where it is compared", "Gold case", "Second opinion"),
    "scaling": ("Is there a U?",),
    "covariance": ("Agreement of gᵀΣg with the reference, Pearson", "What it costs"),
    "decomposition": ("Taylor or isotropy?",),
    "spectrum": ("Does the bulk predict the agreement?",),
    "estimators": ("What does ‖g‖² know", "All posteriors: against"),
    "real": ("Agreement with HMC", "Finding errors", "Calibration"),
    "calibration": ("What each predictor changes", "The fitted numbers"),
    "depth": ("Does depth or ReLU change the agreement?",),
    "lineage": ("The nearest", "What each factor does", "Rows of the paper's table"),
    "text-calibration": ("What each predictor changes", "The losses"),
    "domains": ("Held-out", "Do the domains overlap", "Does a proxy bend", "What a user would do", "Memory of one"),
    "qa": ("Answers", "AUROC and PRR of every score", "Against −log p", "If only the surest", "What a score costs"),
    "trace": ("AUROC", "The course of a trace"),
}
_HEAD = """# Results

This page contains the main tables of every experiment. `python -m experiments.publish OUT` copies them from
[results/](../results). [When can I trust ‖g‖²?](when-to-trust.md) draws the practical conclusions.
[How to read the tables](reading-the-tables.md) explains their words and limits.
[The lab book](../experiments/README.md) has the question, command and time of each experiment, and
[the gallery](../figures) shows the figures.
"""


def publish(out: Path | None = None, root: Path = ROOT) -> list[Path]:
    """Copy the figures and tables of a run, write the pages from results/; return the paths written."""
    written = []
    for folder in _finished(out) if out else []:
        for source in (
            *sorted(folder.glob("*.csv")),
            folder / "summary.md",
            folder / "provenance.json",
            *sorted(folder.glob("*.png")),
            *sorted(folder.glob("*.pdf")),
        ):
            target = root / ("figures" if source.suffix in (".png", ".pdf") else "results") / folder.name / source.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            written.append(target)
    page = root / "docs" / "results.md"
    page.parent.mkdir(exist_ok=True)
    page.write_text(results_page(root / "results"), encoding="utf-8")
    written.append(page)
    for template in templates(root):
        page = template.with_suffix("")
        page.write_text(fill_numbers(template.read_text(encoding="utf-8"), root / "results"), encoding="utf-8")
        written.append(page)
    return written


def _finished(out: Path) -> list[Path]:
    """Return the folders of finished experiments; one that was renamed, as qa-quantised, is published by that name."""
    return sorted(path.parent for path in out.glob("*/provenance.json"))


def templates(root: Path) -> list[Path]:
    """Return the templates of pages: NAME.md.in becomes NAME.md."""
    return sorted((*root.glob("*.md.in"), *root.glob("*/*.md.in"), *root.glob("docs/*/*.md.in")))


def results_page(results: Path) -> str:
    """Return the page docs/results.md: every table that the experiments put forward."""
    return f"{_HEAD}\n{_shown_sections(results)}"


def fill_numbers(template: str, results: Path) -> str:
    """Return the text with every number in double braces replaced by a mean and its interval from results/.

    {{experiment | group | statistic}}: a line of results/experiment/summary.csv. {{experiment/file name=value ...
    column}}: the one row of results/experiment/file.csv with these values, whose interval are its columns low and high.
    {{experiment name=value ... column}}: the mean over the accepted rows of results/experiment/table.csv with these
    values. A statistic NAME_p is a p-value, which has no interval, and NAME_gain a difference, which has a sign.
    """

    def number(match: re.Match[str]) -> str:
        interval = _from_summary(match, results) if "|" in match[1] else _from_rows(match, results)
        if match[1].strip().endswith("_p"):
            return p_value(interval.mean)
        if match[1].strip().endswith("_gain"):
            digits = 2 if max(map(abs, (interval.mean, interval.low, interval.high))) >= 0.1 else 3
            return f"{interval.mean:+.{digits}f} {tables.bounds(interval, digits)}"
        digits = 0 if abs(interval.mean) >= 100 else 2 if abs(interval.mean) >= 0.01 else 4
        return f"{tables.number(interval.mean, digits)} {tables.bounds(interval, digits)}"

    return re.sub(r"\{\{(.+?)\}\}", number, template, flags=re.DOTALL)


def _from_summary(match: re.Match[str], results: Path) -> Interval:
    """Return a number of summary.csv."""
    experiment, group, statistic = (" ".join(part.split()) for part in match[1].split("|"))
    path = results / experiment / "summary.csv"
    try:
        interval = group_numbers(read_summary(path))[group][statistic]
    except KeyError as error:
        raise ValueError(f"{match[0]}: {path} has no {error}") from None
    if not interval.count:
        raise ValueError(f"{match[0]}: {path} has no accepted posterior of this group")
    return interval


def _from_rows(match: re.Match[str], results: Path) -> Interval:
    """Return a mean over rows; see `fill_numbers`."""
    experiment, *conditions, column = match[1].split()
    folder, _, file_name = experiment.partition("/")
    path = results / folder / f"{file_name or 'table'}.csv"
    with open(path, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    wanted = dict(condition.split("=") for condition in conditions)
    unknown = {column, *wanted} - set(rows[0])
    if unknown:
        raise ValueError(f"{match[0]}: {path} has no column {', '.join(sorted(unknown))}")
    rows = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    rows = [row for row in rows if row.get("accepted", "True") == "True" and row[column]]
    values = [value for value in map(float, (row[column] for row in rows)) if math.isfinite(value)]
    if not values:
        raise ValueError(f"{match[0]}: {path} has no accepted row of this kind")
    if len(rows) == 1 and rows[0].get("low"):
        return Interval(2, values[0], math.nan, float(rows[0]["low"]), float(rows[0]["high"]))
    return bootstrap_mean(values)


def _shown_sections(results: Path) -> str:
    """Return the sections of every experiment that are shown."""
    parts = []
    for name, sections in _SECTIONS.items():
        if not (results / name / "summary.md").exists():
            continue
        summary = (results / name / "summary.md").read_text(encoding="utf-8")
        facts = json.loads((results / name / "provenance.json").read_text(encoding="utf-8"))
        title, *chunks = re.split(r"^## ", summary, flags=re.MULTILINE)
        heading = title.splitlines()[0].removeprefix("# ")
        parts.append(f"## {heading}\n\n`python -m experiments {name} --preset {facts['preset']}`\n")
        parts.append(title.split("\n", 1)[1].strip() + "\n")
        shown_chunks = (chunk.strip() for chunk in chunks if chunk.startswith(sections))
        parts += [f"### {re.sub(r'^### ', '#### ', chunk, flags=re.MULTILINE)}\n" for chunk in shown_chunks]
    return "\n".join(parts)


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.publish", description=__doc__)
    parser.add_argument("out", type=Path, nargs="?", metavar="OUT", help="the --out folder of a finished run")
    out: Path | None = parser.parse_args().out
    if out and not _finished(out):
        print(
            f"publish: {out} holds no finished experiment ({', '.join(EXPERIMENTS)}); run python -m experiments first",
            file=sys.stderr,
        )
        return 1
    for path in publish(out):
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
