"""Both experiments as functions of objects: what `dekag evaluate` measures, for a notebook."""

from pathlib import Path

import torch

from dekag.tasks.compare import GenerationEvaluation, Report, evaluate
from dekag.tasks.sweep import Engine, Inline, Summary, SweepConfig, summarise, sweep
from dekag.training.run import ALONE, OnStage
from dekag.world import World


def evaluate_generation(
    world: World,
    evaluation: GenerationEvaluation | None = None,
    *,
    device: str | torch.device = "cpu",
    on_stage: OnStage = ALONE.on_stage,
) -> Report:
    """Consistency of a world's edge with its cloud, by method, on the world's reported splits.

    `evaluation` says how much is drawn and by which methods, the world's own update if None.
    Raises InputError for what the world lacks, before anything is drawn.
    """
    return evaluate(world, evaluation or GenerationEvaluation(), device=device, on_stage=on_stage)


def evaluate_transmission(
    config: SweepConfig, out: Path | str, engine: Engine | None = None, *, on_stage: OnStage = ALONE.on_stage
) -> Summary:
    """Every method over a grid of conditions, on what the world's edge draws.

    `out` keeps what is computed, so that an interrupted run goes on from there. `engine` says where cells are
    computed, in this process if None.
    Raises InputError for wrong input, before anything is computed as far as that can be told.
    """
    return summarise(sweep(config, Path(out), engine or Inline(), on_stage=on_stage))
