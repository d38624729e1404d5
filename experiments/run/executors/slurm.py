"""SLURM arrays, through submitit. The folder of the run must be on a file system that all nodes share.

A task of an array is one job. Before its time is over SLURM tells it, and it asks to be put into the queue again; then,
as after a preemption or a lost node, it goes on from the job's last checkpoint. Tasks go on without the driver, should
that be killed: DIR/slurm/tasks.json says which task has which job, and the next driver takes their results. Ctrl-C
cancels them. Their output is in DIR/slurm.
"""

import json
import os
import shutil
import subprocess
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments.run.errors import RunError, first_line
from experiments.run.executors.settings import ATTEMPTS, DIED, Settings, worker_python_path
from experiments.run.job import Job, Outcome
from isouq import _files

MINUTES = 240  # of a task, if nothing else is asked for
TASKS = 1000  # in the queue, at most: what SLURM takes of one array without being told otherwise
POLL_SECONDS = 1.0  # between two looks at the results
QUEUE_SECONDS = 10.0  # between two looks at the queue
TIMEOUTS = 1000  # of one task, before it stays out of the queue


@contextmanager
def start(
    settings: Settings, widest: int, function: Callable[..., Outcome], out: Path, report: Callable[..., None]
) -> Iterator[Any]:
    """See `executors.start`."""
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
            yield tasks.run
    finally:
        tasks.cancel()


def _parameters(settings: Settings, count: int) -> dict[str, Any]:
    """Return what submitit asks SLURM for: `count` tasks at a time."""
    asked: dict[str, Any] = {
        "timeout_min": settings.minutes or MINUTES,
        "cpus_per_task": settings.cpus,
        "name": "isouq",
    }
    if settings.gpus:
        asked["gpus_per_node"] = int(settings.gpus)
    if settings.cluster == "slurm":
        asked["slurm_array_parallelism"] = count
        asked |= {"slurm_partition": settings.partition} if settings.partition else {}
    return asked


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
        self._queued: tuple[float, set[str]] = (0.0, set())  # when the queue was looked at, and the tasks in it

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Outcome]]:
        """Yield each job with its outcome, as they end; one whose task is lost is submitted again."""
        attempts = Counter[Job]()
        self._take_over(jobs)
        waiting = deque(job for job in jobs if job not in self.running)
        while waiting or self.running:
            room = min(self._limit - len(self.running), len(waiting))
            self._submit([waiting.popleft() for _ in range(max(0, room))])
            for job, task in list(self.running.items()):
                if task.paths.result_pickle.exists():
                    del self.running[job]
                    yield job, _outcome(task)
                elif not self._is_queued(task):
                    del self.running[job]
                    attempts[job] += 1
                    if attempts[job] < ATTEMPTS:
                        waiting.append(job)
                    else:
                        yield job, Outcome(error=f"{DIED}; their output is in {self._folder}")
            if self.running:
                time.sleep(POLL_SECONDS)

    def cancel(self) -> None:
        """Cancel all tasks in the queue, and remove the files by which they are followed."""
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
        self._queued = (time.monotonic(), self._queued[1] | {task.job_id for task in tasks})
        numbers = {job.key(): task.job_id for job, task in self.running.items()}
        _files.replace_text(self._folder / "tasks.json", json.dumps(numbers))

    def _take_over(self, jobs: Sequence[Job]) -> None:
        """Follow the tasks of a driver that was killed."""
        try:
            numbers = json.loads((self._folder / "tasks.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return
        if not self._local:  # local tasks cannot be followed by another process
            left = {job: numbers[job.key()] for job in jobs if job.key() in numbers and job not in self.running}
            self.running |= {job: self._submitit.SlurmJob(self._folder, number) for job, number in left.items()}

    def _is_queued(self, task: Any) -> bool:
        """Return whether SLURM has the task still, waiting or running; asks now and then. Needs no accounting."""
        if self._local:
            return not task.done()
        if time.monotonic() - self._queued[0] > QUEUE_SECONDS or not self._queued[1]:
            numbers = ",".join(sorted({one.job_id.partition("_")[0] for one in self.running.values()}))
            command = ["squeue", "--noheader", "--array", "--format=%i", f"--jobs={numbers}"]
            done = subprocess.run(command, capture_output=True, text=True)
            gone = "Invalid job id" in done.stderr
            if done.returncode == 0 or gone:  # else SLURM is busy, and will be asked again
                self._queued = (time.monotonic(), set(done.stdout.split()))
            elif not self._queued[1]:
                return True
        return task.job_id in self._queued[1] or task.paths.result_pickle.exists()


def _outcome(task: Any) -> Outcome:
    """Return the outcome that a task has left, or what went wrong in the task around the job."""
    try:
        return task.result()
    except Exception as error:  # submitit packs whatever it was
        lines = [line for line in str(error).splitlines() if "Error: " in line or "Exception: " in line]
        return Outcome(error=lines[-1] if lines else first_line(error), traceback=str(error))
