"""Does a covariance from one domain's texts bend uncertainty on a fine-tuned encoder, as on XOR? (Fig. 4)

Science against sports. H_A comes from science texts alone and H_B from sports texts alone, none of them trained on; the
test texts of both domains are scored under the identity, H_A⁻¹ and H_B⁻¹.

Command: python -m experiments domains --preset paper --data ag_news_science_sports.csv
"""

from dataclasses import replace
from typing import Any

from experiments.domains import inputs, texts
from experiments.domains.configuration import COVARIANCES, HEAD_EPOCHS
from experiments.domains.study import DomainCell
from experiments.domains.tiny_encoder import TINY
from experiments.run.errors import run_errors

EPOCHS = {"whole": 4, "head": HEAD_EPOCHS}  # at most: early stopping decides
Part = dict[str, Any]  # fields of a job, for every seed
MEMORY: Part = {"variant": "whole", "study": "memory"}


def jobs(
    preset: str, seeds: int | None = None, data: str | None = None, encoder: str | None = None
) -> list[DomainCell]:
    """Return the jobs of a preset.

    smoke: a random encoder, 2 minutes, no network. quick: the head on MiniLM and the built-in sample, 2 minutes.
    paper: all of MiniLM and the head, three seeds, 50 to 1000 proxy texts of AG News (--data): 40 minutes on 2 CPU
    cores. Held-out accuracy 0.97 or more, and a log ratio that changes sign between the domains.
    """
    base, loaded = first_job(preset, data, encoder)
    available = texts.sizes(loaded.labels)["proxies"]
    parts = {"smoke": _smoke, "quick": _quick, "paper": _paper}[preset](available)
    count = seeds or {"smoke": 1}.get(preset, 3)
    return list(dict.fromkeys(job for part in parts for job in _over_seeds(base, part, count)))


def first_job(preset: str, data: str | None, encoder: str | None) -> tuple[DomainCell, texts.Texts]:
    """Return the job of a preset that fine-tunes the head with seed 0, and the texts."""
    with run_errors():
        loaded = texts.load_texts(data)
        name = inputs.check_model(encoder or (TINY if preset == "smoke" else inputs.ENCODER))
        digest = inputs.digest_of(loaded.digest, name)
    max_length = 24 if preset == "smoke" else 64
    return DomainCell(name, data, digest, max_length=max_length, epochs=EPOCHS["head"], study="reference"), loaded


def _smoke(available: int) -> list[Part]:
    parts = [_domains("whole", name, available) for name in ("ggn_diagonal", "ggn_kronecker", "ggn_dense")]
    parts += [_domains("head", name, n) for name in ("ggn_diagonal", "ggn_dense") for n in (available // 2, available)]
    return [*parts, *({"variant": variant, "study": "rejection"} for variant in ("whole", "head")), MEMORY]


def _quick(available: int) -> list[Part]:
    counts = sorted({min(n, available) for n in (10, 20)})
    parts = [_domains("head", name, n) for name in COVARIANCES for n in counts]
    return [*parts, {"variant": "head", "study": "rejection"}]


def _paper(available: int) -> list[Part]:
    """Return the parts in the order of what matters most, so that an interrupted run can be read with --finished."""
    few, some, all_ = (min(n, available) for n in (50, 200, 1000))
    parts = [_domains("head", name, n) for n in (some, few, all_) for name in COVARIANCES]
    parts += [_domains("whole", f"{c}_dense", n) for n in (some, few, all_) for c in ("ggn", "fisher")]
    parts += [_domains("whole", name, some) for name in ("ggn_diagonal", "ggn_kronecker")]
    parts += [{"variant": variant, "study": "rejection"} for variant in ("whole", "head")]
    parts += [_domains("head", name, some, weak) for name in COVARIANCES for weak in (0.01, 0.1, 10.0)]
    parts += [_domains("whole", "ggn_diagonal", n) for n in (few, all_)]
    parts += [MEMORY, _domains("whole", "ggn_diagonal", some, 0.01)]
    return [*parts, _domains("whole", "fisher_diagonal", some), _domains("whole", "ggn_kronecker", few)]


def _domains(variant: str, covariance: str, proxies: int, precision: float = 1.0) -> Part:
    return {"variant": variant, "covariance": covariance, "proxies": proxies, "precision": precision,
            "study": "domains"}  # fmt: skip


def _over_seeds(base: DomainCell, part: Part, seeds: int) -> list[DomainCell]:
    """Return the jobs of a part; the memory does not depend on the seed."""
    job = replace(base, epochs=EPOCHS[part["variant"]], **part)
    return [replace(job, seed=seed) for seed in range(1 if part is MEMORY else seeds)]
