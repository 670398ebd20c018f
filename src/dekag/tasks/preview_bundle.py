"""Pictures of what a bundle draws, as they are shown beside it."""

from collections.abc import Sequence
from pathlib import Path

import torch

from dekag.alignment.generation.bundles import apply_generation
from dekag.wire.png import png_bytes
from dekag.world.world import Model


def preview_bundle(
    base: Model,
    bundle: Path | str,
    prompts: Sequence[str],
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> dict[str, bytes]:
    """A picture of each prompt, as PNG, drawn with a bundle at the model that it was made for.

    Raises InputError if it was made for another one.
    """
    texts = list(dict.fromkeys(prompts))
    aligned, _ = apply_generation(base.load(device=device), bundle, merge=True)
    images = aligned.images(texts, seeds=[seed] * len(texts))
    return dict(zip(texts, png_bytes(images), strict=True))
