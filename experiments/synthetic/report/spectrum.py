"""The report of the spectrum: the table of every model, and whether the bulk predicts the agreement."""

from collections.abc import Mapping, Sequence

import numpy as np

from experiments.report import tables
from experiments.report.outputs import Numbers
from experiments.synthetic.numbers.models import Model, Row
from experiments.synthetic.numbers.prediction import OUTCOMES, PREDICTORS, Relation
from experiments.synthetic.numbers.spectrum import ALL_MODELS
from experiments.synthetic.presets.scaling import PROBLEM
from experiments.synthetic.report.page import page, where

MIN_CLUSTERS = 5  # for a verdict
COLUMNS = (
    ("bulk, directions", "bulk_dimension", 3), ("bulk, ‖g‖² mean", "bulk_mean", 3),
    ("bulk, ‖g‖² weighted", "bulk_total", 3), ("d_eff", "effective_dimension", 1), ("d_eff / P", "effective_share", 3),
    ("participation, pooled", "pooled_participation", 3), ("within", "within_participation", 3),
    ("if isotropic", "isotropic_participation", 3), ("r(gᵀH⁻¹g, ‖g‖²)", "inverse_pearson", 2),
    ("epistemic r", "whole_pearson", 2), ("epistemic ρ", "whole_spearman", 2),
)  # fmt: skip
_EXPLANATION = (
    "H = −∇² log p(D|θ*) without the prior. Bulk: the eigenvectors with |λ| below the smallest prior precision; "
    "its share of directions and of ‖g‖² (mean over inputs, and weighted by ‖g‖²). d_eff = Σ λ₊/(λ₊ + 1) in the "
    "prior's units. Participation (tr Σ)²/(P tr Σ²) of the draws' covariance, 1 = isotropic; beside it what an "
    "isotropic Σ would show from as many independent draws. Draws that visit symmetric copies of a mode make "
    "the pooled Σ look isotropic; the one within chains suffers less.\n"
)


def report(numbers: Numbers, preset: str) -> str:
    """Return the spectra by prior and width and by problem, and whether the bulk predicts the agreement."""
    models: Sequence[Model] = list(numbers.details.models)
    return page(
        f"Spectrum, preset `{preset}`: does the Hessian's bulk explain why ‖g‖² agrees?",
        numbers,
        _EXPLANATION,
        _models(f"{PROBLEM}, by prior and width", numbers, [model for model in models if model.width is not None]),
        _models("The problems", numbers, [model for model in models if model.width is None]),
        _maxima(numbers.rows),
        _bulk(numbers),
        _prediction(numbers.details.relations),
    )


def _models(title: str, numbers: Numbers, models: Sequence[Model]) -> str:
    body = []
    for model in models:
        values = numbers.groups[model.name]
        cells = [tables.mean_sd(values[column], digits) for _, column, digits in COLUMNS]
        body.append([model.name, model.accepted_share, str(model.num_params), *cells])
    header = ["model", "accepted", "parameters", *(heading for heading, _, _ in COLUMNS)]
    return f"## {title}\n\n{tables.table(header, body)}" if body else ""


def _maxima(rows: Sequence[Row]) -> str:
    """Return the list of θ* that are saddles."""
    saddles = [row for row in rows if row["lowest_curvature"] < 0]
    text = (
        f"## Is θ* a maximum?\n\nAt {len(saddles)} of {len(rows)} θ* the log posterior curves upwards in some "
        "direction: a saddle, listed with its lowest curvature in units of the prior's precision. (Of a Krylov space, "
        "the lowest that it holds.)\n"
    )
    return text + "".join(f"- {where(row)}: {row['lowest_curvature']:.3g}\n" for row in saddles)


def _bulk(numbers: Numbers) -> str:
    """Return the shares of directions and of ‖g‖² that lie in the bulk, over all accepted models."""
    values = numbers.groups[ALL_MODELS]
    more = values.get("more_in_bulk")
    if more is None:
        return ""
    return (
        f"## Where does ‖g‖² lie?\n\nOver {more.count} accepted models the bulk has a median of "
        f"{values['median_bulk_dimension'].mean:.1%} of the directions and of {values['median_bulk_mean'].mean:.2%} of "
        f"‖g‖², at most {values['largest_bulk_mean'].mean:.2%}. A gradient of random direction would have equal "
        f"shares; the gradients have more than that in {more.mean * more.count:.0f} models.\n"
    )


def _prediction(relations: Mapping[str, Mapping[str, Mapping[str, Relation]]]) -> str:
    """Return the answer in words, then a table for each correlation with the reference."""
    text = (
        "## Does the bulk predict the agreement?\n\n"
        "Spearman correlation over models (accepted references only) of a property of the spectrum with the "
        "epistemic r or ρ, and a 95 % interval from a cluster bootstrap: within a prior whole seeds are resampled "
        "with all their widths, over problems whole problems with all their seeds, over all models whole data sets "
        "(problem and seed). Few clusters make it narrow. Yes: the interval of the bulk share of ‖g‖² lies above 0.\n\n"
    )
    text += "".join(f"- {_answer(relations[outcome], symbol)}\n" for outcome, symbol in OUTCOMES.items())
    for outcome, symbol in OUTCOMES.items():
        body = [_relation_row(name, by_predictor) for name, by_predictor in relations[outcome].items()]
        header = [f"epistemic {symbol}", "models", "clusters", *PREDICTORS.values(), "does the bulk predict it?"]
        text += f"\n{tables.table(header, body)}"
    return text


def _relation_row(name: str, by_predictor: Mapping[str, Relation]) -> list[str]:
    bulk = by_predictor["bulk_mean"]
    return [name, str(bulk.models), str(bulk.clusters), *map(_relation, by_predictor.values()), verdict(bulk)]


def _relation(relation: Relation) -> str:
    return f"{tables.number(relation.value)} [{tables.number(relation.low)}, {tables.number(relation.high)}]"


def verdict(relation: Relation) -> str:
    """Return whether more of the predictor goes with more agreement."""
    if relation.clusters < MIN_CLUSTERS or not np.isfinite([relation.low, relation.high]).all():
        return "too few data"
    if relation.low > 0:
        return "yes"
    return "no, the opposite" if relation.high < 0 else "not distinguishable"


def _answer(by_group: Mapping[str, Mapping[str, Relation]], symbol: str) -> str:
    """Return one sentence: in which groups the bulk predicts, and which predictor is strongest over all models."""
    verdicts = {name: verdict(by_predictor["bulk_mean"]) for name, by_predictor in by_group.items()}
    decided = [answer for answer in verdicts.values() if answer != "too few data"]
    if not decided:
        return f"Epistemic {symbol}: too few accepted models to say."
    if all(answer == decided[0] for answer in decided):
        answer = decided[0]
    else:
        answer = "it depends: " + "; ".join(
            f"{kind} in {', '.join(name for name, other in verdicts.items() if other == kind)}"
            for kind in dict.fromkeys(decided)
        )
    everywhere = by_group[ALL_MODELS]
    defined = {name: relation for name, relation in everywhere.items() if np.isfinite(relation.value)}
    if not defined:
        return f"Epistemic {symbol}: {answer}."
    strongest = max(defined, key=lambda name: abs(defined[name].value))
    return (
        f"Epistemic {symbol}: {answer}. Over all models the bulk share of ‖g‖² has "
        f"{_relation(everywhere['bulk_mean'])}; the largest of the {len(defined)} predictors, picked after looking, is "
        f"{PREDICTORS[strongest]}, {_relation(defined[strongest])}."
    )
