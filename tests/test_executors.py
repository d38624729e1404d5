"""Executors: what they make of jobs that end well, fail, or kill their worker, and what they say when they cannot."""

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
from doomed import Toy, starts_of

from experiments.run import executors
from experiments.run._serve import serve
from experiments.run.errors import RunError
from experiments.run.executors import processes
from experiments.run.executors._attempts import DIED
from experiments.run.executors.settings import Settings
from experiments.run.worker import execute

ROOT = Path(__file__).parents[1]
MIXED = [Toy("well", 0), Toy("fatal"), Toy("sick"), Toy("once"), Toy("well", 1), Toy("quitter")]
FEW = [Toy("sick"), Toy("once"), Toy("well", 3)]
ERRORS = {
    Toy("fatal"): DIED,
    Toy("sick"): "ValueError: feels unwell",
    Toy("quitter"): "SystemExit: enough",
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "cells").mkdir()
    return tmp_path / "cells"


def outcomes(settings, folder, *lists, report=lambda *_: None):
    function = partial(execute, folder)
    with executors.start(settings, 6, function, folder.parent, report) as run:
        return [dict(run(jobs)) for jobs in lists]


def errors(ended):
    return {job: outcome.error for job, outcome in ended.items()}


def expected(jobs):
    return {job: ERRORS.get(job) for job in jobs}


def test_processes(folder):
    """Dead workers are replaced, their jobs come last; the workers of the first list serve the second."""
    more = [Toy("cores", seed) for seed in range(3, 6)]
    first, second = outcomes(Settings("processes", workers=2), folder, MIXED, more)
    assert errors(first) == expected(MIXED)
    assert list(first)[-1] == Toy("fatal")
    assert {starts_of(folder, job) for job in MIXED} == {1, 2, 3}
    assert starts_of(folder, Toy("fatal")) == 3
    assert starts_of(folder, Toy("once")) == 2
    assert {outcome.result.numbers["name"] for outcome in second.values()} == {"cores"}
    bound = [outcome.result.numbers["cores"] for outcome in second.values()]
    shares = [[tuple(share)] for share in processes.Workers(2).shares]
    assert all(cores in shares for cores in bound)  # every thread, JAX's too
    assert not [path for path in folder.iterdir() if path.suffix != ".starts"]  # workers store nothing


def test_a_worker_killed_while_it_sends_an_outcome_is_replaced(folder):
    """An outcome of a megabyte does not fit into the connection, so its worker waits in the middle of it."""
    job, reports = Toy("large"), []

    def kill_the_first_worker(job, share):
        reports.append(job)
        while starts_of(folder, job) < len(reports):
            time.sleep(0.02)
        if len(reports) == 1:
            time.sleep(1)
            os.kill(int((folder / f"{job.key()}.starts").read_text()), signal.SIGKILL)
            time.sleep(1)  # until it is dead: while the driver reads, a write that was begun may still be finished

    (ended,) = outcomes(Settings("processes", workers=2), folder, [job], report=kill_the_first_worker)
    assert errors(ended) == {job: None}
    assert reports == [job, job]


@pytest.mark.parametrize("how", ["shell", "fork"])
def test_a_child_that_outlives_its_worker_does_not_hide_its_death(folder, how):
    started = time.monotonic()
    (ended,) = outcomes(Settings("processes", workers=2), folder, [Toy(how)])
    assert errors(ended) == {Toy(how): None}
    os.kill(int((folder / "child").read_text()), signal.SIGKILL)
    assert time.monotonic() - started < 50  # the child's life is 60 seconds


def test_what_cannot_be_unpickled_is_the_error_of_its_job(folder):
    jobs = [Toy("sealed"), Toy("gift"), Toy("well")]
    (ended,) = outcomes(Settings("processes", workers=2), folder, jobs)
    assert errors(ended) == {
        Toy("sealed"): "RuntimeError: cannot be unpickled",
        Toy("gift"): "its result cannot be unpickled: RuntimeError: cannot be unpickled",
        Toy("well"): None,
    }


def test_a_worker_whose_driver_is_gone_ends_without_a_traceback():
    context = multiprocessing.get_context("spawn")
    connection, its_end = context.Pipe()
    worker = context.Process(target=serve, args=(its_end, os.getpid(), processes.usable_cores()))
    worker.start()
    its_end.close()
    connection.send((len, "job"))
    connection.close()
    worker.join()
    assert worker.exitcode == 0


class Mortal(processes.Workers):
    """Workers of which the first is killed before it is sent a job."""

    has_killed = False

    def _start(self, number):
        super()._start(number)
        if not self.has_killed:
            self.has_killed = True
            os.kill(self._started[number][0].pid, signal.SIGKILL)
            time.sleep(0.5)


