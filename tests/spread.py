"""What a process of a given kind computes: `python tests/spread.py one|eight FOLDER`, or `host FOLDER ADDRESS INDEX`.

XLA_FLAGS gives it its devices. `one` and `eight` write FOLDER/KIND.npz and then die of SIGKILL in the middle of a run
of chains, after a number of blocks.
"""

import os
import signal
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import isouq
from isouq import sharding

DEVICES = {"one": 1, "eight": 8, "host": 2}
KILLED_AFTER = {"one": 1, "eight": 3}  # blocks
BLOCKS = 4  # of a run: two of warm-up, two of draws
CHAINS = 5  # one round on eight devices, three on two
SETTINGS = {"num_warmup": 103, "num_draws": 53, "thin": 2, "num_integration_steps": 5}


def predict(params, x):
    """A small network with one logit."""
    return jnp.tanh(x @ params["in"] + params["bias"]) @ params["out"]


def transformer(params, ids):
    """Logits of the next token: one layer of attention, embeddings that are tied."""
    hidden = params["embedding"][ids]
    queries, keys, values = jnp.split(hidden @ params["attention"], 3, axis=-1)
    hidden = hidden + jax.nn.softmax(queries @ keys.T, axis=-1) @ values
    hidden = hidden + jnp.tanh(hidden @ params["up"] + params["bias"][None]) @ params["down"]
    return params["embedding"] @ hidden[-1]


def network(dtype):
    """(parameters of the chains, 40 inputs)."""
    rng = np.random.default_rng(0)
    xs = rng.normal(size=(40, 2))
    shapes = {"in": (2, 6), "bias": (6,), "out": (6,)}
    inits = {name: jnp.asarray(rng.normal(size=(CHAINS, *shape)), dtype) for name, shape in shapes.items()}
    return inits, jnp.asarray(xs, dtype)


def one(tree):
    """The first of the leading axis."""
    return jax.tree.map(lambda leaf: leaf[0], tree)


def reference(chains=CHAINS, settings=SETTINGS, **options):
    """The run that every process makes."""
    # BlackJAX would use JAX before a host is one
    from isouq.posterior import LogDensity, Margins, Sampling, sample_reference

    inits, xs = network(jnp.float32)
    inits = jax.tree.map(lambda leaf: leaf[:chains], inits)
    log_density = LogDensity.of(predict, one(inits), xs, np.int32(xs[:, 0] * xs[:, 1] > 0), "binary")
    record = Margins(predict, xs[:11], jnp.ones(11, jnp.int32), "binary")
    key, sampling = jax.random.key(0), Sampling(**settings)
    return sample_reference(log_density, inits, key, sampling=sampling, record=record, verdict=False, **options)


def numbers(reference):
    """All numbers of a reference, by name."""
    found = {name: np.asarray(getattr(reference, name)) for name in ("predictions", "step_size", "acceptance_rate")}
    return found | {"divergent": np.asarray(reference.divergent), "cost": np.asarray(reference.cost)}


def models():
    """{name: (predict, params, xs, kind)}: a network on 11 inputs, a transformer on 7 prompts, in float64."""
    inits, xs = network(jnp.float64)
    rng = np.random.default_rng(1)
    shapes = {"embedding": (64, 8), "attention": (8, 24), "up": (8, 32), "bias": (32,), "down": (32, 8)}
    params = {name: jnp.asarray(0.3 * rng.normal(size=shape)) for name, shape in shapes.items()}
    return {
        "mlp": (predict, one(inits), xs[:11], "binary"),
        "transformer": (transformer, params, jnp.asarray(rng.integers(0, 64, (7, 5))), "multiclass"),
    }


def plain(uncertainty):
    """In NumPy, whole on every host."""
    return {name: sharding.gather(getattr(uncertainty, name)) for name in ("epistemic", "aleatoric")}


def alone():
    """The uncertainty of every model, by name, on one device."""
    with jax.enable_x64(True):
        return {name: plain(isouq.uncertainty(*model)) for name, model in models().items()}


def estimates():
    """The same, in every way of spreading it over all devices: {"NAME: way: number": values, rows filled up}."""
    devices = jax.devices()
    both = jax.make_mesh((2, len(devices) // 2), ("inputs", "model"), devices=devices)
    with jax.enable_x64(True):
        mlp, (_, params, ids, kind) = models().values()
        split, rows = sharding.shard_params(params, None, both), sharding.shard_inputs(ids, both)
        found = {
            "mlp: by devices": isouq.uncertainty(*mlp, devices=devices),
            "mlp: by devices, in batches": isouq.uncertainty(*mlp, devices=devices, batch_size=2),
            "mlp: by inputs": isouq.uncertainty(*mlp[:2], sharding.shard_inputs(mlp[2], devices), mlp[3]),
            "transformer: by devices": isouq.uncertainty(transformer, params, ids, kind, devices=devices),
            "transformer: by inputs and parameters": isouq.uncertainty(transformer, split, rows, kind),
        }
        return {f"{way}: {name}": value for way, u in found.items() for name, value in plain(u).items()}


def kill(blocks, seen, share):
    """A `progress` that ends the process after so many blocks."""
    seen.append(share)
    if len(seen) == blocks:
        os.kill(os.getpid(), signal.SIGKILL)


def main():
    """By the kind."""
    kind, folder, *host = sys.argv[1:]
    folder = Path(folder)
    if host:
        address, index = host
        jax.distributed.initialize(address, 2, int(index))
        assert (jax.process_count(), len(jax.devices()), len(jax.local_devices())) == (2, 4, 2)
        np.savez(folder / f"host {index}.npz", **estimates())
        return
    assert len(jax.devices()) == DEVICES[kind]
    np.savez(folder / f"{kind}.npz", **numbers(reference()), **(estimates() if kind == "eight" else {}))
    progress = partial(kill, KILLED_AFTER[kind], [])
    reference(checkpoint=folder / f"{kind}.part.npz", checkpoint_seconds=1e-9, progress=progress)


if __name__ == "__main__":
    main()
