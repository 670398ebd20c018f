"""What a world's parts are, for the keys of caches and states: by content where it is here, else by name and commit."""

from dekag.bundle.canonical import digest_folder
from dekag.evaluation.judges import Judge
from dekag.types import Image
from dekag.world import World, locate
from dekag.world.world import source_key


def judges_key(world: World, images: Image) -> dict[str, object]:
    """The world's judges; one that is in memory by what it makes of some images."""
    return {
        name: source(images) if isinstance(source, Judge) else source_key(locate(source, "judge"))
        for name, source in world.judge_models.items()
    }


def update_key(world: World) -> str | None:
    """The world's update for generation, if it has one."""
    return digest_folder(world.update("generation")) if "generation" in world.updates else None
