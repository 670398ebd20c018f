"""The families of diffusers pipelines that can be an edge-GAI, one file each."""

from typing import Any

from diffusers.loaders import PeftAdapterMixin

from dekag.generation.families.family import Conditioning, Family
from dekag.generation.families.flux2 import Flux2Klein
from dekag.generation.families.pixart import PixArtSigma
from dekag.generation.families.prx import PRX
from dekag.generation.families.stable_diffusion import StableDiffusion
from dekag.generation.families.stable_diffusion_3 import StableDiffusion3
from dekag.generation.families.stable_diffusion_xl import StableDiffusionXL
from dekag.types import InputError

__all__ = [
    "FAMILIES",
    "PRX",
    "Conditioning",
    "Family",
    "Flux2Klein",
    "PixArtSigma",
    "StableDiffusion",
    "StableDiffusion3",
    "StableDiffusionXL",
    "family_of",
    "known_family",
    "make_adaptable",
]

FAMILIES: dict[str, Family] = {
    "StableDiffusionPipeline": StableDiffusion(),
    "StableDiffusionXLPipeline": StableDiffusionXL(),
    "PRXPipeline": PRX(),
    "Flux2KleinPipeline": Flux2Klein(),
    "StableDiffusion3Pipeline": StableDiffusion3(),
    "PixArtSigmaPipeline": PixArtSigma(),
}
"""Family of each pipeline class that can be an edge."""


def known_family(pipeline: Any) -> Family | None:
    """The family of a pipeline, or None for one that can be a cloud only."""
    family = FAMILIES.get(type(pipeline).__name__)
    return None if family is None else family.fitted(pipeline)


def family_of(pipeline: Any) -> Family:
    """The family of a pipeline; InputError lists the known ones."""
    family = known_family(pipeline)
    if family is None:
        raise InputError(
            f"{type(pipeline).__name__} is not known as an edge, only as a cloud; known edges are"
            f" {', '.join(FAMILIES)}"
        )
    return family


def make_adaptable(pipeline: Any) -> None:
    """Give an edge's denoiser diffusers' methods for low-rank updates, which the class of PRX lacks."""
    family = known_family(pipeline)
    if family is None:
        return
    denoiser = getattr(pipeline, family.denoiser)
    original = type(denoiser)
    if not issubclass(original, PeftAdapterMixin):
        # of the same name, so that it is saved as what it is
        denoiser.__class__ = type(
            original.__name__, (original, PeftAdapterMixin), {"__module__": original.__module__}
        )
