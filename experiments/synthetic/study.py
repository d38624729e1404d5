"""Runs a cell: its reference is sampled once and kept, and every study of it reads what was kept."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from experiments.run.job import Result
from experiments.synthetic.cell import Cell
from experiments.synthetic.subject import Subject, measure_reference, subject
from isouq import problems

# Where the function of a study stands, Subject -> Result; imported when it is first run.
MEASURES = {
    "agreement": "experiments.synthetic.measure.agreement:measure",
    "second_opinion": "experiments.synthetic.measure.agreement:second_opinion",
    "covariance": "experiments.synthetic.covariance:measure",
    "decomposition": "experiments.synthetic.decomposition:measure",
    "spectrum": "experiments.synthetic.spectrum:measure",
}


def run_cell(
    cell: Cell,
    problem: problems.Problem | None = None,
    reference: Result | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[float], None] | None = None,
) -> Result:
    """Run one cell, and its reference first where none is given.

    problem: a problem of one's own; by default the one that the cell names. reference: the result of
    `cell.reference()`. checkpoint: a file from which the sampling of a reference goes on. progress: called with the
    share of the sampling that is done.
    """
    known = problems.PROBLEMS.get(cell.problem)
    if problem is None:
        problem = problems.get(cell.problem)
    elif problem.name != cell.problem or (known is not None and problem is not known):
        raise ValueError(
            f"the problem is called {problem.name!r} and the cell's {cell.problem!r}; give your own problem a name "
            "that no built-in one has, and the cell the same"
        )
    if cell.study == "reference":
        return measure_reference(cell, problem, progress, checkpoint)
    if reference is None:
        reference = measure_reference(cell.reference(), problem, progress)
    return _measure_of(cell.study)(subject(cell, problem, reference))


def _measure_of(study: str) -> Callable[[Subject], Result]:
    module, function = MEASURES[study].split(":")
    return getattr(import_module(module), function)
