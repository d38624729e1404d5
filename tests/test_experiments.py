"""The command line end to end: what it writes, what it keeps, and that a kill or a failed cell loses nothing else."""

import csv
import dataclasses
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from synthetic_rows import fake

from benchmarks.kills import untimed
from experiments import command
from experiments.run.errors import RunError
from experiments.run.executors.settings import Settings
from experiments.run.loop import run_jobs
from experiments.run.store import Store
from experiments.synthetic import study
from experiments.synthetic.numbers.validation import PAPER
from experiments.synthetic.presets import validation
from experiments.synthetic.study import STUDIES, Cell
from experiments.synthetic.subject import FACTS

ROOT = Path(__file__).parents[1]
SHORT = ["validation", "--preset", "smoke", "--seeds", "1"]
EXPERIMENTS = tuple(command.SYNTHETIC)


def smoke_cells(*names):
    """The distinct cells of a smoke run, one seed."""
    return list(dict.fromkeys(cell for name in names for cell in command.EXPERIMENTS[name].jobs("smoke", 1)))


REFERENCES = len({cell.reference() for cell in smoke_cells("validation")})
JOBS = len(smoke_cells("validation")) + REFERENCES
# SIGINT is ignored in what a shell starts in the background: a user at a terminal has it
START = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


def start(arguments, out):
    plain = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    plain["XLA_FLAGS"] += " --xla_force_host_platform_device_count=1"  # the last one holds
    return subprocess.Popen(
        [sys.executable, "-c", START, "-m", "experiments", *arguments, "--out", str(out)],
        cwd=ROOT, env=plain, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process):
    try:
        output, errors = process.communicate(timeout=400)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def run(arguments, out):
    done = finish(start(arguments, out))
    assert done.returncode == 0, done.stderr
    return done


def rows(path):
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def wait_for(condition, seconds=240.0):
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            return False
        time.sleep(0.05)
    return True


def session_of(leader):
    """The processes of a session, by number; a defunct one does not count."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(entry.name))
    return found


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The first run, in processes; tests leave its folder as it is."""
    out = tmp_path_factory.mktemp("first")
    return out, run(SHORT, out)


@pytest.fixture
def copy(first, tmp_path):
    return Path(shutil.copytree(first[0], tmp_path / "copy"))


@pytest.mark.slow
def test_all_writes_every_file(tmp_path):
    out, cells = tmp_path, smoke_cells(*EXPERIMENTS)
    run(["all", "--preset", "smoke", "--seeds", "1"], out)
    for name in EXPERIMENTS:
        folder = out / name
        names = {path.name for path in folder.iterdir()}
        assert {"table.csv", "summary.md", "provenance.json"} <= names
        figures = {Path(n).stem for n in names if n.endswith(".png")}
        assert figures
        assert figures == {Path(n).stem for n in names if n.endswith(".pdf")}
        assert not [n for n in names if n.endswith(".tmp")]
        assert (folder / "summary.md").read_text(encoding="utf-8").startswith("# ")
        facts = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
        assert facts["experiment"] == name
        assert facts["preset"] == "smoke"
        assert facts["command"].startswith("python -m experiments all --preset smoke")
        assert facts["versions"]["jax"] != "not installed"
        assert facts["devices"]
        own = smoke_cells(name)
        assert sum(facts["jobs_by_commit"].values()) == len({*own, *(cell.reference() for cell in own)})
        assert set(facts["jobs_by_commit"]) == {facts["commit"]}
    assert len(smoke_cells("validation", "maps", "scaling")) == 9  # three problems, two widths by three priors
    assert len({cell.reference() for cell in smoke_cells("validation", "maps", "scaling")}) == 9
    wanted = len(cells) + len({cell.reference() for cell in cells})  # every reference is kept beside its cells
    assert len(list((out / "cells").glob("*.json"))) == len(list((out / "cells").glob("*.npz"))) == wanted
    store = Store(out / "cells")
    assert all(store.load(cell) and store.load(cell.reference()) for cell in cells)
    assert not list((out / "cells").glob("*.tmp"))
    assert {path.name for path in (out / "maps").glob("*.png")} == {
        "maps.png", "binary_xor.png", "multiclass_clusters.png", "regression_linear.png"
    }  # fmt: skip
    assert [len(rows(out / name / "table.csv")) for name in ("validation", "maps", "scaling")] == [3, 3, 6]


