"""What `import isouq` costs, which libraries it takes, and that public names exist and are explained."""

import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import isouq
from isouq import posterior, text

ROOT = Path(__file__).parents[1]


def output(code):
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    return run.stdout.strip()


def test_importing_isouq_takes_none_of_the_heavy_libraries():
    heavy = ("jax", "numpy", "flax", "blackjax", "matplotlib", "numpyro", "optax")
    code = (
        "import time, isouq, sys; print(time.process_time() < 1.5)\n"
        f"assert set({heavy}).isdisjoint(sys.modules)\n"
        "isouq.uncertainty, isouq.laplace, isouq.gradnorm\n"
        "print([name for name in ('flax', 'blackjax', 'matplotlib', 'numpyro', 'optax') if name in sys.modules])\n"
        "import isouq._uncertainty; print(callable(isouq.uncertainty))"
    )
    assert output(code) == "True\n[]\nTrue"


def test_rooms_are_imported_when_first_used():
    code = "import isouq; print(isouq.posterior.PRIORS, isouq.problems.__name__, isouq.stats.__name__)"
    assert output(code) == "('unit', 'fan_in') isouq.problems isouq.stats"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = isouq.nothing


def test_text_models_are_imported_without_the_extra_and_name_it_when_used(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    packages = ("safetensors", "tokenizers", "gguf", "huggingface_hub", "jinja2", "tyro")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({packages}))\n"  # None: cannot be imported
        f"import isouq\ntry: isouq.text.load({str(tmp_path)!r})\nexcept ImportError as error: print(error)"
    )
    assert output(code) == "isouq.text needs safetensors; pip install 'isouq[text]'"


@pytest.mark.parametrize("room", [isouq, posterior, text], ids=lambda room: room.__name__)
def test_public_names_exist_once_and_have_docstrings(room):
    assert len(set(room.__all__)) == len(room.__all__)
    for name in room.__all__:
        thing = getattr(room, name)
        if not isinstance(thing, (str, tuple)):  # a constant
            assert inspect.getdoc(thing), name
            assert not inspect.getdoc(thing).startswith(f"{name}("), name  # which dataclass and NamedTuple generate


def test_version_is_that_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert isouq.__version__ == project["version"]
