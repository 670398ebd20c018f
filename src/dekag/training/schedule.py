"""Learning-rate schedules as plain functions of the step, and factors on the rate by parameter name."""

import re
from collections.abc import Mapping, Sequence

from torch import nn

from dekag.types import InputError


def warmup_stable_decay(step: int, steps: int, warmup_steps: int, decay_fraction: float) -> float:
    """Factor on the learning rate: linear warm-up, constant, then linear to zero.

    The constant stretch does not depend on `steps`, so a run can be lengthened or ended early by resuming
    it with another number of steps.
    """
    warm = min(1.0, (step + 1) / max(1, warmup_steps))
    left = (steps - step) / max(1.0, decay_fraction * steps)
    return warm * min(1.0, left)


def rate_factor(name: str, factors: Sequence[tuple[str, float]]) -> float:
    """Factor of the first regular expression that is found in the parameter's name; 1 if none is."""
    return next((factor for pattern, factor in factors if re.search(pattern, name)), 1.0)


def check_rate_factors(names: Sequence[str], factors: Sequence[tuple[str, float]]) -> None:
    """Raise InputError for an expression that is not one or is in no name, and for a factor below zero."""
    for pattern, factor in factors:
        try:
            found = any(re.search(pattern, name) for name in names)
        except re.error as err:
            raise InputError(
                f"the rate factor's pattern {pattern!r} is no regular expression: {err}"
            ) from err
        if not found:
            raise InputError(
                f"the rate factor's pattern {pattern!r} matches none of the {len(names)} trainable parameters, "
                f"such as {names[0]}"
            )
        if not 0 <= factor < float("inf"):
            raise InputError(f"the rate factor of {pattern!r} must be a number of at least 0, got {factor}")


def rate_groups(
    parameters: Mapping[str, nn.Parameter], factors: Sequence[tuple[str, float]]
) -> dict[float, list[nn.Parameter]]:
    """Parameters by the factor on their learning rate. Raises InputError as `check_rate_factors`."""
    check_rate_factors(list(parameters), factors)
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        groups.setdefault(rate_factor(name, factors), []).append(parameter)
    return groups
