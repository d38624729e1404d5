"""What a run is to compute, in a file that anyone can read: DIR/plans/NAME.json, the last command of each name.

{"name", "preset", "command", "cells": [[key, label, weight], ...]}; weight: expected seconds on two cores.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

FOLDER = "plans"


class Planned(NamedTuple):
    """A cell of a plan."""

    key: str
    label: str
    weight: float


class Plan(NamedTuple):
    """name: an experiment, or "all". command: what was typed."""

    name: str
    preset: str
    command: str
    cells: list[Planned]


def write(out: Path, plan: Plan) -> None:
    """Puts it in place of the last one of its name."""
    from isouq import _files  # here: `status` reads plans and imports no JAX

    folder = out / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    _files.replace_text(folder / f"{plan.name}.json", json.dumps(plan._asdict(), ensure_ascii=False))


def read(out: Path) -> Iterable[Plan]:
    """All plans of a folder, by name. ValueError names a file that is none."""
    for path in sorted((out / FOLDER).glob("*.json")):
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            cells = [Planned(str(key), str(label), float(weight)) for key, label, weight in fields["cells"]]
            yield Plan(**{**fields, "cells": cells})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is no plan of a run ({type(error).__name__}); remove it") from error
