"""Prompts to latents to pictures: any text-to-image pipeline of diffusers as a cloud, some as an edge."""

from typing import TYPE_CHECKING

from dekag.lazy import lazy

if TYPE_CHECKING:
    from dekag.errors import PromptTruncatedWarning
    from dekag.generation.diffusers import DiffusersGenerator, Sampling, load_generator
    from dekag.generation.families import FAMILIES, Family, family_of
    from dekag.generation.loading import PipelineSource
    from dekag.generation.metaword import Metaword, prepare_metaword
    from dekag.generation.prompts import check_prompts

__all__ = [
    "FAMILIES",
    "DiffusersGenerator",
    "Family",
    "Metaword",
    "PipelineSource",
    "PromptTruncatedWarning",
    "Sampling",
    "check_prompts",
    "family_of",
    "load_generator",
    "prepare_metaword",
]

__getattr__, __dir__ = lazy(__name__)
