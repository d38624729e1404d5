"""Compiled programs: one for each shape in a process, and a folder that keeps them for other processes."""

import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.run.compilations import cache_folder, cache_problem, compilations, shrink
from experiments.synthetic.study import Cell

ROOT = Path(__file__).parents[1]
SMALL = {"num_points": 20, "num_warmup": 10, "num_draws": 10, "num_leapfrog": 3, "resolution": 6, "max_rounds": 2}


# one program for each shape


def programs(cell, needed=None):
    """Return the result of a cell and the number of programs that it had to compile or load."""
    with compilations() as count:
        result = cell.run(needed)
    return result, count.programs


@pytest.mark.parametrize(
    "study",
    ["agreement", "covariance", "decomposition", "spectrum", "lineage"],  # NumPyro compiles each second opinion anew
)
def test_the_cells_of_a_shape_compile_what_one_does(study):
    """Two seeds and two priors of one width: the first cell and its reference compile all that the others need."""
    first = Cell("multiclass/rings", width=3, study=study, **SMALL)
    other = {"prior": "fan_in", "sigma": 3.0}
    counts = []
    for cell in (first, replace(first, seed=1), replace(first, **other), replace(first, seed=1, **other)):
        reference, of_reference = programs(cell.reference())
        counts.append((of_reference, programs(cell, reference)[1]))
    assert counts[0][1] > 0
    # two programs that lead away from a saddle are compiled where the first saddle is met
    assert sum(of_reference + of_study for of_reference, of_study in counts[1:]) <= 2


# the folder


ONE_PROCESS = """
import sys
import jax, jax.numpy as jnp
from experiments.run.compilations import compilations
with compilations(sys.argv[1]) as count:
    total = jax.jit(lambda x: jnp.sin(x) @ x.T)(jnp.ones((3, 3))).sum()
print(count.programs - count.loaded, count.loaded, float(total).hex())
"""


def start(cache, **options):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"}
    command = [sys.executable, "-c", ONE_PROCESS, str(cache)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            **options)  # fmt: skip


def finish(process):
    """Return how many programs a process compiled and loaded, and what it computed; it must print nothing else."""
    output, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (0, "")
    compiled, loaded, total = output.split()
    return int(compiled), int(loaded), total


def run(cache, **options):
    return finish(start(cache, **options))


def files(cache):
    return sorted(cache.rglob("*-cache"))


def test_another_process_compiles_nothing_and_computes_the_same(tmp_path):
    compiled, loaded, total = run(tmp_path)
    assert compiled == len(files(tmp_path)) > 1
    assert loaded == 0
    assert run(tmp_path) == (0, compiled, total)


def test_without_a_folder_every_process_compiles(tmp_path):
    one, two = run("none", cwd=tmp_path), run("none", cwd=tmp_path)
    assert one == two
    assert one[1] == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: b"", lambda data: bytes(reversed(data))])
def test_what_a_damaged_file_held_is_compiled_again(tmp_path, damage):
    compiled, _, total = run(tmp_path)
    for path in files(tmp_path)[:2]:
        path.write_bytes(damage(path.read_bytes()))
    assert run(tmp_path) == (2, compiled - 2, total)


def limit_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))


def test_a_full_disk_is_passed_over_and_leaves_nothing_that_lasts(tmp_path):
    compiled, _, total = run(tmp_path, preexec_fn=limit_files)
    assert run(tmp_path)[1:] == (0, total)
    for path in files(tmp_path):
        path.write_bytes(b"")  # as a disk without any room
    shrink(files(tmp_path)[0].parent)
    assert files(tmp_path) == []
    assert run(tmp_path)[0] == compiled


def test_two_processes_may_write_at_once(tmp_path):
    both = [start(tmp_path), start(tmp_path)]
    totals = {finish(process)[2] for process in both}
    assert len(totals) == 1
    assert run(tmp_path)[0] == 0


def test_a_folder_that_cannot_be_made_is_said_in_one_line_and_passed_over(tmp_path):
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    assert cache_problem(str(in_the_way)) == (
        f"compiled programs cannot be kept in {cache_folder(str(in_the_way))}: Not a directory; "
        "choose another --compilation-cache"
    )
    assert run(in_the_way)[1] == 0
    assert cache_problem(str(tmp_path)) is None
    assert cache_problem("none") is None


def test_an_option_wins_over_jax_s_variable_and_that_over_the_default(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "jax"))
    assert cache_folder(None) is None  # JAX's own
    assert cache_folder(str(tmp_path / "chosen")).parent == tmp_path / "chosen"
    assert cache_folder("none") is None
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    assert cache_folder(None).parent == tmp_path / "user" / "isouq" / "compiled"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder(None).parent == Path.home() / ".cache" / "isouq" / "compiled"


def test_a_folder_keeps_what_was_used_last(tmp_path):
    for age, name in enumerate(("new", "old", "oldest")):
        path = tmp_path / f"{name}-cache"
        path.write_bytes(b"x" * 100)
        os.utime(path, (10**9 - age, 10**9 - age))
    (tmp_path / "other").write_bytes(b"x" * 1000)
    shrink(tmp_path, 250)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new-cache", "old-cache", "other"]
