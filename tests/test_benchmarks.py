"""The benchmarks run from end to end at their smoke preset, and what they measure is right."""

import csv
import json
import sys

import pytest

from benchmarks import cases
from benchmarks.__main__ import main


@pytest.mark.slow
@pytest.mark.parametrize("name", cases.NAMES)
def test_smoke(name, tmp_path):
    options = ["--preset", "smoke", "--no-memory", "--rounds", "1", "--budget", "0.1"]
    main([name, *options, "--only", "grad", "--out", str(tmp_path)])
    with (tmp_path / f"{name}.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    ours = [row for row in rows if row["contestant"].startswith("isouq")]
    assert ours
    assert all(float(row["seconds"]) > 0 for row in ours)
    if name not in ("growth", "probes"):
        assert all(float(row["max_relative_error"]) < 1e-5 for row in ours)
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    table = (tmp_path / f"{name}.md").read_text(encoding="utf-8")
    assert f"python -m benchmarks {name}" in table
    assert str(tmp_path) not in table
    assert json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))


def test_a_peer_that_is_missing_keeps_its_row_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    main(["mlp", "--preset", "smoke", "--no-memory", "--budget", "0.1", "--only", "Opacus", "--out", str(tmp_path)])
    assert "not installed: pip install torch==2.13.0" in (tmp_path / "mlp.md").read_text(encoding="utf-8")
