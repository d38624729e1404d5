"""A cell of the experiment `domains`: the frozen configuration that a result on text depends on."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from experiments.run.job import Result
from isouq import _checks

# A version that is part of every key: raise it when a change to the code changes the numbers.
# "reference" fine-tunes, and keeps the parameters; every other study reads them.
STUDIES = {"reference": 1, "domains": 1, "rejection": 1, "memory": 1}
VARIANTS = ("whole", "head")
COVARIANCES = tuple(
    f"{curvature}_{structure}"
    for structure in ("diagonal", "kronecker", "dense")
    for curvature in ("ggn", "fisher")
)  # fmt: skip


@dataclass(frozen=True)
class DomainCell:
    """Everything a result depends on.

    encoder: its canonical name. data: as `load_texts` takes it. digest: `digest_of` both. variant:
    "whole" (all parameters are fine-tuned) or "head" (the encoder stays as it is). covariance, proxies, precision: of
    the study "domains" alone: the kind, the number of proxy texts of a domain, and λ of the prior N(0, 1/λ).
    max_length: tokens a text. epochs: at most.
    """

    encoder: str
    data: str | None
    digest: str
    variant: str = "head"
    seed: int = 0
    covariance: str = ""
    proxies: int = 0
    precision: float = 1.0
    max_length: int = 64
    epochs: int = 4
    study: str = "domains"

    def __post_init__(self) -> None:
        _checks.positive_int("seed", self.seed, 0)
        _checks.one_of("variant", self.variant, VARIANTS)
        _checks.one_of("study", self.study, STUDIES)
        _checks.positive("precision", self.precision)
        for name in ("max_length", "epochs"):
            _checks.positive_int(name, getattr(self, name))
        if self.study == "domains":
            _checks.one_of("covariance", self.covariance, COVARIANCES)
            _checks.positive_int("proxies", self.proxies)

    @property
    def last_layer(self) -> bool:
        """Whether the covariance is of the head's parameters alone."""
        return self.variant == "head" or self.covariance.endswith("dense")

    def reference(self) -> "DomainCell":
        """The cell that fine-tunes for this one."""
        return dataclasses.replace(self, study="reference", covariance="", proxies=0, precision=1.0)

    def key(self) -> str:
        """A hash of the configuration and of the versions of the code; the data by content, not by path."""
        fields = {name: value for name, value in dataclasses.asdict(self).items() if name != "data"}
        versions = [STUDIES["reference"], STUDIES[self.study]]
        text = json.dumps({"experiment": "domains", **fields, "versions": versions}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def label(self) -> str:
        """How progress and errors name the cell."""
        what = f", {self.covariance}, {self.proxies} proxies, λ={self.precision:g}" if self.study == "domains" else ""
        return f"domains, {self.variant}{what}, seed {self.seed}, {self.study}"

    def weight(self) -> float:
        """Expected seconds with two cores at work, from measured cells: for the estimate of the time left."""
        if self.study != "domains":
            whole = {"reference": 240.0, "rejection": 6.0, "memory": 60.0}
            head = {"reference": 70.0, "rejection": 4.0, "memory": 60.0}
            return (whole if self.variant == "whole" else head)[self.study] / 2
        return 1.5 if self.last_layer else (60 + 2 * self.proxies * 0.2) / 2

    def needs(self) -> "DomainCell | None":
        """Return the cell whose fine-tuned parameters this one reads; None where it reads none."""
        return None if self.study in ("reference", "memory") else self.reference()

    def run(
        self,
        needed: Result | None = None,
        checkpoint: Path | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> Result:
        """Compute the result; see `domains.run`."""
        return import_module("experiments.domains.domains").run(self, needed, checkpoint, progress)

    def row(self) -> dict[str, Any]:
        """The columns that the cell gives a table: data and encoder by name, not by path."""
        fields = dataclasses.asdict(self)
        data = fields.pop("data") or "sample"
        fields["encoder"] = Path(self.encoder).name if Path(self.encoder).is_absolute() else self.encoder
        return {"data": data if data.startswith("hf:") else Path(data).name, **fields}
