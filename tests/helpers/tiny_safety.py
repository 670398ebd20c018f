"""The safety checker of Stable Diffusion with random weights, which flags the pictures that it is told to."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from tiny_pipelines import build, stable_diffusion
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor

from dekag.generation.diffusers import DiffusersGenerator, Sampling
from dekag.types import Image

SIDE = 32
"""Of what the checker sees."""
NEVER, WIDTH = 2.0, 32
"""No cosine is as large."""


@cache
def checked_pipeline() -> Any:
    """Stable Diffusion with a checker that flags what `flag` was called with last."""
    pipeline = build(stable_diffusion)
    sizes = {
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": 8,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=sizes, projection_dim=WIDTH)).eval()
    checker.special_care_embeds_weights.fill_(NEVER)
    seen: dict[str, Any] = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    pipeline.register_modules(safety_checker=checker, feature_extractor=CLIPImageProcessor(**seen))
    pipeline.register_to_config(requires_safety_checker=True)
    return pipeline


def flag(pipeline: Any, pictures: Image, flagged: Sequence[int]) -> None:
    """Have the checker flag some pictures of all: a concept for each, to which all the others are orthogonal."""
    embeddings = _embeddings(pipeline, pictures)
    checker = pipeline.safety_checker
    checker.concept_embeds_weights.fill_(NEVER)
    for concept, place in enumerate(flagged):
        others = embeddings[[other for other in range(len(embeddings)) if other != place]]
        own = embeddings[place] - torch.linalg.pinv(others) @ others @ embeddings[place]
        checker.concept_embeds[concept] = own
        checker.concept_embeds_weights[concept] = own.norm() / embeddings[place].norm() / 2


@torch.no_grad()
def _embeddings(pipeline: Any, pictures: Image) -> Tensor:
    shown = pipeline.numpy_to_pil(pictures.permute(0, 2, 3, 1).numpy())
    seen = pipeline.feature_extractor(shown, return_tensors="pt").pixel_values
    checker = pipeline.safety_checker
    embeddings: Tensor = checker.visual_projection(checker.vision_model(seen)[1])
    return embeddings


def unchecked(pipeline: Any) -> Any:
    """The same pipeline without its checker."""
    parts = {**pipeline.components, "safety_checker": None}
    bare = type(pipeline)(**parts, requires_safety_checker=False)
    bare.set_progress_bar_config(disable=True)
    return bare


def cloud_that_blanks(
    prompts: Sequence[str], seeds: Sequence[int], flagged: Sequence[int]
) -> DiffusersGenerator:
    """A cloud whose checker blanks some of what it draws for prompts with seeds."""
    cloud = DiffusersGenerator(pipeline=checked_pipeline(), sampling=Sampling(steps=2, guidance=2.0))
    bare = replace(cloud, pipeline=unchecked(cloud.pipeline))
    flag(cloud.pipeline, bare.images(prompts, seeds=seeds), flagged)
    return cloud
