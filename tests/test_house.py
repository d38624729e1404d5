"""The rules of the house: its rooms, who imports whom, and how long a file is. docs/developers.md says why."""

import ast
from fnmatch import fnmatchcase
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
_HELPERS = "isouq._checks isouq._errors isouq._extras isouq._frozen isouq._memory isouq._room"
_EXPERIMENT = (
    "isouq* experiments.run experiments.report experiments.calibration experiments.clock experiments.experiment"
)
# Every room (a package or module), and the rooms that it may import beside itself.
ARROWS = {
    "isouq": "isouq.*",
    "isouq.__main__": "isouq.cli",
    **dict.fromkeys(("isouq._errors", "isouq._extras", "isouq._files", "isouq.gradnorm", "isouq.stats"), ""),
    "isouq._checks": "isouq.gradnorm",
    "isouq._frozen": "isouq._checks isouq.gradnorm",
    "isouq._room": "isouq.gradnorm",
    **dict.fromkeys(("isouq._memory", "isouq.alignment", "isouq.problems", "isouq.sharding"), "isouq._checks"),
    "isouq.models": "isouq._checks isouq._extras",
    "isouq.plots": "isouq._extras",
    "isouq._predict": _HELPERS,
    "isouq.density": f"{_HELPERS} isouq._predict isouq.gradnorm",
    "isouq._checkpoint": "isouq._files",
    "isouq.covariance": f"{_HELPERS} isouq._checkpoint isouq._files isouq.density isouq.gradnorm",
    "isouq._rows": f"{_HELPERS} isouq.sharding",
    "isouq._perturbation": f"{_HELPERS} isouq._predict isouq._rows isouq.gradnorm",
    "isouq._ensemble": f"{_HELPERS} isouq._predict",
    "isouq._uncertainty": f"{_HELPERS} isouq._predict isouq._rows isouq._ensemble isouq.covariance isouq.gradnorm",
    "isouq._batches": "isouq._checks isouq._checkpoint isouq._ensemble",
    "isouq._predictive": f"{_HELPERS} isouq._predict isouq._rows isouq._uncertainty isouq.covariance isouq.stats",
    "isouq._evidence": f"{_HELPERS} isouq._predictive isouq.covariance isouq.density",
    "isouq.posterior": f"{_HELPERS} isouq._checkpoint isouq._predict isouq.covariance isouq.density isouq.stats",
    "isouq.text": f"{_HELPERS} isouq._checkpoint isouq.gradnorm isouq.sharding isouq.text.*",
    "isouq.text.models": "isouq.text.loading",
    "isouq.text.loading": "isouq._extras",
    "isouq.cli": f"{_HELPERS} isouq.text*",
    "experiments.__main__": "experiments.command experiments.run",
    "experiments.calibration": "isouq.stats",
    "experiments.clock": "",
    "experiments.run": "isouq isouq._checkpoint isouq._errors isouq._files",
    "experiments.report": "experiments.run isouq._files isouq.plots isouq.stats",
    "experiments.experiment": "experiments.report",
    **dict.fromkeys(("experiments.synthetic", "experiments.domains"), _EXPERIMENT),
    "experiments.answers": f"{_EXPERIMENT} experiments.domains",
    "experiments.command": "experiments.*",
    "experiments.publish": "experiments.command experiments.report experiments.synthetic isouq.stats",
    "experiments.explorer": "experiments.* isouq*",
    "benchmarks": "isouq* experiments.run* experiments.synthetic*",
}
STAGES = ("presets", "measure", "numbers", "report", "figures")  # no stage imports one that comes after it
# What only the modules named here may import.
ONLY_IN = {
    "jax._src jax.core jax.extend jax.interpreters": "isouq.gradnorm._jaxpr",
    "blackjax": "isouq.posterior._blackjax",
    "numpyro": "isouq.posterior.second_opinion",
    "matplotlib": "isouq.plots.* *.figures* experiments.report.outputs experiments.explorer benchmarks.plots",
    "torch transformers accelerate": "benchmarks.*",
    "ray": "experiments.run.executors.ray benchmarks.kills",
    "submitit": "experiments.run.executors.slurm",
    "pickle": "",
}
INSIDE_OF_JAXPRS = "_src _trace call_wrapped constvars ctx eqns inner_aval invars outvars primitive"
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for top in ("isouq", "experiments", "benchmarks")
    for path in sorted((ROOT / top).rglob("*.py"))
}
TREES = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in FILES.items()}


