"""Check shape annotations at run time, forbid rank promotion, give JAX two CPU devices, and compile quickly.

Compiled programs are kept in the folder `jax_cache` of the Python environment, so that the next run compiles little.
All this is set in environment variables, which the processes that tests start inherit.
"""

import os
import sys
from importlib.metadata import version
from pathlib import Path

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
# In a small program that runs once, compiling takes longer than running. JAX_DISABLE_MOST_OPTIMIZATIONS=0 compiles as
# users do.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Releases of jaxlib after 0.11.0 have no other emitters, and end the process where they do not know a flag.
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] != "0" and tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # threads that wait for a core of another worker's slow small matrices tenfold
os.environ["MPLBACKEND"] = "Agg"
if sys.prefix != sys.base_prefix:  # a virtual environment
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(sys.prefix, "jax_cache"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import pytest
from jaxtyping import install_import_hook

with install_import_hook("isouq", "beartype.beartype"):
    import isouq._uncertainty
    import isouq.alignment
    import isouq.models
    import isouq.plots
    import isouq.posterior
    import isouq.problems
    import isouq.stats
    import isouq.text  # noqa: F401

import jax
import matplotlib.pyplot as plt

from experiments.run.compilations import shrink

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_sessionfinish(session):
    """Delete the programs that were used longest ago until the cache is within its size."""
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if folder and not hasattr(session.config, "workerinput"):  # workers leave it to the process that started them
        shrink(Path(folder))


@pytest.fixture(autouse=True)
def closed_figures():
    """More than twenty open figures are a warning, and a warning is an error."""
    yield
    plt.close("all")


@pytest.fixture(autouse=True, scope="module")
def own_programs():
    """A module's compiled programs go with it: those of all would fill gigabytes and slow the later ones down."""
    yield
    jax.clear_caches()


@pytest.fixture
def optimised():
    """For a test that runs longer than it compiles."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] != "0")


@pytest.fixture
def x64():
    """Double precision inside one test."""
    with jax.enable_x64(True):
        yield
