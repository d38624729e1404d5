"""Claims, the store's other files, several runs in one folder, and what `status` tells of them."""

import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from doomed import Toy
from rich.console import Console

from experiments.answers.cell import QaCell
from experiments.domains.cell import DomainCell
from experiments.run import clock, ledger, locks, status
from experiments.run.errors import RunError
from experiments.run.executors import Settings
from experiments.run.plan import Plan, Planned, read, write
from experiments.run.runner import run_cells
from experiments.run.store import Store
from experiments.run.work import MAX_DEATHS, work
from experiments.synthetic.study import Cell

ROOT = Path(__file__).parents[1]


@pytest.fixture
def store(tmp_path):
    (tmp_path / "cells").mkdir()
    return Store(tmp_path / "cells")


def quiet():
    return Console(file=io.StringIO(), soft_wrap=True, highlight=False)


def run_locally(cells, out):
    return run_cells(cells, out, Settings("local"), quiet())


# claims


def dead_holder(path, checkpoint=None):
    """A process that claims, and is killed."""
    code = (
        "import sys, time; from pathlib import Path; from experiments.run import locks\n"
        f"claim = locks.claim(Path({str(path)!r}), 'x', {checkpoint and Path(checkpoint)!r})\n"
        "print(claim.holder.deaths, flush=True); time.sleep(600)"
    ).replace("PosixPath", "Path")
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    deaths = int(process.stdout.readline())
    assert locks.holder(path).pid == process.pid
    assert locks.claim(path, "y") is None
    process.kill()
    process.communicate()
    return deaths


def test_a_claim_is_one_process_s_and_its_file_goes_with_it(tmp_path):
    path = tmp_path / "a.lock"
    with locks.claim(path, "first") as claim:
        assert locks.claim(path, "second") is None
        assert locks.holder(path) == claim.holder
        assert claim.holder.label == "first"
    assert not path.exists()
    assert locks.holder(path) is None
    claim.release()  # twice does nothing: the number of the descriptor may be another file's by now
    locks.claim(path, "second").release()


def test_the_death_of_a_process_frees_its_claim_and_is_counted(tmp_path):
    path, checkpoint = tmp_path / "a.lock", tmp_path / "a.part.npz"
    assert dead_holder(path, checkpoint) == 0
    assert path.exists()
    assert locks.holder(path) is None
    assert dead_holder(path, checkpoint) == 1
    locks.claim(path, "z", checkpoint).leave()  # a look alone is no death
    with locks.claim(path, "z", checkpoint) as claim:
        assert claim.holder.deaths == 2
        claim.leave()
    assert path.exists()
    checkpoint.write_bytes(b"further")  # it got on before it died
    with locks.claim(path, "z", checkpoint) as claim:
        assert claim.holder.deaths == 0


def test_a_claim_cut_off_as_it_was_made_means_nothing(tmp_path):
    path = tmp_path / "a.lock"
    for text in ("", '{"label": "x"', "[]"):
        path.write_text(text)
        with locks.claim(path, "x") as claim:
            assert claim.holder.deaths == 0


def test_whoever_waits_gets_a_claim_that_has_a_name(tmp_path):
    """The holder unlinks the file that the other waits on: it must not take that one for the claim."""
    path = tmp_path / "a.lock"
    claim = locks.claim(path, "first")
    code = (
        "from pathlib import Path; from experiments.run import locks\n"
        f"path = Path({str(path)!r}); print('ready', flush=True)\n"
        "print(locks.claim(path, 'second', wait=True).path.exists(), locks.claim(path, 'third'))"
    )
    other = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    other.stdout.readline()
    time.sleep(0.3)
    claim.release()
    assert other.communicate()[0].strip() == "True None"


def test_how_far_a_cell_is_can_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "NOTE_SECONDS", 0.0)
    with locks.claim(tmp_path / "a.lock", "x") as claim:
        claim.note(0.123456)
        assert locks.holder(tmp_path / "a.lock").share == 0.1235


