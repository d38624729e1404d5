"""Runs a cell: its reference is sampled once and kept, and every study of it reads what was kept."""

from collections.abc import Callable
from importlib import import_module

from experiments.run.store import Store
from experiments.synthetic.cell import Cell, Result
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
    progress: Callable[[float], None] | None = None,
    store: Store | None = None,
) -> Result:
    """Runs one cell, and its reference first where the store has none (or a damaged one).

    problem: a problem of one's own; by default the one that the cell names.
    progress: called with the share done of the sampling.
    store: where the reference is read from and kept. The cell itself is not stored here.
    """
    known = problems.PROBLEMS.get(cell.problem)
    if problem is None:
        problem = problems.get(cell.problem)
    elif problem.name != cell.problem or (known is not None and problem is not known):
        raise ValueError(
            f"the problem is called {problem.name!r} and the cell's {cell.problem!r}; give your own problem a name "
            "that no built-in one has, and the cell the same"
        )

    def sampled() -> Result:
        checkpoint = None if store is None else store.checkpoint_path(cell.reference())
        return measure_reference(cell.reference(), problem, progress, checkpoint)

    if cell.study == "reference":
        return sampled()
    reference = sampled() if store is None else store.obtain(cell.reference(), sampled)
    return _measure_of(cell.study)(subject(cell, problem, reference))


def _measure_of(study: str) -> Callable[[Subject], Result]:
    module, function = MEASURES[study].split(":")
    return getattr(import_module(module), function)
