"""What an edge is distilled from: prompts and the cloud's images, from wherever they come."""

import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from dekag.data.bought import EndpointCloud
from dekag.data.endpoint import ImageEndpoint
from dekag.data.entries import Faults
from dekag.data.images import CloudImages, Pictures, StoredSource, read_dataset
from dekag.data.pictures import PictureSet
from dekag.data.prompts import read_prompts
from dekag.generation.diffusers import DiffusersGenerator, blanked
from dekag.tasks.blanked import has_safety_checker, without_blanked
from dekag.training.kept import kept_rows
from dekag.training.keys import digest_of
from dekag.training.processes import from_main
from dekag.training.run import Run
from dekag.types import Image, InputError, SkippedWarning
from dekag.wire.files import write_json
from dekag.wire.rows import scratch
from dekag.world import Cloud, Model, World

DISTIL_SEEDS = 100_000
"""Cloud seeds of distillation start here, far from those of any evaluation."""
VALIDATION_SHARE = 10
"""One in so many prompts of images from elsewhere is kept from training, to choose settings with."""
MOST_HELD_BACK = 256
"""Of more prompts than these the others are trained on: choosing settings takes no more."""
DRAWN_AT_ONCE = 64
"""Images that a cloud draws before they are written."""
ENOUGH_PROMPTS = 20
"""Images of fewer prompts are all trained on."""


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """Where prompts and the cloud's images come from: the world, unless a folder or an endpoint is named.

    prompts_file: one prompt a line. domain: one of the world's groups of prompts. draws: images of each prompt, from
    seeds of their own. folder: images and their prompts; with an endpoint, where its images are kept. seed: of a
    model's drawings. What an endpoint is asked for follows from prompt and draw alone, as it costs money.
    skip_broken: leave out, and tell of, what of a folder cannot be used.
    """

    prompts_file: Path | None = None
    domain: str | None = None
    draws: int = 1
    folder: Path | None = None
    endpoint: ImageEndpoint | None = None
    seed: int = 0
    skip_broken: bool = False

    def __post_init__(self) -> None:
        if self.prompts_file is not None and self.domain is not None:
            raise InputError("give the prompts as a file or as a domain of the world, not as both")
        if self.endpoint is not None and self.folder is None:
            raise InputError("an endpoint's images need a folder that keeps them")
        if self.endpoint is None and self.folder is not None and (self.prompts_file or self.domain):
            raise InputError("a folder of images brings its own prompts; leave out the file and the domain")

    @property
    def elsewhere(self) -> bool:
        """Whether the images are not the world's own."""
        return self.folder is not None or self.endpoint is not None

    def prompts(self, world: World) -> list[str]:
        """The prompts, each as often as it is drawn."""
        if self.prompts_file is not None:
            return read_prompts(self.prompts_file) * self.draws
        split = "distill" if self.domain is None else f"distill:{self.domain}"
        return world.prompts(split) * self.draws


@dataclass(frozen=True, kw_only=True)
class Material:
    """Images to train on, and those to choose settings with; `held_back` is None where the world has prompts for that.

    drawn_by_cloud: whether the world's own model of a cloud drew them. elsewhere: whether they are not the world's own;
    then no cloud of the world is asked for any.
    """

    train: CloudImages
    held_back: CloudImages | None = None
    drawn_by_cloud: bool = False
    elsewhere: bool = False


def material(world: World, source: ImageSource, run: Run) -> Material:
    """Prompts of distillation and the cloud's images, kept in `run.resume` if a model had to draw them.

    Of several processes the main one reads or draws them for all. Of images from elsewhere one prompt in
    VALIDATION_SHARE, chosen by a digest of its text, is held back.
    """
    return from_main(partial(_material, world, source, run))


def _material(world: World, source: ImageSource, run: Run) -> Material:
    if source.elsewhere:
        return held_back(_from_elsewhere(world, source, run))
    reference = world.reference(device=run.device)
    if isinstance(reference, PictureSet):
        run.on_stage("read images")
        return Material(train=reference.all_of(source.prompts(world)))
    prompts = source.prompts(world)
    if isinstance(reference, EndpointCloud):
        return Material(train=_bought(reference, prompts, world, run))
    seeds = [DISTIL_SEEDS + 10_000 * source.seed + i for i in range(len(prompts))]
    run.on_stage(f"cloud draws {len(prompts)} images")
    drawn = cloud_images(world, reference, prompts, seeds, cache=(run.resume, "cloud"))
    return Material(train=drawn, drawn_by_cloud=isinstance(world.cloud_model, Model))