@cache
def imports(module):
    """Return the full names that a module imports or, as `jax.core.x`, reaches: anywhere, inside functions too."""
    names = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} imports relatively; write the full name"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute):
            names.add(ast.unparse(node))
    return names - {"jax.core.Tracer"}  # public


def owner(name, owners):
    """Return the longest of the names that is `name` or a package that holds it; None where there is none."""
    return max((one for one in owners if f"{name}.".startswith(f"{one}.")), key=len, default=None)


def matches(name, patterns):
    return any(fnmatchcase(name, pattern) for pattern in patterns.split())


def test_every_module_has_a_room_and_every_room_a_module():
    rooms = {module: owner(module, ARROWS) for module in FILES if module != "experiments"}
    assert [module for module, room in rooms.items() if room is None or (room == "isouq" != module)] == []
    assert set(rooms.values()) == set(ARROWS)
    stages = {f"experiments.{name}.{stage}" for name in ("synthetic", "domains", "answers") for stage in STAGES}
    assert stages <= FILES.keys()


def test_a_module_imports_the_rooms_that_it_may():
    for module in FILES:
        room = owner(module, ARROWS)
        others = {name: owner(name, ARROWS) for name in imports(module)}
        breaches = [n for n, other in others.items() if other not in (None, room) and not matches(other, ARROWS[room])]
        assert not breaches, f"{module} imports {breaches}; {room} may import {ARROWS[room] or 'no other room'}"


def test_a_stage_imports_no_later_stage():
    for module in FILES:
        _, experiment, stage = (*module.split("."), "", "")[:3]
        later = STAGES[STAGES.index(stage) + 1 :] if stage in STAGES else ()
        banned = [f"experiments.{experiment}.{one}" for one in later]
        banned += ["experiments.report", "isouq.plots"] if stage == "measure" else []
        breaches = [name for name in imports(module) if owner(name, banned)]
        assert not breaches, f"{module}, of the stage {stage}, imports {breaches}"


def test_no_module_imports_itself_in_a_circle():
    TopologicalSorter({m: {owner(name, FILES) for name in imports(m)} - {None, m} for m in FILES}).prepare()


def test_what_is_imported_in_one_place_stays_there():
    for module in FILES:
        for packages, places in ONLY_IN.items():
            breaches = [name for name in imports(module) if owner(name, packages.split())]
            assert not breaches or matches(module, places), f"{module} imports {breaches}; only {places} may"


def test_one_file_touches_the_inside_of_jaxprs():
    for module in FILES.keys() - {"isouq.gradnorm._jaxpr"}:
        names = {node.attr for node in ast.walk(TREES[module]) if isinstance(node, ast.Attribute)}
        assert names.isdisjoint(INSIDE_OF_JAXPRS.split()), f"{module}: move what reads a jaxpr to gradnorm/_jaxpr.py"


def test_no_module_is_imported_by_a_literal_string():
    for module, tree in TREES.items():
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        by_name = [call for call in calls if ast.unparse(call.func).endswith(("import_module", "__import__"))]
        assert not by_name or module in ("isouq", "isouq._extras", "benchmarks.prepare"), f"{module}: write an import"
        assert not [call for call in by_name if isinstance(call.args[0], ast.Constant)], f"{module}: write an import"


def test_a_file_stays_under_400_lines():
    for module, path in FILES.items():
        assert len(path.read_text(encoding="utf-8").splitlines()) < 400, f"{module} is too long; give it one subject"
