"""The studies of a fine-tuned encoder by name, and the job that runs one."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

from experiments.clock import Clock
from experiments.domains.configuration import COVARIANCES, Configuration
from experiments.domains.inputs import read_corpus
from experiments.domains.measure.calibration import calibrate, predict_test
from experiments.domains.measure.covariances import compare_covariances
from experiments.domains.measure.fine_tune import fine_tune
from experiments.domains.measure.memory import measure_memory
from experiments.domains.measure.rejection import score_predictions
from experiments.domains.measure.tuned import Tuned
from experiments.run.job import Result, hash_fields
from isouq import _checks

Seconds = Callable[[Configuration], float]


class Study(NamedTuple):
    """What is computed of a fine-tuned encoder.

    version: part of every key; raise it when a change to the code changes the numbers. seconds: the expected time with
    two cores at work, fitted to measured runs. measure: `measure(configuration, tuned)`; None for the two studies that
    read no fine-tuned encoder.
    """

    version: int
    seconds: Seconds
    measure: Callable[[Configuration, Tuned], Result] | None = None


def _by_variant(whole: float, head: float) -> Seconds:
    return lambda configuration: whole if configuration.variant == "whole" else head


def _covariance_seconds(configuration: Configuration) -> float:
    return 1.5 if configuration.last_layer else 30 + 0.2 * configuration.proxies


STUDIES = {
    "reference": Study(1, _by_variant(120.0, 35.0)),  # the fine-tuning, which all others but "memory" read
    "domains": Study(1, _covariance_seconds, compare_covariances),
    "rejection": Study(1, _by_variant(3.0, 2.0), score_predictions),
    "memory": Study(1, _by_variant(30.0, 30.0)),
    "calibration": Study(1, _by_variant(200.0, 3.0), calibrate),
    "member": Study(1, _by_variant(1.0, 1.0), predict_test),  # a further network of an ensemble
}


@dataclass(frozen=True)
class DomainCell(Configuration):
    """A configuration and one of `STUDIES`."""

    study: str = "domains"

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.one_of("study", self.study, STUDIES)
        if self.study == "domains":
            _checks.one_of("covariance", self.covariance, COVARIANCES)
            _checks.positive_int("proxies", self.proxies)

    def reference(self) -> "DomainCell":
        """Return the job that fine-tunes for this one."""
        return replace(self, study="reference", covariance="", proxies=0, precision=1.0)

    def program(self) -> str:
        """Return a name of the compiled programs: the study, the encoder, and what of it is trained."""
        return ", ".join((self.study, self.encoder, self.variant, self.covariance, str(self.proxies)))

    def needs(self) -> "DomainCell | None":
        """Return the job that fine-tunes for this one; None where no fine-tuned encoder is read."""
        return None if STUDIES[self.study].measure is None else self.reference()

    def key(self) -> str:
        """Return a hash of the configuration and of the versions of the code; the data by content, not by path."""
        fields = {name: value for name, value in asdict(self).items() if name != "data"}
        if not self.member:
            del fields["member"]  # results of before there were members keep their keys
        versions = [STUDIES["reference"].version, STUDIES[self.study].version]
        return hash_fields({"experiment": "domains", **fields, "versions": versions})

    def label(self) -> str:
        """Return how progress and errors name the job."""
        case = f", {self.covariance}, {self.proxies} proxies, λ={self.precision:g}" if self.study == "domains" else ""
        member = f", member {self.member}" if self.member else ""
        return f"domains, {self.variant}{case}, seed {self.seed}{member}, {self.study}"

    def weight(self) -> float:
        """Return the expected seconds with two cores at work, for the estimate of the time left."""
        return STUDIES[self.study].seconds(self)

    def run(
        self,
        needed: Result | None = None,
        checkpoint: Path | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> Result:
        """Run the study, and before it the fine-tuning that it reads where no result of that one is given."""
        clock = Clock()
        corpus = read_corpus(self.encoder, self.data, self.digest, self.max_length)
        measure = STUDIES[self.study].measure
        if measure is not None:
            needed = needed or self.reference().run(progress=progress)
            result = measure(self, Tuned.of(self, corpus, needed))
        elif self.study == "reference":
            result = fine_tune(self, corpus, progress, checkpoint)
        else:
            result = measure_memory(corpus)
        return Result({**self.row(), **result.numbers, "seconds": clock.laps()["seconds"]}, result.arrays)
