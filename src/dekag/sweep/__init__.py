"""Transmission measured at scale: cells that any engine computes, resumed and summed up."""

from dekag.sweep.engines import Engine, Inline, Processes, RayCluster, Slurm, engine_named
from dekag.sweep.report import write
from dekag.sweep.results import Outcome
from dekag.sweep.run import SweepConfig, sweep
from dekag.sweep.summary import Summary, summarise

__all__ = [
    "Engine",
    "Inline",
    "Outcome",
    "Processes",
    "RayCluster",
    "Slurm",
    "Summary",
    "SweepConfig",
    "engine_named",
    "summarise",
    "sweep",
    "write",
]
