"""The configuration of a result on texts of two domains."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from isouq import _checks

VARIANTS = ("whole", "head")
ACCURACY = 0.97  # accuracy on the test texts from which a fine-tuning is accepted
MIN_SEEDS = 3  # of a variant about which something is claimed
NETWORKS = 5  # of an ensemble, each fine-tuned whole
HEAD_EPOCHS = 400  # largest number of epochs of the head alone, which early stopping ends before
COVARIANCES = tuple(
    f"{curvature}_{structure}"
    for structure in ("diagonal", "kronecker", "dense")
    for curvature in ("ggn", "fisher")
)  # fmt: skip


@dataclass(frozen=True)
class Configuration:
    """Everything that a result depends on but the study.

    encoder: its canonical name. data: the texts, as `load_texts` takes them. digest: a hash of the texts and of the
    files of a local encoder. variant: "whole" (all parameters are fine-tuned) or "head" (the encoder stays as it is).
    covariance, proxies, precision: of the study "domains" alone: the kind, the number of proxy texts of a domain, and λ
    of the prior N(0, 1/λ). max_length: tokens of a text at most. epochs: of the fine-tuning at most. member: the number
    of a network in its ensemble: all have the split of `seed`, each its own start of the head and order of the texts.
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
    member: int = 0

    def __post_init__(self) -> None:
        for name in ("seed", "member"):
            _checks.positive_int(name, getattr(self, name), 0)
        _checks.one_of("variant", self.variant, VARIANTS)
        _checks.positive("precision", self.precision)
        for name in ("max_length", "epochs"):
            _checks.positive_int(name, getattr(self, name))

    @property
    def training_seed(self) -> int:
        """Return the seed of the head's start and of the order of the texts."""
        return self.seed + 1000 * self.member

    @property
    def last_layer(self) -> bool:
        """Return whether the covariance is over the head's parameters alone."""
        return self.variant == "head" or self.covariance.endswith("dense")

    def row(self) -> dict[str, Any]:
        """Return the columns that the configuration gives a table: data and encoder by name, not by path."""
        fields = asdict(self)
        data = fields.pop("data") or "sample"
        fields["encoder"] = Path(self.encoder).name if Path(self.encoder).is_absolute() else self.encoder
        return {"data": data if data.startswith("hf:") else Path(data).name, **fields}
