"""Named, complete configurations as plain functions, and systems loaded from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from dekag.alignment.updates import apply_generation, apply_transmission
from dekag.codec import load_codec
from dekag.generation.diffusers import DiffusersGenerator, Sampling, load_generator
from dekag.link import Link, deliver
from dekag.types import Condition, Delivery, InputError
from dekag.zoo import locate


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to draw at the edge.

    bundles: one for each training seed; none is the edge without KA. words: what a person would add to the
    prompt instead. few_steps: with the bundle's update for fewer steps.
    """

    bundles: tuple[str, ...] = ()
    words: str = ""
    few_steps: bool = False


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Names of everything a system is made of; a name is one of the zoo's, a directory, or a hub id."""

    cloud: str
    edge: str
    codec: str
    makd: str
    cala: str
    dino: str
    clip: str
    world: str
    rivals: Mapping[str, Arm] = field(default_factory=dict)
    """Other ways to draw at the edge, to compare MAKD with; of several training seeds each."""
    makd_seeds: tuple[str, ...] = ()
    """MAKD of further training seeds, to compare with."""
    domains: Mapping[str, str] = field(default_factory=dict)
    """Bundles that were distilled on one group of prompts alone."""
    sampling: Sampling
    pixels: int
    """Side of the pictures."""
    nominal: Condition
    """The condition that the codec was trained at."""


def emoji() -> Preset:
    """The miniature that ships in the package: 64 x 64 pictures, 8 x 8 x 32 latents."""
    return Preset(
        cloud="emoji/cloud",
        edge="emoji/edge",
        codec="emoji/codec",
        makd="emoji/makd",
        cala="emoji/cala",
        dino="emoji/mini-dino",
        clip="emoji/mini-clip",
        world="emoji",
        makd_seeds=tuple(f"emoji/rivals/makd-{seed}" for seed in (1, 2)),
        rivals={
            "words": Arm(words=", 3d"),
            **{
                method: Arm(bundles=tuple(f"emoji/rivals/{method}-{seed}" for seed in (0, 1, 2)))
                for method in ("textual_inversion", "lora", "dreambooth", "lokr")
            },
            "makd_few_steps": Arm(bundles=("emoji/makd",), few_steps=True),
        },
        domains={name: f"emoji/{name}" for name in ("food", "animals", "faces")},
        sampling=Sampling(steps=12, guidance=3.0),
        pixels=64,
        nominal=Condition(uses=512, snr_db=10.0),
    )


PRESETS = {"emoji": emoji}


@dataclass(frozen=True, kw_only=True)
class System:
    """An edge with its link to the user, ready to deliver."""

    link: Link

    def deliver(
        self,
        prompts: Sequence[str],
        condition: Condition,
        *,
        seeds: Sequence[int] | None = None,
        channel_seed: int = 0,
    ) -> Delivery:
        """Draw each prompt at the edge and send it to the user; `seeds`, one each, count from 0 if left out.

        Raises InputError for unusable prompts, seeds or conditions.
        """
        drawn = list(range(len(prompts))) if seeds is None else list(seeds)
        rng = torch.Generator().manual_seed(channel_seed)
        return deliver(self.link, prompts, condition, seeds=drawn, rng=rng)


def preset(name: str) -> Preset:
    """The preset of that name; InputError lists the known ones."""
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}; known are {', '.join(PRESETS)}")
    return PRESETS[name]()


def load(name: str = "emoji", *, align: bool = True, device: str = "cpu") -> System:
    """The system of a preset, with both alignments or with none."""
    return build(preset(name), align=align, device=device)


def build(chosen: Preset, *, align: bool = True, device: str = "cpu") -> System:
    """As `load`, for a preset of one's own."""
    generator = edge(chosen, device=device)
    codec = load_codec(folder(chosen.codec, "codec")).to(device)
    if not align:
        return System(link=Link(generator=generator, codec=codec))
    generator, g_bundle = apply_generation(generator, locate(chosen.makd, "bundle"))
    adapted, t_bundle = apply_transmission(codec, locate(chosen.cala, "bundle"))
    bundles = {"generation": g_bundle.id, "transmission": t_bundle.id}
    return System(link=Link(generator=generator, codec=adapted, bundles=bundles))


def folder(source: str, kind: str) -> Path:
    """Directory of a shipped or local model that is no pipeline."""
    return Path(locate(source, kind))


def cloud(chosen: Preset, *, device: str = "cpu") -> DiffusersGenerator:
    """The preset's cloud-GAI."""
    return load_generator(locate(chosen.cloud, "pipeline"), sampling=chosen.sampling, device=device)


def edge(chosen: Preset, *, device: str = "cpu") -> DiffusersGenerator:
    """The preset's edge-GAI, without an update."""
    return load_generator(locate(chosen.edge, "pipeline"), sampling=chosen.sampling, device=device)
