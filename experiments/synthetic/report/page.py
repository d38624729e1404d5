"""What the reports of all synthetic experiments have in common: how to read them, and what did not converge."""

from collections.abc import Sequence

from experiments.report import tables
from experiments.report.outputs import Numbers
from experiments.synthetic.configuration import describe_model
from experiments.synthetic.numbers.models import COSTS, STATISTICS, Model, Row, is_flat_row
from experiments.synthetic.subject import FLAT
from isouq.posterior.verdict import Verdict
from isouq.stats import Interval

_HOW_TO_READ = (
    "Mean ± sd over the seeds whose reference posterior was accepted, and a bootstrap 95 % interval of the mean. "
    "`accepted` counts those seeds; the others are listed at the end and averaged nowhere. "
    "r is Pearson's, ρ Spearman's correlation over the evaluation inputs. A percentile interval from five "
    "seeds covers about 84 %, from fewer seeds less: read it as the spread of the seeds.\n"
)


def page(title: str, numbers: Numbers, *sections: str) -> str:
    """Return a report: title, how to read it, the sections that are not empty, and what did not converge."""
    end = training_section(numbers.rows), reference_section(numbers.rows), _flat_section(numbers.rows)
    return "\n".join(part for part in (f"# {title}\n", _HOW_TO_READ, *sections, *end) if part)


def models_section(models: Sequence[Model], numbers: Numbers) -> str:
    """Return the table of the agreement of the three estimates, with a row for each model of a sweep."""
    body = []
    for model in models:
        values = numbers.groups[model.name]
        line = [model.prior_name, model.network, str(model.num_params), model.accepted_share]
        for statistic in STATISTICS:
            interval = values[f"epistemic_{statistic}"]
            line += [_agreement(model, interval), tables.bounds(interval)]
        line += [_agreement(model, values[f"{name}_{s}"]) for name in ("laplace", "aleatoric") for s in STATISTICS]
        body.append(line)
    header = [
        "prior", "network", "parameters", "accepted", "epistemic r", "95 % interval", "epistemic ρ", "95 % interval",
        "Laplace r", "Laplace ρ", "aleatoric r", "aleatoric ρ",
    ]  # fmt: skip
    return f"## Every model\n\n{tables.table(header, body)}"


def _agreement(model: Model, interval: Interval) -> str:
    """Return mean ± sd; a dash where nothing was computed although a posterior was accepted."""
    return "–" if model.accepted and not interval.count else tables.mean_sd(interval)


def difference(interval: Interval, digits: int = 2) -> str:
    """Return a mean difference with its sign, its interval and its number of pairs; a dash where there is no pair."""
    if interval.count == 0:
        return "–"
    return f"{interval.mean:+.{digits}f} {tables.bounds(interval, digits)} ({interval.count})"


def p_value(p: float) -> str:
    """Return a p-value to four digits, or that it is below 0.001; a dash where there was no test."""
    return "< 0.001" if p < 0.001 else tables.number(p, 4)


def costs_section(models: Sequence[Model], numbers: Numbers) -> str:
    """Return the table of what the references cost and of how well θ* was trained, with a row for each model."""
    columns = {column: cost for column, cost in COSTS.items() if column in numbers.groups[models[0].name]}
    body = [
        [model.name, *(tables.number(numbers.groups[model.name][column].mean, d) for column, (_, d) in columns.items())]
        for model in models
    ]
    return (
        "## Cost of the references, and training\n\n"
        "Means over all seeds. Draws come in rounds, which end when the reference is accepted. Escapes: how often "
        "training stopped at a saddle and went on along its steepest way up.\n\n"
        + tables.table(["model", *(heading for heading, _ in columns.values())], body)
    )


def row_name(row: Row) -> str:
    """Return the name of a row's model and seed."""
    model = describe_model(row["width"], row["depth"], row["activation"], row["num_points"])
    return f"{row['problem']}{model}, {row['prior']} σ = {row['sigma']:g}, seed {row['seed']}"


def training_section(rows: Sequence[Row]) -> str:
    """Return whether every θ* reached a maximum, and the list of those that did not."""
    worst = max(row["map_grad_norm"] for row in rows)
    late = [row for row in rows if not row["map_converged"]]
    text = f"## Training\n\n{len(rows) - len(late)} of {len(rows)} θ* converged; largest ‖∇ log p(θ*|D)‖ {worst:.3g}.\n"
    return text + "".join(f"- not converged: {row_name(row)}, {row['map_grad_norm']:.3g}\n" for row in late)


def reference_section(rows: Sequence[Row]) -> str:
    """Return every reference that was not accepted, with the rule that it broke."""
    failed = [row for row in rows if not row["accepted"]]
    text = f"## Reference posteriors\n\n{len(rows) - len(failed)} of {len(rows)} accepted.\n"
    for row in failed:
        verdict = Verdict(**{field: row[field] for field in Verdict._fields})
        text += f"- {row_name(row)}: {verdict}\n"
    return text


def _flat_section(rows: Sequence[Row]) -> str:
    """Return the list of the rows whose ‖g‖² is flat; empty where there is none."""
    flat = [row for row in rows if is_flat_row(row)]
    if not flat:
        return ""
    text = (
        f"## Flat estimates\n\nIn {len(flat)} of {len(rows)} rows ‖g‖² varies over the inputs by less than "
        f"{FLAT:g} of its mean: θ* predicts the same everywhere. No correlation is computed of them, and they are in "
        "no mean, test or figure.\n"
    )
    return text + "".join(f"- {row_name(row)}\n" for row in flat)
