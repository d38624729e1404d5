"""What happens to a job whose worker died: it is tried again, and fails after the third death."""

from collections.abc import Callable, Iterator, Sequence

from experiments.run.job import Job, Outcome

ATTEMPTS = 3
DIED = f"its worker died {ATTEMPTS} times (killed, or out of memory)"

RunOnce = Callable[[Sequence[Job], bool], Iterator[tuple[Job, Outcome | None]]]


def run_with_attempts(run_once: RunOnce, jobs: Sequence[Job]) -> Iterator[tuple[Job, Outcome]]:
    """Yield each job with its outcome; those whose worker died are run again after all others.

    run_once: (jobs, whether it is a further attempt) → each job with its outcome, None if its worker died.
    """
    for attempt in range(ATTEMPTS):
        lost = []
        for job, outcome in run_once(jobs, attempt > 0):
            if outcome is None:
                lost.append(job)
            else:
                yield job, outcome
        jobs = lost
    for job in jobs:
        yield job, Outcome(error=DIED)
