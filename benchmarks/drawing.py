"""Ways to draw a picture with the shipped edge: bare diffusers, with the update, merged, by ONNX Runtime."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dekag.alignment.generation.bundles import apply_generation
from dekag.engine.drawing import EngineChoice, with_engine
from dekag.generation.diffusers import DiffusersGenerator
from dekag.world import load_world

BATCHES = (1, 4)
Way = Callable[[], object]


def drawing_ways() -> tuple[dict[str, Way], dict[str, str]]:
    """Ways by name, and over which other one each is told. A bare call is that of diffusers, without an update."""
    world = load_world("emoji")
    edge, bundle = world.edge(), world.update("generation")
    choice = EngineChoice(name="onnxruntime", folder=Path(tempfile.mkdtemp(prefix="dekag-benchmark-")))
    merged, _ = apply_generation(edge, bundle, merge=True)
    few, _ = apply_generation(edge, bundle, few_steps=True, merge=True)
    # the update's own guidance and steps, so that a bare call does as much
    sampling = merged.sampling
    plain = replace(edge, sampling=sampling)
    # of a pipeline of its own, which stays adapted
    unmerged, _ = apply_generation(world.edge(), bundle)
    generators: dict[str, DiffusersGenerator] = {
        "the edge without an update": plain,
        "update unmerged": unmerged,
        "update merged": merged,
        "update by ONNX Runtime": with_engine(merged, choice),
        "4 steps, merged": few,
        "4 steps by ONNX Runtime": with_engine(few, choice),
    }
    ways: dict[str, Way] = {}
    under: dict[str, str] = {}
    for size in BATCHES:
        prompts = world.prompts("compositions")[:size]
        bare = f"bare diffusers, {_pictures(size)}"
        ways[bare] = _bare(edge.pipeline, prompts, sampling.steps, sampling.guidance)
        for name, generator in generators.items():
            ways[f"{name}, {_pictures(size)}"] = _drawn(generator, prompts)
            under[f"{name}, {_pictures(size)}"] = bare
        under[f"update merged over none, {_pictures(size)}"] = (
            f"the edge without an update, {_pictures(size)}"
        )
        ways[f"update merged over none, {_pictures(size)}"] = _drawn(merged, prompts)
    return ways, under


def _pictures(size: int) -> str:
    return "1 picture" if size == 1 else f"{size} pictures"


def _drawn(generator: DiffusersGenerator, prompts: list[str]) -> Way:
    seeds = list(range(len(prompts)))
    return lambda: generator.decode(generator(prompts, seeds=seeds))


def _bare(pipeline: Any, prompts: list[str], steps: int | None, guidance: float | None) -> Way:
    def call() -> object:
        rngs = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
        return pipeline(
            prompts, num_inference_steps=steps, guidance_scale=guidance, generator=rngs, output_type="pt"
        )

    return call
