"""The gallery: every committed figure under the command that produces it."""

from docs._site.places import ROOT, experiments, provenance

_HEAD = """# Gallery

This page shows every figure of the repository under the command that produces it. `python -m experiments.publish OUT`
copies the figures of a finished run to `figures/`. `python -m benchmarks NAME` writes the figures of the benchmarks.
"""


def figures() -> dict[str, list[str]]:
    """Return the paths of the figures by experiment or benchmark; the figure that bears its name comes first."""
    by_name = {}
    for name in experiments():
        paths = sorted((ROOT / "figures" / name).glob("*.png"), key=lambda path: (path.stem != name, path.name))
        if paths:
            by_name[name] = [path.relative_to(ROOT).as_posix() for path in paths]
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.png")):
        by_name[f"benchmark {path.stem}"] = [path.relative_to(ROOT).as_posix()]
    return by_name


def page() -> str:
    """Return the page."""
    parts = [_HEAD]
    for name, paths in figures().items():
        parts.append(f"## {name}\n\n```sh\n{_command(name)}\n```\n")
        for path in paths:
            title = path.rsplit("/", 1)[1].removesuffix(".png").replace("_", " ")
            parts.append(f"![{name}: {title}](../{path}){{ loading=lazy }}\n\n`{path}`\n")
    return "\n".join(parts)


def _command(name: str) -> str:
    if name.startswith("benchmark "):
        return f"python -m benchmarks {name.removeprefix('benchmark ')}"
    facts = provenance(name)
    if facts is None:
        raise ValueError(f"figures/{name} has no results/{name}/provenance.json; experiments.publish writes both")
    return f"python -m experiments {name} --preset {facts['preset']}"
