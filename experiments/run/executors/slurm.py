"""A SLURM array, through submitit. The folder of the run must be on a file system that all nodes share.

A task of the array is a worker. Before its time is over SLURM tells it, and it asks to be put into the queue again;
then, as after a preemption or a lost node, its cell goes on from the last checkpoint. The tasks go on without the
driver, should that be killed; Ctrl-C cancels them. Their output is in DIR/slurm.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments.run.errors import RunError
from experiments.run.executors import Run, Settings, _crew, project_path
from experiments.run.job import AnyCell
from experiments.run.store import Store
from experiments.run.work import Report

MINUTES = 240  # of a task, if nothing else is asked for
TASKS = 1000  # of one array, at most: what SLURM takes without being told otherwise
ASK_SECONDS = 10.0  # between two looks at the queue
TIMEOUTS = 1000  # of one task, before it stays out of the queue


@contextmanager
def opened(settings: Settings, widest: int, store: Store, report: Report) -> Iterator[Run]:
    """See `executors.opened`."""
    try:
        import submitit
    except ImportError as error:
        raise RunError("--executor slurm needs submitit; pip install 'isouq[slurm]'") from error
    if settings.cluster == "slurm" and shutil.which("sbatch") is None:
        raise RunError("there is no sbatch on this machine: log in where jobs are submitted, or --slurm-cluster local")
    if settings.gpus != int(settings.gpus):
        raise RunError(f"--resources gpus={settings.gpus:g}: SLURM gives whole GPUs; a share is for --executor ray")
    count = min(settings.workers or TASKS, widest, TASKS)
    folder = store.folder.parent.resolve() / "slurm"
    more = {"slurm_max_num_timeout": TIMEOUTS} if settings.cluster == "slurm" else {"local_max_num_timeout": TIMEOUTS}
    executor = submitit.AutoExecutor(folder=folder, cluster=settings.cluster, **more)
    asked: dict[str, Any] = {
        "timeout_min": settings.minutes or MINUTES,
        "cpus_per_task": settings.cpus,
        "name": "isouq",
    }
    if settings.gpus:
        asked["gpus_per_node"] = int(settings.gpus)
    if settings.cluster == "slurm":
        asked |= {"slurm_array_parallelism": count}
        asked |= {"slurm_partition": settings.partition} if settings.partition else {}
    executor.update_parameters(**asked)
    crew = Array(executor, count, store.folder.resolve(), settings.cluster)
    try:
        with _project_on_path():
            yield lambda cells: _crew.watch(crew, cells, store, report)
    finally:
        crew.stop()
        for path in folder.glob("*.pkl"):
            path.unlink(missing_ok=True)


@contextmanager
def _project_on_path() -> Iterator[None]:
    """Jobs take over the environment of whoever submits them."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = project_path()
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


class Through:
    """What a task of the array does; submitit calls `checkpoint` before the task's time is over."""

    def __init__(self, folder: str, lost: bool) -> None:
        self.folder, self.lost = folder, lost

    def __call__(self, cells: list[AnyCell]) -> None:
        """In the job."""
        _crew.go_through(cells, Store(Path(self.folder)), self.lost)

    def checkpoint(self, cells: list[AnyCell]) -> Any:
        """The same again, in the queue."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, cells)


class Array:
    """See `_crew.Crew`."""

    alone = False

    def __init__(self, executor: Any, count: int, folder: Path, cluster: str) -> None:
        self.count, self._executor, self._folder, self._cluster = count, executor, folder, cluster
        self.why = f"their output is in {folder.parent / 'slurm'}"
        self._jobs: list[Any] = []
        self._queue: tuple[float, set[str]] = (0.0, set())

    def start(self, cells: Sequence[AnyCell], count: int, lost: bool) -> None:
        """See `_crew.Crew`. A task gets its own share of the cells and the next one's, to stand in for it."""
        edges = [i * len(cells) // count for i in range(count + 1)]
        twice = [*cells, *cells]
        shares = [twice[edges[i] : edges[i] + 2 * (edges[i + 1] - edges[i])] for i in range(count)]
        try:
            jobs = self._executor.map_array(Through(str(self._folder), lost), [share[: len(cells)] for share in shares])
        except Exception as error:  # submitit gives what sbatch said in several kinds of error
            raise RunError(f"SLURM does not take the jobs: {str(error).strip().splitlines()[-1]}") from error
        self._jobs += jobs
        self._queue = (time.monotonic(), self._queue[1] | {job.job_id for job in jobs})

    def working(self) -> int:
        """See `_crew.Crew`; jobs that wait in the queue count."""
        for job in list(self._jobs):
            if job.paths.result_pickle.exists() or not self._is_queued(job):
                self._jobs.remove(job)
                if job.paths.result_pickle.exists() and (error := job.exception()) is not None:
                    raise RunError(_last_words(str(error)))
        return len(self._jobs)

    def stop(self) -> None:
        """See `_crew.Crew`."""
        for job in self._jobs:
            job.cancel(check=False)
        self._jobs = []

    def _is_queued(self, job: Any) -> bool:
        """Whether SLURM has the job still, waiting or running; asked now and then."""
        if self._cluster == "local":
            return not job.done()
        if time.monotonic() - self._queue[0] > ASK_SECONDS:
            numbers = ",".join(sorted({one.job_id.partition("_")[0] for one in self._jobs}))
            command = ["squeue", "--noheader", "--array", "--format=%i", f"--jobs={numbers}"]
            done = subprocess.run(command, capture_output=True, text=True)
            gone = "Invalid job id" in done.stderr
            if done.returncode == 0 or gone:  # else SLURM is busy, and will be asked again
                self._queue = (time.monotonic(), set(done.stdout.split()))
        return job.job_id in self._queue[1]


def _last_words(trace: str) -> str:
    """The error at the end of a worker's traceback, without its type if it is ours."""
    lines = [line for line in trace.splitlines() if "Error: " in line or "Exception: " in line]
    return lines[-1].removeprefix("experiments.run.errors.RunError: ") if lines else trace.strip().splitlines()[-1]