def test_a_worker_killed_before_it_has_read_its_job_is_replaced(folder, monkeypatch):
    monkeypatch.setattr(processes, "Workers", Mortal)
    (ended,) = outcomes(Settings("processes", workers=2), folder, [Toy("well")])
    assert errors(ended) == {Toy("well"): None}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_a_worker_is_started_is_handled_afterwards(number):
    before, ended = signal.signal(number, signal.default_int_handler), []

    def be_interrupted():
        with processes._delayed_signals():
            os.kill(os.getpid(), number)
            time.sleep(0.01)
            ended.append(True)

    try:
        with pytest.raises(KeyboardInterrupt):
            be_interrupted()
        assert ended == [True]
        assert signal.getsignal(number) is signal.default_int_handler
        signal.signal(number, signal.SIG_IGN)  # as under nohup
        be_interrupted()
    finally:
        signal.signal(number, before)


def test_workers_that_cannot_be_started_are_said_in_one_line(folder):
    free, (soft, hard) = os.dup(2), resource.getrlimit(resource.RLIMIT_NOFILE)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        with pytest.raises(RunError, match=r"cannot start a worker process: Too many open files; .* fewer --workers"):
            outcomes(Settings("processes", workers=2), folder, [Toy("well")])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_cores_are_divided(monkeypatch):
    monkeypatch.setattr(processes, "usable_cores", lambda: list(range(7)))
    shares = processes.Workers(3).shares
    assert sorted(core for share in shares for core in share) == list(range(7))
    assert [len(share) for share in shares] == [3, 2, 2]
    assert processes.Workers(9).shares[7:] == [list(range(7))] * 2


@pytest.mark.parametrize("settings", [Settings("processes", workers=1), Settings("local")])
def test_one_worker_is_this_process(settings, folder):
    reported = []
    jobs = [Toy("slow"), Toy("quitter"), Toy("well")]
    (ended,) = outcomes(settings, folder, jobs, report=lambda job, share: reported.append((job, share)))
    assert errors(ended) == expected(jobs)
    assert (folder / f"{Toy('well').key()}.starts").read_text().split() == [str(os.getpid())]
    shares = [share for job, share in reported if job == Toy("slow")]
    assert shares[0] == 0.0  # it starts; 1 is for whoever stores the result
    assert shares[1:] == sorted(shares[1:])
    assert all(0 < share < 1 for share in shares[1:])


IN_A_PROCESS = """
import sys; sys.path.insert(0, "tests")
from pathlib import Path
from test_executors import FEW, MIXED, Settings, Toy, errors, expected, outcomes, starts_of
folder = Path(sys.argv[1])
first, second = outcomes({settings}, folder, FEW, MIXED[:1])
assert errors(first) == expected(FEW), errors(first)
assert errors(second) == expected(MIXED[:1]), errors(second)
assert [starts_of(folder, job) for job in FEW] == [1, 2, 1]
"""


def in_a_process(settings, folder):
    """Away from the strictness of the tests about warnings, which are other libraries'."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment["PYTHONPATH"] = str(ROOT / "tests")
    command = [sys.executable, "-c", IN_A_PROCESS.format(settings=settings), folder]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not find_spec("ray"), reason="needs the extra ray, which takes minutes to download")
def test_ray(folder):
    in_a_process(Settings("ray", workers=2), folder)


@pytest.mark.skipif(not find_spec("submitit"), reason="needs the extra slurm")
def test_submitit(folder):
    in_a_process(Settings("slurm", workers=2, cluster="local"), folder)
    assert not list((folder.parent / "slurm").glob("*.pkl"))
    assert not (folder.parent / "slurm" / "tasks.json").exists()


@pytest.mark.parametrize(
    ("settings", "gone", "message"),
    [
        (Settings("ray"), "ray", r"--executor ray needs ray; pip install 'isouq\[ray\]'"),
        (Settings("slurm"), "submitit", r"--executor slurm needs submitit; pip install 'isouq\[slurm\]'"),
    ],
)
def test_a_missing_extra_is_named(settings, gone, message, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, gone, None)
    with pytest.raises(RunError, match=message):
        outcomes(settings, folder, [])


@pytest.mark.skipif(not find_spec("submitit"), reason="needs the extra slurm")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings("slurm"), "there is no sbatch on this machine"),
        (Settings("slurm", gpus=0.5, cluster="local"), "gpus=0.5: SLURM gives whole GPUs"),
    ],
)
def test_what_slurm_cannot_do_is_said(settings, message, folder, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RunError, match=message):
        outcomes(settings, folder, [])
