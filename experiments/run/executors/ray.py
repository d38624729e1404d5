"""Workers on a Ray cluster: an existing one by address, or a local one that ends with the run.

The folder of the run must be on a file system that all nodes share, and the project in the same place on all of them.
A worker is a task; nodes that join later take part, and what a lost node was at goes to another.
"""

import time
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments.run import locks
from experiments.run.errors import RunError
from experiments.run.executors import Run, Settings, _crew, project_path
from experiments.run.job import AnyCell
from experiments.run.store import Store
from experiments.run.work import Report

FRESH = 5.0  # seconds for which the cluster's size is taken as known


@contextmanager
def opened(settings: Settings, widest: int, store: Store, report: Report) -> Iterator[Run]:
    """See `executors.opened`."""
    try:
        import ray
    except ImportError as error:
        raise RunError("--executor ray needs ray; pip install 'isouq[ray]'") from error
    local = settings.address is None
    try:
        with warnings.catch_warnings():  # JAX warns of forks; what Ray forks it replaces at once (exec)
            warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called", category=RuntimeWarning)
            options: dict[str, Any] = {"include_dashboard": False} if local else {}
            options |= {"log_to_driver": False, "logging_level": "error"}
            options["runtime_env"] = {"env_vars": _environment(settings)}
            ray.init("local" if local else settings.address, **options)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        hint = "" if local else "; is it up, and is RAY_AUTH_MODE here what it is there?"
        raise RunError(f"no Ray cluster at {settings.address or 'this machine'}: {_first_line(error)}{hint}") from error
    mark = store.folder / f"run-{uuid.uuid4().hex}.lock"  # held while this run lives: what a dead one leaves is swept
    try:
        held = locks.claim(mark, "a run")
        assert held is not None  # nobody else has this name
        with held:
            crew = Tasks(ray, settings, widest, store.folder.resolve(), mark.name)
            try:
                yield lambda cells: _crew.watch(crew, cells, store, report)
            finally:
                crew.stop()
    finally:
        ray.shutdown()


def _environment(settings: Settings) -> dict[str, str]:
    """Of the workers: where the project is, and no more of a GPU than its share."""
    chosen = {"PYTHONPATH": project_path()}
    if settings.gpus == 0:
        chosen["JAX_PLATFORMS"] = "cpu"
    elif settings.gpus < 1:
        chosen["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 * settings.gpus:.3f}"
    return chosen


class Tasks:
    """See `_crew.Crew`."""

    alone = False
    why = "Ray does not say why"

    def __init__(self, ray: Any, settings: Settings, widest: int, folder: Path, mark: str) -> None:
        self._ray, self._settings, self._widest = ray, settings, widest
        self._folder, self._mark = folder, mark
        resources = {"num_cpus": settings.cpus, "num_gpus": settings.gpus, "max_retries": 0}
        self._task = ray.remote(**resources)(_go)
        self._at_work: list[Any] = []
        self._sent: tuple[list[AnyCell], Any] = ([], None)
        self._known = (-FRESH, 0)
        if not self._room() and settings.workers is None:
            raise RunError(
                f"no node of the cluster has {settings.cpus} CPUs and {settings.gpus:g} GPUs for a worker; give "
                "smaller --resources, or --workers for a cluster that grows"
            )

    @property
    def count(self) -> int:
        """What the nodes of this moment have room for, or what was asked for."""
        return max(1, min(self._settings.workers or self._room(), self._widest))

    def start(self, cells: Sequence[AnyCell], count: int, lost: bool) -> None:
        """See `_crew.Crew`."""
        if self._sent[0] != list(cells):
            self._sent = (list(cells), self._ray.put(list(cells)))
        for i in range(count):
            first = i * len(cells) // count
            self._at_work.append(self._task.remote(self._sent[1], str(self._folder), self._mark, lost, first))

    def working(self) -> int:
        """See `_crew.Crew`; tasks that wait for room count."""
        if self._at_work:
            ended, self._at_work = self._ray.wait(self._at_work, num_returns=len(self._at_work), timeout=0)
            for task in ended:
                try:
                    self._ray.get(task)
                except self._ray.exceptions.RayTaskError as error:
                    raise RunError(_first_line(error.cause)) from error
                except self._ray.exceptions.RayError as error:  # its process or node is lost
                    self.why = _first_line(error)
        return len(self._at_work)

    def stop(self) -> None:
        """See `_crew.Crew`."""
        for task in self._at_work:
            self._ray.cancel(task, force=True)
        self._at_work = []

    def _room(self) -> int:
        """How many workers the nodes that are alive can have, all together."""
        if time.monotonic() - self._known[0] > FRESH:
            nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
            self._known = (time.monotonic(), sum(self._fit(node) for node in nodes))
        return self._known[1]

    def _fit(self, node: dict[str, float]) -> int:
        cpus = int(node.get("CPU", 0)) // self._settings.cpus
        return min(cpus, int(node.get("GPU", 0) / self._settings.gpus + 1e-9)) if self._settings.gpus else cpus


def _go(cells: list[AnyCell], folder: str, mark: str, lost: bool, first: int) -> None:
    """In the worker."""
    if not (Path(folder) / mark).exists():
        raise RunError(f"a node of the cluster does not see {folder}; give an --out that all nodes share")
    _crew.go_through(cells, Store(Path(folder)), lost, first)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