def cloud_images(
    world: World, cloud: Cloud, prompts: Sequence[str], seeds: Sequence[int], cache: tuple[Path | None, str]
) -> CloudImages:
    """What the world's cloud draws, as large as the edge's pictures and with 8 bits a channel, as a file has it.

    cache: a folder that keeps them, and a name in it. What its safety checker blanked is left out, as
    `tasks.blanked.without_blanked` says.
    """
    draw = cloud.checked_images if isinstance(cloud, DiffusersGenerator) else cloud.images

    def inputs() -> dict[str, object]:
        model, edge = world.cloud_model, world.edge_model
        return {
            "prompts": prompts,
            "seeds": seeds,
            "cloud": model.key() if isinstance(model, Model) else cloud,
            # the side is the edge's own where the world does not say it
            "side": edge.key() if world.pixels is None else world.pixels,
            # an earlier version kept what a safety checker blanked
            **({"blanked": "left out"} if has_safety_checker(cloud) else {}),
        }

    folder, name = cache
    beside = (scratch() if folder is None else folder) / f"{name}.blanked.json"

    def drawn() -> Iterator[Tensor]:
        blank: list[int] = []
        for at in range(0, len(prompts), DRAWN_AT_ONCE):
            part = slice(at, at + DRAWN_AT_ONCE)
            images = draw(prompts[part], seeds=seeds[part])
            blank += [at + place for place in blanked(images)]
            yield (fitted(images.nan_to_num(), world.side) * 255).round().to(torch.uint8)
        write_json(beside, blank)

    path = kept_rows(folder, name, len(prompts), drawn, inputs)
    source = StoredSource(path=path, name=name, digest=digest_of(inputs()))
    images = Pictures(source=source, rows=torch.arange(len(prompts)))
    blank = json.loads(beside.read_bytes())
    return without_blanked(prompts, images, blank)


def _from_elsewhere(world: World, source: ImageSource, run: Run) -> CloudImages:
    assert source.folder is not None
    if source.endpoint is None:
        run.on_stage("open images")
        faults = Faults(skip=source.skip_broken)
        data = read_dataset(source.folder, pixels=world.side, faults=faults)
        tell_skipped(source.folder, faults)
        return data
    cloud = EndpointCloud(endpoint=source.endpoint, folder=source.folder)
    return _bought(cloud, source.prompts(world), world, run)


def tell_skipped(place: Path, faults: Faults) -> None:
    """Warn of what was left out."""
    if faults.count:
        text = f"{place}: {faults.count} entries were left out: {'; '.join(faults.lines)}"
        warnings.warn(text, SkippedWarning, stacklevel=2)


def kept_by(cloud: EndpointCloud, run: Run) -> EndpointCloud:
    """The endpoint with a folder for its pictures: its own, or one of the run."""
    return cloud if cloud.folder is not None else replace(cloud, folder=(run.resume or scratch()) / "images")


def _bought(cloud: EndpointCloud, prompts: Sequence[str], world: World, run: Run) -> CloudImages:
    """What an endpoint draws, and has drawn; an endpoint that no folder belongs to keeps it where the run does."""
    cloud = kept_by(cloud, run)
    run.on_stage(f"the endpoint draws {cloud.to_buy(prompts)} of {len(prompts)} images")
    return cloud.pictures(prompts, pixels=world.side)


def held_back(data: CloudImages) -> Material:
    """Images of some prompts apart from the others, by a digest of the text; none if the prompts are few."""
    if not holds_back(data.prompts):
        return Material(train=data, elsewhere=True)
    held = _held_back(data.prompts)
    return Material(train=data.subset(~held), held_back=data.subset(held), elsewhere=True)


def _held_back(prompts: Sequence[str]) -> Bool[Tensor, " prompts"]:
    """The pairs of the prompts that are kept from training, of the MOST_HELD_BACK with the smallest digests."""
    texts = [text for text in dict.fromkeys(prompts) if is_held_back(text)]
    kept = set(sorted(texts, key=_digest)[:MOST_HELD_BACK])
    return torch.tensor([prompt in kept for prompt in prompts])


def holds_back(prompts: Sequence[str]) -> bool:
    """Whether any of some prompts are kept from training."""
    return len(set(prompts)) >= ENOUGH_PROMPTS and any(map(is_held_back, prompts))


def is_held_back(prompt: str) -> bool:
    """Whether a prompt may be kept from training, whatever the others are."""
    return _digest(prompt) % VALIDATION_SHARE == 0


def _digest(prompt: str) -> int:
    return int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big")


def fitted(images: Image, pixels: int) -> Image:
    """Images at the side of the edge's pictures, bicubic and antialiased."""
    if images.shape[2:] == (pixels, pixels):
        return images
    return F.interpolate(images, size=(pixels, pixels), mode="bicubic", antialias=True).clamp(0, 1)
