"""The report of the decomposition."""

from experiments.report import tables
from experiments.report.outputs import Numbers
from experiments.synthetic.measure.decomposition import NUM_DIRECTIONS, VERSIONS
from experiments.synthetic.numbers.decomposition import PARTS, PERTURBATIONS, TERMS
from experiments.synthetic.numbers.models import STATISTICS, Model
from experiments.synthetic.report.page import page
from isouq.stats import Interval

MIN_MODELS = 5  # for a claim


def report(numbers: Numbers, preset: str) -> str:
    """Return the correlations of every model, which term costs more, and the perturbations beside ‖g‖²."""
    sections = _correlations(numbers), _losses(numbers), _sizes(numbers), _perturbations(numbers)
    return page(f"Decomposition, preset `{preset}`", numbers, *sections)


def _correlations(numbers: Numbers) -> str:
    """Return the three correlations of every model under every Σ."""
    text = (
        "## Where the correlation is lost\n\n"
        "V = Var_θ[p] (reference), L = gᵀΣg with Σ the covariance of the draws (linearised), I = ‖g‖² (linearised "
        "and isotropic). Taylor: corr(V, L). Isotropy: corr(L, I). Whole: corr(V, I). The draws visit symmetric "
        "copies of a mode, which makes the pooled Σ look isotropic. Beside it therefore stand the mean Σ of single "
        "chains, and Σ after the hidden units of every draw were matched to those of θ* (permutation and "
        "sign). The losses 1 − correlation do not add up: the whole can lose less than either term.\n"
    )
    columns = ["whole", *(f"{term}_{version}" for version in VERSIONS for term in TERMS)]
    header = ["model", "accepted", "whole", *(f"{term}, {title}" for title in VERSIONS.values() for term in TERMS)]
    for statistic, symbol in STATISTICS.items():
        body = []
        for model in numbers.details:
            values = numbers.groups[model.name]
            cells = [tables.mean_sd_bounds(values[f"{column}_{statistic}"]) for column in columns]
            body.append([model.name, model.accepted_share, *cells])
        text += f"\n### {statistic.capitalize()}'s {symbol}\n\n{tables.table(header, body)}"
    return text


def _losses(numbers: Numbers) -> str:
    """Return for how many models Taylor costs more than isotropy, and how much more on average."""
    body = []
    for part in PARTS:
        values = numbers.groups[part]
        for statistic, symbol in STATISTICS.items():
            for version, title in VERSIONS.items():
                name = f"{version}_{statistic}"
                difference, larger = values[f"loss_difference_{name}"], values[f"taylor_loses_more_{name}"]
                if not difference.count:
                    continue
                losses = [tables.mean_sd_bounds(values[f"{term}_loss_{name}"]) for term in TERMS]
                share = f"{larger.mean * larger.count:.0f} of {larger.count}"
                body.append(
                    [part, symbol, title, share, *losses, tables.mean_sd_bounds(difference), _verdict(difference)]
                )
    header = [
        "models", "", "Σ", "Taylor costs more in", "loss to Taylor", "loss to isotropy", "Taylor − isotropy",
        "costs more",
    ]  # fmt: skip
    text = (
        "## Taylor or isotropy?\n\n"
        "The loss to Taylor is 1 − corr(V, L), the loss to isotropy 1 − corr(L, I). They are paired by seed and "
        "averaged over the accepted seeds of a model; the table shows mean ± sd and a bootstrap 95 % interval over "
        "the models that have one. A term costs more where the interval of the difference excludes 0. The models of "
        "width × prior share one problem: their interval speaks of these models and no others. V is the whole "
        "posterior's in all three versions: where the draws visit several modes, the loss counts as Taylor's.\n\n"
    )
    return text + (tables.table(header, body) if body else "No reference was accepted.\n")


def _verdict(difference: Interval) -> str:
    """Return the name of the term that costs more."""
    if difference.count < MIN_MODELS:
        return f"too few models ({difference.count})"
    return "Taylor" if difference.low > 0 else "isotropy" if difference.high < 0 else "neither clearly"


def _sizes(numbers: Numbers) -> str:
    """Return mean(L) / mean(V), and how evenly Σ acts on the gradients."""
    columns = [f"{size}_{version}" for size in ("scale", "anisotropy") for version in VERSIONS]
    body = [
        [model.name, *(tables.mean_sd_bounds(numbers.groups[model.name][column]) for column in columns)]
        for model in numbers.details
    ]
    titles = list(VERSIONS.values())
    header = ["model", *(f"mean L / mean V, {t}" for t in titles), *(f"sd / mean of L / I, {t}" for t in titles)]
    return (
        "## Right in shape, right in size?\n\n"
        "mean(L) / mean(V) is 1 where linearising keeps the size of the variance. sd / mean of L / I over the grid is "
        "0 where Σ acts on the gradients as a multiple of the identity.\n\n" + tables.table(header, body)
    )


def _perturbations(numbers: Numbers) -> str:
    """Return the correlations of the isotropic perturbation: one σ for all models, and the best σ of each."""
    fixed = [
        [label, *(tables.mean_sd_bounds(numbers.groups[part][f"{column}_{s}"]) for part in PARTS for s in STATISTICS)]
        for label, column in {**PERTURBATIONS, "‖g‖²": "whole"}.items()
    ]
    over = [f"{symbol}, {part}" for part in PARTS for symbol in STATISTICS.values()]
    header = ["model", *(f"{t}" for s in STATISTICS.values() for t in ("best σ", f"{s} at it", f"{s} of ‖g‖²"))]
    body = [[model.name, *(cell for s in STATISTICS for cell in _best(numbers, model, s))] for model in numbers.details]
    return (
        "## Isotropic but not linearised: W = Var_ε[p(x|θ* + σε)], ε ~ N(0, I)\n\n"
        f"{NUM_DIRECTIONS} directions, the same for every σ. As σ → 0, W tends to σ²‖g‖². W stays isotropic at a "
        "larger σ: what it gains over ‖g‖² there comes from not linearising. One σ for all models (mean ± sd and "
        f"interval over models):\n\n{tables.table(['σ', *over], fixed)}\n"
        "The best σ of each model, by mean correlation with V. It was chosen after looking at the correlations, so its "
        f"correlation is an upper bound and no estimate.\n\n{tables.table(header, body)}"
    )


def _best(numbers: Numbers, model: Model, statistic: str) -> list[str]:
    """Return the best σ of a model, its correlation, and that of ‖g‖²."""
    values = numbers.groups[model.name]
    whole, best = tables.mean_sd_bounds(values[f"whole_{statistic}"]), values.get(f"best_sigma_{statistic}")
    if best is None:
        return ["–", "unconverged", whole]
    return [f"{best.mean:g}", tables.mean_sd_bounds(values[f"perturbation_{best.mean:g}_{statistic}"]), whole]
