"""State how many leapfrog steps a trajectory takes on average, for each posterior of the study.

The numbers were chosen for effective samples per gradient on seeds 0 and 1, which `python -m benchmarks samplers`
measures. In units of the prior's standard deviations a trajectory of about 0.5 to 1 is best nearly everywhere. The step
size that HMC adapts to falls with the width of the network and with the noise, and so the number of steps grows.
"""

_DEFAULT = 20
_PROBLEMS = {
    "binary/linear": 5,
    "binary/xor": 12,
    "binary/rings": 15,
    "multiclass/clusters": 10,
    "regression/linear": 10,
    "regression/nonlinear": 100,  # the noise is small: a stiff posterior
}
_WIDTHS = {2: 50, 4: 50, 256: 30, 512: 40, 1024: 60}  # the narrowest networks have several modes
_TIGHT = 1.0  # largest σ of a fan_in prior under which wider steps fit, from width 8 on
_TIGHT_STEPS = 10


def mean_steps(problem: str, width: int | None, prior: str, sigma: float) -> int:
    """Return the mean number of leapfrog steps of a trajectory."""
    if width is None:
        return _PROBLEMS.get(problem, _DEFAULT)
    if prior == "fan_in" and sigma <= _TIGHT and width >= 8:
        return _TIGHT_STEPS
    return _WIDTHS.get(width, _DEFAULT)