def test_standard_output_holds_the_paths_alone(first):
    out, done = first
    paths = [Path(line) for line in done.stdout.splitlines()]
    assert paths
    assert all(path.is_file() for path in paths)
    assert len(set(paths)) == len(paths)
    assert set(paths) == set((out / "validation").iterdir())


def test_progress_is_plain_lines_away_from_a_terminal(first):
    lines = first[1].stderr.splitlines()
    assert re.fullmatch(rf"{JOBS} jobs to run, about \d+ (s|min) on two CPU cores", lines[0])
    known, studies = "|".join(PAPER["epistemic"]), "|".join(STUDIES)
    for position, line in enumerate(lines[1 : JOBS + 1], 1):
        assert re.fullmatch(
            rf"\[{position}/{JOBS}\] ({known}), n = 40, unit σ=1, seed 0, ({studies}): done, "
            r"about \d+ (s|min) left",
            line,
        )
        assert (", reference: done" in line) == (position <= REFERENCES)  # first what the others read
    names = [line.split("  ")[0] for line in lines[JOBS + 1 :] if line[:1].strip()]
    assert names[0] == "stage"
    assert names[-2] == "the whole run"
    assert "\x1b" not in first[1].stderr
    assert "\r" not in first[1].stderr


def test_a_table_holds_a_row_a_cell(first):
    table = rows(first[0] / "validation" / "table.csv")
    assert len(table) == 3
    for row in table:
        assert row["accepted"] in ("True", "False")
        assert -1 <= float(row["epistemic_pearson"]) <= 1
        assert float(row["seconds"]) > 0
    linear = table[2]
    assert linear["problem"] == "regression/linear"
    assert float(linear["exact_laplace_pearson"]) > 0.999  # the Laplace approximation is exact here
    assert float(linear["exact_laplace_scale"]) == pytest.approx(1, abs=0.01)
    assert linear["aleatoric_pearson"] == ""


def test_a_second_run_computes_nothing(copy):
    before = {path: path.stat().st_mtime_ns for path in (copy / "cells").iterdir()}
    texts = [copy / "validation" / name for name in ("table.csv", "summary.md")]
    texts_before = [path.read_bytes() for path in texts]
    done = run(SHORT, copy)
    assert {path: path.stat().st_mtime_ns for path in (copy / "cells").iterdir()} == before
    assert [path.read_bytes() for path in texts] == texts_before
    assert done.stderr.splitlines() == [f"3 of 3 jobs are finished already: read from {copy / 'cells'}"]
    assert {Path(line) for line in done.stdout.splitlines()} == set((copy / "validation").iterdir())


@pytest.mark.slow
def test_damaged_cells_are_computed_again(copy, first):
    """One with its reference, which is sampled again, once; one whose reference is whole, and stays as it is."""
    store = Store(copy / "cells")
    both, alone = smoke_cells("validation")[:2]
    arrays, reference = (store.folder / f"{cell.key()}.npz" for cell in (both, both.reference()))
    numbers, whole = store.folder / f"{alone.key()}.json", store.folder / f"{alone.reference().key()}.npz"
    for path in (arrays, reference, numbers):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    before = whole.stat().st_mtime_ns
    done = run(SHORT, copy)
    assert "1 of 3 jobs are finished already" in done.stderr
    assert "3 jobs to run" in done.stderr  # the reference and the two
    assert store.load(both.reference()) is not None
    assert whole.stat().st_mtime_ns == before
    assert untimed(copy / "validation" / "table.csv") == untimed(first[0] / "validation" / "table.csv")


