"""What ships in the package: worlds, and their models and bundles by name, as `emoji/edge`."""

from functools import cache
from pathlib import Path
from typing import Literal

from dekag.choices import NAMED_JUDGES
from dekag.errors import InputError

Kind = Literal["pipeline", "bundle", "judge", "codec"]
WEIGHTS = Path(__file__).parent / "weights"
WORLD_FILE = "world.json"
DEFAULT_WORLD = "emoji"
"""The world where none is named."""
KIND_FILES: dict[Kind, str] = {
    "pipeline": "model_index.json",
    "bundle": "bundle.json",
    "judge": "preprocessor_config.json",
    "codec": "config.json",
}
"""The file by which a folder is known as what it is; the first that is there counts."""


def kind_of(folder: Path) -> Kind | None:
    """What a folder holds; None if it is nothing of ours."""
    return next((kind for kind, name in KIND_FILES.items() if (folder / name).is_file()), None)


@cache
def shipped_worlds() -> tuple[str, ...]:
    """Names of the worlds that ship."""
    return tuple(sorted(path.parent.name for path in WEIGHTS.glob(f"*/{WORLD_FILE}")))


@cache
def shipped_parts() -> dict[str, Kind]:
    """Kind of each shipped model or bundle by its name."""
    folders = sorted(path for path in WEIGHTS.glob("*/**") if path.is_dir())
    kinds = {path.relative_to(WEIGHTS).as_posix(): kind_of(path) for path in folders}
    # the components of a pipeline are no models of their own
    pipelines = tuple(f"{name}/" for name, kind in kinds.items() if kind == "pipeline")
    return {name: kind for name, kind in kinds.items() if kind and not name.startswith(pipelines)}


def shipped(name: str) -> Path:
    """Folder of a shipped model or bundle; InputError lists the known names."""
    if name not in shipped_parts():
        raise InputError(f"unknown model {name!r}; shipped are {', '.join(shipped_parts())}")
    return WEIGHTS / name


def card(name: str) -> Path:
    """The model card of a shipped model; bundles hold nothing but their own files, so cards lie beside them.

    Rivals and further training seeds have one card together.
    """
    world, part = name.split("/")[:2]
    return WEIGHTS / (f"{world}/rivals.md" if part == "rivals" else f"{name}.md")


def locate(source: str | Path, kind: Kind) -> str | Path:
    """A shipped model's folder, an existing folder or file, or the source itself: a hub id, or a judge that pip brings.

    Raises InputError if what ships under that name is of another kind, or the source can be none of the three.
    """
    name = str(source)
    if name in shipped_parts():
        if shipped_parts()[name] != kind:
            raise InputError(f"{name} is a {shipped_parts()[name]}, and a {kind} is needed here")
        return WEIGHTS / name
    if Path(source).exists():
        return Path(source)
    if kind == "judge" and name in NAMED_JUDGES:
        return name
    if kind not in ("pipeline", "judge") or not is_hub_id(name):
        known = ", ".join(name for name, its_kind in shipped_parts().items() if its_kind == kind)
        raise InputError(f"unknown {kind} {name!r}; give a folder or one of: {known}")
    return name


def is_hub_id(name: str) -> bool:
    """Whether a hub could hold a model under this name: owner/model."""
    return (
        name.count("/") == 1
        and not name.startswith((".", "/"))
        and name.split("/")[0] not in shipped_worlds()
    )


def shown(source: str | Path) -> str:
    """A source as it is told to others: the name of what ships, else as it was given."""
    path = Path(source)
    return path.relative_to(WEIGHTS).as_posix() if path.is_relative_to(WEIGHTS) else str(source)
