"""The report of the scaling study."""

from collections.abc import Mapping

from experiments.report import tables
from experiments.report.outputs import Numbers
from experiments.synthetic.numbers.models import MIN_SEEDS, STATISTICS
from experiments.synthetic.numbers.scaling import Shape
from experiments.synthetic.presets.scaling import PROBLEM
from experiments.synthetic.report.page import costs_section, difference, models_section, page
from isouq.stats import Interval


def report(numbers: Numbers, preset: str) -> str:
    """Return whether the curves have the paper's U, and the table of every model."""
    widths = [model.width for model in numbers.details.models]
    return page(
        f"Scaling, preset `{preset}`: {PROBLEM}, one hidden layer, widths {min(widths)} to {max(widths)}",
        numbers,
        f"## Is there a U?\n\n{_shapes(numbers)}",
        models_section(numbers.details.models, numbers),
        costs_section(numbers.details.models, numbers),
    )


def _shapes(numbers: Numbers) -> str:
    """Return a row for every prior and statistic: the ends of the curve, its lowest point, the rises, the verdict."""
    text = (
        "The paper reports a U: high for tiny models, a dip, then recovery as the model grows. A rise is the mean over "
        "seeds (accepted at both widths) of the difference, with its bootstrap 95 % interval and the "
        "number of seeds.\n\n"
    )
    body = [
        [prior, STATISTICS[statistic], *_shape(numbers.groups, prior, statistic, shape)]
        for (prior, statistic), shape in numbers.details.shapes.items()
    ]
    header = ["prior", "", "smallest", "lowest", "largest", "lowest → smallest", "lowest → largest", "U"]
    reading = (
        "\nU: the lowest point lies inside and both rises exclude 0, on five seeds or more. A width without an "
        "accepted seed is passed over. The lowest point is chosen after looking at the means: its intervals are too "
        "narrow.\n"
    )
    return text + tables.table(header, body) + reading


def _shape(groups: Mapping[str, Mapping[str, Interval]], prior: str, statistic: str, shape: Shape) -> list[str]:
    means = [tables.number(groups[model.name][f"epistemic_{statistic}"].mean) for model in shape]
    points = [f"{mean} (width {model.width})" for mean, model in zip(means, shape, strict=True)]
    fall, rise = groups[prior][f"fall_{statistic}"], groups[prior][f"rise_{statistic}"]
    return [*points, difference(fall), difference(rise), _verdict(fall, rise)]


def _verdict(fall: Interval, rise: Interval) -> str:
    """Return whether there is a U; the lowest point lies inside where both differences exist."""
    if not (fall.low > 0 and rise.low > 0):
        return "no"
    pairs = min(fall.count, rise.count)
    return "yes" if pairs >= MIN_SEEDS else f"too few seeds ({pairs})"
