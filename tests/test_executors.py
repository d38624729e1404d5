"""Executors: what they make of cells that end well, fail, or kill their worker, and what they say when they cannot."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from doomed import Toy

from experiments.run import executors, ledger
from experiments.run.errors import RunError
from experiments.run.executors import Settings, processes
from experiments.run.store import Store

ROOT = Path(__file__).parents[1]
MIXED = [Toy("well", 0), Toy("fatal"), Toy("sick"), Toy("once"), Toy("well", 1), Toy("well", 2)]
FEW = [Toy("sick"), Toy("once"), Toy("well", 3)]
ENDS = {
    Toy("fatal"): "its worker died 3 times (killed, or out of memory)",
    Toy("sick"): "ValueError: feels unwell",
}


@pytest.fixture
def store(tmp_path):
    (tmp_path / "cells").mkdir()
    return Store(tmp_path / "cells")


def outcomes(settings, store, *lists):
    with executors.opened(settings, 6, store, lambda *_: None) as run:
        return [dict(run(cells)) for cells in lists]


def expected(cells):
    return {cell: ENDS.get(cell) for cell in cells}


def runs_of(store):
    """How often each cell was started, and finished."""
    events = list(ledger.events(store.folder))
    count = {kind: [event["key"] for event in events if event["event"] == kind] for kind in ("started", "finished")}
    return {kind: {key: keys.count(key) for key in set(keys)} for kind, keys in count.items()}


@pytest.mark.slow
def test_processes(store):
    """Dead workers are replaced, their cells come last; the workers of the first list serve the second."""
    more = [Toy("cores", seed) for seed in range(3, 6)]
    with executors.opened(Settings("processes", workers=2), 6, store, lambda *_: None) as run:
        assert dict(run(MIXED)) == expected(MIXED)
        assert dict(run(more)) == expected(more)
    counts = runs_of(store)
    assert set(counts["finished"].values()) == {1}
    assert counts["started"][Toy("fatal").key()] == 3
    assert counts["started"][Toy("once").key()] == 2
    assert sum(counts["started"].values()) == 3 + 2 + 1 + 6
    shares = [[share] for share in processes.Processes(2, store.folder)._shares]
    assert all(store.load(cell).numbers["cores"] in shares for cell in more)  # every thread, JAX's too


def test_cores_are_divided(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_cores", lambda: list(range(7)))
    shares = processes.Processes(3, tmp_path)._shares
    assert sorted(core for share in shares for core in share) == list(range(7))
    assert [len(share) for share in shares] == [3, 2, 2]
    assert processes.Processes(9, tmp_path)._shares[7:] == [list(range(7))] * 2


def test_one_worker_is_this_process(store):
    assert outcomes(Settings("processes", workers=1), store, [Toy("well")]) == [{Toy("well"): None}]
    assert {event["pid"] for event in ledger.events(store.folder)} == {os.getpid()}


IN_A_PROCESS = """
import sys; sys.path.insert(0, "tests")
from pathlib import Path
from test_executors import FEW, MIXED, Settings, Store, expected, outcomes, runs_of
store = Store(Path(sys.argv[1]))
assert outcomes({settings}, store, FEW, MIXED[:1]) == [expected(FEW), expected(MIXED[:1])]
assert set(runs_of(store)["finished"].values()) == {{1}}
"""


def in_a_process(settings, store):
    """Away from the strictness of the tests about warnings, which are other libraries'."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment["PYTHONPATH"] = str(ROOT / "tests")
    command = [sys.executable, "-c", IN_A_PROCESS.format(settings=settings), store.folder]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("ray"), reason="needs the extra ray, which takes minutes to download")
def test_ray(store):
    in_a_process(Settings("ray", workers=2), store)


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("submitit"), reason="needs the extra slurm")
def test_submitit(store):
    in_a_process(Settings("slurm", workers=2, cluster="local"), store)
    assert not list((store.folder.parent / "slurm").glob("*.pkl"))


@pytest.mark.parametrize(
    ("settings", "gone", "message"),
    [
        (Settings("ray"), "ray", r"--executor ray needs ray; pip install 'isouq\[ray\]'"),
        (Settings("slurm"), "submitit", r"--executor slurm needs submitit; pip install 'isouq\[slurm\]'"),
    ],
)
def test_a_missing_extra_is_named(settings, gone, message, store, monkeypatch):
    monkeypatch.setitem(sys.modules, gone, None)
    with pytest.raises(RunError, match=message):
        outcomes(settings, store, [])


@pytest.mark.skipif(not find_spec("submitit"), reason="needs the extra slurm")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings("slurm"), "there is no sbatch on this machine"),
        (Settings("slurm", gpus=0.5, cluster="local"), "gpus=0.5: SLURM gives whole GPUs"),
    ],
)
def test_what_slurm_cannot_do_is_said(settings, message, store, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RunError, match=message):
        outcomes(settings, store, [])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "k8s"}, "executor is 'k8s'; expected one of"),
        ({"workers": 0}, "workers is 0; expected"),
        ({"cpus": 0}, "cpus is 0; expected"),
        ({"gpus": -1}, "gpus is -1; expected"),
        ({"cluster": "cloud"}, "cluster is 'cloud'; expected"),
    ],
)
def test_wrong_settings(wrong, message):
    with pytest.raises(ValueError, match=message):
        Settings(**wrong)
