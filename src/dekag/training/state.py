"""The state of a training run: parameters, their moving average and the optimiser, and its checkpoint."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dekag.training.keys import Key, require_same
from dekag.training.precision import Precision
from dekag.types import InputError
from dekag.wire.files import replacing


@dataclass(frozen=True, kw_only=True)
class StateFile:
    """Where the state of a run is kept, and what the run depends on beside the numbers of its training.

    inputs: by name, as `training.keys.key_of` takes them. Without any, only what the state itself shows is compared.
    """

    path: Path
    inputs: Mapping[str, object] = field(default_factory=dict)

    def depending_on(self, **inputs: object) -> "StateFile":
        """The same file of a run that depends on these as well."""
        return replace(self, inputs={**self.inputs, **inputs})


def state_file(checkpoint: "Path | StateFile | None") -> StateFile | None:
    """A path as a StateFile without inputs."""
    return StateFile(path=checkpoint) if isinstance(checkpoint, Path) else checkpoint


@dataclass(kw_only=True)
class TrainingState:
    """All that a checkpoint holds."""

    run: dict[str, object]
    """What must not change when the run is resumed."""
    key: Key = field(default_factory=dict)
    """All that the run depends on, if it is known."""
    model: nn.Module
    parameters: dict[str, nn.Parameter]
    average: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    factors: tuple[float, ...]
    """Factor on the learning rate of each of the optimiser's groups."""
    precision: Precision | None = None
    """In which the run computes, once that is decided."""
    step: int = 0
    scores: list[tuple[int, float]] = field(default_factory=list)
    best: dict[str, Tensor] | None = None
    """The average of the highest score so far."""

    @property
    def top(self) -> tuple[int, float] | None:
        """Step and score of the best validation, the first of equals."""
        return max(self.scores, key=lambda score: score[1], default=None)

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """Move the average towards the parameters, of which a share of 1 - decay counts."""
        torch._foreach_lerp_(
            list(self.average.values()), [p.data for p in self.parameters.values()], weight=1.0 - decay
        )

    def add_score(self, score: float) -> None:
        """Note the score of the average as it is now, and keep the average if it is the best."""
        if self.top is None or score > self.top[1]:
            self.best = {name: mean.clone() for name, mean in self.average.items()}
        self.scores.append((self.step, score))

    def save(self, path: Path) -> None:
        """Write the checkpoint; until it is whole, the one before stays."""
        content = {
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "run": self.run,
            "key": self.key or None,
            "precision": self.precision,
            "scores": self.scores,
            "best": self.best,
        }
        with replacing(path) as part, part.open("wb") as file:
            torch.save(content, file)

    def load(self, path: Path) -> None:
        """Take everything from a checkpoint of the same run; raises InputError before anything changed."""
        content = _read(path)
        self._check(path, content)
        self.model.load_state_dict(content["model"])
        for name, value in self.average.items():
            value.copy_(content["average"][name])
        self.optimizer.load_state_dict(content["optimizer"])
        self.precision = content.get("precision")
        self.step = int(content["step"])
        self.scores = [(int(step), float(score)) for step, score in content.get("scores", ())]
        best = content.get("best")
        self.best = best and {name: best[name].to(mean.device) for name, mean in self.average.items()}

    def _check(self, path: Path, content: dict[str, Any]) -> None:
        # files of the first format do not tell: then there was one process and no accumulation
        was = content.get("run", {**self.run, "processes": 1, "accumulation": 1, "rate_factors": ()})
        for name, value in self.run.items():
            if was[name] != value:
                raise InputError(
                    f"{path} is of a run with {name} {was[name]}, this one has {value}: resume it as it was or "
                    "choose another checkpoint"
                )
        if self.key:
            require_same(path, content.get("key"), self.key)
        changed = content["average"].keys() ^ self.parameters.keys()
        if changed or list(content["average"]) != list(self.parameters):
            which = f"do not both train {min(changed)}" if changed else "order their parameters differently"
            raise InputError(f"{path} does not fit the model: they {which}")
        shapes = {name: value.shape for name, value in self.model.state_dict().items()}
        wrong = shapes.items() ^ {(name, value.shape) for name, value in content["model"].items()}
        if wrong:
            raise InputError(f"{path} does not fit the model: they differ in {min(wrong)[0]}")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:  # whatever an unpickler makes of damaged bytes
        raise InputError(
            f"{path} cannot be read as a checkpoint ({type(err).__name__}): delete it to start anew"
        ) from err
    if not isinstance(content, dict) or not {"step", "model", "average", "optimizer"} <= content.keys():
        raise InputError(f"{path} is not a checkpoint of a training run; choose another name")
    return content


@contextmanager
def swapped(parameters: dict[str, nn.Parameter], values: dict[str, Tensor]) -> Iterator[None]:
    """Let the parameters hold other values, and exactly their own again afterwards."""
    own = {name: p.detach().clone() for name, p in parameters.items()}
    copy_values(parameters, values)
    try:
        yield
    finally:
        copy_values(parameters, own)


@torch.no_grad()
def copy_values(parameters: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    """Set the parameters to the values of their names."""
    torch._foreach_copy_([p.data for p in parameters.values()], [values[name] for name in parameters])
