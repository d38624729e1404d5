"""SLURM arrays, through submitit. The folder of the run must be on a file system that all nodes share.

A task of an array is one job. Before its time is over SLURM tells it, and it asks to be put into the queue again; then,
as after a preemption or a lost node, it goes on from the job's last checkpoint. Tasks go on without the driver, should
that be killed: DIR/slurm/tasks.json says which task has which job, and the next driver takes their results. Ctrl-C
cancels them. Their output is in DIR/slurm. submitit asks SLURM's accounting (sacct) which tasks are lost.
"""

import json
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from experiments.run.errors import RunError
from experiments.run.executors._attempts import run_with_attempts
from experiments.run.executors._order import programs_first
from experiments.run.executors.settings import Settings, worker_python_path
from experiments.run.job import Job, Outcome
from isouq import _files
from isouq._errors import first_line

MINUTES = 240  # time limit of a task, unless --slurm-time gives another
TASKS = 1000  # largest number of tasks in the queue, which is SLURM's default limit for an array
POLL_SECONDS = 1.0  # between two looks at the tasks
TIMEOUTS = 1000  # times that a task may reach its time limit and is submitted again


@contextmanager
def start(
    settings: Settings, widest: int, function: Callable[..., Outcome], out: Path, report: Callable[..., None]
) -> Iterator[Any]:
    """Return an executor that runs the jobs in the tasks of a SLURM array; see `executors.start`."""
    try:
        import submitit
    except ImportError as error:
        raise RunError("--executor slurm needs submitit; pip install 'isouq[slurm]'") from error
    if settings.cluster == "slurm" and shutil.which("sbatch") is None:
        raise RunError("there is no sbatch on this machine: log in where jobs are submitted, or --slurm-cluster local")
    if settings.gpus != int(settings.gpus):
        raise RunError(f"--resources gpus={settings.gpus:g}: SLURM gives whole GPUs; a share is for --executor ray")
    folder = out.resolve() / "slurm"
    executor = submitit.AutoExecutor(
        folder=folder, cluster=settings.cluster, **{f"{settings.cluster}_max_num_timeout": TIMEOUTS}
    )
    executor.update_parameters(**_parameters(settings, min(settings.workers or TASKS, widest, TASKS)))
    tasks = Tasks(submitit, executor, settings, function, folder)
    try:
        with _project_on_path():
            yield partial(run_with_attempts, tasks.run)
    finally:
        tasks.cancel()


def _parameters(settings: Settings, count: int) -> dict[str, Any]:
    """Return what submitit asks SLURM for: `count` tasks at a time."""
    parameters: dict[str, Any] = {
        "timeout_min": settings.minutes or MINUTES,
        "cpus_per_task": settings.cpus,
        "name": "isouq",
    }
    if settings.gpus:
        parameters["gpus_per_node"] = int(settings.gpus)
    if settings.cluster == "slurm":
        parameters["slurm_array_parallelism"] = count
        parameters |= {"slurm_partition": settings.partition} if settings.partition else {}
    return parameters


@contextmanager
def _project_on_path() -> Iterator[None]:
    """Put the project on PYTHONPATH: tasks take over the environment of whoever submits them."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = worker_python_path()
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


class Call:
    """What a task does; submitit calls `checkpoint` before the task's time is over."""

    def __init__(self, function: Callable[..., Outcome]) -> None:
        self.function = function

    def __call__(self, job: Job) -> Outcome:
        """Run the job."""
        return self.function(job)

    def checkpoint(self, job: Job) -> Any:
        """Return the same call, which submitit puts into the queue again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job)


class Tasks:
    """The tasks of a run. running: the task of each job in the queue."""

    def __init__(
        self, submitit: Any, executor: Any, settings: Settings, function: Callable[..., Outcome], folder: Path
    ) -> None:
        self._submitit, self._executor, self._folder = submitit, executor, folder
        self._call, self._local = Call(function), settings.cluster == "local"
        self._limit = (settings.workers or os.cpu_count() or 1) if self._local else TASKS  # submitit starts all at once
        self.running: dict[Job, Any] = {}

    def run(self, jobs: Sequence[Job], again: bool) -> Iterator[tuple[Job, Outcome | None]]:
        """Yield each job with its outcome, as they end; None if its task is lost."""
        if not again:
            self._take_over(jobs)
        waiting = deque(programs_first([job for job in jobs if job not in self.running]))
        while waiting or self.running:
            room = min(self._limit - len(self.running), len(waiting))
            self._submit([waiting.popleft() for _ in range(room)])
            for job, task in list(self.running.items()):
                if task.done():
                    del self.running[job]
                    yield job, self._outcome(task)
            if self.running:
                time.sleep(POLL_SECONDS)

    def cancel(self) -> None:
        """Cancel all tasks in the queue, and remove their files."""
        for task in self.running.values():
            task.cancel(check=False)
        for path in (*self._folder.glob("*.pkl"), self._folder / "tasks.json"):
            path.unlink(missing_ok=True)

    def _submit(self, jobs: list[Job]) -> None:
        if not jobs:
            return
        try:
            tasks = self._executor.map_array(self._call, jobs)
        except Exception as error:  # submitit gives what sbatch said in several kinds of error
            raise RunError(f"SLURM does not take the jobs: {str(error).strip().splitlines()[-1]}") from error
        self.running |= zip(jobs, tasks, strict=True)
        numbers = {job.key(): task.job_id for job, task in self.running.items()}
        _files.replace_text(self._folder / "tasks.json", json.dumps(numbers))

    def _take_over(self, jobs: Sequence[Job]) -> None:
        """Follow the tasks of a driver that was killed; local ones end with it or are lost."""
        path = self._folder / "tasks.json"
        if path.exists() and not self._local:
            numbers = json.loads(path.read_text(encoding="utf-8"))
            task_ids = {job: numbers[job.key()] for job in jobs if job.key() in numbers}
            self.running |= {job: self._submitit.SlurmJob(self._folder, number) for job, number in task_ids.items()}

    def _outcome(self, task: Any) -> Outcome | None:
        """Return the outcome that a task has left, or what went wrong in it around the job; None if it was lost."""
        try:
            return task.result()
        except self._submitit.core.utils.FailedJobError as error:
            lines = [line for line in str(error).splitlines() if "Error: " in line or "Exception: " in line]
            return Outcome(error=lines[-1] if lines else first_line(error), traceback=str(error))
        except self._submitit.core.utils.UncompletedJobError:
            return None
