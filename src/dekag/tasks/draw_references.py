"""The cloud's reference drawings as a file, which spares every later evaluation the drawing."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dekag.evaluation.generation import CEILING_SEED
from dekag.tasks.compare import Drawing
from dekag.training.keys import digest_of
from dekag.training.run import OnStage
from dekag.types import InputError
from dekag.world import World
from dekag.world.drawings import write_drawings
from dekag.world.world import Model


@dataclass(frozen=True, kw_only=True)
class ReferencesTask:
    """Prompts of each reported split, drawings of each, and the first seed."""

    prompts: int = 48
    seeds: int = 2
    seed: int = 0


def draw_references(
    world: World, task: ReferencesTask, out: Path, *, device: str | torch.device, on_stage: OnStage
) -> int:
    """Draw what `demo` and `evaluate generation` compare with; returns the number of pictures.

    Raises InputError if the world's cloud is no model.
    """
    if not isinstance(world.cloud_model, Model):
        raise InputError(f"the world {world.name} has no model of a cloud that could draw")
    seeds = Drawing(seeds=task.seeds, seed=task.seed).at_cloud
    both = [*seeds, *(CEILING_SEED + seed for seed in seeds)]
    wanted = [(text, seed) for text in _texts(world, task.prompts) for seed in both]
    on_stage(f"cloud draws {len(wanted)} pictures")
    write_drawings(out, world.cloud(device=device), digest_of(world.cloud_model.key()), wanted)
    return len(wanted)


def _texts(world: World, prompts: int) -> Sequence[str]:
    return [text for own in world.reported_prompts(prompts).values() for text in own]
