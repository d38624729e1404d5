"""The settings of the processes that measure time and memory."""

import os


def apply() -> None:
    """Set the environment; call this before JAX and torch are imported.

    JAX takes memory on demand (it would reserve most of a GPU) and multiplies in full float32, as torch does here.
    torch's OpenMP threads sleep while they wait: spinning, they made torch five times slower and erratic as soon as
    another process used a core. OMP_WAIT_POLICY=ACTIVE in the environment overrides it.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import jax

    if jax.default_backend() != "cpu":
        jax.config.update("jax_default_matmul_precision", "float32")
