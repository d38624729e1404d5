"""python -m experiments NAME --preset smoke|quick|paper [--out DIR] [--executor ...], or: status --out DIR."""

import os
import signal
import sys


def main() -> int:
    """Run the command line; `status` is answered without importing what an experiment needs."""
    # on some processors XLA writes two lines a program that it loads
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup has the second ignored
            signal.signal(number, signal.default_int_handler)
    try:
        if sys.argv[1:2] == ["status"]:
            from experiments.run.status import main as status

            return status(sys.argv[2:])
        from experiments.command import main as command

        return command()
    except KeyboardInterrupt:  # while that was imported
        print("experiments: interrupted", file=sys.stderr)
        return 130
    except ImportError as error:
        if not isinstance(error.__cause__ or error, ModuleNotFoundError):
            raise
        what = str(error).partition(";")[0]
        print(f"experiments: {what}; in the checkout: pip install -e '.[experiments]'", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
