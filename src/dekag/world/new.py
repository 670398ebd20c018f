"""Make a world of one's own parts, and say what a world has and lacks."""

import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dekag.data.entries import Entry, Faults
from dekag.data.folder import METADATA
from dekag.data.images import Files, find_pictures, why
from dekag.data.picture import picture_kind
from dekag.data.prompts import read_prompts
from dekag.errors import InputError
from dekag.generation.diffusers import Sampling
from dekag.generation.loading import PipelineSource, load_pipeline
from dekag.wire.files import staged, write_json
from dekag.wire.places import check_new_folder
from dekag.world import hub
from dekag.world.entry import (
    HUB,
    EndpointEntry,
    ModelEntry,
    NominalEntry,
    WorldEntry,
    check_sources,
)
from dekag.world.file import load_world, write_entry
from dekag.world.shipped import WEIGHTS, locate, shown
from dekag.world.world import Model, World

HELD_OUT_SHARE = 0.1
"""Of the prompts, for validation and for reporting each."""
FEWEST = 2
"""Prompts of each of these at least."""
MOST_USES = 4096
"""Channel uses at most, where nobody says how many."""
LACKS = ("cloud", "ceiling", "prompts", "judges", "codec", "generation", "transmission")
"""What a world may lack; a ceiling is what a cloud draws anew, which pictures alone do not."""
SPLITS = ("distill", "validation", "heldout")


@dataclass(frozen=True, kw_only=True)
class NewWorld:
    """What a world is to be made of: an edge, and what it is aligned with, if anything.

    name: the folder's if empty. edge, cloud: a diffusers folder, a hub id, a single file of weights, or a shipped
    model; variant, pipeline_config: theirs, as those of `generation.PipelineSource`. sampling, pixels: of the edge;
    cloud_sampling, cloud_pixels: of a cloud that is a model. images: folder of the
    cloud's pictures with their prompts, in place of a cloud. endpoint: an image API in place of a cloud, which draws
    `endpoint_model` at `endpoint_size`. prompts_file: one prompt a line; a folder of images brings its own.
    Raises InputError if two clouds are given, or no prompts.
    """

    edge: str
    name: str = ""
    cloud: str | None = None
    images: Path | None = None
    endpoint: str | None = None
    endpoint_model: str = ""
    endpoint_size: str = "512x512"
    prompts_file: Path | None = None
    sampling: Sampling = field(default_factory=Sampling)
    pixels: int | None = None
    cloud_sampling: Sampling = field(default_factory=Sampling)
    cloud_pixels: int | None = None
    licence: str = ""
    variant: str | None = None
    pipeline_config: str | None = None

    def __post_init__(self) -> None:
        check_sources(self.cloud, self.images, self.endpoint, prompts_file=self.prompts_file)


def new_world(out: Path, made_of: NewWorld) -> World:
    """Write a world into a new folder: its parts are copied into it, so that it can be moved; a hub id stays one.

    The edge is loaded once, to see what its pictures and latents are. Prompts are split by a digest of their texts.
    Raises InputError for what cannot be used; then nothing is written.
    """
    check_new_folder(out)
    pictures = None if made_of.images is None else find_pictures(made_of.images, Faults())
    prompts = _captions(pictures) if pictures else read_prompts(made_of.prompts_file or Path())
    splits = split_prompts(prompts)
    edge = Model(
        source=made_of.edge,
        sampling=made_of.sampling,
        pixels=made_of.pixels,
        variant=made_of.variant,
        pipeline_config=made_of.pipeline_config,
    ).load()
    _ = edge.family  # raises InputError for a pipeline that no update can be trained for
    with staged(out) as folder:
        entry = WorldEntry(
            format=1,
            name=made_of.name or out.absolute().name,
            licence=made_of.licence,
            pixels=edge.side,
            latents=edge.latent_shape,
            edge=_entry(made_of.edge, folder / "edge", made_of),
            cloud=_cloud_entry(made_of, folder),
            images=_copy_pictures(*pictures, folder) if pictures else None,
            prompts="prompts.json",
            nominal=NominalEntry(uses=usual_uses(edge.latent_shape)),
        )
        write_json(folder / "prompts.json", splits)
        write_entry(folder, entry)
    return load_world(out)


