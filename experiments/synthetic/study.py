"""The studies of a posterior by name, and the job that runs one: a reference is sampled once, every study reads it."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

from experiments.run.job import Result, hash_fields
from experiments.synthetic.configuration import Configuration
from experiments.synthetic.measure import (
    agreement,
    calibration,
    covariance,
    decomposition,
    estimators,
    lineage,
    second_opinion,
    spectrum,
)
from experiments.synthetic.measure.reference import measure_reference, measure_references
from experiments.synthetic.real_data import REAL
from experiments.synthetic.subject import Subject, subject
from isouq import _checks, problems

Seconds = Callable[[Configuration], float]


class Study(NamedTuple):
    """What is computed of a posterior.

    version: part of every key; raise it when a change to the code changes the numbers. seconds: the expected time with
    two cores at work, fitted to measured runs. measure: the computation; None for the reference itself.
    """

    version: int
    seconds: Seconds
    measure: Callable[[Subject], Result] | None


def _reference_seconds(configuration: Configuration) -> float:
    """Return the time of training, and of sampling and judging the usual number of rounds."""
    c, width = configuration, _width(configuration)
    draws = c.chains * c.num_draws * min(c.max_rounds, 4 if width <= 4 else 2)
    gradients = (c.chains * c.num_warmup + draws * c.thin) * c.num_leapfrog
    deeper = (c.depth - 1) * width * (1e-6 + 1e-8 * width)  # a gradient's, of the further layers
    seconds = gradients * (1e-5 + 5.5e-7 * width + deeper) + draws * (1e-4 + 2e-6 * width + 5 * deeper)
    return (seconds + _dense(2.0)(configuration)) / 2


def _dense(seconds: float) -> Seconds:
    """Return the time of a study that takes eigenvalues of P × P matrices, or matches units, up to a limit."""
    return lambda configuration: seconds + 5e-7 * min(_width(configuration), 650) ** 3


def _width(configuration: Configuration) -> int:
    return 32 if configuration.width is None else configuration.width


STUDIES = {
    "reference": Study(4, _reference_seconds, None),  # 4: a start at no saddle is not looked at again
    "agreement": Study(2, _dense(0.5), agreement.measure),
    "second_opinion": Study(2, lambda configuration: 30.0, second_opinion.measure),
    "covariance": Study(2, _dense(4.0), covariance.measure),
    "decomposition": Study(2, _dense(1.0), decomposition.measure),
    "estimators": Study(1, _dense(20.0), estimators.measure),
    "calibration": Study(2, lambda configuration: 5.0, calibration.measure),
    "spectrum": Study(2, _dense(0.5), spectrum.measure),
    "lineage": Study(1, lambda configuration: 8.0, lineage.measure),
}


@dataclass(frozen=True)
class Cell(Configuration):
    """A configuration that can be run: the job of the synthetic experiments."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.one_of("study", self.study, STUDIES)

    def key(self) -> str:
        """Return a hash of the configuration and of the versions of the code that computes it."""
        versions = [STUDIES[name].version for name in ("reference", self.study)]
        fields = dataclasses.asdict(self)
        if not self.give_up:
            del fields["give_up"]  # so that results from before it existed keep their key
        return hash_fields({**fields, "versions": versions})

    def weight(self) -> float:
        """Return the expected seconds with two cores at work, for the estimate of the time left."""
        return STUDIES[self.study].seconds(self)

    def program(self) -> str:
        """Return a name of the compiled programs: the study, the model, and every number that decides a shape."""
        arguments = ("seed", "prior", "sigma", "num_leapfrog")
        shapes = {name: value for name, value in dataclasses.asdict(self).items() if name not in arguments}
        problem = problems.PROBLEMS.get(self.problem)  # a real data set has its own number of rows and features
        if problem is not None:  # problems of one kind and model differ in their data alone
            hidden = (self.width,) * self.depth if self.width else problem.hidden
            shapes |= {"problem": f"{problem.kind}, {problem.num_outputs} outputs", "width": hidden}
            if not hidden:
                del shapes["activation"]
        return ", ".join(f"{name} {value}" for name, value in shapes.items())

    def group(self) -> str | None:
        """Return a name of the references that are sampled in one program; None for another study."""
        return None if self.study != "reference" else f"{self.program()}, num_leapfrog {self.num_leapfrog}"

    @classmethod
    def run_group(cls, jobs: Sequence[Self], progress: Callable[[float], None] | None = None) -> list[Result]:
        """Compute references of one group together; see `measure_references`."""
        return measure_references(jobs, [_problem(cell, None) for cell in jobs], progress)

    def needs(self) -> "Cell | None":
        """Return the reference that the cell reads; None for a reference."""
        return None if self.study == "reference" else self.reference()

    def run(
        self,
        needed: Result | None = None,
        checkpoint: Path | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> Result:
        """Compute the result; see `run_cell`."""
        return run_cell(self, reference=needed, checkpoint=checkpoint, progress=progress)


def run_cell(
    cell: Configuration,
    problem: problems.Problem | None = None,
    reference: Result | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[float], None] | None = None,
) -> Result:
    """Run one study, and its reference first where none is given.

    problem: a problem of one's own; by default the one that the cell names. reference: the result of
    `cell.reference()`. checkpoint: a file from which the sampling of a reference goes on. progress: called with the
    share of the sampling that is done.
    """
    problem = _problem(cell, problem)
    measure = STUDIES[cell.study].measure
    if measure is None:
        return measure_reference(cell, problem, progress, checkpoint)
    if reference is None:
        reference = measure_reference(cell.reference(), problem, progress)
    return _without_correlations_of_flat(measure(subject(cell, problem, reference)))


def _without_correlations_of_flat(result: Result) -> Result:
    """Return the result with every correlation undefined where ‖g‖² is flat; see `is_flat`."""
    if not result.numbers.get("flat", False):
        return result
    correlations = ("_pearson", "_spearman", "_partial", "_overlap")
    undefined = {name: float("nan") for name in result.numbers if any(part in name for part in correlations)}
    return result._replace(numbers=result.numbers | undefined)


def _problem(cell: Configuration, problem: problems.Problem | None) -> problems.Problem:
    """Return the problem of the cell; raise where `problem` has another name than the cell, or a built-in one's."""
    built_in = problems.PROBLEMS | REAL
    if problem is None:
        _checks.one_of("problem", cell.problem, built_in)
        return built_in[cell.problem]
    known = built_in.get(cell.problem)
    if problem.name != cell.problem or (known is not None and problem is not known):
        raise ValueError(
            f"the problem is called {problem.name!r} and the cell's {cell.problem!r}; give your own problem a name "
            "that no built-in one has, and the cell the same"
        )
    return problem
