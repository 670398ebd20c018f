"""What a world's folder says: `world.json` and the places that it names; read without the libraries that draw.

The file may come from a stranger. Every path in it stays within the folder, nothing there is a link, a model of a hub
is written `hub:OWNER/NAME`, and no code is ever loaded. What is wrong is said in one line before anything is loaded.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PureWindowsPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dekag.choices import NAMED_JUDGES
from dekag.errors import InputError
from dekag.world.shipped import KIND_FILES, WEIGHTS, WORLD_FILE, Kind, is_hub_id, kind_of, shipped_worlds

FORMAT = 1
HUB = "hub:"
MAX_FILE_BYTES = 2**20
MAX_PROMPTS_BYTES = 2**26
_STRICT = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]{0,63}$")]
Text = Annotated[str, Field(max_length=300)]
Place = Annotated[str, Field(min_length=1, max_length=300)]
"""A path within the folder, or hub:OWNER/NAME."""
Size = Annotated[int, Field(ge=1, le=4096)]
Pixels = Annotated[int, Field(ge=8, le=8192)]


class ModelEntry(BaseModel):
    """A pipeline and how it draws; what is left out is the pipeline's own."""

    model_config = _STRICT
    source: Place
    revision: Annotated[str, Field(pattern="^[0-9a-f]{40}$")] | None = None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    guidance: Annotated[float, Field(ge=0, le=100)] | None = None
    batch: Annotated[int, Field(ge=1, le=1024)] = 32
    pixels: Pixels | None = None
    variant: Annotated[str, Field(pattern="^[A-Za-z0-9_]{1,32}$")] | None = None
    licence: Text = ""


class EndpointEntry(BaseModel):
    """A cloud that one can only call: an OpenAI-compatible image API. Its key is in the environment."""

    model_config = _STRICT
    endpoint: Text
    model: Annotated[str, Field(min_length=1, max_length=200)]
    size: Text = "512x512"


class MethodEntry(BaseModel):
    """As `DrawingMethod`."""

    model_config = _STRICT
    bundles: tuple[Place, ...] = ()
    words: Text = ""
    few_steps: bool = False


class NominalEntry(BaseModel):
    """The condition that the codec was trained at."""

    model_config = _STRICT
    uses: Annotated[int, Field(ge=1)] = 512
    snr_db: float | int = 10.0


class WorldEntry(BaseModel):
    """What world.json says; see `World` for what each entry means."""

    model_config = _STRICT
    format: Literal[1]
    name: Name
    licence: Text = ""
    pixels: Pixels
    latents: tuple[Size, Size, Size] | None = None
    edge: ModelEntry
    cloud: ModelEntry | EndpointEntry | None = None
    images: Place | None = None
    drawings: Place | None = None
    codec: Place | None = None
    updates: dict[Literal["generation", "transmission"], Place] = {}
    judges: dict[Name, Place] = {}
    independent_judges: dict[Name, Place] = {}
    prompts: Place | None = None
    reported: Annotated[tuple[Name, ...], Field(min_length=1)] = ("heldout",)
    nominal: NominalEntry = NominalEntry()
    methods: dict[Name, MethodEntry] = {}


def check_sources(
    cloud: str | None, images: Path | None, endpoint: str | None, *, prompts_file: Path | None
) -> None:
    """Raise InputError if a world is to be made of two clouds, or of no prompts, or of two kinds of them."""
    if sum(given is not None for given in (cloud, images, endpoint)) > 1:
        raise InputError("give one of a cloud, a folder of images and an endpoint")
    if prompts_file is None and images is None:
        raise InputError("give the prompts as a file, one a line, or a folder of images with their prompts")
    if prompts_file is not None and images is not None:
        raise InputError("a folder of images brings its own prompts; leave out the file")


def find_world(source: str | Path) -> Path:
    """The folder of a world, or of one that ships by its name. Raises InputError, one line, if there is none."""
    if str(source) in shipped_worlds():
        return WEIGHTS / str(source)
    if not (Path(source) / WORLD_FILE).is_file():
        known = ", ".join(shipped_worlds())
        raise InputError(
            f"unknown world {str(source)!r}; give a folder with a {WORLD_FILE}, or one of: {known}"
        )
    return Path(source)


