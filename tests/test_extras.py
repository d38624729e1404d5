"""What works with the core requirements alone, and the one line that names the extra which is missing."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

HIDE = """
import sys
class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {hidden!r} else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = map(Hiding, sys.meta_path)
"""
CORE = """
import jax, jax.numpy as jnp, numpy as np
import isouq
xs = jax.random.normal(jax.random.key(0), (12, 3))
params = {"w": jnp.array([[1.0, 0.5], [-0.2, 0.3], [0.1, -1.0]]), "b": jnp.zeros(2)}
predict = lambda p, x: jnp.tanh(x @ p["w"]) + p["b"]
ys = jnp.arange(12) % 2
print(isouq.grad_sq_norm(lambda p: predict(p, xs[0]).sum())(params) > 0)
print(isouq.explain(lambda p: predict(p, xs[0]).sum())(params) is not None)
density = isouq.LogDensity.of(predict, params, xs, ys, "multiclass")
covariances = [isouq.Identity(), isouq.Diagonal(jax.tree.map(jnp.ones_like, params))]
covariances += [isouq.laplace(density, params, "ggn", s) for s in ("dense", "diagonal", "kronecker", "low_rank")]
draws = jax.tree.map(lambda leaf: leaf + jax.random.normal(jax.random.key(1), (9, *leaf.shape)), params)
covariances += [isouq.from_draws(draws, s) for s in ("dense", "diagonal", "low_rank")]
for covariance in (None, *covariances):
    u = isouq.uncertainty(predict, params, xs, "multiclass", covariance=covariance)
    print(bool(jnp.all(u.epistemic > 0)))
print(isouq.stats.spearman(u.epistemic, u.epistemic) > 0.99)
print(len(isouq.problems.get("binary/rings").sample(jax.random.key(0)).xs) == 200)
print(isouq.sharding.gather(isouq.sharding.shard_inputs(xs)).shape == (12, 3))
print(callable(isouq.alignment.align_hidden_units))
"""


def module_names(requirements):
    """The top-level modules of the requirements and of what they require in turn."""
    distributions, queue = set(), [Requirement(text) for text in requirements]
    while queue:
        requirement = queue.pop()
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            name = canonicalize_name(requirement.name)
            if name not in distributions:
                distributions.add(name)
                queue += [Requirement(text) for text in importlib.metadata.requires(name) or []]
    owners = importlib.metadata.packages_distributions()
    return {top for top, names in owners.items() if distributions & set(map(canonicalize_name, names))}


def run(code, *requirements):
    """Run the code in a process that finds no installed package but the requirements."""
    hidden = set(importlib.metadata.packages_distributions()) - module_names(requirements) - {"isouq"}
    done = subprocess.run(
        [sys.executable, "-c", HIDE.format(hidden=hidden) + code], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


def test_scores_covariances_and_statistics_need_the_core_alone():
    lines = run(CORE, *PROJECT["dependencies"])
    assert len(lines) == 16
    assert set(lines) == {"True"}


@pytest.mark.parametrize("absent", ["flax", "matplotlib", "blackjax", "numpyro", "optax"])
def test_the_core_does_not_bring_the_packages_of_the_extras(absent):
    assert absent not in module_names(PROJECT["dependencies"])


EXTRAS = {"models": "flax", "plots": "matplotlib", "posterior": "(blackjax|optax|numpyro)", "text": "flax"}


@pytest.mark.parametrize("name", EXTRAS)
def test_a_room_names_the_extra_that_it_needs_and_is_content_with_it(name):
    code = f"import isouq\ntry: isouq.{name}\nexcept ImportError as error: print(error)"
    (line,) = run(code, *PROJECT["dependencies"])
    assert re.fullmatch(rf"isouq\.{name} needs {EXTRAS[name]}; pip install 'isouq\[{name}\]'", line)
    assert run(code, *PROJECT["dependencies"], *PROJECT["optional-dependencies"][name]) == []


def test_an_error_inside_of_isouq_is_not_taken_for_a_missing_extra():
    code = "from isouq import _extras\nwith _extras.extra('posterior'): import isouq.nothing"
    with pytest.raises(AssertionError, match=r"ModuleNotFoundError: No module named 'isouq\.nothing'"):
        run(code, *PROJECT["dependencies"])


def test_the_experiments_and_the_command_line_name_their_extra():
    code = (
        "import sys, runpy; sys.stderr = sys.stdout; sys.argv = ['experiments', 'validation']\n"
        "try: runpy.run_module('experiments', run_name='__main__')\nexcept SystemExit as end: print(end.code)\n"
        "from isouq.cli import main; print(main(['fetch', 'model']))"
    )
    lines = run(code, *PROJECT["dependencies"])
    assert re.fullmatch(r"experiments: .*; in the checkout: pip install -e '\.\[experiments\]'", lines[0])
    assert re.fullmatch(r"isouq: isouq\.text needs \w+; pip install 'isouq\[text\]'", lines[2])
    assert [lines[1], lines[3]] == ["2", "2"]
