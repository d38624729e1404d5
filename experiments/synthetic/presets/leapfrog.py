"""States how many leapfrog steps a trajectory takes on average, for each posterior of the study.

The numbers were chosen for effective samples per gradient on seeds 0 and 1, which `python -m benchmarks samplers`
measures. In units of the prior's standard deviations a trajectory of about 0.5 to 1 is best nearly everywhere. The step
size that HMC adapts to falls with the width of the network and with the noise, and so the number of steps grows.
Networks of two and three hidden layers and ReLU networks were tried at widths 8, 32 and 128 with 10 to 80 steps. Their
numbers at width 512 are extrapolated: under the prior `unit` the step size is about halved by four times the width.
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
_DEEP_OR_RELU = 40
_TWO_LAYERS_FAN_IN = 20  # from width 32 on
_DEEP_UNIT: dict[tuple[int, int | None], int] = {(2, 512): 80, (3, 128): 80, (3, 512): 160}  # by depth and width


def mean_steps(
    problem: str, width: int | None, prior: str, sigma: float, depth: int = 1, activation: str = "tanh"
) -> int:
    """Return the mean number of leapfrog steps of a trajectory."""
    if width is None:
        return _PROBLEMS.get(problem, _DEFAULT)
    if (depth, activation) != (1, "tanh"):
        if prior == "unit":
            return _DEEP_UNIT.get((depth, width), _DEEP_OR_RELU)
        return _TWO_LAYERS_FAN_IN if depth == 2 and width >= 32 else _DEEP_OR_RELU
    if width <= _NARROW:
        return _NARROW_STEPS
    return _UNIT.get(width, _DEFAULT) if prior == "unit" else _FAN_IN.get(sigma, _DEFAULT)
