"""1, 2 and 8 devices, two hosts, and processes that die: the numbers of one device in one go."""

import io
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import spread
from jax.sharding import AxisType, PartitionSpec

import isouq
from isouq import _files, sharding
from isouq._checkpoint import Checkpoint, Saved
from isouq.posterior import _sampling

ROOT = Path(__file__).parents[1]
KILLED = spread.KILLED_AFTER


def start(kind, *arguments):
    devices = spread.DEVICES[kind]
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    }
    command = [sys.executable, "tests/spread.py", kind, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def stored(path):
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What one device and eight have found, in processes side by side; each ends by its own kill."""
    folder = tmp_path_factory.mktemp("spread")
    processes = [start(kind, folder) for kind in KILLED]
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors
    return folder


@pytest.fixture(scope="module")
def two():
    """The chains on the two devices of this process, in one go."""
    return spread.numbers(spread.reference())


@pytest.fixture(scope="module")
def alone():
    return spread.alone()


@pytest.mark.parametrize("kind", KILLED)
def test_chains_are_the_same_to_the_bit(folder, two, kind):
    found = stored(folder / f"{kind}.npz")
    for name, value in two.items():
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize(("kind", "blocks"), KILLED.items())
def test_a_killed_run_goes_on_as_if_nothing_had_happened(folder, two, kind, blocks):
    path, shares = folder / f"{kind}.part.npz", []
    resumed = spread.reference(checkpoint=path, checkpoint_seconds=1e9, progress=shares.append)
    assert len(shares) == spread.BLOCKS - blocks  # what was done is not done again
    np.testing.assert_equal(spread.numbers(resumed), two)


def check_estimates(found, alone):
    ways = [name.split(": ") for name in found if name.startswith(("mlp", "transformer"))]
    assert len(ways) == 10
    for model, way, name in ways:
        expected = alone[model][name]
        values = found[f"{model}: {way}: {name}"][: len(expected)]
        assert values.dtype == np.float64
        np.testing.assert_allclose(values, expected, rtol=1e-12, err_msg=f"{model}: {way}")


def test_estimates_on_two_devices_are_those_of_one(alone):
    check_estimates(spread.estimates(), alone)


def test_estimates_on_eight_devices_are_those_of_one(folder, alone):
    check_estimates(stored(folder / "eight.npz"), alone)


def test_estimates_on_two_hosts_are_those_of_one_device(alone, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    hosts = [start("host", tmp_path, address, index) for index in (0, 1)]
    for host in hosts:
        _, errors = host.communicate()
        assert host.returncode == 0, errors
    for index in (0, 1):
        check_estimates(stored(tmp_path / f"host {index}.npz"), alone)


def test_a_checkpoint_costs_nothing_but_a_warning(two, tmp_path):
    path, aside = tmp_path / "run.npz", tmp_path / "run.npz.unused"
    programs = (_sampling._start, _sampling._run_block)
    compiled = [program._cache_size() for program in programs]

    def check(message, **other):
        with pytest.warns(UserWarning, match=message) as told:
            got = spread.reference(**({"checkpoint": path, "checkpoint_seconds": 1e-9} | other))
        assert len(told) == 1
        assert "\n" not in str(told[0].message)
        if "settings" not in other:
            np.testing.assert_equal(spread.numbers(got), two)

    def stops(share):
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        spread.reference(checkpoint=path, checkpoint_seconds=1e-9, progress=stops)
    whole = path.read_bytes()
    check(
        r"belongs to another run; it is now run\.npz\.unused; starting anew",
        settings=spread.SETTINGS | {"num_integration_steps": 4},
    )
    assert aside.read_bytes() == whole
    foreign = io.BytesIO()
    np.savez(foreign, mark=np.array([print], object), blocks=1)
    flipped = bytes(byte ^ 255 if i == len(whole) // 2 else byte for i, byte in enumerate(whole))
    for damaged in (whole[: len(whole) // 2], flipped, b"", b"not an npz\n", foreign.getvalue()):
        path.write_bytes(damaged)
        check(r"is damaged \(\w+\); it is now run\.npz\.unused; starting anew")
        assert aside.read_bytes() == damaged
    check(r"cannot be written \(No such file or directory\); going on without", checkpoint=tmp_path / "no" / "run.npz")
    assert {left.name for left in tmp_path.iterdir()} == {"run.npz", "run.npz.unused"}
    assert [program._cache_size() for program in programs] == compiled


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk, on Linux")
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    checkpoint = Checkpoint(path, 60.0, "mark")
    checkpoint.save(Saved(1, np.arange(3), None))
    whole = path.read_bytes()
    monkeypatch.setattr(
        _files, "open", lambda _, mode: os.fdopen(os.open("/dev/full", os.O_WRONLY), mode), raising=False
    )
    with pytest.warns(UserWarning, match=r"cannot be written \(No space left on device\); going on without"):
        checkpoint.save(Saved(2, np.arange(3), None))
    checkpoint.save(Saved(3, np.arange(3), None))  # tells it once
    assert path.read_bytes() == whole
    assert Checkpoint(path, 60.0, "mark").load(np.zeros(3, int), None).blocks == 1


@pytest.mark.parametrize(("draws", "warm_up", "thin", "rounds"), [(1, 10, 1, 1), (101, 100, 1, 2), (53, 997, 3, 3)])
def test_blocks_hold_every_transition_once_and_rounds_end_with_a_block(draws, warm_up, thin, rounds):
    settings = _sampling.Sampling(draws, warm_up, thin=thin, max_rounds=rounds)
    schedule = _sampling.Schedule.of(settings, jax.random.key(0))
    lengths = schedule.lengths.reshape(len(schedule.first), -1)
    numbers = schedule.first[:, None] + np.arange(lengths.shape[1])
    np.testing.assert_array_equal(numbers[lengths > 0], np.arange(warm_up + rounds * draws * thin))
    assert lengths.shape[1] <= max(100, thin)
    assert schedule.first[schedule.num_warm] == warm_up
    draws_before = [schedule.draws_before(block) for block in range(len(lengths) + 1)]
    assert draws_before[schedule.num_warm] == 0
    assert set(draws_before) >= {draws * done for done in range(rounds + 1)}
    np.testing.assert_array_equal(
        np.diff(draws_before)[schedule.num_warm :] * thin, (lengths > 0).sum(1)[schedule.num_warm :]
    )


def test_padding_repeats_the_first_row():
    xs = {"a": np.arange(5.0), "b": np.arange(10).reshape(5, 2)}
    spread_out = sharding.shard_inputs(xs, jax.devices()[:2])
    np.testing.assert_array_equal(spread_out["a"], [0, 1, 2, 3, 4, 0])
    assert {shard.data.shape for shard in spread_out["b"].addressable_shards} == {(3, 2)}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([("nothing", PartitionSpec("model"))], "rule 'nothing' finds no parameter; the paths are in.kernel, out"),
        ([("kernel", PartitionSpec("data"))], "in.kernel: its rule names the axis 'data'; the mesh has"),
        (
            [("kernel", PartitionSpec("model"))],
            r"in.kernel has shape \(3, 4\); its dimension of 3 is not",
        ),
        ([("out", PartitionSpec(None, "model"))], r"out has shape \(4,\), but its rule splits 2 dimensions"),
    ],
)
def test_rules_that_do_not_fit(rules, message):
    params = {"in": {"kernel": np.zeros((3, 4))}, "out": np.zeros(4)}
    mesh = jax.make_mesh((2,), ("model",))
    with pytest.raises(ValueError, match=message):
        sharding.shard_params(params, rules, mesh)
    good = sharding.shard_params(params, [("kernel", PartitionSpec(None, "model"))], mesh)
    assert {shard.data.shape for shard in good["in"]["kernel"].addressable_shards} == {(3, 2)}
    assert good["out"].sharding.is_fully_replicated


def test_devices_that_are_none():
    with pytest.raises(ValueError, match=r"devices is \[\]; expected a list of JAX devices"):
        sharding.shard_inputs(np.zeros(3), [])
    with pytest.raises(ValueError, match="axis is 'rows'; the mesh has 'model'"):
        sharding.shard_over(jax.make_mesh((2,), ("model",)), "rows")
    data, params = np.zeros((3, 2), np.float32), spread.one(spread.network(np.float32)[0])
    with pytest.raises(ValueError, match=r"devices was given under jax\.jit"):
        jax.jit(lambda xs: isouq.uncertainty(spread.predict, params, xs, "binary", devices=jax.devices()))(data)


@pytest.mark.parametrize("axes", [AxisType.Explicit, AxisType.Auto])
def test_arrays_are_placed_on_the_mesh_that_is_current(axes):
    def predict(params, x):
        return (np.tanh(1.0) * x @ params["a"]) @ params["b"]

    params = {"a": np.ones((6, 8), np.float32), "b": np.arange(32, dtype=np.float32).reshape(8, 4) / 32}
    xs = np.linspace(-1, 1, 18, dtype=np.float32).reshape(3, 6)
    want = isouq.uncertainty(predict, params, xs, "multiclass").epistemic
    mesh = jax.make_mesh((2,), ("d",), axis_types=(axes,))
    with jax.set_mesh(mesh):
        placed = sharding.replicate(params, mesh), sharding.shard_inputs(xs, mesh)
        got = isouq.uncertainty(predict, *placed, "multiclass").epistemic
    np.testing.assert_allclose(sharding.gather(got)[:3], want, rtol=1e-5)
