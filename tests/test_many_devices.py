"""1, 2 and 8 devices, two hosts, and processes that die: the numbers of one device in one go."""

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
from jax.sharding import PartitionSpec

import isouq
from isouq import sharding
from isouq.posterior import _checkpoint, _sampling

ROOT = Path(__file__).parents[1]
COUNTS = (1, 2, 8)


def start(*arguments):
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "tests/spread.py", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def stored(path):
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One process for each number of devices, side by side; each ends by its own kill."""
    folder = tmp_path_factory.mktemp("spread")
    processes = [start(count, folder) for count in COUNTS]
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors
    return folder


@pytest.fixture(scope="module")
def uninterrupted():
    return {chains: spread.reference(chains) for chains in spread.CHAINS}


@pytest.mark.slow
@pytest.mark.parametrize("chains", spread.CHAINS)
@pytest.mark.parametrize("count", COUNTS)
def test_chains_are_the_same_to_the_bit(folder, uninterrupted, count, chains):
    found = stored(folder / f"{count}.npz")
    for name, value in spread.numbers(uninterrupted[chains]).items():
        np.testing.assert_array_equal(found[f"{chains} chains: {name}"], value)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "blocks"), spread.KILLED_AFTER.items())
def test_a_killed_run_goes_on_as_if_nothing_had_happened(folder, uninterrupted, count, blocks):
    path, shares = folder / f"{count}.part.npz", []
    resumed = spread.reference(5, checkpoint=path, checkpoint_seconds=1e9, progress=shares.append)
    assert len(shares) == spread.BLOCKS - blocks  # what was done is not done again
    for name, value in spread.numbers(uninterrupted[5]).items():
        np.testing.assert_array_equal(spread.numbers(resumed)[name], value)


@pytest.mark.slow
@pytest.mark.parametrize("count", COUNTS)
def test_estimates_are_those_of_one_device(folder, count):
    found, alone = stored(folder / f"{count}.npz"), stored(folder / "1.npz")
    check_estimates(found, alone)
    np.testing.assert_allclose(found["norms split"][:7], alone["norms alone"], rtol=1e-6)


def check_estimates(found, alone):
    ways = {name.partition(": ")[0] for name in found if name.startswith(("mlp", "decoder"))}
    assert len(ways) == 8
    for way in ways:
        for name in ("epistemic", "aleatoric"):
            expected = alone[f"{way.split()[0]} alone: {name}"]
            np.testing.assert_allclose(found[f"{way}: {name}"][: len(expected)], expected, rtol=1e-6, err_msg=way)


@pytest.mark.slow
def test_two_hosts(folder, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    hosts = [start(2, tmp_path, address, index) for index in (0, 1)]
    for host in hosts:
        _, errors = host.communicate()
        assert host.returncode == 0, errors
    for index in (0, 1):
        check_estimates(stored(tmp_path / f"host {index}.npz"), stored(folder / "1.npz"))


def test_a_checkpoint_costs_nothing_but_a_warning(tmp_path):
    path, stop = tmp_path / "run.npz", RuntimeError("stopped")
    options = {"num_warmup": 10, "num_draws": 5, "thin": 1}

    def stops(share):
        raise stop

    expected = spread.numbers(spread.reference(3, **options))
    compiled = [f._cache_size() for f in (_sampling._start, _sampling._warm_up, _sampling._draw)]

    def check(message, where=path, **other):
        with pytest.warns(UserWarning, match=message) as told:
            got = spread.reference(3, checkpoint=where, checkpoint_seconds=1e-9, **(options | other))
        assert len(told) == 1
        assert "\n" not in str(told[0].message)
        return got

    with pytest.raises(RuntimeError, match="stopped"):
        spread.reference(3, checkpoint=path, checkpoint_seconds=1e-9, progress=stops, **options)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    np.testing.assert_equal(spread.numbers(check("is damaged")), expected)
    path.write_bytes(whole[:200] + bytes([whole[200] ^ 255]) + whole[201:])
    np.testing.assert_equal(spread.numbers(check("is damaged|another run")), expected)
    path.write_bytes(whole)
    check("belongs to another run", num_leapfrog=4)
    path.write_bytes(whole)
    got = spread.reference(3, checkpoint=path, checkpoint_seconds=1e9, **options)
    np.testing.assert_equal(spread.numbers(got), expected)
    assert path.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [path]
    got = check("cannot be written", where=tmp_path / "missing" / "run.npz")
    np.testing.assert_equal(spread.numbers(got), expected)
    full = Path("/dev/full")
    if full.exists():
        (tmp_path / "full").mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_checkpoint._files, "open", lambda *_: full.open("wb"), raising=False)
            got = check("No space left", where=tmp_path / "full" / "run.npz")
        np.testing.assert_equal(spread.numbers(got), expected)
    assert [f._cache_size() for f in (_sampling._start, _sampling._warm_up, _sampling._draw)] == compiled


def test_blocks_hold_everything_once():
    for total, most in ((1, 100), (100, 100), (101, 100), (997, 100), (53, 50), (7, 1)):
        blocks = _sampling.Blocks.of(total, most)
        filled = blocks.fill(np.arange(1, total + 1))
        assert filled.shape == (blocks.count, blocks.size)
        assert blocks.size <= most
        np.testing.assert_array_equal(filled[filled > 0], np.arange(1, total + 1))
        assert blocks.done(blocks.count) == total


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
    data, params = np.zeros((3, 2), np.float32), spread.problem(2)[1]
    one = jax.tree.map(lambda leaf: leaf[0], params)
    with pytest.raises(ValueError, match=r"devices was given under jax\.jit"):
        jax.jit(lambda xs: isouq.uncertainty(spread.predict, one, xs, "binary", devices=jax.devices()))(data)
