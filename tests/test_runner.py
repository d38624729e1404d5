"""The loop, its store and its lock, whatever kills them, and what `status` says of a run."""

import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from doomed import Toy, starts_of
from rich.console import Console

from experiments.answers.study import QaCell
from experiments.domains.study import DomainCell
from experiments.report.outputs import check_writable
from experiments.run import status
from experiments.run.errors import RunError
from experiments.run.executors.settings import Settings
from experiments.run.job import Outcome
from experiments.run.lock import holder, lock
from experiments.run.loop import finished_results, run_jobs
from experiments.run.plan import Plan, PlannedJob, read_plans, write_plan
from experiments.run.progress import reporter
from experiments.run.store import Store
from experiments.run.times import Times
from experiments.run.worker import execute
from experiments.synthetic.study import Cell

ROOT = Path(__file__).parents[1]
JOBS = 8  # of the driver in doomed.py


@pytest.fixture
def store(tmp_path):
    (tmp_path / "cells").mkdir()
    return Store(tmp_path / "cells")


def quiet():
    return Console(file=io.StringIO(), soft_wrap=True, highlight=False)


def run_locally(jobs, out):
    return run_jobs(jobs, out, Settings("local"), quiet())


def save(store, job, needed=None):
    store.save(job, job.run(needed, store.checkpoint_path(job), None), None)


# the store


def test_keys_are_those_of_the_runs_before():
    assert Cell("binary/xor").key() == "1d84421ad1272d52"
    assert DomainCell("e", None, "d", study="reference").key() == "2dea77e99bb0862c"
    assert QaCell("m", "b", "alias", None, "d", 0, 20).key() == "1d56422923e627f3"


def test_provenance_stands_beside_the_numbers_and_not_among_them(tmp_path, store):
    job = Toy("well", 3)
    (result,) = run_locally([job], tmp_path)
    stored = json.loads((store.folder / f"{job.key()}.json").read_text())
    facts = stored.pop("_provenance")
    assert store.load(job).numbers == stored == result.numbers
    assert facts["seed"] == 3
    assert facts["seconds"] == 0.1
    assert facts["gradient_evaluations"] is None
    assert facts["versions"]["jax"]
    assert {"commit", "devices", "finished"} <= facts.keys()


def test_a_result_that_may_not_be_read_is_not_computed_again(store):
    save(store, Toy("well"))
    path = store.folder / f"{Toy('well').key()}.json"
    path.chmod(0)
    user = os.geteuid()
    if user == 0:  # root may read everything
        os.seteuid(65534)
    try:
        with pytest.raises(RunError, match=rf"{path}: Permission denied; ask its owner"):
            store.load(Toy("well"))
    finally:
        os.seteuid(user)


def test_what_belongs_to_an_unfinished_job_goes_when_it_is_saved(store):
    job = Toy("well")
    store.checkpoint_path(job).write_bytes(b"half")
    store.save_failure(job, Outcome(error="no luck"))
    save(store, job)
    assert {path.suffix for path in store.folder.iterdir()} == {".json", ".npz", ".starts"}


def test_clearing_takes_what_the_dead_left_and_nothing_else(store):
    under_way, done = (store.folder / Toy(name).key() for name in ("well", "done"))
    save(store, Toy("done"))
    for path in (under_way, done):
        path.with_suffix(".npz.host.1.tmp").write_bytes(b"x")
        path.with_suffix(".part.npz").write_bytes(b"x")
    store.clear([])
    assert {path.name.partition(".")[2] for path in store.folder.glob("well*")} == {"part.npz"}
    assert {path.name.partition(".")[2] for path in store.folder.glob("done*")} == {"json", "npz", "starts"}


def test_the_files_of_another_job_are_not_taken(store):
    save(store, Toy("well"))
    for suffix in ("json", "npz"):
        shutil.copy(store.folder / f"{Toy('well').key()}.{suffix}", store.folder / f"{Toy('other').key()}.{suffix}")
    assert store.load(Toy("well"))
    assert store.load(Toy("other")) is None


