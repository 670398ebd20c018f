"""What a world's parts are, for the keys of caches and states: by content where it is here, else by name and commit."""

from dataclasses import replace
from pathlib import Path

from dekag.bundle.digest import digest_folder
from dekag.evaluation.judges import Judge
from dekag.generation.diffusers import DiffusersGenerator
from dekag.types import Image
from dekag.world import Model, World, hub, locate


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
