"""The output: JSON lines that grow batch by batch, survive a kill, and end in the order of the input."""

import glob
import json
import os
import shutil
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from isouq.cli import _rows

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two runs apart there
    fcntl = None  # type: ignore[assignment]

START = b'{"line": '  # how every row begins, so that a torn one is known as ours


class Output:
    """The rows that a file holds, by the input's line; one process at a time has it open.

    A torn last line is left out, and cut off by the first `append`. Until then nothing in the file is touched.
    Memory: eight bytes a line of the input.
    """

    def __init__(self, path: Path, lines: int) -> None:
        """Open or make the file, lock it, and find its rows. lines: how many the input has."""
        self.path = Path(os.path.realpath(path))  # the final rename is for the file, not for a link to it
        self._shown = path
        self._descriptor, self._new = self._open()
        self._reader: Any = None
        self.lines = lines
        try:
            self._offsets = array("q", [-1]) * (lines + 1)
            self._end = 0
            self._reader = self.path.open("rb")
            self._find(lines)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Output":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __contains__(self, line: int) -> bool:
        return self._offsets[line] >= 0

    def __len__(self) -> int:
        return sum(offset >= 0 for offset in self._offsets)

    def __getitem__(self, line: int) -> dict[str, Any]:
        return json.loads(self._raw(line))

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write rows, each with its "line" first; after an error the file holds what it held before."""
        encoded = [json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n" for row in rows]
        left = memoryview(b"".join(encoded))
        try:
            os.ftruncate(self._descriptor, self._end)
            os.lseek(self._descriptor, self._end, os.SEEK_SET)
            while left:
                left = left[os.write(self._descriptor, left) :]
        except BaseException as error:
            os.ftruncate(self._descriptor, self._end)
            if isinstance(error, OSError):
                raise self._unwritten(error, "make room and give the same command again") from error
            raise
        for row, raw in zip(rows, encoded, strict=True):
            self._offsets[row["line"]] = self._end
            self._end += len(raw)

    def finish(self) -> None:
        """Put the rows in the order of the input, by one rename; an ordered file stays as it is."""
        self._reader.close()
        self._reader = self.path.open("rb")  # without what the old one has in its buffer
        offsets = [offset for offset in self._offsets if offset >= 0]
        if offsets == sorted(offsets) and self._whole():
            return
        temporary = self._temporary()
        try:
            with temporary.open("wb") as file:
                file.writelines(self._raw(line) for line in self._lines())
                file.flush()
                os.fsync(file.fileno())
            shutil.copymode(self.path, temporary)
            os.replace(temporary, self.path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise self._unwritten(error, "in no order; the same command orders them once there is room") from error

    def close(self) -> None:
        """Release the file, and remove a new one without a row."""
        if self._new and not os.fstat(self._descriptor).st_size:
            self.path.unlink(missing_ok=True)
        if self._reader is not None:
            self._reader.close()
        os.close(self._descriptor)

    def _open(self) -> tuple[int, bool]:
        """Return a locked descriptor of the file, and whether it was made just now."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists() and not self.path.is_file():
                raise ValueError(f"--output {self._shown} is not a file; choose another")
            while True:
                new = not self.path.exists()
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
                if self._lock(descriptor):
                    break
                os.close(descriptor)  # the run before renamed or removed the file between the two steps
            self._probe()
            return descriptor, new
        except OSError as error:
            raise OSError(f"cannot write to --output {self._shown}: {error.strerror or error}") from error

    def _lock(self, descriptor: int) -> bool:
        """Return whether the descriptor is locked and still that of the path; raise if another process holds it."""
        if fcntl is None:
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise ValueError(
                f"another isouq score is writing {self._shown}; wait for it or choose another --output"
            ) from None
        except OSError:  # a file system without locks
            return True
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _probe(self) -> None:
        """Raise an OSError unless the folder takes the file that the end of the run renames.

        The file is locked: what a killed run left behind is nobody's.
        """
        for left in self.path.parent.glob(f".{glob.escape(self.path.name)}.*.isouq-tmp"):
            left.unlink(missing_ok=True)
        probe = self._temporary()
        probe.write_bytes(b"")
        probe.unlink()

    def _temporary(self) -> Path:
        return self.path.with_name(f".{self.path.name}.{os.getpid()}.isouq-tmp")

    def _find(self, lines: int) -> None:
        for number, raw in enumerate(self._reader, 1):
            if not raw.endswith(b"\n"):
                if not START.startswith(raw[: len(START)]):
                    raise self._foreign(number)
                return
            line = self._line(number, raw)
            if line > lines:
                raise ValueError(
                    f"{self._shown} holds a score of line {line} and the input has {lines}; "
                    "choose another --output or delete it"
                )
            self._offsets[line] = self._end
            self._end += len(raw)

    def _line(self, number: int, raw: bytes) -> int:
        try:
            line = _rows.strict_object(raw)["line"] if raw.startswith(START) else None
        except (ValueError, KeyError):
            line = None
        if type(line) is not int or line < 1:
            raise self._foreign(number)
        return line

    def _foreign(self, number: int) -> ValueError:
        return ValueError(
            f"line {number} of {self._shown} is no row of isouq score, and the file is left as it is; "
            "choose another --output or delete it"
        )

    def _lines(self) -> Iterator[int]:
        return (line for line, offset in enumerate(self._offsets) if offset >= 0)

    def _raw(self, line: int) -> bytes:
        self._reader.seek(self._offsets[line])
        return self._reader.readline()

    def _whole(self) -> bool:
        """Return whether these rows are all that the file holds: nothing torn behind them, none twice."""
        size = os.fstat(self._descriptor).st_size
        return size == self._end and self._end == sum(len(self._raw(line)) for line in self._lines())

    def _unwritten(self, error: OSError, advice: str) -> OSError:
        return OSError(
            f"cannot write to {self._shown} ({error.strerror or error}); the {len(self)} rows in it are kept: {advice}"
        )