@pytest.mark.slow
@pytest.mark.parametrize("kill", [os.kill, os.killpg], ids=["driver", "group"])
def test_a_killed_run_leaves_no_worker_and_goes_on_with_another_executor(kill, first, tmp_path):
    driver = start(SHORT, tmp_path)
    assert wait_for(lambda: list((tmp_path / "cells").glob("*.json")) or driver.poll() is not None)
    assert driver.poll() is None, "the run ended before it could be killed"
    assert len(session_of(driver.pid)) > 1
    kill(driver.pid, signal.SIGKILL)
    driver.wait(10)
    assert wait_for(lambda: not session_of(driver.pid), 8), "workers outlive their driver"
    driver.communicate()
    whole = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").glob("*.json")}
    total = 2 * len(smoke_cells("validation"))
    assert 0 < len(whole) < total
    done = run([*SHORT, "--executor", "local"], tmp_path)
    assert f"{total - len(whole)} jobs to run" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in whole} == whole
    assert untimed(tmp_path / "validation" / "table.csv") == untimed(first[0] / "validation" / "table.csv")


@pytest.mark.parametrize("moment", ["start", "first cell"])
def test_interrupt_ends_in_one_line(moment, tmp_path):
    driver = start(SHORT, tmp_path)
    early = driver.stderr.readline()  # "6 jobs to run …": the pool is about to start
    if moment == "first cell":
        assert wait_for(lambda: list((tmp_path / "cells").glob("*.json")))
    else:
        time.sleep(0.5)
    os.killpg(driver.pid, signal.SIGINT)  # as a terminal does: to the workers too
    done = finish(driver)
    assert done.returncode == 130, early + done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("[")]
    assert lines == ["experiments: interrupted; finished jobs are kept, the same command goes on from there"]
    assert done.stdout == ""
    assert wait_for(lambda: not session_of(driver.pid), 8)


# studies of one reference


TINY = {"num_points": 20, "num_warmup": 10, "num_draws": 10, "max_rounds": 1, "num_leapfrog": 3, "resolution": 6}


@pytest.fixture
def sampled(monkeypatch):
    """The references that were sampled, in order; spectrum stands for any second study."""
    done, plain = [], study.measure_reference
    monkeypatch.setattr(study, "measure_reference", lambda cell, *rest: (done.append(cell), plain(cell, *rest))[1])
    monkeypatch.setitem(STUDIES, "spectrum", STUDIES["agreement"])
    return done


def same_but_for_time(one, other):
    """Equal numbers, timing aside, and equal arrays."""
    kept = [{k: v for k, v in result.numbers.items() if not k.startswith("seconds")} for result in (one, other)]
    assert kept[0] == kept[1]
    assert set(one.arrays) == set(other.arrays)
    for name, values in one.arrays.items():
        np.testing.assert_array_equal(values, other.arrays[name])


def test_studies_share_one_reference(tmp_path, sampled):
    cells = [Cell("regression/linear", study=name, **TINY) for name in ("agreement", "spectrum")]
    store = Store(tmp_path / "cells")
    agreement, other = run_jobs(cells, tmp_path, Settings("local"), quiet())
    assert sampled == [cells[0].reference()]
    assert other.numbers == {**agreement.numbers, **{k: v for k, v in other.numbers.items() if k.startswith("seconds")},
                             "study": "spectrum"}  # fmt: skip
    reference = store.load(cells[0].reference())
    assert reference.arrays["draws"].shape == (4, 10, 2)
    shared = set(FACTS) - {"flat"}  # which every study finds anew
    assert {name: agreement.numbers[name] for name in shared} == {name: reference.numbers[name] for name in shared}
    assert agreement.numbers["exact_laplace_scale"] == pytest.approx(1, abs=0.01)

    (store.folder / f"{cells[0].key()}.json").unlink()  # a study run again reads what was kept
    same_but_for_time(run_jobs(cells[:1], tmp_path, Settings("local"), quiet())[0], agreement)
    assert len(sampled) == 1

    path = store.folder / f"{cells[0].reference().key()}.npz"
    path.write_bytes(path.read_bytes()[:-100])
    (store.folder / f"{cells[0].key()}.json").unlink()
    same_but_for_time(run_jobs(cells[:1], tmp_path, Settings("local"), quiet())[0], agreement)
    assert len(sampled) == 2
    same_but_for_time(store.load(cells[0].reference()), reference)

    same_but_for_time(study.run_cell(cells[0]), agreement)  # without a store
    assert len(sampled) == 3


