"""Numbers of a config.json, checked as they are read."""

import sys
from collections.abc import Mapping
from typing import Any


def whole(config: Mapping[str, Any], key: str, default: int | None = None, least: int = 1) -> int:
    """Return the whole number under `key`, or the default where there is none or null.

    Raises KeyError where it is missing without a default, ValueError where it is no whole number or below `least`.
    """
    value = _value(config, key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{key} is {value!r:.60}; expected a whole number of at least {least}")
    return value


def number(config: Mapping[str, Any], key: str, default: float | None = None, above: float = 0.0) -> float:
    """Return the finite number above `above` under `key`; otherwise as `whole`."""
    return _number(key, _value(config, key, default), above)


def numbers(config: Mapping[str, Any], key: str, count: int) -> tuple[float, ...]:
    """Return the `count` positive numbers in the list under `key`; errors as of `whole`."""
    values = _value(config, key, None)
    if not isinstance(values, list | tuple) or len(values) != count:
        given = f"has {len(values)} numbers" if isinstance(values, list | tuple) else f"is {values!r:.60}"
        raise ValueError(f"{key} {given}; expected a list of {count}")
    return tuple(_number(f"{key}[{i}]", value, 0.0) for i, value in enumerate(values))


def _value(config: Mapping[str, Any], key: str, default: Any) -> Any:
    value = config.get(key)
    value = default if value is None else value
    if value is None:
        raise KeyError(key)
    return value


def _number(name: str, value: Any, above: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not above < value <= sys.float_info.max:
        raise ValueError(f"{name} is {value!r:.60}; expected a finite number above {above:g}")
    return float(value)
