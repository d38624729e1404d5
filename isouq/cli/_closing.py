"""What became of the rows, in one line at the end."""

from dataclasses import dataclass, field

from isouq.cli._output import Output


@dataclass
class Tally:
    """Counts rows of the input; each is scored, has an error, or is left.

    total: all that are not blank. kept: those that the output had scored before this run. refused: those with an error
    that the output does not hold: no valid row, or one that the model cannot read. failed: the lines of those that the
    output holds with an error and without scores.
    """

    total: int
    kept: int
    refused: int
    failed: set[int] = field(default_factory=set)

    @property
    def errors(self) -> int:
        """Return the number of rows with an error."""
        return self.refused + len(self.failed)

    def closing(self, output: Output, path: str, timing: str | None, interrupted: bool = False) -> str:
        """Return the line. timing: what this run did in which time; None where nothing was left to do."""
        failed = sum(line in output for line in self.failed)
        scored, errors = len(output) - failed, self.refused + failed
        text = f"{scored} of {self.total} rows scored" + (f" in {path}" if len(output) else "")
        if self.kept and (timing or interrupted):
            text += f", {self.kept} of them before this run"
        if errors:
            text += f"; {errors} {'row had an error' if errors == 1 else 'rows had errors'}"
            if failed:
                which = "" if failed == errors else f"{failed} of them "
                text += f", {which}kept in the file without scores"
        if interrupted:
            left = self.total - scored - errors
            return f"interrupted; {text}; {left} left, and the same command goes on from there"
        return f"{text}; {timing or 'nothing was left to do'}"
