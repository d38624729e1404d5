"""What runs the jobs: this process, a pool on this machine, a Ray cluster, or a SLURM array.

An executor applies a function to jobs wherever it runs them, and yields each job with its outcome as it ends. It knows
nothing of what the function does, and stores nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from experiments.run.executors import local, processes, ray, slurm
from experiments.run.executors.settings import Settings
from experiments.run.job import Job, Outcome

Run = Callable[[Sequence[Job]], Iterator[tuple[Job, Outcome]]]


def start(
    settings: Settings,
    widest: int,
    function: Callable[..., Outcome],
    out: Path,
    report: Callable[..., None],
    together: local.Together | None = None,
) -> AbstractContextManager[Run]:
    """Return the executor, ready to run lists of at most `widest` jobs, one list after the other.

    function: (job) → Outcome; `local` passes `progress` too. out: the folder of the run. report: (job, share), called
    when a job starts, by those executors that know. together: (jobs, progress) → outcomes or None; `local` calls it
    with a group of jobs on an accelerator. Leaving the context ends the workers, whatever they are at. RunError if the
    executor cannot be had.
    """
    starts: dict[str, Callable[..., AbstractContextManager[Run]]] = {
        "local": partial(local.start, together=together),
        "processes": processes.start,
        "ray": ray.start,
        "slurm": slurm.start,
    }
    return starts[settings.name](settings, widest, function, out, report)
