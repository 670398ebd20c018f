"""Where a training runs, what it keeps, and whom it tells."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from dekag.training.loop import Progress
from dekag.training.state import StateFile
from dekag.training.trackers import UNTRACKED as UNTRACKED
from dekag.training.trackers import Tracking as Tracking

OnStep = Callable[[str, Progress], None]
"""Called with the stage and its progress after each step."""
OnStage = Callable[[str], None]
"""Called with the name of each stage as it begins."""


def _quiet(*_: object) -> None:
    """Tell nobody."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is not part of a training's result.

    device: of this process. resume: folder that keeps the state of an interrupted run. inputs: what it depends on
    beside what each stage knows; a state of other inputs is refused. on_step, on_stage: callbacks.
    """

    device: str | torch.device = "cpu"
    resume: Path | None = None
    inputs: Mapping[str, object] = field(default_factory=dict)
    tracking: Tracking = field(default_factory=Tracking)
    on_step: OnStep = _quiet
    on_stage: OnStage = _quiet

    def state_file(self, name: str) -> StateFile | None:
        """File for the state of a stage; None if nothing is kept."""
        return None if self.resume is None else StateFile(path=self.resume / f"{name}.pt", inputs=self.inputs)


ALONE = Run()
"""On the CPU, with nothing kept and nobody told."""