def read_entry(folder: Path) -> WorldEntry:
    """What the world.json of a folder says. Raises InputError, naming the first entry that is wrong."""
    file = folder / WORLD_FILE
    try:
        return WorldEntry.model_validate_json(read_small(file, MAX_FILE_BYTES))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(f"{file}: {place} is wrong: {first['msg']}") from None


def read_splits(folder: Path, entry: WorldEntry) -> Mapping[str, list[str]]:
    """The prompts of a world by split, which are none if it names none."""
    if entry.prompts is None:
        return {}
    found: dict[str, list[str]] = json.loads(
        Places(folder).prompts(entry.prompts, entry.reported).read_bytes()
    )
    return found


class Places:
    """What the entries of one folder name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, place: str, kind: Kind) -> str | Path:
        """A model or bundle: a hub id, the name of a judge that pip brings, or a path that holds it."""
        if place.startswith(HUB):
            if kind not in ("pipeline", "judge") or not is_hub_id(place.removeprefix(HUB)):
                raise self._wrong(f"{place!r} is no {kind} of a hub, which is written hub:OWNER/NAME")
            return place.removeprefix(HUB)
        if kind == "judge" and place in NAMED_JUDGES:
            return place
        path = self.path(place)
        if path.is_dir() and kind_of(path) != kind:
            found = f"it is a {kind_of(path)}" if kind_of(path) else f"{KIND_FILES[kind]} is missing"
            raise self._wrong(f"{place} holds no {kind}: {found}")
        if not path.is_dir() and kind != "bundle":
            raise self._wrong(f"{place} is no folder, and a {kind} is one")
        return path

    def usual(self, place: str, kind: Kind) -> str | Path | None:
        """What lies in the usual place of a part that world.json does not name, if it is that."""
        return self(place, kind) if kind_of(self._folder / place) == kind else None

    def usual_judges(self) -> dict[str, str | Path]:
        """The judges in their usual place."""
        found = sorted(path.parent.name for path in self._folder.glob(f"judges/*/{KIND_FILES['judge']}"))
        return {name: self(f"judges/{name}", "judge") for name in found}

    def folder_of(self, place: str) -> Path:
        """A folder."""
        path = self.path(place)
        if not path.is_dir():
            raise self._wrong(f"{place} is no folder")
        return path

    def prompts(self, place: str, reported: tuple[str, ...]) -> Path:
        """The file of the prompts, once it is sure what it holds."""
        path = self.path(place)
        try:
            splits: Any = json.loads(read_small(path, MAX_PROMPTS_BYTES))
        except ValueError as error:
            raise InputError(f"{path} is no JSON: {error}") from error
        sound = isinstance(splits, dict) and all(
            isinstance(rows, list) and all(isinstance(row, str) and row.strip() for row in rows)
            for rows in splits.values()
        )
        if not sound:
            raise InputError(f'{path} must hold prompts by split, as {{"distill": ["a red apple", ...]}}')
        if missing := [split for split in reported if not splits.get(split)]:
            raise InputError(f"{path} has no prompts of the reported split {missing[0]}")
        return path

    def path(self, place: str) -> Path:
        """A path that stays within the folder, is there, and has no link in it or below it."""
        # as Windows reads it, which knows every way out: /, \\, C: and ..
        parts = PureWindowsPath(place)
        if parts.anchor or ".." in parts.parts:
            raise self._wrong(f"{place!r} leaves the folder; put it there, and name it from there")
        path = self._folder / place
        if link := next((found for found in _with_parents(path, self._folder) if found.is_symlink()), None):
            raise self._wrong(f"{link.relative_to(self._folder)} is a link; put the file itself there")
        if not path.exists():
            raise self._wrong(f"{place} is not there")
        return path

    def _wrong(self, text: str) -> InputError:
        return InputError(f"{self._folder / WORLD_FILE}: {text}")


def _with_parents(path: Path, folder: Path) -> Iterator[Path]:
    """The path, what lies between it and the folder, and all that is below it."""
    yield path
    yield from (parent for parent in path.parents if folder in parent.parents)
    for root, folders, files in os.walk(path):
        yield from (Path(root, name) for name in (*folders, *files))


def read_small(path: Path, max_bytes: int) -> bytes:
    """A small file's bytes. Raises InputError if it is not there or too long."""
    try:
        with path.open("rb") as file:
            raw = file.read(max_bytes + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if len(raw) > max_bytes:
        raise InputError(f"{path} is longer than {max_bytes} bytes, which no file of its kind is")
    return raw
