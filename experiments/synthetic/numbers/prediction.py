"""Does a property of the spectrum predict, over models, how well ‖g‖² agrees with the reference?"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from experiments.report import tables as report

Row = report.Row
PREDICTORS = {
    "bulk_mean": "bulk share of ‖g‖²",
    "bulk_total": "the same, weighted",
    "bulk_dimension": "bulk share of directions",
    "effective_share": "d_eff / P",
    "pooled_participation": "participation, pooled",
    "within_participation": "participation, within",
    "inverse_pearson": "r(gᵀH⁻¹g, ‖g‖²)",
}
OUTCOMES = {"whole_pearson": "r", "whole_spearman": "ρ"}
RESAMPLES = 1000
MIN_CLUSTERS = 5  # for a verdict
DIGITS = 6  # shares that differ by rounding alone are ties


class Relation(NamedTuple):
    """Spearman's correlation over models with its bootstrap 95 % interval; NaN where there is none."""

    models: int
    clusters: int
    value: float
    low: float
    high: float

    def verdict(self) -> str:
        """Does more of the predictor go with more agreement?"""
        if self.clusters < MIN_CLUSTERS or not np.isfinite([self.low, self.high]).all():
            return "too few data"
        if self.low > 0:
            return "yes"
        return "no, the opposite" if self.high < 0 else "not distinguishable"

    def __str__(self) -> str:
        return f"{report.number(self.value)} [{report.number(self.low)}, {report.number(self.high)}]"


def relations(rows: Sequence[Row], cluster: Callable[[Row], Any], outcome: str, seed: int = 0) -> dict[str, Relation]:
    """Each predictor against the outcome, over the accepted rows.

    The interval is a cluster bootstrap (Davison and Hinkley 1997, ch. 3.8): whole clusters are drawn with
    replacement and all rows of a drawn cluster come with it, for the models of one data set are no independent
    evidence. All predictors share the resamples.
    """
    names = [outcome, *PREDICTORS]
    rows = [row for row in rows if row["accepted"] and np.isfinite([row[name] for name in names]).all()]
    keys = [cluster(row) for row in rows]
    members = [np.flatnonzero([key == one for key in keys]) for one in dict.fromkeys(keys)]
    nan = float("nan")
    if len(rows) < 3:
        return {name: Relation(len(rows), len(members), nan, nan, nan) for name in PREDICTORS}
    table = np.round(np.array([[row[name] for name in names] for row in rows], np.float64), DIGITS)
    values = _correlations(table)
    bounds = np.full((2, len(PREDICTORS)), nan)
    if len(members) > 1:
        draw = np.random.default_rng(seed).integers(len(members), size=(RESAMPLES, len(members)))
        resampled = [_correlations(table[np.concatenate([members[i] for i in drawn])]) for drawn in draw]
        defined = [column[np.isfinite(column)] for column in np.transpose(resampled)]
        bounds = np.transpose(
            [np.quantile(c, [0.025, 0.975]) if len(c) > RESAMPLES / 2 else [nan, nan] for c in defined]
        )
    return {
        name: Relation(len(rows), len(members), float(value), float(low), float(high))
        for name, value, low, high in zip(PREDICTORS, values, *bounds, strict=True)
    }


def _correlations(table: np.ndarray) -> np.ndarray:
    """Spearman's correlation of the first column with each other; NaN where one is constant."""
    ranks = scipy.stats.rankdata(table, axis=0)
    ranks -= ranks.mean(axis=0)
    norms = np.sqrt(np.sum(ranks**2, axis=0))
    scale = norms[0] * norms[1:]
    return np.divide(ranks[:, 0] @ ranks[:, 1:], scale, out=np.full(len(scale), np.nan), where=scale > 0)


def prediction(sweep: Sequence[Row], problems: Sequence[Row]) -> str:
    """The section of the summary: the answer in words, then a table for each statistic."""
    same = ("problem", "prior", "sigma", "num_params", "seed")  # a problem's own model may stand in the sweep too
    models = list({tuple(row[name] for name in same): row for row in [*problems, *sweep]}.values())
    groups: dict[str, tuple[Sequence[Row], Callable[[Row], Any]]] = {
        "all models": (models, lambda row: (row["problem"], row["seed"]))
    }
    for prior, sigma in sorted({(r["prior"], r["sigma"]) for r in sweep}, key=lambda p: (p[0] != "unit", p[1])):
        mine = [row for row in sweep if (row["prior"], row["sigma"]) == (prior, sigma)]
        groups[f"{prior} σ = {sigma:g} over widths"] = (mine, lambda row: row["seed"])
    groups["over problems"] = (problems, lambda row: row["problem"])
    text = (
        "## Does the bulk predict the agreement?\n\n"
        "Spearman correlation over models (accepted references only) of a property of the spectrum with the "
        "epistemic r or ρ, and a 95 % interval from a cluster bootstrap: within a prior whole seeds are resampled "
        "with all their widths, over problems whole problems with all their seeds, over all models whole data sets "
        "(problem and seed). Few clusters make it narrow. Yes: the interval of the bulk share of ‖g‖² lies above 0.\n\n"
    )
    tables = ""
    for outcome, symbol in OUTCOMES.items():
        found = {name: relations(rows, cluster, outcome) for name, (rows, cluster) in groups.items() if rows}
        text += f"- {_answer(found, symbol)}\n"
        body = [
            [
                name,
                str(mine["bulk_mean"].models),
                str(mine["bulk_mean"].clusters),
                *map(str, mine.values()),
                mine["bulk_mean"].verdict(),
            ]
            for name, mine in found.items()
        ]
        header = [f"epistemic {symbol}", "models", "clusters", *PREDICTORS.values(), "does the bulk predict it?"]
        tables += f"\n{report.table(header, body)}"
    return text + tables


def _answer(found: dict[str, dict[str, Relation]], symbol: str) -> str:
    """One sentence: in how many groups the bulk predicts, and which predictor is strongest over all models."""
    verdicts = {name: mine["bulk_mean"].verdict() for name, mine in found.items()}
    counted = [verdict for verdict in verdicts.values() if verdict != "too few data"]
    if not counted:
        return f"Epistemic {symbol}: too few accepted models to say."
    if all(verdict == counted[0] for verdict in counted):
        answer = counted[0]
    else:
        kinds = dict.fromkeys(counted)
        answer = "it depends: " + "; ".join(
            f"{kind} in {', '.join(name for name, verdict in verdicts.items() if verdict == kind)}" for kind in kinds
        )
    everywhere = found["all models"]
    defined = {name: relation for name, relation in everywhere.items() if np.isfinite(relation.value)}
    if not defined:
        return f"Epistemic {symbol}: {answer}."
    strongest = max(defined, key=lambda name: abs(defined[name].value))
    return (
        f"Epistemic {symbol}: {answer}. Over all models the bulk share of ‖g‖² has {everywhere['bulk_mean']}; "
        f"the largest of the {len(defined)} predictors, picked after looking, is {PREDICTORS[strongest]}, "
        f"{defined[strongest]}."
    )
