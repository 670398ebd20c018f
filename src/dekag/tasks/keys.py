"""What a world's parts are, for the keys of caches and states: by content where it is here, else by name and commit."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dekag.bundle.digest import digest_folder
from dekag.evaluation.judges import Judge
from dekag.generation.diffusers import DiffusersGenerator
from dekag.training.keys import key_of, require_same
from dekag.types import Image, InputError
from dekag.wire.files import replacing
from dekag.world import Model, World, hub, locate

_KEY = "key"


def cached(
    folder: Path | None, name: str, make: Callable[[], Tensor], inputs: Callable[[], Mapping[str, object]]
) -> Tensor:
    """What `make` gives, in a folder that keeps it, so that an interrupted run need not make it again.

    inputs: all that it depends on. Raises InputError if what the folder keeps was made of others, or is damaged.
    """
    if folder is None:
        return make()
    path, key = folder / f"{name}.safetensors", key_of(inputs())
    if not path.exists():
        made = make().contiguous()
        with replacing(path) as part:
            save_file({name: made}, part, {_KEY: json.dumps(key)})
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        kept = load_file(path)[name]
    except (SafetensorError, KeyError) as error:
        raise InputError(f"{path} cannot be read: delete it to start anew") from error
    require_same(path, json.loads(metadata[_KEY]) if _KEY in metadata else None, key)
    return kept


def model_key(model: Model) -> dict[str, object]:
    """All that a model's drawings depend on."""
    sampling = replace(model.sampling, batch=1)  # it changes nothing of any picture
    numbers: dict[str, object] = {"sampling": sampling, "pixels": model.pixels, "precision": model.precision}
    if isinstance(model.source, DiffusersGenerator):
        held = model.source
        own = replace(held.sampling, batch=1)
        weights = {name: part for name, part in held.pipeline.components.items() if part is not None}
        return {**numbers, "weights": weights, "own": own, "own_pixels": held.pixels, "map": held.noise_map}
    return {**numbers, "source": _source_key(locate(model.source, "pipeline"), model.revision)}


def judges_key(world: World, images: Image) -> dict[str, object]:
    """The world's judges; one that is in memory by what it makes of some images."""
    return {
        name: source(images) if isinstance(source, Judge) else _source_key(locate(source, "judge"), None)
        for name, source in world.judge_models.items()
    }


def update_key(world: World) -> str | None:
    """The world's update for generation, if it has one."""
    return digest_folder(world.update("generation")) if "generation" in world.updates else None


def _source_key(place: str | Path, revision: str | None) -> str:
    path = Path(place)
    return digest_folder(path) if path.exists() else f"{place}@{revision or hub.revision(str(place))}"
