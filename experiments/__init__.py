"""One module per table or figure: `python -m experiments NAME --preset smoke|quick|paper`."""

# Each is the module experiments.NAME with `cells(preset, seeds, ...)` and `summarise(results, preset)`.
# The value: what `cells` takes beside the preset and the seeds.
SYNTHETIC: dict[str, tuple[str, ...]] = {
    "validation": (),
    "maps": (),
    "scaling": ("widths",),
    "covariance": (),
    "decomposition": ("widths",),
    "spectrum": ("widths",),
}  # what `all` runs
_ASKED = ("questions", "limit", "model", "prompt")
EXPERIMENTS = SYNTHETIC | {
    "domains": ("data", "encoder"),
    "qa": (*_ASKED, "encoder", "entailment"),
    "trace": (*_ASKED, "encoder"),
}
