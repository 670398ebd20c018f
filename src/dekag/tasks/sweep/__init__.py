"""Transmission measured at scale: cells that any engine computes, resumed and summed up."""

from dekag.tasks.sweep.engines import (
    Engine,
    Inline,
    Processes,
    RayCluster,
    Slurm,
    engine_named,
    usable_cores,
)
from dekag.tasks.sweep.report import write
from dekag.tasks.sweep.results import Outcome
from dekag.tasks.sweep.run import SweepConfig, drawer, sweep
from dekag.tasks.sweep.summary import Summary, summarise

__all__ = [
    "Engine",
    "Inline",
    "Outcome",
    "Processes",
    "RayCluster",
    "Slurm",
    "Summary",
    "SweepConfig",
    "drawer",
    "engine_named",
    "summarise",
    "sweep",
    "usable_cores",
    "write",
]