# the loop


def test_a_job_reads_the_result_that_it_needs(tmp_path):
    first, second = run_locally([Toy("well", 1, "after"), Toy("well", 1)], tmp_path)
    assert first.numbers["read"] == second.numbers


def test_a_damaged_result_is_computed_again_and_what_reads_it_is_not(tmp_path, store):
    jobs = [Toy("well", seed, "after") for seed in range(2)]
    run_locally(jobs, tmp_path)
    for job in (jobs[0].needs(), jobs[1]):
        path = store.folder / f"{job.key()}.npz"
        path.write_bytes(path.read_bytes()[:-20])
    run_locally(jobs, tmp_path)  # the second job alone is missing, and what it needs is whole
    assert [starts_of(store.folder, job) for job in (*jobs, *(job.needs() for job in jobs))] == [1, 2, 1, 1]
    (store.folder / f"{jobs[0].key()}.json").unlink()
    run_locally(jobs, tmp_path)
    assert [starts_of(store.folder, job) for job in (*jobs, *(job.needs() for job in jobs))] == [2, 2, 2, 1]


def test_a_failure_is_recorded_with_its_place_in_the_code_and_tried_again(tmp_path, store):
    jobs = [Toy("sick"), Toy("astray"), Toy("quitter"), Toy("well"), Toy("sick", 0, "after")]
    with pytest.raises(RunError) as raised:
        run_locally(jobs, tmp_path)
    assert str(raised.value).splitlines() == [
        "4 of 5 jobs failed; the same command runs only them again:",
        "  sick 0: ValueError: feels unwell",
        "  astray 0: FileNotFoundError: [Errno 2] No such file: '/weights.bin'",
        "  quitter 0: SystemExit: enough",
        "  sick 0: the job that it needs failed: ValueError: feels unwell",
    ]
    record = json.loads((store.folder / f"{Toy('sick').key()}.failed").read_text())
    assert record["reason"] == "ValueError: feels unwell"
    assert "doomed.py" in record["traceback"]
    with pytest.raises(RunError, match="4 of 5 jobs failed"):
        run_locally(jobs, tmp_path)
    assert [starts_of(store.folder, job) for job in jobs] == [2, 2, 2, 1, 0]
    assert list(finished_results(jobs, tmp_path)) == [Toy("well")]


def test_workers_share_the_folder_of_compiled_programs_and_tell_what_they_cost(tmp_path):
    """The second run is as a second start of the command: it loads what the first has compiled."""
    jobs, counts = [Toy("jit", seed) for seed in range(3)], []
    settings = Settings("processes", workers=2, compilation_cache=str(tmp_path / "compiled"))
    for name in ("first", "second"):
        times = Times()
        results = run_jobs(jobs, tmp_path / name, settings, quiet(), times=times)
        assert [result.numbers["sum"] for result in results] == [3.0, 6.0, 9.0]
        stage = times.stages()[0]
        assert stage[:2] == ("reference", 3)
        assert 0 < stage.cost.compiling_seconds < stage.cost.seconds
        assert stage.cost.cpu_seconds > 0
        stored = [json.loads(path.read_text())["_provenance"] for path in (tmp_path / name / "cells").glob("*.json")]
        assert sum(facts["programs_compiled"] for facts in stored) == stage.cost.compiled
        counts.append((stage.cost.compiled, stage.cost.loaded))
    assert counts[0][0] == len(list((tmp_path / "compiled").rglob("*-cache"))) >= 3
    assert counts[1] == (0, sum(counts[0]))


