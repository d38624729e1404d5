"""States how many leapfrog steps a trajectory takes on average, for each posterior of the study.

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
    "regression/sine": 100,
}
_NARROW, _NARROW_STEPS = 4, 50  # the narrowest networks have several modes
_UNIT = {256: 30, 512: 40, 1024: 60}  # by width
_FAN_IN = {0.3: 5, 1.0: 10, 10.0: 50}  # by sigma


def mean_steps(
    problem: str, width: int | None, prior: str, sigma: float, depth: int = 1, activation: str = "tanh"
) -> int:
    """Return the mean number of leapfrog steps of a trajectory."""
    if (depth, activation) != (1, "tanh"):
        return 40
    if width is None:
        return _PROBLEMS.get(problem, _DEFAULT)
    if width <= _NARROW:
        return _NARROW_STEPS
    return _UNIT.get(width, _DEFAULT) if prior == "unit" else _FAN_IN.get(sigma, _DEFAULT)
