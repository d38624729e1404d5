"""Shape annotations are checked at run time, ranks are not promoted silently, two CPU devices, quick compilation."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
# small programs that run once are compiled longer than they run; subprocesses inherit this.
# JAX_DISABLE_MOST_OPTIMIZATIONS=0 tries what users run
if os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") != "0":
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ["MPLBACKEND"] = "Agg"

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

jax.config.update("jax_numpy_rank_promotion", "raise")


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
