"""Jobs that an accelerator runs together: the results of one by one, and a job that fails fails alone."""

import io
from dataclasses import dataclass

import jax
import numpy as np
import pytest
from doomed import Toy
from rich.console import Console

from experiments.run.errors import RunError
from experiments.run.executors.settings import Settings
from experiments.run.job import Result
from experiments.run.loop import finished_results, run_jobs
from experiments.run.times import Times
from experiments.synthetic.measure.reference import measure_reference, measure_references
from experiments.synthetic.study import Cell
from isouq import problems, stats

TINY = {"num_points": 20, "num_warmup": 10, "num_draws": 10, "max_rounds": 1, "num_leapfrog": 3, "resolution": 6}


@dataclass(frozen=True)
class Member(Toy):
    """A toy that runs together with those of its name; a sick one fails its group."""

    def program(self):
        return "one program"

    def group(self):
        return "one group" if self.study == "reference" else None

    @classmethod
    def run_group(cls, jobs, progress):
        progress(0.5)
        if any(job.name == "sick" for job in jobs):
            raise ValueError("one of us is sick\nand stays in bed")
        return [Result({"seed": job.seed, "together": len(jobs), "seconds": 0.1}, {}) for job in jobs]


@pytest.fixture
def accelerator(monkeypatch):
    """This machine under another name, so that everything runs as on a GPU."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


def run(jobs, out, times=None):
    return run_jobs(jobs, out, Settings("local"), Console(file=io.StringIO()), times=times)


def together(results):
    return [result.numbers.get("together") for result in results]


def test_jobs_of_a_group_run_together_on_an_accelerator_and_others_alone(tmp_path, accelerator):
    jobs = [Member("well", 0), Toy("well", 7), Member("well", 1), Member("well", 2), Member("well", 1, "after")]
    times = Times()
    results = run(jobs, tmp_path, times)
    assert together(results) == [3, None, 3, 3, None]
    assert [result.numbers["seed"] for result in results] == [0, 7, 1, 2, 1]
    assert results[4].numbers["read"] == results[2].numbers
    jobs_by_study = {study: facts["jobs"] for study, facts in times.facts().items()}
    assert jobs_by_study == {"reference": 4, "after": 1}


def test_on_a_cpu_every_job_runs_alone(tmp_path):
    assert together(run([Member("well", seed) for seed in range(3)], tmp_path)) == [None] * 3


def test_a_job_that_fails_costs_itself(tmp_path, accelerator):
    jobs = [*(Member("well", seed) for seed in range(5)), Member("sick", 5), *(Member("well", seed) for seed in (6, 7))]
    with (
        pytest.warns(UserWarning, match=r"\d jobs cannot be run together: ValueError: one of us is sick$") as warned,
        pytest.raises(RunError, match="1 of 8 jobs failed") as error,
    ):
        run(jobs, tmp_path)
    assert "sick 5: ValueError: feels unwell" in str(error.value)
    assert [str(warning.message)[0] for warning in warned] == ["8", "4", "2"]
    stored = finished_results(jobs, tmp_path)
    assert {job.seed: result.numbers.get("together") for job, result in stored.items()} == {
        0: 4, 1: 4, 2: 4, 3: 4, 4: None, 6: 2, 7: 2
    }  # fmt: skip


def test_references_of_one_shape_are_those_of_one_by_one():
    """Of one seed, and so of one key; problems and priors differ. A chain may diverge from the last bit on.

    No start meets a saddle, which would be left in a direction that rounding decides.
    """
    cells = [
        Cell("binary/xor", width=3, study="reference", **TINY),
        Cell("binary/rings", width=3, prior="fan_in", sigma=2.0, study="reference", **TINY),
    ]
    assert len({cell.group() for cell in cells}) == 1
    both = [problems.get(cell.problem) for cell in cells]
    for got, cell, problem in zip(measure_references(cells, both, at_once=2), cells, both, strict=True):
        want = measure_reference(cell, problem)
        assert list(got.numbers) == list(want.numbers)
        for name, value in want.numbers.items():
            if not isinstance(value, float):
                assert got.numbers[name] == value, name
            elif name.startswith("map_") or name in ("sigma", "step_size", "acceptance"):
                assert got.numbers[name] == pytest.approx(value, rel=0.05, abs=0.01), name
        assert set(got.arrays) == set(want.arrays)
        np.testing.assert_allclose(got.arrays["starts"], want.arrays["starts"], rtol=0.01, atol=0.01)
        for name, values in want.arrays.items():
            assert got.arrays[name].dtype == values.dtype
            assert got.arrays[name].shape == values.shape
            assert stats.pearson(got.arrays[name].ravel(), values.ravel()) > 0.9, name


def test_cells_of_one_group_have_one_sampler_and_studies_run_alone():
    cell = Cell("binary/xor", study="reference", **TINY)
    longer = Cell("binary/xor", study="reference", **(TINY | {"num_leapfrog": 4}))
    assert longer.program() == cell.program()
    assert longer.group() != cell.group()
    assert Cell("binary/xor", **TINY).group() is None
    with pytest.raises(
        ValueError, match="the cells have 2 different settings of the sampler; measure those of each apart"
    ):
        measure_references([cell, longer], [problems.get("binary/xor")] * 2)


def test_a_study_on_an_accelerator_stores_a_row_for_every_posterior(tmp_path, accelerator):
    cells = [Cell("binary/xor", seed, width=2, **TINY) for seed in range(3)]
    results = run(cells, tmp_path)
    references = finished_results([cell.reference() for cell in cells], tmp_path)
    assert len({result.numbers["seconds_reference"] for result in references.values()}) == 1  # equal shares
    assert [result.numbers["seed"] for result in results] == [0, 1, 2]
    assert all(result.numbers["map_converged"] for result in results)
    assert len({result.numbers["map_log_density"] for result in results}) == 3
