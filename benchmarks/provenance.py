"""Records how a run was made: versions, device, threads, command, commit; no paths and no host names."""

import datetime
import os
import platform
import re
import shlex
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "isouq", "jax", "jaxlib", "numpy", "torch", "transformers", "opacus", "backpack-for-pytorch", "laplace-torch",
    "laplax",
)  # fmt: skip


def provenance(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the record of this process. `arguments` are those of the command line; folders are removed from them."""
    import jax

    return {
        "command": shlex.join(["python", "-m", "benchmarks", *_without_folder(arguments)]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "device": jax.devices()[0].device_kind if jax.default_backend() != "cpu" else "CPU",
        "processor": _processor(),
        "threads": threads(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {name: _version(name) for name in PACKAGES},
        "settings": {
            "float": "float32, matrix products in full precision (no TF32)",
            "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", ""),
            "XLA_PYTHON_CLIENT_PREALLOCATE": os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE", ""),
        },
    }


def in_words(record: dict[str, Any]) -> str:
    """Return one line for the table: command and machine."""
    device = f"{record['threads']} cores of {record['processor']}, {record['memory_gb']:.0f} GB"
    if record["device"] != "CPU":
        device = f"{record['device']}, {device}"
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items() if version)
    return f"`{record['command']}`, {record['date'][:10]}, on {device}; Python {record['python']}, {versions}."


def threads() -> int:
    """Return the number of cores that this process may use; JAX and torch both use all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_bytes() -> int | None:
    """Return the free memory of JAX's default device, or None if the system does not report it."""
    import jax

    stats = jax.devices()[0].memory_stats() or {} if jax.default_backend() != "cpu" else {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), None)


def _without_folder(arguments: Sequence[str]) -> list[str]:
    """Return the arguments without `--out DIR`, and with other files reduced to their names."""
    public, skip = [], False
    for argument in arguments:
        if not skip and not argument.startswith("--out"):
            public.append(re.sub(r"[^=\s]*/", "", argument))
        skip = argument == "--out"
    return public


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the commit of the checkout, with "+ changes" if files of isouq, experiments or benchmarks differ."""
    root = Path(__file__).parents[1]
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True, check=True
        )
        status = subprocess.run(
            ["git", "status", "--porcelain", "isouq", "experiments", "benchmarks/*.py"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + (" + changes" if status.stdout.strip() else "")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