def quiet():
    return Console(file=io.StringIO(), soft_wrap=True, highlight=False)


@pytest.fixture
def cells():
    return [Cell("binary/xor", seed) for seed in range(4)]


def test_a_failing_cell_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    ran = []

    def run_cell(cell, **_):
        ran.append(cell)
        if cell == Cell("multiclass/clusters", 1, **small):
            raise RuntimeError("no luck [today]\nand a second line")
        return fake(cell)

    small = {f.name: getattr(validation.jobs("smoke")[0], f.name) for f in dataclasses.fields(Cell)[2:]}
    monkeypatch.setattr(study, "run_cell", run_cell)
    arguments = ["validation", "--preset", "smoke", "--executor", "local", "--out", str(tmp_path)]
    assert command.main(arguments) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert len(ran) == 12  # six references, six cells
    assert len(list((tmp_path / "cells").glob("*.json"))) == 11
    assert "1 of 6 jobs failed" in output.err
    label = "multiclass/clusters, n = 40, unit σ=1, seed 1, agreement"
    assert f"{label}: failed: RuntimeError: no luck [today], " in output.err
    assert output.err.splitlines()[-1].strip() == f"{label}: RuntimeError: no luck [today]"
    assert "second line" not in output.err
    assert not (tmp_path / "validation").exists()

    monkeypatch.setattr(study, "run_cell", lambda cell, **_: (ran.append(cell), fake(cell))[1])
    assert command.main(arguments) == 0
    assert len(ran) == 13
    assert ran[-1] == Cell("multiclass/clusters", 1, **small)
    assert (tmp_path / "validation" / "table.csv").is_file()


def test_a_disk_full_of_tables_is_told_in_one_line(tmp_path, monkeypatch, capsys):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device", "table.csv")

    monkeypatch.setattr(study, "run_cell", lambda cell, **_: fake(cell))
    monkeypatch.setattr(command, "write_outputs", full)
    assert command.main(["maps", "--preset", "smoke", "--executor", "local", "--out", str(tmp_path)]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"experiments: cannot write to {tmp_path}: No space left on device; finished jobs are kept"


def test_finished_cells_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "run_cell", lambda cell, **_: pytest.fail("a cell was run"))
    arguments = ["validation", "--preset", "smoke", "--finished", "--out", str(tmp_path)]
    assert command.main(arguments) == 1
    assert "holds no finished job of validation at preset smoke" in capsys.readouterr().err
    cell = validation.jobs("smoke")[0]
    (tmp_path / "cells").mkdir(exist_ok=True)
    Store(tmp_path / "cells").save(cell, fake(cell), None)
    assert command.main(arguments) == 0
    assert "Made from 1 of the preset's 6 jobs" in (tmp_path / "validation" / "summary.md").read_text(encoding="utf-8")
    assert len((tmp_path / "validation" / "table.csv").read_text(encoding="utf-8").splitlines()) == 2
    assert len(list((tmp_path / "cells").iterdir())) == 2


def test_equal_cells_are_run_once_and_results_keep_their_order(tmp_path, monkeypatch, cells):
    ran = []
    monkeypatch.setattr(study, "run_cell", lambda cell, **_: (ran.append(cell), fake(cell))[1])
    asked = [cells[2], cells[0], cells[2], cells[1]]
    results = run_jobs(asked, tmp_path, Settings("local"), quiet())
    assert [result.numbers["seed"] for result in results] == [2, 0, 2, 1]
    once = [cells[2], cells[0], cells[1]]
    assert ran == [*(cell.reference() for cell in once), *once]


