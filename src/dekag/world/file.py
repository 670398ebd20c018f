"""A world as a folder: `world.json`, and what it names beside it.

```
world.json     what this module reads          prompts.json    {split: [prompts]}
edge/ cloud/   pipelines of diffusers          images/         pictures with their prompts
codec/         the codec                       judges/NAME/    an image encoder each
generation/ transmission/                      the update of each kind
```
What world.json does not name is looked for in these places, so that what is trained into the folder belongs to it.
The file may come from a stranger. Every path in it stays within the folder, nothing there is a link, a model of a hub
is written `hub:OWNER/NAME`, and no code is ever loaded. What is wrong is said in one line before anything is loaded.
"""

import json
from pathlib import Path

from dekag.data.endpoint import ImageEndpoint
from dekag.generation.diffusers import Sampling
from dekag.types import Condition, InputError
from dekag.wire.files import write_bytes
from dekag.world.entry import (
    FORMAT,
    MAX_FILE_BYTES,
    EndpointEntry,
    MethodEntry,
    ModelEntry,
    Places,
    WorldEntry,
    find_world,
    read_entry,
    read_small,
)
from dekag.world.shipped import KIND_FILES, WORLD_FILE
from dekag.world.world import UPDATE_NAMES, DrawingMethod, Model, System, World


def load_world(source: str | Path) -> World:
    """The world of a folder, or one that ships by its name. Nothing but JSON is read.

    Raises InputError, one line, if there is none or its world.json cannot be used.
    """
    folder = find_world(source)
    return _world(read_entry(folder), folder)


def load(world: World | str | Path = "emoji", *, align: bool = True, device: str = "cpu") -> System:
    """The system of a world, a folder or a shipped name, with the updates that it has or with none."""
    found = world if isinstance(world, World) else load_world(world)
    return found.system(align=align, device=device)


def write_entry(folder: Path, entry: WorldEntry) -> None:
    """Write the world.json of a folder, without what is left at its default."""
    content = entry.model_dump(mode="json", exclude_defaults=True)
    text = json.dumps({"format": FORMAT, **content}, indent=1, ensure_ascii=False) + "\n"
    write_bytes(folder / WORLD_FILE, text.encode())


def _world(entry: WorldEntry, folder: Path) -> World:
    where = Places(folder)
    codec = where(entry.codec, "codec") if entry.codec else where.usual("codec", "codec")
    if codec is not None and entry.latents is not None:
        _check_latents(Path(codec), entry.latents)
    judges = {name: where(place, "judge") for name, place in entry.judges.items()}
    updates = {kind: where.usual(kind, "bundle") for kind in UPDATE_NAMES}
    return World(
        name=entry.name,
        licence=entry.licence,
        pixels=entry.pixels,
        edge_model=_model(entry.edge, where),
        cloud_model=_cloud(entry.cloud, where),
        latents=entry.latents,
        images=None if entry.images is None else where.folder_of(entry.images),
        drawings=None if entry.drawings is None else where.path(entry.drawings),
        codec_model=codec,
        updates={
            **{kind: place for kind, place in updates.items() if place is not None},
            **{kind: where(place, "bundle") for kind, place in entry.updates.items()},
        },
        judge_models=judges or where.usual_judges(),
        independent_judges={name: where(place, "judge") for name, place in entry.independent_judges.items()},
        prompt_splits={} if entry.prompts is None else where.prompts(entry.prompts, entry.reported),
        reported=entry.reported,
        methods={name: _method(method, where) for name, method in entry.methods.items()},
        nominal=Condition(uses=entry.nominal.uses, snr_db=entry.nominal.snr_db),
        folder=folder,
    )


def _check_latents(codec: Path, latents: tuple[int, int, int]) -> None:
    """Raise InputError if a codec says that it takes others; what it does not say is found when it is loaded."""
    settings = json.loads(read_small(codec / KIND_FILES["codec"], MAX_FILE_BYTES))
    own = tuple(settings.get(name) for name in ("channels", "rows", "cols"))
    if None not in own and own != latents:
        raise InputError(f"{codec} is for latents {list(own)}, and this world's are {list(latents)}")


def _model(entry: ModelEntry, where: Places) -> Model:
    return Model(
        source=where(entry.source, "pipeline"),
        sampling=Sampling(steps=entry.steps, guidance=entry.guidance, batch=entry.batch),
        pixels=entry.pixels,
        revision=entry.revision,
        sha256=entry.sha256,
        licence=entry.licence,
        variant=entry.variant,
    )


def _cloud(entry: ModelEntry | EndpointEntry | None, where: Places) -> Model | ImageEndpoint | None:
    if isinstance(entry, EndpointEntry):
        return ImageEndpoint(base_url=entry.endpoint, model=entry.model, size=entry.size)
    return None if entry is None else _model(entry, where)


def _method(entry: MethodEntry, where: Places) -> DrawingMethod:
    bundles = tuple(where(place, "bundle") for place in entry.bundles)
    return DrawingMethod(bundles=bundles, words=entry.words, few_steps=entry.few_steps)
