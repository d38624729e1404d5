"""What one process of a given number of devices computes: `python tests/spread.py DEVICES FOLDER [ADDRESS INDEX]`.

Alone it writes FOLDER/DEVICES.npz and then dies of SIGKILL in the middle of a second run, after a number of blocks;
with an address it is one of two hosts with DEVICES each.
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
from isouq.posterior import LogDensity, Margins, sample_reference
from isouq.text import decoder_config
from isouq.text.language_model import abstract, module

CHAINS = (5, 3)
KILLED_AFTER = {1: 1, 2: 2, 8: 3}  # blocks, by the number of devices
BLOCKS = 4  # of a run: two of warm-up, two of draws
SETTINGS = {"num_warmup": 103, "num_draws": 53, "thin": 2, "num_leapfrog": 5, "verdict": False}
DECODER = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "vocab_size": 64,
}


def predict(params, x):
    """A small network with one logit."""
    return jnp.tanh(x @ params["in"] + params["bias"]) @ params["out"]


def problem(chains):
    """(log density, inits, record) on 40 points of xor."""
    rng = np.random.default_rng(0)
    xs = rng.normal(size=(40, 2)).astype(np.float32)
    shapes = {"in": (2, 6), "bias": (6,), "out": (6,)}
    inits = {name: jnp.asarray(rng.normal(size=(5, *shape)), jnp.float32)[:chains] for name, shape in shapes.items()}
    one = jax.tree.map(lambda leaf: leaf[0], inits)
    log_density = LogDensity.of(predict, one, jnp.asarray(xs), np.int32(xs[:, 0] * xs[:, 1] > 0), "binary")
    return log_density, inits, Margins(predict, jnp.asarray(xs[:11]), jnp.ones(11, jnp.int32), "binary")


def reference(chains, **options):
    """The run that every process makes."""
    log_density, inits, record = problem(chains)
    return sample_reference(log_density, inits, jax.random.key(0), record=record, **(SETTINGS | options))


def numbers(reference):
    """All numbers of a reference, by name."""
    found = {name: np.asarray(getattr(reference, name)) for name in ("predictions", "step_size", "acceptance")}
    return found | {"divergent": np.asarray(reference.divergent), "cost": np.asarray(reference.cost)}


def language_model():
    """(predict, params, xs) of a decoder of two layers: the log-odds of the next token."""
    config = decoder_config.from_config(DECODER)
    leaves, treedef = jax.tree.flatten(abstract(config))
    rng = np.random.default_rng(1)
    params = jax.tree.unflatten(treedef, [jnp.asarray(0.3 * rng.normal(size=a.shape), jnp.float32) for a in leaves])
    xs = jnp.asarray(rng.integers(0, 64, (7, 5)), jnp.int32)
    return lambda params, ids: module(config, params)(ids)[-1], params, xs


def estimates(devices):
    """The uncertainty of 11 and of 7 inputs, in every way of spreading it over the devices."""
    log_density, inits, _ = problem(2)
    mlp = (predict, jax.tree.map(lambda leaf: leaf[0], inits), log_density.xs[:11], "binary")
    decoder, params, ids = language_model()
    alone = isouq.uncertainty(decoder, params, ids, "multiclass")
    mesh = jax.make_mesh((len(devices),), ("model",), devices=devices)
    rows = sharding.shard_inputs(ids, devices)
    split, whole = sharding.shard_params(params, None, mesh), sharding.replicate(ids, mesh)
    found = {
        "mlp alone": isouq.uncertainty(*mlp),
        "mlp by devices": isouq.uncertainty(*mlp, devices=devices),
        "mlp by devices, in batches": isouq.uncertainty(*mlp, devices=devices, batch_size=2),
        "mlp by inputs": isouq.uncertainty(*mlp[:2], sharding.shard_inputs(mlp[2], devices), mlp[3]),
        "decoder alone": alone,
        "decoder by devices": isouq.uncertainty(decoder, params, ids, "multiclass", devices=devices),
        "decoder by inputs": isouq.uncertainty(decoder, sharding.replicate(params, devices), rows, "multiclass"),
        "decoder by parameters": isouq.uncertainty(decoder, split, whole, "multiclass"),
    }
    return {
        f"{way}: {name}": sharding.gather(getattr(u, name))
        for way, u in found.items()
        for name in ("epistemic", "aleatoric")
    }


def norms(devices):
    """‖∂f/∂θ‖² of the decoder's log-odds under jit, parameters and inputs both split."""
    decoder, params, ids = language_model()
    count = len(devices)
    shape = (1, count) if count < 4 else (2, count // 2)
    mesh = jax.make_mesh(shape, ("inputs", "model"), devices=devices)
    norm = isouq.grad_sq_norm(lambda params, x: decoder(params, x)[3])
    over = jax.jit(jax.vmap(norm, (None, 0)))
    split = sharding.shard_params(params, None, mesh)
    return {
        "norms alone": np.asarray(over(params, ids)),
        "norms split": np.asarray(over(split, sharding.shard_inputs(ids, mesh))),
    }


def kill(blocks, seen, share):
    """A `progress` that ends the process after so many blocks."""
    seen.append(share)
    if len(seen) == blocks:
        os.kill(os.getpid(), signal.SIGKILL)


def main():
    """By the number of arguments, alone or as one of two hosts."""
    count, folder, *rest = sys.argv[1:]
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={count}"
    if rest:
        jax.distributed.initialize(rest[0], 2, int(rest[1]))
        assert (jax.process_count(), len(jax.devices()), len(jax.local_devices())) == (2, 2 * int(count), int(count))
        np.savez(Path(folder) / f"host {rest[1]}.npz", **estimates(jax.devices()))
        return
    assert len(jax.devices()) == int(count)
    found = estimates(jax.devices()) | norms(jax.devices())
    for chains in CHAINS:
        found |= {f"{chains} chains: {name}": value for name, value in numbers(reference(chains)).items()}
    np.savez(Path(folder) / f"{count}.npz", **found)
    blocks = {"1": 1, "2": 2, "8": 3}[count]
    reference(
        5, checkpoint=Path(folder) / f"{count}.part.npz", checkpoint_seconds=1e-9, progress=partial(kill, blocks, [])
    )


if __name__ == "__main__":
    main()
