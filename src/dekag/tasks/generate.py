"""Drawing at the edge alone: every prompt of a file with every seed, to a folder of pictures."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dekag.data.prompts import read_prompts
from dekag.evaluation.generation import draw
from dekag.generation.diffusers import DiffusersGenerator
from dekag.training.run import OnStage
from dekag.wire.files import staged, write_json
from dekag.wire.png import write_images
from dekag.world import World
from dekag.world.shipped import shown


@dataclass(frozen=True, kw_only=True)
class GenerateTask:
    """Every prompt of a file with every seed, with the world's update or without."""

    prompts_file: Path
    seeds: Sequence[int]
    align: bool


def generate(
    world: World, task: GenerateTask, out: Path, *, device: str | torch.device, on_stage: OnStage
) -> dict[str, Any]:
    """Draw prompts at the world's edge into a folder; returns what index.json says."""
    prompts, seeds = read_prompts(task.prompts_file), task.seeds
    on_stage("load")
    bundle_id = None
    if task.align:
        generator, bundle = world.aligned_edge(device=device)
        bundle_id = bundle.id
    else:
        generator = world.drawing_edge(device=device)
    names = [f"{line:04d}_seed{seed}.png" for line in range(len(prompts)) for seed in seeds]
    index = {
        "world": world.name,
        "model": model_name(world),
        "bundle": bundle_id,
        "engine": generator.engine,
        "sampling": {k: v for k, v in asdict(generator.sampling).items() if k != "batch"},
        "images": [
            {"file": name, "prompt": prompts[i // len(seeds)], "seed": seeds[i % len(seeds)]}
            for i, name in enumerate(names)
        ],
    }
    with staged(out) as folder:
        on_stage("draw")
        write_images(folder, names, draw(generator, prompts, seeds))
        write_json(folder / "index.json", index)
    return index


def model_name(world: World) -> str:
    """The world's edge as an index tells it."""
    source = world.edge_model.source
    return "a pipeline in memory" if isinstance(source, DiffusersGenerator) else shown(source)