# the store


def test_keys_are_those_of_the_runs_before():
    assert Cell("binary/xor").key() == "14af942eacb28538"
    assert DomainCell("e", None, "d", study="reference").key() == "2dea77e99bb0862c"
    assert QaCell("m", "b", "alias", None, "d", 0, 20).key() == "1d56422923e627f3"


def test_provenance_stands_beside_the_numbers_and_not_among_them(store):
    cell = Toy("well", 3)
    store.save(cell, cell.run(None, store))
    kept = json.loads((store.folder / f"{cell.key()}.json").read_text())
    facts = kept.pop("_provenance")
    assert store.load(cell).numbers == kept == cell.run(None, store).numbers
    assert facts["seed"] == 3
    assert facts["seconds"] == 0.1
    assert facts["gradient_evaluations"] is None
    assert facts["versions"]["jax"]
    assert {"commit", "devices", "finished"} <= facts.keys()


def test_a_result_that_may_not_be_read_is_not_computed_again(store):
    cell = Toy("well")
    store.save(cell, cell.run(None, store))
    path = store.folder / f"{cell.key()}.json"
    path.chmod(0)
    user = os.geteuid()
    if user == 0:  # root may read everything
        os.seteuid(65534)
    try:
        with pytest.raises(RunError, match=rf"{path}: Permission denied; ask its owner"):
            store.load(cell)
    finally:
        os.seteuid(user)


def test_a_cell_of_before_is_read(store):
    (store.folder / f"{Toy('old').key()}.json").write_text('{"seed": 1}')
    np.savez(store.folder / f"{Toy('old').key()}.npz", x=np.ones(2))
    assert store.load(Toy("old")).numbers == {"seed": 1}


def test_what_belongs_to_an_unfinished_cell_goes_when_it_is_saved(store):
    cell = Toy("well")
    store.checkpoint_path(cell).write_bytes(b"half")
    store.fail(cell, "no luck")
    assert store.ended(cell) == (True, "no luck")
    store.save(cell, cell.run(None, store))
    assert sorted(path.name for path in store.folder.iterdir()) == ["log.jsonl", "well0reference.json",
                                                                    "well0reference.npz"]  # fmt: skip
    assert store.ended(cell) == (True, None)


def test_a_sweep_takes_what_the_dead_left_and_nothing_else(store):
    mine, other, done = (store.folder / f"{Toy(name).key()}" for name in ("mine", "other", "done"))
    store.save(Toy("done"), Toy("done").run(None, store))
    for path in (mine, other, done):
        path.with_suffix(".npz.host.1.tmp").write_bytes(b"x")
        path.with_suffix(".part.npz").write_bytes(b"x")
    other.with_suffix(".lock").write_text("")
    with store.claim(Toy("mine")):
        store.sweep()
        left = {path.name.partition(".")[2] for path in store.folder.glob("mine*")}
        assert left == {"lock", "npz.host.1.tmp", "part.npz"}
    assert {path.name.partition(".")[2] for path in store.folder.glob("other*")} == {"part.npz"}
    assert {path.name.partition(".")[2] for path in store.folder.glob("done*")} == {"json", "npz"}


def test_a_damaged_cell_is_taken_away_before_it_is_run_again(store):
    cells = [Toy("well", seed) for seed in range(2)]
    for cell in cells:
        store.save(cell, cell.run(None, store))
    path = store.folder / f"{cells[0].key()}.npz"
    path.write_bytes(path.read_bytes()[:-20])
    store.fail(Toy("sick"), "no luck")
    store.retry([*cells, Toy("sick")])
    assert [store.ended(cell)[0] for cell in (*cells, Toy("sick"))] == [False, True, False]