def test_a_run_ends_with_its_time_by_stage(tmp_path):
    screen, times = quiet(), Times()
    jobs = [Toy("slow", seed, "after") for seed in range(2)]
    run_jobs(jobs, tmp_path, Settings("local"), screen, times=times)
    with times.outputs():
        time.sleep(0.1)
    times.show(screen)
    lines = [re.split(r"  +", line.strip()) for line in screen.file.getvalue().splitlines()[-7:]]
    assert lines[0][:3] == ["stage", "jobs", "seconds"]
    assert [line[0] for line in lines[1:6]] == [
        "reference", "after", "tables and figures", "starts, storing", "the whole run"
    ]  # fmt: skip
    assert [line[1] for line in (lines[1], lines[2], lines[5])] == ["2", "2", "4"]
    assert all(float(line[2]) >= 1.0 for line in lines[1:3])  # two jobs of half a second
    assert float(lines[3][1]) >= 0.1
    assert float(lines[5][2]) >= 2.0
    assert times.facts()["after"]["jobs"] == 2
    again, times = quiet(), Times()
    run_jobs(jobs, tmp_path, Settings("local"), again, times=times)
    times.show(again)
    assert len(again.file.getvalue().splitlines()) == 1  # that all are finished


def test_a_worker_that_does_not_see_the_folder_says_so(tmp_path):
    error = execute(tmp_path / "elsewhere", Toy("well")).error
    assert error == f"a worker does not see {tmp_path}/elsewhere; give an --out that all machines share"


# the lock, a full disk, a folder that is read-only, and kills


def drive(out, executor="processes", name="slow", **options):
    """Start the driver in doomed.py, in a session of its own."""
    command = [sys.executable, ROOT / "tests" / "doomed.py", out, executor, "2", name]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True,
                            start_new_session=True, **options)  # fmt: skip


def finish(driver):
    """Wait for a driver that is to end well."""
    errors = driver.communicate(timeout=300)[1]
    assert driver.returncode == 0, errors


def contents(out):
    """The bytes of all arrays and the numbers of all jobs."""
    cells = Path(out) / "cells"
    numbers = {path.name: json.loads(path.read_text()) for path in cells.glob("*.json")}
    for one in numbers.values():
        one.pop("_provenance")
    return numbers, {path.name: path.read_bytes() for path in cells.glob("*.npz")}


def wait_for(condition, seconds=300.0):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it did not come to that"
        time.sleep(0.02)


def running(out, name):
    """The processes that a job was started in."""
    return {int(pid) for path in (out / "cells").glob(f"{name}*.starts") for pid in path.read_text().split()}


