"""Does a scale for ‖g‖² make the probabilities of a fine-tuned encoder better, and better than its rivals do?

Command: python -m experiments text-calibration --preset paper --data ag_news_science_sports.csv
"""

from dataclasses import replace

from experiments.domains.configuration import NETWORKS
from experiments.domains.presets.domains import EPOCHS, first_job
from experiments.domains.study import DomainCell

SEEDS = {
    "smoke": {"whole": 1, "head": 1},
    "quick": {"head": 3},
    "paper": {"whole": 3, "head": 5},
}


def jobs(
    preset: str, seeds: int | None = None, data: str | None = None, encoder: str | None = None
) -> list[DomainCell]:
    """Return the jobs of a preset.

    smoke: a random encoder, no network. quick: three heads on MiniLM and the built-in sample. paper: all of MiniLM,
    three seeds with five networks each, and five heads, on AG News (--data).
    """
    base, _ = first_job(preset, data, encoder)
    found = []
    for variant, count in SEEDS[preset].items():
        for seed in range(seeds or count):
            job = replace(base, variant=variant, epochs=EPOCHS[variant], seed=seed, study="calibration")
            found.append(job)
            if variant == "whole":
                found += [replace(job, member=member, study="member") for member in range(1, NETWORKS)]
    return found