def test_the_files_of_another_cell_are_not_taken(store):
    store.save(Toy("well"), Toy("well").run(None, store))
    for suffix in ("json", "npz"):
        shutil.copy(store.folder / f"{Toy('well').key()}.{suffix}", store.folder / f"{Toy('other').key()}.{suffix}")
    assert store.load(Toy("well"))
    assert store.load(Toy("other")) is None


# work


def test_the_third_death_is_a_failure(store):
    path = store.folder / f"{Toy('well').key()}.lock"
    holder = locks.Holder("x", "host", 1, 0.0, deaths=MAX_DEATHS - 1)
    path.write_text(json.dumps(dataclasses.asdict(dataclasses.replace(holder, deaths=0))))
    assert list(work([Toy("well")], store, lost=False)) == []  # left to whoever takes lost ones
    path.write_text(json.dumps(dataclasses.asdict(holder)))
    reason = "its worker died 3 times (killed, or out of memory)"
    assert list(work([Toy("well")], store)) == [(Toy("well"), reason)]
    assert ledger.failure(store.folder, Toy("well").key()) == reason
    assert not path.exists()


def test_a_cell_that_another_is_at_is_passed_over_or_waited_for(store):
    cells = [Toy("well", seed) for seed in range(3)]
    claim = store.claim(cells[0])
    assert [cell.seed for cell, _ in work(cells, store)] == [1, 2]
    waiting = work(cells, store, wait=True)
    assert [next(waiting).cell.seed for _ in range(2)] == [1, 2]
    store.save(cells[0], cells[0].run(None, store))
    claim.release()
    assert next(waiting) == (cells[0], None)
    started = [event["key"] for event in ledger.events(store.folder) if event["event"] == "started"]
    assert started == [cell.key() for cell in cells[1:]]


def test_a_failure_is_kept_with_its_place_in_the_code(tmp_path):
    with pytest.raises(RunError, match="3 of 4 cells failed"):
        run_locally([Toy("sick"), Toy("astray"), Toy("quitter"), Toy("well")], tmp_path)
    kept = json.loads((tmp_path / "cells" / f"{Toy('sick').key()}.failed").read_text())
    assert kept["reason"] == "ValueError: feels unwell"
    assert "doomed.py" in kept["traceback"]


DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, "tests")
from doomed import Toy
from rich.console import Console
from experiments.run.executors import Settings
from experiments.run.runner import run_cells
print("ready", flush=True)
sys.stdin.readline()
cells = [Toy("slow", seed) for seed in range(4)] + [Toy("slow", seed, "after") for seed in range(4)]
results = run_cells(cells, Path(sys.argv[1]), Settings("local"), Console(stderr=True))
print([result.numbers["seed"] for result in results])
"""


@pytest.mark.slow
def test_two_drivers_share_a_folder_and_neither_does_what_the_other_did(tmp_path):
    """One is killed on the way; the other takes over what it was at, and its share."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    drivers = [subprocess.Popen([sys.executable, "-c", DRIVER, tmp_path], cwd=ROOT, **pipes) for _ in range(2)]
    for driver in drivers:
        assert driver.stdout.readline() == "ready\n"
    for driver in drivers:
        driver.stdin.write("go\n")
        driver.stdin.flush()
    while len(list((tmp_path / "cells").glob("*.json"))) < 2:
        assert drivers[0].poll() is None
        time.sleep(0.05)
    drivers[1].kill()
    drivers[1].communicate()
    assert drivers[0].communicate()[0] == "[0, 1, 2, 3, 0, 1, 2, 3]\n"
    events = list(ledger.events(tmp_path / "cells"))
    finished = [event["key"] for event in events if event["event"] == "finished"]
    assert len(finished) == len(set(finished)) == 8
    assert len({event["pid"] for event in events}) == 2
    for at, event in enumerate(events):
        assert event["event"] != "started" or event["key"] not in {e["key"] for e in events[:at] if "seconds" in e}
    names = {path.name.partition(".")[2] for path in (tmp_path / "cells").iterdir()}
    assert names == {"json", "npz", "jsonl"}


