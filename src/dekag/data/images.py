"""Prompts and the cloud's images as a dataset: pictures are read, or mapped, when they are asked for."""

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, TypeAlias, overload, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dekag.data.entries import Entry, Faults
from dekag.data.folder import folder_entries
from dekag.data.picture import centred, open_picture, picture_tensor
from dekag.types import Image, InputError
from dekag.wire.rows import map_rows

_TOLD = 5
"""Most broken pictures that one line names."""


@runtime_checkable
class Files(Protocol):
    """Where the bytes of a set's pictures are, by number."""

    def __len__(self) -> int: ...

    def read(self, number: int) -> bytes:
        """The bytes of a picture; OSError if they cannot be read."""
        ...

    def name(self, number: int) -> str:
        """What a message calls it."""
        ...


@dataclass(frozen=True, kw_only=True)
class FolderFiles:
    """Files of a folder."""

    folder: Path
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def read(self, number: int) -> bytes:
        """As `Files`."""
        return (self.folder / self.names[number]).read_bytes()

    def name(self, number: int) -> str:
        """As `Files`."""
        return str(self.folder / self.names[number])


@runtime_checkable
class Source(Protocol):
    """Pictures by number, all of one size."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        ...

    @property
    def digest(self) -> str:
        """Of everything that the pictures depend on."""
        ...

    def picture(self, number: int) -> Float[Tensor, "3 height width"]:
        """In [0, 1]. Raises InputError if it cannot be read any more."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class FileSource:
    """Pictures of files; the centre of each is resized to `size`, height and width."""

    files: Files
    size: tuple[int, int]
    digest: str

    def picture(self, number: int) -> Float[Tensor, "3 height width"]:
        """As `open_picture` reads it."""
        try:
            picture = open_picture(self.files.read(number))
        except (InputError, OSError) as error:
            raise InputError(f"{self.files.name(number)} {why(error)}") from error
        return picture_tensor(centred(picture, self.size[::-1]))


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredSource:
    """Pictures in one file on the disk, as `dekag.wire.rows` writes it: 8 bits a channel, or numbers in [0, 1]."""

    path: Path
    name: str
    digest: str

    @cached_property
    def values(self) -> Tensor:
        """All of them, mapped into memory."""
        return map_rows(self.path, self.name)

    @property
    def size(self) -> tuple[int, int]:
        """As `Source`."""
        height, width = self.values.shape[2:]
        return int(height), int(width)

    def picture(self, number: int) -> Float[Tensor, "3 height width"]:
        """As it was written."""
        row = self.values[number]
        return row / 255 if row.dtype == torch.uint8 else row.clone()

    def __getstate__(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in ("path", "name", "digest")}


@dataclass(frozen=True, kw_only=True, eq=False)
class Pictures:
    """Pictures that are indexed as a tensor [pictures, 3, height, width] would be, and read only then.

    rows: number of each in the source, some perhaps several times.
    """

    source: Source
    rows: Int64[Tensor, " pictures"]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """As of the tensor."""
        return (len(self), 3, *self.source.size)

    @property
    def content(self) -> tuple[str, Tensor]:
        """What they depend on, for keys."""
        return self.source.digest, self.rows

    @overload
    def __getitem__(self, index: int) -> Float[Tensor, "3 height width"]: ...
    @overload
    def __getitem__(self, index: slice | Tensor | Sequence[int]) -> Image: ...
    def __getitem__(self, index: int | slice | Tensor | Sequence[int]) -> Tensor:
        if isinstance(index, int):
            return self.source.picture(int(self.rows[index]))
        chosen = self.rows[index].tolist()
        images = torch.empty(len(chosen), 3, *self.source.size)
        for place, number in enumerate(chosen):
            images[place] = self.source.picture(number)
        return images

    def subset(self, index: slice | Tensor | Sequence[int]) -> "Pictures":
        """Some of them, still unread."""
        return Pictures(source=self.source, rows=self.rows[index])

    def distinct(self) -> tuple["Pictures", Int64[Tensor, " pictures"]]:
        """Each picture once, in the order of the source, and the place of each of these among them."""
        once, places = self.rows.unique(return_inverse=True)
        return Pictures(source=self.source, rows=once), places


Images: TypeAlias = Image | Pictures
"""Images in memory, or pictures that are read when they are asked for."""


def subset(
    images: Images, index: slice | Tensor | Sequence[int]
) -> Float[Tensor, "_ 3 height width"] | Pictures:
    """Some of the images, in memory if they all are."""
    return images.subset(index) if isinstance(images, Pictures) else images[index]


