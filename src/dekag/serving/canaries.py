"""Canaries for publishers: what an edge of a preset draws with an update, or receives through it."""

from collections.abc import Sequence
from pathlib import Path

import torch

from dekag import presets
from dekag.alignment.bundle import load_bundle
from dekag.alignment.updates import apply_generation, apply_transmission
from dekag.codec import load_codec
from dekag.presets import Preset
from dekag.registry import Canary
from dekag.serving.edge.selftest import FLOOR_DB, make_canary

FIRST_SEED = 9000
"""Far from the seeds that people begin with."""


def canary_of(
    chosen: Preset,
    bundle: Path | str,
    prompts: Sequence[str],
    *,
    floor_db: float = FLOOR_DB,
    device: str | torch.device = "cpu",
) -> Canary:
    """The canary of a bundle, drawn by the preset's edge on this machine.

    Raises InputError if the bundle is not sound or for another model, or a prompt cannot be a canary's.
    """
    edge, codec = presets.edge(chosen, device=device), None
    if load_bundle(bundle).manifest.kind == "generation":
        edge, _ = apply_generation(edge, bundle)
    else:
        base = load_codec(presets.folder(chosen.codec, "codec")).to(device)
        codec, _ = apply_transmission(base, bundle)
    seeds = [FIRST_SEED + number for number in range(len(prompts))]
    return make_canary(edge, codec, prompts, seeds=seeds, floor_db=floor_db)
