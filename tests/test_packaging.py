"""The wheel and the sdist: what is in them, and that the wheel works where nothing of this repository is."""

import ast
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def run(*command, cwd):
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(wheel, sdist), built without the network."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "--directory", out, cwd=ROOT)
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


def test_the_wheel_holds_the_library_and_its_types_and_nothing_else(built):
    with zipfile.ZipFile(built[0]) as wheel:
        names = set(wheel.namelist())
        metadata = Parser().parsestr(wheel.read(f"isouq-{PROJECT['version']}.dist-info/METADATA").decode())
    package = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "isouq").rglob("*")
        if path.suffix in (".py", ".typed", ".mplstyle")
    }
    assert "isouq/py.typed" in package
    assert {name for name in names if ".dist-info/" not in name} == package
    assert metadata["Requires-Python"] == ">=3.11"
    assert set(metadata.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])


def test_the_sdist_holds_what_builds_tests_and_reproduces(built):
    with tarfile.open(built[1]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    wanted = {
        "pyproject.toml",
        "README.md",
        "README.md.in",
        "LICENSE",
        "CITATION.cff",
        "Makefile",
        "constraints.txt",
        "mkdocs.yml",
    }
    assert wanted <= names
    for room in ("isouq", "experiments", "benchmarks", "tests", "docs", "results", "figures", "examples"):
        assert any(name.startswith(f"{room}/") for name in names), room
    assert not any("__pycache__" in name or name.startswith((".venv", "out/")) for name in names)


def test_the_wheel_works_in_an_environment_of_its_own(built, tmp_path):
    """Dependencies are lent by a path file, after the environment's own packages; the repository is not seen."""
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    run(
        sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet", built[0],
        cwd=tmp_path,
    )  # fmt: skip
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    (packages / "lent.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    code = (
        "import isouq, jax.numpy as jnp\n"
        "u = isouq.uncertainty(lambda w, x: w @ x, jnp.eye(3), jnp.ones((2, 3)), 'multiclass')\n"
        "print(isouq.__file__, u.epistemic.shape)"
    )
    file, shape = run(python, "-I", "-W", "error::DeprecationWarning", "-c", code, cwd=tmp_path).split(maxsplit=1)
    assert Path(file).is_relative_to(packages)
    assert shape.strip() == "(2,)"
    assert "score" in run(tmp_path / "env" / "bin" / "isouq", "--help", cwd=tmp_path)


def imports(folder):
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name.partition(".")[0]) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield path, node.module.partition(".")[0]


def declared(requirements):
    return {requirement.split(">")[0].split("=")[0].split("[")[0].strip() for requirement in requirements}


def test_every_library_that_is_imported_is_declared():
    core, extras = declared(PROJECT["dependencies"]), PROJECT["optional-dependencies"]
    rooms = {"cli": "text"}  # the extra of a room has the room's name but for this one
    known = (
        set(sys.stdlib_module_names) | core | {"isouq", "experiments", "jaxlib", "ml_dtypes"}
    )  # the last two come with jax
    for path, name in imports("isouq"):
        room = path.relative_to(ROOT / "isouq").with_suffix("").parts[0]
        optional = declared(extras.get(rooms.get(room, room), []))
        assert name in known | optional, f"{path} imports {name}"
    used = ("experiments", "models", "plots", "posterior", "text", "data", "ray", "slurm")
    known |= {name for extra in used for name in declared(extras[extra])}
    for path, name in imports("experiments"):
        assert name in known, f"{path} imports {name}"
