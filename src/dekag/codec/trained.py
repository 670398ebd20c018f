"""The conditions that an update of a codec was trained for, as its bundle carries them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from dekag.types import Condition, InputError

PREFIX = "trained_"
"""Of the names in a bundle's settings."""


@dataclass(frozen=True, kw_only=True)
class TrainedRange:
    """Fields of the conditions that an update was trained for, ends included.

    uses_min, uses_max: channel uses of an image, pilots included. snr_db_min, snr_db_max: in dB.
    fading: whether Rayleigh fading was met; the fields below count under fading alone.
    blocks_min, blocks_max: resource blocks of an image. correlation_max: of neighbouring blocks.
    estimated: whether the receiver met gains that it estimated from pilots.

    Raises InputError if a range is empty or no condition could lie in it.
    """

    uses_min: int
    uses_max: int
    snr_db_min: float | int
    snr_db_max: float | int
    fading: bool
    blocks_min: int = 1
    blocks_max: int = 1
    correlation_max: float | int = 0.0
    estimated: bool = False

    def __post_init__(self) -> None:
        for name in ("uses", "snr_db", "blocks"):
            low, high = getattr(self, f"{name}_min"), getattr(self, f"{name}_max")
            if not (math.isfinite(low) and math.isfinite(high) and low <= high):
                raise InputError(
                    f"the trained range of {name} must have its least value first, got {low} to {high}"
                )
        for name, minimum in (("uses_min", 1), ("blocks_min", 1), ("correlation_max", 0)):
            if not getattr(self, name) >= minimum:
                raise InputError(
                    f"{name} of a trained range must be at least {minimum}, got {getattr(self, name)}"
                )
        if self.correlation_max > 1:
            raise InputError(
                f"correlation_max of a trained range must be at most 1, got {self.correlation_max}"
            )

    @classmethod
    def from_settings(cls, settings: Mapping[str, int | float | str]) -> "TrainedRange | None":
        """The range in a bundle's settings; None if they say nothing of one.

        Raises InputError if a field is missing or of another kind.
        """
        values = {k.removeprefix(PREFIX): v for k, v in settings.items() if k.startswith(PREFIX)}
        if not values:
            return None
        known = {field.name: field.type for field in fields(cls)}
        odd = sorted(values.keys() ^ known.keys())
        if odd:
            state = "unknown" if odd[0] in values else "missing"
            raise InputError(f"the bundle's trained range is not whole: {PREFIX}{odd[0]} is {state}")
        return cls(**{name: _value(name, values[name], known[name]) for name in known})

    def to_settings(self) -> dict[str, int | float | str]:
        """What goes into a bundle's settings; yes and no are 1 and 0."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {f"{PREFIX}{k}": int(v) if isinstance(v, bool) else v for k, v in values.items()}

    def outside(self, condition: Condition) -> list[str]:
        """For each field of a condition that lies outside, its name, the farthest value and the range."""
        found = [
            _outside("uses", condition.uses, self.uses_min, self.uses_max),
            _outside("snr_db", condition.snr_db, self.snr_db_min, self.snr_db_max),
        ]
        faded = condition[condition.rayleigh]
        if len(faded) and not self.fading:
            found.append("rayleigh is true (trained without fading)")
        elif len(faded):
            found += [
                _outside("blocks", faded.blocks, self.blocks_min, self.blocks_max),
                _outside("correlation", faded.correlation, 0, self.correlation_max),
            ]
            if bool((faded.pilots > 0).any()) and not self.estimated:
                found.append("the gain is estimated from pilots (trained with known gains)")
        return [text for text in found if text]


def _value(name: str, given: int | float | str, kind: object) -> Any:
    """A field's value from a bundle: 1 and 0 for yes and no, whole numbers for counts, numbers for the rest."""
    if kind is bool and isinstance(given, int) and given in (0, 1):
        return bool(given)
    if kind is int and isinstance(given, int):
        return given
    if kind not in (bool, int) and isinstance(given, int | float):
        return float(given)
    needed = "1 or 0" if kind is bool else "a whole number" if kind is int else "a number"
    raise InputError(f"the bundle's {PREFIX}{name} must be {needed}, got {given!r}")


def _outside(name: str, values: Tensor, low: float | int, high: float | int) -> str:
    """What to say of values that are not all from `low` to `high`; empty if they are."""
    # a step of float32 in which a condition is kept
    room = 1e-6 * max(abs(low), abs(high))
    beyond = torch.maximum(low - values, values - high)
    if not float(beyond.max()) > room:
        return ""
    spread = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    return f"{name} is {values[beyond.argmax()].item():g} (trained for {spread})"
