"""Canaries for publishers: what an edge of a world draws with an update, or receives through it."""

from collections.abc import Sequence
from pathlib import Path

import torch

from dekag.alignment.generation.bundles import apply_generation
from dekag.alignment.transmission.bundles import apply_transmission
from dekag.bundle.bundle import load_bundle
from dekag.registry import Canary
from dekag.serving.edge.selftest import FLOOR_DB, make_canary
from dekag.world import World

FIRST_SEED = 9000
"""Far from the seeds that people begin with."""


def canary_of(
    world: World,
    bundle: Path | str,
    prompts: Sequence[str],
    *,
    floor_db: float = FLOOR_DB,
    device: str | torch.device = "cpu",
) -> Canary:
    """The canary of a bundle, drawn by the world's edge on this machine.

    Raises InputError if the bundle is not sound or for another model, or a prompt cannot be a canary's.
    """
    edge, codec = world.edge(device=device), None
    if load_bundle(bundle).manifest.kind == "generation":
        edge, _ = apply_generation(edge, bundle, merge=True)
    else:
        codec, _ = apply_transmission(world.codec(device=device), bundle)
    seeds = [FIRST_SEED + number for number in range(len(prompts))]
    return make_canary(edge, codec, prompts, seeds=seeds, floor_db=floor_db)