@dataclass(frozen=True, kw_only=True, eq=False)
class CloudImages:
    """Prompts and the image of each, [prompts, 3, height, width] in [0, 1].

    A picture with several captions is there with each of them. weights: how often each pair is drawn in training,
    relative to the others; None is all alike.
    """

    prompts: tuple[str, ...]
    images: Images
    weights: Float[Tensor, " prompts"] | None = None

    def __post_init__(self) -> None:
        if len(self.prompts) != len(self.images):
            raise InputError(f"{len(self.prompts)} prompts need as many images, got {len(self.images)}")

    def subset(self, index: Tensor) -> "CloudImages":
        """The pairs at these places, or where a mask is true."""
        places = index.nonzero().flatten() if index.dtype == torch.bool else index
        return CloudImages(
            prompts=tuple(self.prompts[place] for place in places.tolist()),
            images=subset(self.images, places),
            weights=None if self.weights is None else self.weights[places],
        )


def read_folder(folder: Path, *, pixels: int | None = None) -> CloudImages:
    """As `read_dataset`, with all images in memory."""
    data = read_dataset(folder, pixels=pixels)
    return CloudImages(prompts=data.prompts, images=data.images[:], weights=data.weights)


def read_dataset(place: Path, *, pixels: int | None = None, faults: Faults | None = None) -> CloudImages:
    """Prompts and images of a folder, as `dekag.data.folder.folder_entries` finds them, or of a table.

    A table is a dataset of Hugging Face on disk, parquet files, or WebDataset tars: `dekag.data.tables`.
    Every picture is opened once here, so that a broken one is known before anything is spent, and again when it is
    used. Images are PNG, JPEG or WebP, turned as their EXIF data say and put on white where they are transparent.
    With `pixels` the central square of each is resized (Lanczos) to that side; without, all must have one size.
    Raises InputError if anything is missing, damaged or ambiguous, unless `faults` skips it.
    """
    if pixels is not None and pixels < 1:
        raise InputError(f"the side of the images must be at least 1 pixel, got {pixels}")
    faults = Faults() if faults is None else faults
    files, entries = find_pictures(place, faults)
    source, whole = checked(files, pixels, faults)
    if not whole:
        raise InputError(f"{place} has no picture that can be used; the first: {faults.lines[0]}")
    return pairs(source, ((number, entries[number]) for number in whole))


def find_pictures(place: Path, faults: Faults) -> tuple[Files, Sequence[Entry]]:
    """Pictures of a folder or a table and the entry of each; none is opened. Raises InputError as `read_dataset`."""
    from dekag.data.tables import is_table, read_table

    if is_table(place):
        return read_table(place, faults)
    entries = folder_entries(place, faults)
    return FolderFiles(folder=place, names=tuple(entry.place for entry in entries)), entries


def checked(
    files: Files,
    pixels: int | tuple[int, int] | None,
    faults: Faults,
    *,
    numbers: Sequence[int] | None = None,
) -> tuple[FileSource, list[int]]:
    """The files as pictures, after opening every one, or those with some numbers; and the numbers that can be used.

    pixels: side of the central square to which each is resized, or width and height; None leaves them as they are.
    Raises InputError if a picture cannot be read or has another size than the first, unless `faults` skips it.
    """
    asked = (pixels, pixels) if isinstance(pixels, int) else pixels
    wanted = range(len(files)) if numbers is None else dict.fromkeys(numbers)
    digest = hashlib.sha256()
    size, first = None, ""
    broken: list[str] = []
    whole: list[int] = []
    for number in wanted:
        try:
            raw = files.read(number)
            picture = open_picture(raw)
        except (InputError, OSError) as error:
            broken.append(f"{files.name(number)} {why(error)}")
            continue
        own = (asked or picture.size)[::-1]
        if size is None:
            size, first = own, files.name(number)
        if own != size:
            faults.add(
                f"{files.name(number)} has {own[1]}x{own[0]} pixels, but {Path(first).name} has"
                f" {size[1]}x{size[0]}; give images of one size, or the side to resize them to"
            )
            continue
        digest.update(hashlib.sha256(raw).digest())
        whole.append(number)
    if broken:
        told = broken[0]
        if faults.skip:
            told = "; ".join(broken[:_TOLD]) + (
                f"; and {len(broken) - _TOLD} more" if len(broken) > _TOLD else ""
            )
        faults.add(f"{told} ({len(broken)} of {len(wanted)} images cannot be read)", len(broken))
    return FileSource(files=files, size=size or (0, 0), digest=f"{size} {digest.hexdigest()}"), whole


def pairs(source: Source, entries: Iterable[tuple[int, Entry]]) -> CloudImages:
    """Pictures by number and their entries, once for each caption; all weigh alike unless the entries say otherwise."""
    prompts: list[str] = []
    rows, weights = array("q"), array("d")
    for number, entry in entries:
        for caption in entry.captions:
            prompts.append(caption)
            rows.append(number)
            weights.append(entry.repeats / len(entry.captions))
    return CloudImages(
        prompts=tuple(prompts),
        images=Pictures(source=source, rows=torch.tensor(rows, dtype=torch.int64)),
        weights=None if len(set(weights)) <= 1 else torch.tensor(weights, dtype=torch.float32),
    )


def why(error: Exception) -> str:
    """What a message says after the file's name."""
    return (
        str(error)
        if isinstance(error, InputError)
        else f"cannot be read ({getattr(error, 'strerror', error)})"
    )
