"""The command `isouq`: score answers, fetch weights, explain a model. `isouq COMMAND --help` tells the options.

Exit status: 0; 1 where some rows had errors; 2 for an error that prevented the run, one line on standard error
(`ISOUQ_TRACEBACK=1` shows where it came from); 130 after Ctrl-C.
"""

import os
import sys
import traceback
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (`sys.argv` by default) and return the exit status."""
    try:
        return _run(sys.argv[1:] if arguments is None else arguments)
    except BrokenPipeError:  # `isouq explain M | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("isouq: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if os.environ.get("ISOUQ_TRACEBACK") == "1":
            traceback.print_exc()
        print(f"isouq: {_one_line(error)}", file=sys.stderr)
        return 2


def _run(arguments: Sequence[str]) -> int:
    from isouq.cli import options  # tyro, and the commands with JAX and Flax, only once they are needed

    chosen = options.parse(arguments)
    if isinstance(chosen, options.Fetch):
        from isouq.cli import _fetch

        code = _fetch.run(chosen)
    elif isinstance(chosen, options.Explain):
        from isouq.cli import _explain

        code = _explain.run(chosen)
    else:
        from isouq.cli import _score

        code = _score.run(chosen)
    sys.stdout.flush()
    return code


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "RESOURCE_EXHAUSTED" in text or isinstance(error, MemoryError):
        return f"out of memory; give a smaller --batch-size, or see `isouq explain` ({text[:200]})"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    known = isinstance(error, (ValueError, OSError, ImportError))
    return text if known and text else f"{type(error).__name__}: {text[:300]} (ISOUQ_TRACEBACK=1 shows where)"