# status


def told(out, capsys):
    code = status.main(["--out", str(out)])
    return code, capsys.readouterr()


def test_status_tells_what_is_done_running_failed_and_waiting(tmp_path, store, capsys):
    cells = [Toy("well", 0), Toy("well", 1), Toy("sick"), Toy("slow"), Toy("slow", 1)]
    list(work(cells[:3], store))
    write(
        tmp_path, Plan("mine", "smoke", "python -m experiments mine", [Planned(c.key(), c.label(), 1.0) for c in cells])
    )
    with store.claim(Toy("slow")):
        code, output = told(tmp_path, capsys)
    assert code == 0
    lines = output.out.splitlines()
    assert lines[0].startswith("mine, preset smoke: 2 of 5 cells done, 1 running, 1 failed, 1 waiting, about 0 s left")
    assert lines[1].startswith("  running: slow 0, for ")
    assert lines[1].endswith(f", process {os.getpid()} on {os.uname().nodename}")
    assert lines[2:] == ["  failed: sick 0: ValueError: feels unwell"]
    before = sorted((path.name, path.stat().st_mtime_ns) for path in store.folder.iterdir())
    code, output = told(tmp_path, capsys)
    assert "1 failed, 2 waiting, nothing runs; to go on: python -m experiments mine" in output.out
    assert sorted((path.name, path.stat().st_mtime_ns) for path in store.folder.iterdir()) == before


def test_the_time_left_is_measured(store):
    plan = Plan("x", "", "", [Planned(key, key, weight) for key, weight in (("a", 1.0), ("b", 4.0), ("c", 2.0))])
    names = ledger.Names({"a"}, set(), {"b"})
    with locks.claim(store.folder / "b.lock", "b"):
        found = status.state(plan, store.folder, names, {"a": (10.0, 1.0)})
    assert found.left == 60.0  # six times the weight of what took ten seconds


def test_a_run_leaves_a_plan(tmp_path):
    cells = [Toy("well", 0, "after"), Toy("well", 1)]
    run_cells(cells, tmp_path, Settings("local"), quiet(), Plan("mine", "smoke", "again", []))
    (plan,) = read(tmp_path)
    assert plan[:3] == ("mine", "smoke", "again")
    assert [cell.key for cell in plan.cells] == ["well0reference", "well1reference", "well0after"]


def test_status_of_a_folder_without_a_plan(tmp_path, capsys):
    assert told(tmp_path, capsys)[0] == 1
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "x.json").write_text("{")
    code, output = told(tmp_path, capsys)
    assert code == 1
    assert output.err.startswith(f"experiments: {tmp_path}/plans/x.json is no plan of a run")


def test_ten_thousand_finished_cells_are_listed_quickly(tmp_path, store, capsys):
    for i in range(10_000):
        for suffix in ("json", "npz"):
            os.close(os.open(store.folder / f"{i:016x}.{suffix}", os.O_CREAT | os.O_WRONLY))
    line = '{"event": "finished", "key": "%016x", "seconds": 3.5, "weight": 2.0}\n'
    (store.folder / ledger.LOG).write_text("".join(line % i for i in range(10_000)) + '{"event": "fini')
    write(tmp_path, Plan("mine", "paper", "again", [Planned(f"{i:016x}", f"cell {i}", 2.0) for i in range(10_000)]))
    started = time.process_time()
    assert told(tmp_path, capsys)[1].out.startswith("mine, preset paper: 10000 of 10000 cells done")
    assert time.process_time() - started < 2


def test_status_needs_no_jax():
    code = (
        "import sys, experiments.run.status; print([name for name in ('jax', 'numpy', 'rich') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("seconds", "words"), [(0.2, "0 s"), (89, "89 s"), (120, "2 min"), (7200, "2.0 h")])
def test_seconds_in_words(seconds, words):
    assert clock.words(seconds) == words
