"""Learning-rate schedules as plain functions of the step."""


def warmup_stable_decay(step: int, steps: int, warmup_steps: int, decay_fraction: float) -> float:
    """Factor on the learning rate: linear warm-up, constant, then linear to zero.

    The constant stretch does not depend on `steps`, so a run can be lengthened or ended early by resuming
    it with another number of steps.
    """
    warm = min(1.0, (step + 1) / max(1, warmup_steps))
    left = (steps - step) / max(1.0, decay_fraction * steps)
    return warm * min(1.0, left)
