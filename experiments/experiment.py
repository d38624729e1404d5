"""The parts of an experiment that the command line calls."""

from collections.abc import Callable
from typing import NamedTuple

from experiments.report.outputs import Outputs


class Experiment(NamedTuple):
    """An experiment by name on the command line.

    jobs: `jobs(preset, seeds, **options)` returns the jobs of a preset. summarise: `summarise(results, preset)` returns
    the files that are written. options: the command line's options that `jobs` takes beside preset and seeds.
    """

    jobs: Callable[..., list]
    summarise: Callable[[list, str], Outputs]
    options: tuple[str, ...] = ()
