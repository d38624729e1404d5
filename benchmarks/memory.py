"""Measures the peak memory of one call, in a separate process and in the same way for every contestant.

The process imports, starts the framework's threads with one small matrix product, builds the model, places weights and
inputs, compiles (JAX) and does not run the contestant. Then the baseline is read, the call is made (twice if it is
short), and the peak is read: of the resident set on a CPU, of the framework's allocator on a GPU.
"""

import contextlib
import ctypes
import gc
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.cases import TORCH, Case
from benchmarks.contestant import CannotRun
from benchmarks.prepare import prepare
from benchmarks.timing import first_call

MARK = "peak bytes:"
REPEAT_BELOW_SECONDS = 5.0
TIME_LIMIT = 1800.0


def peak_bytes(name: str, case: Case) -> tuple[float | None, str]:
    """Run the process and return (bytes, ""), or (None, the reason why there is no number)."""
    command = [sys.executable, "-m", "benchmarks.memory", name, json.dumps(asdict(case))]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIME_LIMIT, cwd=Path(__file__).parents[1]
        )
    except subprocess.TimeoutExpired:
        return None, f"memory: no result in {TIME_LIMIT:.0f} s"
    for line in done.stdout.splitlines():
        if line.startswith(MARK):
            return float(line.removeprefix(MARK)), ""
    if done.returncode < 0:
        return None, f"memory: ended by signal {-done.returncode}, out of memory?"
    reason = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
    return None, f"memory: {reason[0][:160]}"


def _measure(name: str, case: Case) -> int:
    """Measure one call in the child process and print its bytes."""
    prepared = prepare(name, case)
    _start_threads(name)
    gc.collect()
    meter = _gpu_meter(name) or ResidentSet()
    meter.start()
    result, seconds = first_call(prepared)
    del result
    if seconds < REPEAT_BELOW_SECONDS:
        prepared.call()
    return meter.peak()


def _start_threads(name: str) -> None:
    """Start the thread pools of the linear algebra library, whose several MB must not count as the call's."""
    if name in TORCH:
        import torch

        a = torch.ones(512, 512, requires_grad=True)
        (a @ a).sum().backward()
        return
    import jax

    jax.block_until_ready(jax.jit(jax.grad(lambda a: (a @ a).sum()))(jax.numpy.ones((512, 512))))


class ResidentSet:
    """The memory of the process: VmHWM minus VmRSS. The high-water mark is reset where Linux allows it."""

    def start(self) -> None:
        """Store the baseline."""
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # return the pages that the compiler has freed
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError as error:
            raise CannotRun("the high-water mark cannot be set back on this system") from error
        self.baseline = _status("VmRSS")

    def peak(self) -> int:
        """Return the peak since the baseline, in bytes above it."""
        return _status("VmHWM") - self.baseline


class _Cuda:
    """The memory of torch's allocator."""

    def start(self) -> None:
        import torch

        torch.cuda.reset_peak_memory_stats()
        self.baseline = torch.cuda.memory_allocated()

    def peak(self) -> int:
        import torch

        return torch.cuda.max_memory_allocated() - self.baseline


class _JaxDevice:
    """The memory of XLA's allocator. Its peak cannot be reset, so compilation counts if it used more."""

    def start(self) -> None:
        self.baseline = self._stats()["bytes_in_use"]

    def peak(self) -> int:
        return self._stats()["peak_bytes_in_use"] - self.baseline

    def _stats(self) -> dict[str, Any]:
        import jax

        return jax.devices()[0].memory_stats()


def _gpu_meter(name: str) -> _Cuda | _JaxDevice | None:
    """Return the device's memory counter, or None on a CPU."""
    if name in TORCH:
        import torch

        return _Cuda() if torch.cuda.is_available() else None
    import jax

    return _JaxDevice() if jax.devices()[0].memory_stats() and jax.default_backend() != "cpu" else None


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field + ":"))


if __name__ == "__main__":
    from benchmarks.settings import apply

    apply()
    print(MARK, _measure(sys.argv[1], Case(**json.loads(sys.argv[2]))))
