"""The numbers of the real data: agreement, errors found and calibration, by data set and prior."""

from collections.abc import Sequence

import numpy as np

from experiments.report.outputs import Number, Numbers
from experiments.run.job import Result
from experiments.synthetic.measure.estimators import ESTIMATORS
from experiments.synthetic.measure.held_out import PREDICTORS, SHARES
from experiments.synthetic.numbers.models import counts, model_name, numbers_of, rows_by_model
from isouq.stats import bootstrap_mean

REFERENCE = "reference"  # the posterior variance itself, as an estimate of where θ* errs
TITLES = {REFERENCE: "posterior variance (HMC)"} | {name: one.title for name, one in ESTIMATORS.items()}
MEASURES = ("auroc", "kept")
CURVES = (REFERENCE, "control", "gradient", "perturbed", "between_map_10", "ggn")


def numbers(results: Sequence[Result]) -> Numbers:
    """Return for each data set and prior the means over seeds of every column.

    A group is a data set with its prior. The columns are those of the measurement; rejection_NAME_SHARE is the error of
    θ* when that share of the points, those with the largest values, is left out. Only accepted references that are not
    flat count, also where a column does not need the reference, so that all are compared on the same seeds.
    details: the rows by model.
    """
    rows = [result.numbers for result in results]
    groups = rows_by_model(rows)
    columns = ["error", *(f"{what}_{name}" for what in ("nll", "ece") for name in PREDICTORS)]
    columns += [f"{name}_{what}" for name in (REFERENCE, *ESTIMATORS) for what in (*MEASURES, "spearman", "pearson")]
    summary: list[Number] = []
    for model, group in groups.items():
        summary += numbers_of(model, group, [column for column in columns if column in group[0]])
        arrays = [r.arrays for r in results if model_name(r.numbers) == model.name and counts(r.numbers)]
        for name in CURVES:
            if arrays and f"rejection_{name}" in arrays[0]:
                curves = np.stack([seed[f"rejection_{name}"] for seed in arrays])
                for share, values in zip(SHARES, curves.T, strict=True):
                    interval = bootstrap_mean(values)
                    summary.append(Number.of(model.name, f"rejection_{name}_{share:.1f}", interval, model.accepted))
    return Numbers(rows, summary, details=groups)
