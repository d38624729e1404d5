"""The order of jobs: a program is compiled once where the jobs that use it run in one process, one after the other."""

from collections import deque
from collections.abc import Collection, Sequence

from experiments.run.job import Job


class Queue:
    """The jobs that wait, by the compiled program that they use."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._waiting: dict[str, deque[Job]] = {}
        for job in jobs:
            self._waiting.setdefault(job.program(), deque()).append(job)

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def pop(self, last: str | None, others: Collection[str | None]) -> Job:
        """Take the next job of a worker.

        It is of the program that the worker ran last, else of one that no other worker has run last, else of any. Of
        several programs it is the one with the most work left, so that no long one is left for the end.

        last, others: the programs that this worker and the others ran last.
        """
        program = last
        if program not in self._waiting:
            free = [name for name in self._waiting if name not in others]
            program = max(free or self._waiting, key=self._weight)
        jobs = self._waiting[program]
        job = jobs.popleft()
        if not jobs:
            del self._waiting[program]
        return job

    def _weight(self, program: str) -> float:
        return sum(job.weight() for job in self._waiting[program])


def programs_first(jobs: Sequence[Job]) -> list[Job]:
    """Return one job of each program, then the others program by program; for workers that choose no jobs.

    The first workers then compile different programs, and put them into the compilation cache for all others.
    """
    queue, first, others, seen = Queue(jobs), list[Job](), list[Job](), set[str]()
    last = None
    while queue:
        job = queue.pop(last, ())
        last = job.program()
        (others if last in seen else first).append(job)
        seen.add(last)
    return first + others