def usual_uses(latents: tuple[int, int, int]) -> int:
    """Channel uses of an image at the highest rate: a quarter of the latent's numbers, as in the world that ships."""
    return max(2, min(MOST_USES, math.prod(latents) // 4))


def split_prompts(prompts: Sequence[str]) -> dict[str, list[str]]:
    """Prompts to distil, to validate with and to report, each text in one split and in the order given.

    The texts of the smallest digests are held out, the next ones are for validation, so that nobody chooses them.
    Raises InputError if there are too few.
    """
    texts = list(dict.fromkeys(prompts))
    held = max(FEWEST, round(HELD_OUT_SHARE * len(texts)))
    if len(texts) < 3 * FEWEST:
        raise InputError(
            f"{len(texts)} different prompts are too few to split: give at least {3 * FEWEST}, better hundreds"
        )
    ranked = sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())
    role = dict.fromkeys(ranked[:held], "heldout") | dict.fromkeys(ranked[held : 2 * held], "validation")
    return {split: [text for text in texts if role.get(text, "distill") == split] for split in SPLITS}


def describe_world(world: World) -> dict[str, Any]:
    """What a world has and lacks, as JSON values."""
    return {
        "world": world.name,
        "folder": None if world.folder is None or world.folder.is_relative_to(WEIGHTS) else str(world.folder),
        "licence": world.licence,
        "pixels": world.pixels,
        "latents": None if world.latents is None else list(world.latents),
        "edge": _model_text(world.edge_model),
        "cloud": _cloud_text(world),
        "codec": _source_text(world.codec_model),
        "updates": {kind: shown(source) for kind, source in world.updates.items()},
        "judges": {name: _source_text(source) for name, source in world.judge_models.items()},
        "prompts": {split: len(texts) for split, texts in world.splits.items()},
        "reported": list(world.reported),
        "methods": list(world.methods),
        "lacks": lacks(world),
    }


def lacks(world: World) -> list[str]:
    """The parts that a world lacks: any of LACKS."""
    has = {
        "cloud": world.has_cloud or world.images is not None,
        "ceiling": world.has_cloud or world.images is None,
        "prompts": bool(world.splits),
        "judges": bool(world.judge_models),
        "codec": world.codec_model is not None,
        "generation": "generation" in world.updates,
        "transmission": "transmission" in world.updates,
    }
    return [part for part in LACKS if not has[part]]


def _entry(source: str, target: Path, made_of: NewWorld, *, is_edge: bool = True) -> ModelEntry:
    """A pipeline copied into the world, or its hub id at a commit."""
    place = locate(source, "pipeline")
    sampling = made_of.sampling if is_edge else made_of.cloud_sampling
    options: dict[str, Any] = {
        "steps": sampling.steps,
        "guidance": sampling.guidance,
        "batch": sampling.batch,
        "pixels": made_of.pixels if is_edge else made_of.cloud_pixels,
        "variant": made_of.variant,
    }
    if not isinstance(place, Path):
        return ModelEntry(source=f"{HUB}{place}", revision=hub.revision(place), **options)
    if place.is_file():
        # a world holds folders, which need nothing else to be loaded
        origin = PipelineSource(source=place, pipeline_config=made_of.pipeline_config)
        load_pipeline(origin).save_pretrained(target)
    else:
        # what a hub's cache holds are links; here are files
        shutil.copytree(place, target)
    return ModelEntry(source=target.name, **options)


def _cloud_entry(made_of: NewWorld, folder: Path) -> ModelEntry | EndpointEntry | None:
    if made_of.endpoint is not None:
        return EndpointEntry(
            endpoint=made_of.endpoint, model=made_of.endpoint_model, size=made_of.endpoint_size
        )
    return None if made_of.cloud is None else _entry(made_of.cloud, folder / "cloud", made_of, is_edge=False)


def _captions(pictures: tuple[Files, Sequence[Entry]]) -> list[str]:
    return [caption for entry in pictures[1] for caption in entry.captions]


def _copy_pictures(files: Files, entries: Sequence[Entry], folder: Path) -> str:
    """The pictures by number, with a metadata.jsonl."""
    target = folder / "images"
    target.mkdir()
    lines = []
    for number, entry in enumerate(entries):
        try:
            raw = files.read(number)
            name = f"{number:06d}.{picture_kind(raw)}"
        except (InputError, OSError) as error:
            raise InputError(f"{files.name(number)} {why(error)}") from error
        (target / name).write_bytes(raw)
        row = {"file_name": name, "text": entry.captions[0] if len(entry.captions) == 1 else entry.captions}
        lines.append(json.dumps(row, ensure_ascii=False))
    (target / METADATA).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return target.name


def _model_text(model: Model) -> str:
    steps, guidance = model.sampling.steps, model.sampling.guidance
    drawn = [f"{steps} steps" if steps else "", f"guidance {guidance:g}" if guidance is not None else ""]
    return ", ".join(filter(None, [_source_text(model.source) or "", *drawn, model.licence]))


def _cloud_text(world: World) -> str | None:
    if isinstance(world.cloud_model, Model):
        return _model_text(world.cloud_model)
    if world.cloud_model is not None:
        return f"{world.cloud_model.model} at {world.cloud_model.base_url}"
    return None if world.images is None else f"pictures in {world.images}"


def _source_text(source: object) -> str | None:
    """A part as it is told: its source, or that it is in memory."""
    if source is None:
        return None
    return shown(source) if isinstance(source, str | Path) else f"a {type(source).__name__} in memory"
