"""One resumable loop for one process or many, and the losses of diffusion."""

from typing import TYPE_CHECKING

from dekag.lazy import lazy

if TYPE_CHECKING:
    from dekag.training.diffusion import denoising_loss, noising
    from dekag.training.loop import Progress, TrainConfig, Trained, train
    from dekag.training.noise_process import Diffusion, Flow
    from dekag.training.processes import device_of, from_main, joined, process_count
    from dekag.training.run import ALONE, Run, Tracking
    from dekag.training.schedulers import check_scheduler
    from dekag.training.state import StateFile

__all__ = [
    "ALONE",
    "Diffusion",
    "Flow",
    "Progress",
    "Run",
    "StateFile",
    "Tracking",
    "TrainConfig",
    "Trained",
    "check_scheduler",
    "denoising_loss",
    "device_of",
    "from_main",
    "joined",
    "noising",
    "process_count",
    "train",
]

__getattr__, __dir__ = lazy(__name__)