def alive(process):
    try:
        return (Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def peace(tmp_path_factory):
    """What the driver in doomed.py makes of slow jobs when nothing disturbs it."""
    out = tmp_path_factory.mktemp("peace")
    run_locally([Toy("slow", seed, "after") for seed in range(4)], out)
    return contents(out)


def test_a_second_driver_gets_one_line_and_disturbs_nothing(tmp_path, peace):
    first = drive(tmp_path)
    wait_for(lambda: running(tmp_path, "slow"))
    second = drive(tmp_path)
    errors = second.communicate(timeout=300)[1]
    assert second.returncode == 1
    assert errors == (
        f"experiments: process {first.pid} on {os.uname().nodename} is at work in {tmp_path}: wait until it ends "
        f"(python -m experiments status --out {tmp_path}), stop it, or choose another --out\n"
    )
    finish(first)
    assert contents(tmp_path) == peace
    assert all(starts_of(tmp_path / "cells", Toy("slow", seed)) == 1 for seed in range(4))
    with lock(tmp_path):  # given back
        assert holder(tmp_path).process == os.getpid()
    assert holder(tmp_path) is None


@pytest.mark.parametrize("victim", ["worker", "driver", "group"])
def test_kill_9_loses_nothing_that_is_finished(tmp_path, peace, victim):
    driver = drive(tmp_path)
    wait_for(lambda: list((tmp_path / "cells").glob("*.json")) and len(running(tmp_path, "slow")) == 2)
    workers = running(tmp_path, "slow")
    whole = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").glob("*.json")}
    if victim == "worker":
        os.kill(workers.pop(), signal.SIGKILL)
        finish(driver)
    else:
        (os.kill if victim == "driver" else os.killpg)(driver.pid, signal.SIGKILL)
        driver.communicate(timeout=300)
        wait_for(lambda: not any(map(alive, workers)))
        finish(drive(tmp_path))
    assert contents(tmp_path) == peace
    assert {path: path.stat().st_mtime_ns for path in whole} == whole
    names = {path.name.partition(".")[2] for path in (tmp_path / "cells").iterdir()}
    assert names == {"json", "npz", "starts"}


def test_ctrl_c_ends_the_workers_and_loses_nothing_that_is_finished(tmp_path, peace):
    driver = drive(tmp_path, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    wait_for(lambda: list((tmp_path / "cells").glob("*.json")) and len(running(tmp_path, "slow")) == 2)
    os.killpg(driver.pid, signal.SIGINT)
    errors = driver.communicate(timeout=300)[1]
    assert errors.count("Traceback") == 1  # the driver's own; the command line says one line instead
    assert not any(map(alive, running(tmp_path, "slow")))
    assert holder(tmp_path) is None
    assert 0 < len(list((tmp_path / "cells").glob("*.json"))) < JOBS
    finish(drive(tmp_path))
    assert contents(tmp_path) == peace


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_command_line_ends_it_as_ctrl_c_does(tmp_path, number):
    command = [sys.executable, "-m", "experiments", "validation", "--preset", "smoke", "--out", tmp_path]
    driver = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: (tmp_path / status.FILE).exists())
    driver.send_signal(number)
    errors = driver.communicate(timeout=300)[1]
    assert driver.returncode == 130
    assert errors.splitlines()[1:] == [
        "experiments: interrupted; finished jobs are kept, the same command goes on from there"
    ]
    assert holder(tmp_path) is None


@pytest.mark.parametrize("executor", ["local", "processes"])
def test_a_full_disk_ends_the_run_in_one_line_and_the_same_command_goes_on(tmp_path, executor):
    run_locally([Toy("large", seed, "after") for seed in range(4)], tmp_path / "peace")
    out = tmp_path / "full"
    (out / "cells").mkdir(parents=True)
    save(Store(out / "cells"), Toy("large", 3))
    limit = 2**19  # half of what a job has to write
    driver = drive(out, executor, "large", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    errors = driver.communicate(timeout=300)[1]
    assert driver.returncode == 1
    assert errors.splitlines()[-1] == (
        f"experiments: cannot store results in {out}/cells: File too large; finished jobs are kept, make room and give "
        "the same command again"
    )
    assert "Traceback" not in errors
    assert not list((out / "cells").glob("*.tmp"))
    assert len(contents(out)[0]) == 1
    finish(drive(out, executor, "large"))
    assert contents(out) == contents(tmp_path / "peace")
    assert starts_of(out / "cells", Toy("large", 3)) == 1


def test_a_read_only_folder_is_said_in_one_line():
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:  # pytest's folders are closed to other users
        out = Path(folder)
        out.chmod(0o555)
        if user == 0:  # root may write everywhere
            os.seteuid(65534)
        try:
            with pytest.raises(RunError, match=rf"cannot store results in {out}/cells: Permission denied; finished"):
                run_locally([Toy("well")], out)
        finally:
            os.seteuid(user)


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "driver.lock").mkdir()
    message = rf"cannot store results in {tmp_path}/driver.lock: Is a directory; .*, put that right and give"
    with pytest.raises(RunError, match=message):
        run_locally([Toy("well")], tmp_path)


def test_a_folder_whose_name_is_not_utf_8_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"xff' is not UTF-8; choose another folder with --out"):
        check_writable(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")))


# status


def status_of(out, capsys):
    code = status.main(["--out", str(out)])
    return code, capsys.readouterr()


def planned(jobs):
    return [PlannedJob(job.key(), job.label()) for job in jobs]


def test_status_says_what_is_done_failed_and_waiting_and_who_is_at_work(tmp_path, store, capsys):
    jobs = [Toy("well", 0), Toy("well", 1), Toy("sick"), Toy("slow"), Toy("slow", 1)]
    with pytest.raises(RunError):
        run_locally(jobs[:3], tmp_path)
    write_plan(tmp_path, Plan("rings", "smoke", "python -m experiments rings", planned(jobs)))
    with lock(tmp_path), reporter(jobs[3:], quiet(), tmp_path) as report:
        report(jobs[3], 0.0)
        code, output = status_of(tmp_path, capsys)
    assert code == 0
    lines = output.out.splitlines()
    assert lines[:2] == [
        "rings, preset smoke: 2 of 5 jobs done, 1 failed, 2 to do",
        "  failed: sick 0: ValueError: feels unwell",
    ]
    assert re.fullmatch(rf"process {os.getpid()} on {os.uname().nodename} is at work for \d s", lines[2])
    assert re.fullmatch(r"  running: slow 0, for \d s", lines[3])
    before = sorted((path.name, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    code, output = status_of(tmp_path, capsys)
    assert output.out.startswith(f"{lines[0]}, nothing runs; to go on: python -m experiments rings\n")
    assert len(output.out.splitlines()) == 2
    assert sorted((path.name, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before


def test_status_says_the_time_left(tmp_path, capsys):
    write_plan(tmp_path, Plan("rings", "smoke", "again", planned([Toy("well"), Toy("slow")])))
    with lock(tmp_path), reporter([Toy("well"), Toy("slow")], quiet(), tmp_path) as report:
        report(Toy("well"), 1.0)
        (tmp_path / status.FILE).write_text(json.dumps({"left": 300.0, "written": time.time() - 60, "running": []}))
        assert status_of(tmp_path, capsys)[1].out.endswith(", about 4 min left\n")
        (tmp_path / status.FILE).write_text("")  # while it is written on a file system that is not atomic
        assert status_of(tmp_path, capsys)[1].out.endswith(" s\n")


def test_a_run_leaves_a_plan(tmp_path):
    jobs = [Toy("well", 0, "after"), Toy("well", 1)]
    run_jobs(jobs, tmp_path, Settings("local"), quiet(), Plan("rings", "smoke", "again", []))
    (plan,) = read_plans(tmp_path)
    assert plan[:3] == ("rings", "smoke", "again")
    assert [job.key for job in plan.jobs] == ["well0reference", "well0after", "well1reference"]


def test_status_of_a_folder_without_a_plan(tmp_path, capsys):
    assert status_of(tmp_path, capsys)[0] == 1
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "x.json").write_text("{")
    code, output = status_of(tmp_path, capsys)
    assert code == 1
    assert output.err.startswith(f"experiments: {tmp_path}/plans/x.json is no plan of a run")


def test_ten_thousand_finished_jobs_are_listed_quickly(tmp_path, store, capsys):
    for i in range(10_000):
        for suffix in ("json", "npz"):
            os.close(os.open(store.folder / f"{i:016x}.{suffix}", os.O_CREAT | os.O_WRONLY))
    jobs = [PlannedJob(f"{i:016x}", f"job {i}") for i in range(10_000)]
    write_plan(tmp_path, Plan("rings", "paper", "again", jobs))
    started = time.process_time()
    assert status_of(tmp_path, capsys)[1].out.startswith("rings, preset paper: 10000 of 10000 jobs done")
    assert time.process_time() - started < 2


def test_status_needs_no_jax():
    code = (
        "import sys, experiments.run.status; print([name for name in ('jax', 'numpy', 'rich') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("seconds", "words"), [(0.2, "0 s"), (89, "89 s"), (120, "2 min"), (7200, "2.0 h")])
def test_seconds_in_words(seconds, words):
    assert status.duration(seconds) == words
