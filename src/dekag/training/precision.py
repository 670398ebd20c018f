"""Whether training gains by bf16 on this machine: measured, since processors differ."""

import logging
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor

log = logging.getLogger("dekag.training")
Precision = Literal["no", "bf16"]
ROUNDS = 3
WORTH = 0.9
"""Share of the time of fp32 that bf16 must not exceed to be chosen."""


def mixed(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Within, what torch can compute in that precision it does."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def faster_precision(loss: Callable[[], Tensor], device: torch.device) -> tuple[Precision, float]:
    """The precision to train in, and the time of a loss with its gradient in bf16 over that in fp32.

    Medians of ROUNDS, which take turns after one that is not counted. Gradients are left behind.
    """
    seconds: dict[Precision, list[float]] = {"no": [], "bf16": []}
    for _ in range(ROUNDS + 1):
        for precision, taken in seconds.items():
            started = _now(device)
            with mixed(precision, device):
                value = loss()
            value.backward()
            taken.append(_now(device) - started)
    ratio = statistics.median(seconds["bf16"][1:]) / statistics.median(seconds["no"][1:])
    chosen: Precision = "bf16" if ratio <= WORTH else "no"
    log.info("bf16 takes %.2f of the time of fp32 here: precision %s", ratio, chosen)
    return chosen, ratio


def _now(device: torch.device) -> float:
    """Processor time on a CPU, whatever else it does; on a GPU the time at which it is done."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()
