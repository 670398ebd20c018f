"""Ways to code a picture for the air: our codec with CALA, and a Swin transformer of the published size of SwinJSCC."""

from collections.abc import Callable

import torch
from transformers import SwinConfig, SwinModel

from dekag.alignment.transmission.bundles import apply_transmission
from dekag.channel import BlockFading, recover
from dekag.types import Condition
from dekag.world import load_world

Way = Callable[[], object]
SWIN = SwinConfig(
    image_size=64, patch_size=2, embed_dim=128, depths=[2, 2, 6, 2], num_heads=[4, 8, 16, 32], window_size=4
)
"""Depths and first width of SwinJSCC (Yang et al. 2024), whose decoder mirrors the encoder; windows that fit."""


def coding_ways() -> tuple[dict[str, Way], dict[str, str]]:
    """Ways by name, and over which other one each is told."""
    world = load_world("emoji")
    codec, _ = apply_transmission(world.codec(), world.update("transmission"))
    condition = Condition(uses=256, snr_db=5.0)
    latent = torch.randn(1, *codec.latent_shape, generator=torch.Generator().manual_seed(0))
    swin = SwinModel(SWIN).eval()
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def coded() -> object:
        received = BlockFading()(
            codec.encode(latent, condition), condition, rng=torch.Generator().manual_seed(1)
        )
        return recover(codec, received, condition).latent

    @torch.no_grad()
    def by_swin() -> object:
        return swin(picture), swin(picture)

    ours, theirs = (
        "codec with CALA, 1 picture through encoder, channel and decoder",
        "a Swin encoder and decoder, 64 x 64",
    )
    return {ours: coded, theirs: by_swin}, {ours: theirs}
