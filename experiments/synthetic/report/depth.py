"""The report of the depth study."""

from collections.abc import Collection, Mapping

import numpy as np

from experiments.report import tables
from experiments.report.outputs import Numbers
from experiments.synthetic.numbers.models import ALPHA, MIN_SEEDS, STATISTICS
from experiments.synthetic.presets.scaling import PROBLEM
from experiments.synthetic.report.page import costs_section, difference, models_section, p_value, page
from isouq.stats import Interval

_PRIMARY_FIRST = ("spearman", "pearson")
Values = Mapping[str, Interval]


def report(numbers: Numbers, preset: str) -> str:
    """Return the differences to one hidden layer of tanh units, and the table of every model."""
    models = numbers.details
    widths = [model.width for model in models]
    return page(
        f"Depth, preset `{preset}`: {PROBLEM}, one to three hidden layers, widths {min(widths)} to {max(widths)}",
        numbers,
        f"## Does depth or ReLU change the agreement?\n\n{_differences(numbers)}",
        models_section(models, numbers),
        costs_section(models, numbers),
    )


def _differences(numbers: Numbers) -> str:
    """Return how many differences are clear, and the table of all with their adjusted p."""
    compared = {model: numbers.groups[model.name] for model in numbers.details}
    compared = {model: values for model, values in compared.items() if "difference_spearman" in values}
    text = (
        "A difference is that of the epistemic correlation to the one of the tanh network with one hidden layer, of "
        "the same width and prior: the mean over the seeds whose references were accepted and not flat for both, "
        "its bootstrap 95 % interval and the number of seeds. p is that of the paired bootstrap, adjusted by "
        "Benjamini and Hochberg over all tests of this table, with both correlations as one family. "
        f"Below {MIN_SEEDS} seeds there is no test.\n\n"
        "The log density of a ReLU network has kinks, where the input of a unit is 0 at a training point, and a "
        "maximum may lie on one. The gradient does not vanish there, so that such θ* are listed as not converged.\n\n"
        f"{_count(compared.values())}\n\n"
    )
    body = [
        [model.prior_name, model.network, *(cell for s in _PRIMARY_FIRST for cell in _cells(values, s))]
        for model, values in compared.items()
    ]
    header = ["prior", "network"]
    for statistic in _PRIMARY_FIRST:
        header += [f"difference of {STATISTICS[statistic]}", "p, adjusted"]
    return text + tables.table(header, body)


def _cells(values: Values, statistic: str) -> list[str]:
    adjusted = values[f"adjusted_p_{statistic}"].mean
    return [difference(values[f"difference_{statistic}"]), p_value(adjusted)]


def _count(compared: Collection[Values]) -> str:
    """Return, for each correlation, the number of tests and how many show a higher or a lower one."""
    sentences = []
    for statistic in _PRIMARY_FIRST:
        tests = [
            (values[f"difference_{statistic}"].mean, values[f"adjusted_p_{statistic}"].mean) for values in compared
        ]
        count = sum(np.isfinite(adjusted) for _, adjusted in tests)
        clear = [mean for mean, adjusted in tests if adjusted < ALPHA]  # never where there is no test
        higher = sum(mean > 0 for mean in clear)
        sentences.append(
            f"Of {count} tests of {STATISTICS[statistic]}, {len(clear)} have an adjusted p below {ALPHA:g}: "
            f"{higher} with a higher correlation, {len(clear) - higher} with a lower one."
        )
    return "\n\n".join(sentences)
