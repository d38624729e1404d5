"""The order of jobs by the compiled program that they use."""

from dataclasses import replace
from functools import partial

import pytest
from doomed import Toy

from experiments.run import executors
from experiments.run.executors._order import Queue, programs_first
from experiments.run.executors.settings import Settings
from experiments.run.worker import execute
from experiments.synthetic.study import Cell


def jobs(**counts):
    return [Toy(name, seed) for name, count in counts.items() for seed in range(count)]


def test_a_worker_stays_with_its_program_then_takes_the_longest_that_nobody_runs_then_helps():
    queue = Queue(jobs(a=2, b=1, c=3, d=2))
    workers = {0: None, 1: None}
    order = []
    while queue:
        for number in workers:
            if queue:
                job = queue.pop(workers[number], [workers[1 - number]])
                workers[number] = job.program()
                order.append((number, job.name, job.seed))
    assert order == [
        (0, "c", 0), (1, "a", 0),
        (0, "c", 1), (1, "a", 1),
        (0, "c", 2), (1, "d", 0),
        (0, "b", 0), (1, "d", 1),
    ]  # fmt: skip
    helped = Queue(jobs(a=3))
    assert [helped.pop(None, ["a"]).seed for _ in range(3)] == [0, 1, 2]
    assert not helped


def test_workers_that_choose_nothing_get_each_program_first_then_program_by_program():
    order = programs_first(jobs(a=2, b=3, c=1))
    assert [(job.name, job.seed) for job in order] == [("b", 0), ("a", 0), ("c", 0), ("b", 1), ("b", 2), ("a", 1)]


@pytest.mark.parametrize("settings", [Settings("local"), Settings("processes", workers=2)])
def test_executors_run_a_program_in_one_process_as_long_as_another_has_work(settings, tmp_path):
    """The list alternates between two programs; a process runs those of one, but for help at the end."""
    (tmp_path / "cells").mkdir()
    waiting = [Toy(name, seed) for seed in range(5) for name in ("slow", "slower")]
    function = partial(execute, tmp_path / "cells")
    with executors.start(settings, len(waiting), function, tmp_path, lambda *_: None) as run:
        ended = [job for job, _ in run(waiting)]
    assert sorted(ended, key=str) == sorted(waiting, key=str)
    if settings.name == "local":
        assert [job.name for job in ended] == ["slow"] * 5 + ["slower"] * 5
        return
    starts = {(job.name, (tmp_path / "cells" / f"{job.key()}.starts").read_text()) for job in waiting}
    assert len(starts) <= 3  # one process helps with the program of the other; in the order of the list there are 4


def test_cells_share_a_program_where_they_differ_in_data_and_prior_alone():
    cell = Cell("multiclass/rings", width=32)
    for other in (
        replace(cell, seed=1), replace(cell, prior="fan_in", sigma=3.0), replace(cell, num_leapfrog=20),
        replace(cell, width=None), replace(cell, problem="multiclass/spirals"),
    ):  # fmt: skip
        assert other.program() == cell.program()
    for other in (
        replace(cell, width=16), replace(cell, num_points=100), replace(cell, chains=2), replace(cell, resolution=20),
        replace(cell, study="reference"), replace(cell, problem="binary/rings"), replace(cell, num_draws=40),
    ):  # fmt: skip
        assert other.program() != cell.program()
