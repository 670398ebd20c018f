"""Latents of every concept in every composition, cached: the training set of the GAIs and of the codec."""

from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file
from torch import Tensor
from world import COMPOSITIONS, World, loosely, render


@torch.no_grad()
def encode_art(art: Tensor, vae: AutoencoderTiny) -> Tensor:
    """Scaled latents of RGBA drawings in every composition, fp16 [concepts, compositions, channels, rows, cols]."""
    rows = []
    for composition in COMPOSITIONS:
        images = render(art, [composition] * len(art))
        rows.append((vae.encode(images * 2 - 1).latents * vae.config.scaling_factor).half())
    return torch.stack(rows, dim=1)


def cached_latents(
    world: World, name: str, vae: AutoencoderTiny, runs: Path, *, loose: int | None = None
) -> Tensor:
    """Latents of one art set, kept in `runs`; the encoder is closed-form, so the cache never goes stale.

    loose: number of a variation in which the drawings are in other colours and sizes (`world.loosely`).
    """
    kind = name if loose is None else f"{name}-loose{loose}"
    path = runs / "latents" / f"{kind}-{len(world.concepts)}-{world.size}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        art = world.art(name)
        if loose is not None:
            art = loosely(art, torch.Generator().manual_seed(loose))
        part = path.with_suffix(".part")
        save_file({"latents": encode_art(art, vae)}, part)
        part.replace(path)
    return load_file(path)["latents"]