def test_progress_names_a_folder_as_it_is_written(tmp_path, monkeypatch, cells):
    monkeypatch.setattr(study, "run_cell", lambda cell, **_: fake(cell))
    out = tmp_path / "run[bold]"
    run_jobs(cells, out, Settings("local"), quiet())
    screen = quiet()
    run_jobs(cells, out, Settings("local"), screen)
    assert str(out) in screen.file.getvalue()


def test_a_cell_is_counted_once_when_it_reports_its_own_progress(tmp_path, monkeypatch, cells):
    def run_cell(cell, progress=None, **_):
        for share in (0.5, 1.0):
            progress(share)
        if cell.seed == 3:
            raise ValueError("no luck")
        return fake(cell)

    monkeypatch.setattr(study, "run_cell", run_cell)
    screen = quiet()
    with pytest.raises(RunError, match="1 of 4 jobs failed"):
        run_jobs(cells, tmp_path, Settings("local"), screen)
    lines = screen.file.getvalue().splitlines()[1:]
    assert [line.split()[0] for line in lines] == [f"[{position}/8]" for position in range(1, 9)]
    failed = [line for line in lines if "failed" in line]
    assert [line.partition(", seed ")[2].partition(",")[0] for line in failed] == ["3", "3"]
    assert sum(": done, " in line for line in lines) == 6


def test_a_terminal_gets_a_bar_and_the_errors(tmp_path, monkeypatch, cells):
    def run_cell(cell, progress=None, **_):
        progress(0.5)
        if cell.seed == 1:
            raise ValueError("no luck")
        return fake(cell)

    monkeypatch.setattr(study, "run_cell", run_cell)
    screen = Console(file=io.StringIO(), force_terminal=True, width=160, highlight=False)
    with pytest.raises(RunError, match="1 of 4 jobs failed"):
        run_jobs(cells, tmp_path, Settings("local"), screen)
    text = screen.file.getvalue()
    assert "8/8 jobs" in text
    assert "seed 1, reference failed: ValueError: no luck" in text
    assert "seed 1, agreement failed: the job that it needs failed: ValueError: no luck" in text


# the store


@pytest.fixture
def stored(tmp_path, cells):
    store = Store(tmp_path)
    store.save(cells[0], fake(cells[0]), None)
    return store


def test_store_gives_back_what_it_got(stored, cells):
    got, want = stored.load(cells[0]), fake(cells[0])
    assert got.numbers == want.numbers
    assert set(got.arrays) == set(want.arrays)
    for name, values in want.arrays.items():
        np.testing.assert_array_equal(got.arrays[name], values)
        assert got.arrays[name].dtype == values.dtype
    assert stored.load(cells[1]) is None


@pytest.mark.parametrize("suffix", [".json", ".npz"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_a_truncated_cell_does_not_exist(stored, cells, suffix, share):
    path = (stored.folder / cells[0].key()).with_suffix(suffix)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert stored.load(cells[0]) is None


@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_half_a_cell_does_not_exist(stored, cells, suffix):
    (stored.folder / cells[0].key()).with_suffix(suffix).unlink()
    assert stored.load(cells[0]) is None


def test_temporary_files_are_not_cells(stored, cells):
    for suffix in (".json", ".npz"):
        path = (stored.folder / cells[0].key()).with_suffix(suffix)
        path.rename(path.with_name(f"{path.name}.123.tmp"))
    assert stored.load(cells[0]) is None


def test_a_byte_turned_over_never_ends_a_run(stored, cells):
    path = (stored.folder / cells[0].key()).with_suffix(".npz")
    whole = path.read_bytes()
    raised = {}
    for position in range(0, len(whole), 3):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        try:
            stored.load(cells[0])
        except Exception as error:
            raised.setdefault(f"{type(error).__name__}: {error}", position)
    assert raised == {}


def test_a_failed_save_leaves_the_old_result(stored, cells, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("experiments.run.store.np.savez_compressed", fail)
    with pytest.raises(OSError, match="No space"):
        stored.save(cells[0], fake(cells[0], value=0.1), None)
    assert stored.load(cells[0]).numbers["epistemic_pearson"] == 0.5
    assert not list(stored.folder.glob("*.tmp"))
