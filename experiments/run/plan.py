"""What a run is to compute, in a file that anyone can read: DIR/plans/NAME.json, the last command of each name.

{"name", "preset", "command", "jobs": [[key, label], ...]}
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from isouq import _files

if TYPE_CHECKING:
    from experiments.run.job import Job  # which imports NumPy; `status` reads plans without it

FOLDER = "plans"


class PlannedJob(NamedTuple):
    """A job of a plan."""

    key: str
    label: str


class Plan(NamedTuple):
    """name: an experiment, or "all". command: what was typed."""

    name: str
    preset: str
    command: str
    jobs: list[PlannedJob]

    def with_jobs(self, jobs: Iterable["Job"]) -> "Plan":
        """Return the same plan for other jobs, each once."""
        return self._replace(jobs=[PlannedJob(job.key(), job.label()) for job in dict.fromkeys(jobs)])


def write_plan(out: Path, plan: Plan) -> None:
    """Write a plan in place of the last one of its name."""
    folder = out / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    _files.replace_text(folder / f"{plan.name}.json", json.dumps(plan._asdict(), ensure_ascii=False))


def read_plans(out: Path) -> Iterator[Plan]:
    """Yield all plans of a folder, by name. ValueError names a file that is none."""
    for path in sorted((out / FOLDER).glob("*.json")):
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            jobs = [PlannedJob(str(key), str(label)) for key, label in fields["jobs"]]
            yield Plan(**{**fields, "jobs": jobs})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is no plan of a run ({type(error).__name__}); remove it") from error
