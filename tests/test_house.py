"""The rules of the house: what importing costs, who may know whom, and that public names are explained."""

import ast
import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import isouq
from isouq import posterior, text

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "isouq"


def imported(path):
    """Full names of all modules that a file imports anywhere; `from a import b` gives a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively; write the full name"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own(path):
    return {name for name in imported(path) if name.split(".")[0] in ("isouq", "experiments", "benchmarks")}


def under(names, *modules):
    return {name for name in names if any(name == m or name.startswith(m + ".") for m in modules)}


def test_importing_isouq_takes_none_of_the_heavy_libraries():
    heavy = ("jax", "numpy", "flax", "blackjax", "matplotlib", "numpyro", "optax")
    code = (
        "import time, isouq, sys; print(time.process_time() < 1.5)\n"
        f"assert set({heavy}).isdisjoint(sys.modules)\n"
        "isouq.uncertainty, isouq.laplace, isouq.gradnorm\n"
        "print([name for name in ('flax', 'blackjax', 'matplotlib', 'numpyro', 'optax') if name in sys.modules])\n"
        "import isouq._uncertainty; print(callable(isouq.uncertainty))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split("\n")[:3] == ["True", "[]", "True"]


def test_rooms_are_imported_when_first_used():
    code = "import isouq; print(isouq.posterior.PRIORS, isouq.problems.__name__, isouq.stats.__name__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "('unit', 'fan_in') isouq.problems isouq.stats"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = isouq.nothing


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_library_does_not_know_the_experiments(path):
    assert not under(imported(path), "experiments", "benchmarks")
    assert not under(imported(path), "tests")


def test_the_engine_knows_itself_alone():
    for path in (PACKAGE / "gradnorm").rglob("*.py"):
        assert own(path) == under(own(path), "isouq.gradnorm"), path


INSIDE_OF_JAXPRS = {
    "_src", "_trace", "call_wrapped", "constvars", "ctx", "eqns", "inner_aval", "invars", "outvars", "primitive"
}  # fmt: skip


def test_one_file_touches_the_inside_of_jaxprs():
    def touches(path):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        return under(imported(path), "jax._src", "jax.extend", "jax.interpreters") or attributes & INSIDE_OF_JAXPRS

    assert [path.name for path in PACKAGE.rglob("*.py") if touches(path)] == ["_jaxpr.py"]


def test_statistics_and_figures_know_nobody():
    assert own(PACKAGE / "stats.py") == set()
    for path in (PACKAGE / "plots").glob("*.py"):
        assert own(path) == under(own(path), "isouq.plots", "isouq._extras"), path


@pytest.mark.parametrize("name", ["covariance", "_uncertainty", "_predict", "density", "models", "problems", "_checks"])
def test_the_estimate_does_not_know_the_posterior(name):
    for path in (PACKAGE / f"{name}.py", *(PACKAGE / name).glob("*.py")):
        assert not path.exists() or not under(own(path), "isouq.posterior", "isouq.plots")


def test_the_library_knows_neither_torch_nor_transformers():
    for path in PACKAGE.rglob("*.py"):
        assert not under(imported(path), "torch", "transformers", "accelerate", "pickle"), path


def test_text_models_are_imported_without_the_extra_and_name_it_when_used(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    packages = ("safetensors", "tokenizers", "gguf", "huggingface_hub", "jinja2", "tyro")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({packages}))\n"  # None: cannot be imported
        f"import isouq\ntry: isouq.text.load({str(tmp_path)!r})\nexcept ImportError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "isouq.text needs safetensors; pip install 'isouq[text]'"


def test_blackjax_is_called_in_one_file():
    callers = [path.name for path in PACKAGE.rglob("*.py") if under(imported(path), "blackjax")]
    assert callers == ["_blackjax.py"]


def public():
    for room, names in ((isouq, isouq.__all__), (posterior, posterior.__all__), (text, text.__all__)):
        for name in names:
            yield pytest.param(getattr(room, name), id=f"{room.__name__}.{name}")


@pytest.mark.parametrize("thing", list(public()))
def test_public_names_have_docstrings(thing):
    if isinstance(thing, (str, tuple)):
        return  # a constant
    doc = inspect.getdoc(thing)
    assert doc
    assert not doc.startswith(f"{getattr(thing, '__name__', '')}(")  # the one that dataclass and NamedTuple generate


@pytest.mark.parametrize("room", [isouq, posterior, text])
def test_all_lists_names_once_and_they_exist(room):
    assert len(set(room.__all__)) == len(room.__all__)
    assert all(hasattr(room, name) for name in room.__all__)


def test_version_is_that_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert isouq.__version__ == project["version"]


EXPERIMENTS = ROOT / "experiments"


STAGES = ("measure", "numbers", "report", "figures")
ROOMS = ("synthetic", "domains", "answers")


def stage_files():
    """(room, stage, file) of every stage, which is a file or a folder of its room."""
    for room in ROOMS:
        for path in sorted((EXPERIMENTS / room).rglob("*.py")):
            stage = path.relative_to(EXPERIMENTS / room).with_suffix("").parts[0]
            if stage in STAGES:
                yield pytest.param(room, stage, path, id=str(path.relative_to(EXPERIMENTS)))


@pytest.mark.parametrize(("room", "stage", "path"), list(stage_files()))
def test_a_stage_knows_the_stages_before_it_alone(room, stage, path):
    later = STAGES[STAGES.index(stage) + 1 :]
    names = own(path)
    assert not under(names, *(f"experiments.{room}.{other}" for other in later))
    if stage == "measure":
        assert not under(names, "experiments.report")
        assert not under(names, "isouq.plots")


def test_the_experiments_import_each_other_in_no_circle_and_name_no_module_in_a_string():
    graph = {}
    for path in EXPERIMENTS.rglob("*.py"):
        graph[".".join(path.relative_to(ROOT).with_suffix("").parts)] = own(path)
        assert "import_module(" not in path.read_text(encoding="utf-8"), path
    left = dict(graph)
    while free := [name for name, names in left.items() if not names & left.keys() - {name}]:
        for name in free:
            del left[name]
    assert not left, f"a circle among {sorted(left)}"
