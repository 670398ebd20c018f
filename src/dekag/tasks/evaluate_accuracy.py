"""Concept accuracy of a world's edge: how often an image is nearest to the prompt that it was drawn from."""

from dataclasses import dataclass
from pathlib import Path

import torch

from dekag.evaluation.accuracy import score_accuracy
from dekag.evaluation.figures import contact_sheet, save_figure
from dekag.evaluation.generation import EDGE_SEED, draw
from dekag.evaluation.judges import ClipJudge
from dekag.evaluation.statistics import Mean
from dekag.training.run import OnStage
from dekag.types import InputError
from dekag.world import World


@dataclass(frozen=True, kw_only=True)
class AccuracyTask:
    """So many prompts of the world's split `accuracy`, and a contact sheet to write, if any."""

    prompts: int = 113
    sheet: Path | None = None
    seed: int = 0


def evaluate_accuracy(
    world: World, task: AccuracyTask, *, device: str | torch.device, on_stage: OnStage
) -> Mean:
    """Concept accuracy of a world's edge on training concepts with new seeds, under its judge that reads."""
    texts = world.prompts("accuracy")[: task.prompts]
    if len(texts) < task.prompts:
        raise InputError(
            f"the world {world.name} has {len(texts)} prompts for accuracy, {task.prompts} were asked for"
        )
    readers = [judge for judge in world.judges(device=device).values() if isinstance(judge, ClipJudge)]
    if not readers:
        raise InputError(f"accuracy needs a judge that reads, as CLIP; the world {world.name} has none")
    on_stage("draw")
    images = draw(world.edge(device=device), texts, [EDGE_SEED + task.seed])
    if task.sheet is not None:
        save_figure(contact_sheet(images[:64], texts[:64]), task.sheet)
    return score_accuracy(readers[0], images, texts, seeds=1, seed=task.seed)
