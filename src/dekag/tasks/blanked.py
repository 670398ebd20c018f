"""Pictures that the safety checker of a cloud blanked: they are named and left out, black pictures teach nothing."""

import warnings
from collections.abc import Sequence

from dekag.data.images import CloudImages, Images, subset
from dekag.errors import InputError, SafetyWarning
from dekag.generation.diffusers import named_prompts


def has_safety_checker(cloud: object) -> bool:
    """Whether a cloud's pipeline has a safety checker of its own."""
    return getattr(getattr(cloud, "pipeline", None), "safety_checker", None) is not None


def without_blanked(prompts: Sequence[str], images: Images, blank: Sequence[int]) -> CloudImages:
    """The pictures of a cloud but those at the places that were blanked, which a warning names.

    Raises InputError if none is left.
    """
    if not blank:
        return CloudImages(prompts=tuple(prompts), images=images)
    said = f"the safety checker of the cloud blanked {named_prompts(prompts, blank)}"
    if len(blank) == len(prompts):
        raise InputError(f"{said}; nothing is left, give other prompts")
    warnings.warn(f"{said}; they are left out", SafetyWarning, stacklevel=3)
    kept = [place for place in range(len(prompts)) if place not in set(blank)]
    return CloudImages(prompts=tuple(prompts[place] for place in kept), images=subset(images, kept))
