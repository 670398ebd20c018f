"""How a pipeline is run; without the libraries that run it, so that bad numbers are refused at once."""

import math
from dataclasses import dataclass

from dekag.errors import InputError

MOST_STEPS = 1000
"""Schedulers of diffusers know as many noise levels, and no more of them can be visited."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a pipeline is run; `None` leaves the pipeline's own default. Raises InputError for what none can run with."""

    steps: int | None = None
    guidance: float | None = None
    batch: int = 32
    """Images drawn at a time."""

    def __post_init__(self) -> None:
        if self.steps is not None and not 1 <= self.steps <= MOST_STEPS:
            raise InputError(f"steps must be 1 to {MOST_STEPS}, got {self.steps}")
        if self.guidance is not None and not 0 <= self.guidance < math.inf:
            raise InputError(f"guidance must be a number of at least 0, got {self.guidance}")
        if self.batch < 1:
            raise InputError(f"the images drawn at a time must be at least 1, got {self.batch}")
