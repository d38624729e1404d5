"""The command line: python -m benchmarks NAME [--preset smoke|full] [--out DIR]."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import cases
from benchmarks.settings import apply

RESULTS = Path(__file__).parent / "results"
SMOKE_RESULTS = Path("out") / "benchmarks"
# these have rows and pages of their own
OTHERS = ("engine", "reference", "samplers", "modes", "study", "device", "laplace", "answers", "polygraph")


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="isouq against its peers, in one run")
    parser.add_argument("name", choices=[*cases.NAMES, *OTHERS, "all"], help="all: those that compare with peers")
    parser.add_argument("--preset", choices=["smoke", "full"], default="full", help="smoke: tiny, a minute each")
    parser.add_argument("--out", type=Path, help="folder; default benchmarks/results, for smoke out/benchmarks")
    parser.add_argument("--rounds", type=int, help="at least so many (default 7, smoke 2)")
    parser.add_argument("--budget", type=float, help="seconds per contestant for its rounds (default 60, smoke 2)")
    parser.add_argument("--only", default="", metavar="TEXT", help="isouq and the contestants whose name contains TEXT")
    parser.add_argument("--no-memory", action="store_true", help="time only, no process per contestant")
    parser.add_argument("--lengths", type=_integers, default=(), help="lm, text: such as 40,128,512")
    parser.add_argument(
        "--batches", type=_integers, default=(), help="lm: one per length, such as 8,4,2; text: each at every length"
    )
    parser.add_argument(
        "--tied", choices=["on", "off", "both"], default="both", help="lm: both: untied at first length"
    )
    parser.add_argument("--questions", type=Path, help='text: a file with {"question": ...} on every line')
    parser.add_argument("--before", metavar="COMMIT", help="study, answers: the commit to compare with")
    parser.add_argument(
        "--experiment", metavar="ARGUMENTS",
        help="study: the whole run, as experiments takes it (default 'reproduce --preset quick'); '' for none",
    )  # fmt: skip
    parser.add_argument(
        "--polygraph-python", type=Path, metavar="PATH", help="polygraph: an interpreter that has lm-polygraph"
    )
    parser.add_argument("--projection", action="store_true", help="study: the time of all cells, from a tenth of them")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    """Run the named benchmarks and write the results after every case."""
    options = arguments(argv)
    apply()
    from benchmarks import provenance, report, runner, timing

    full = options.preset == "full"
    folder = options.out or (RESULTS if full else SMOKE_RESULTS)
    if options.name in OTHERS:
        _run_other(options, folder, provenance.provenance(argv))
        return
    plan = timing.Plan(options.rounds or (7 if full else 2), options.budget or (60.0 if full else 2.0))
    how = runner.Options(plan, memory=not options.no_memory, only=options.only)
    names = cases.NAMES if options.name == "all" else (options.name,)
    todo = [(name, case) for name in names for case in _cases(name, options)]
    record = provenance.provenance(argv)
    print(provenance.in_words(record), flush=True)
    progress = runner.Progress(todo, how)
    for name in names:
        rows: list[runner.Row] = []
        group = [case for n, case in todo if n == name]
        for case in group:
            rows += runner.run_case(name, case, how, progress)
            report.write(name, rows, record, folder)
        if name == "text":
            results, section = _agreement(group[0], options)
            report.write(name, rows, record | {"bfloat16 against float32": results}, folder, section)
        print((folder / f"{name}.md").read_text(), flush=True)


def _run_other(options: argparse.Namespace, folder: Path, record: dict[str, Any]) -> None:
    """Run a benchmark that has rows and a page of its own."""
    full = options.preset == "full"
    if options.name == "engine":
        from benchmarks import engine

        engine.run(options.preset, folder, record, options.only)
    elif options.name == "reference":
        from benchmarks import reference

        reference.run(options.preset, folder, record)
    elif options.name == "samplers":
        from benchmarks import samplers

        samplers.run(options.preset, folder, record, options.only)
    elif options.name == "modes":
        from benchmarks import modes

        modes.run(options.preset, folder, record)
    elif options.name == "laplace":
        from benchmarks import laplace

        laplace.run(options.preset, folder, record, options.only, not options.no_memory)
    elif options.name == "polygraph":
        from benchmarks import polygraph

        python = options.polygraph_python
        polygraph.run(options.preset, folder, record, python, options.rounds, options.only)
    elif options.name == "device":
        from benchmarks import device

        device.run(options.preset, folder, record)
    elif options.name == "answers":
        from benchmarks import answers

        answers.run(options.preset, folder, record, options.before or answers.BEFORE, options.rounds or 5)
    elif options.projection:
        from benchmarks import projection

        projection.run(options.preset, folder, record)
    else:
        from benchmarks import study

        whole = "reproduce --preset quick" if full else "validation --preset smoke --seeds 1"
        study.run(
            options.preset, folder, record, options.before or study.BEFORE,
            whole if options.experiment is None else options.experiment, options.rounds or (3 if full else 1),
        )  # fmt: skip


def _agreement(case: cases.Case, options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from benchmarks import agreement

    sizes: dict[str, Any] = {} if options.preset == "full" else {"answers": 12, "tokens": 6}
    if options.questions is None:
        results, source = agreement.measure(case, **sizes), "written for this"
    else:
        results, source = agreement.measure(case, agreement.read(options.questions), **sizes), options.questions.name
    return results, agreement.in_words(results, source)


def _cases(name: str, options: argparse.Namespace) -> list[cases.Case]:
    if name == "lm":
        return cases.lm_cases(options.preset, options.lengths, options.batches, options.tied)
    if name == "text":
        return cases.text_cases(options.preset, options.lengths, options.batches)
    makers = {
        "mlp": cases.mlp_cases,
        "cnn": cases.cnn_cases,
        "encoder": cases.encoder_cases,
        "growth": cases.growth_cases,
        "probes": cases.probes_cases,
    }
    return makers[name](options.preset)


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    main(sys.argv[1:])
