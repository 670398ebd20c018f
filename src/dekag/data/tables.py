"""Pictures and captions in the tables that datasets are published as: read by Hugging Face's `datasets`."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dekag.data.entries import TABLE_SUFFIXES, Entry, Faults
from dekag.data.folder import CAPTION_KEYS, INDEX, METADATA, TABLE
from dekag.errors import InputError
from dekag.wire.rows import scratch

_ON_DISK, _SPLITS = "dataset_info.json", "dataset_dict.json"
_BUILDERS = dict(zip(TABLE_SUFFIXES, ("parquet", "webdataset"), strict=True))
_IMAGE_KEYS = ("image", "img", "picture", "jpg", "jpeg", "png", "webp")
_TEXT_KEYS = (*CAPTION_KEYS, "captions", "txt")
"""Names of columns with captions; those of WebDataset are suffixes of files."""


def is_table(place: Path) -> bool:
    """Whether a place holds a dataset on disk, parquet files or WebDataset tars, rather than files of pictures."""
    if place.is_file():
        return place.suffix.lower() in _BUILDERS
    if any((place / name).is_file() for name in (_ON_DISK, _SPLITS)):
        return True
    listed = any((place / name).is_file() for name in (INDEX, METADATA, TABLE))
    return place.is_dir() and not listed and bool(_shards(place))


@dataclass(frozen=True, kw_only=True)
class TableFiles:
    """Pictures in a column of a dataset that is mapped into memory."""

    place: Path
    table: Any
    column: str

    def __len__(self) -> int:
        return len(self.table)

    def read(self, number: int) -> bytes:
        """As `dekag.data.images.Files`."""
        value = self.table[number][self.column]
        if isinstance(value, Mapping):
            raw = value.get("bytes")
            if raw is None and value.get("path"):
                return Path(value["path"]).read_bytes()
            value = raw
        if not isinstance(value, bytes):
            raise InputError("is no picture but empty; take the row away")
        return value

    def name(self, number: int) -> str:
        """As `dekag.data.images.Files`."""
        return f"{self.place}: row {number + 1}"


def read_table(place: Path, faults: Faults) -> tuple[TableFiles, list[Entry]]:
    """Every picture of a table with its captions; no picture is opened.

    Pictures are a column of `datasets.Image`, or bytes named image, img, jpg, png or alike. Captions are a column text,
    caption, captions, prompt or txt, of texts or lists of texts, or such a key of a column json.
    Raises InputError if the table cannot be read, or has no such columns, or if a row has no caption, unless `faults`
    skips it.
    """
    with _reading(place):
        table = _load(place)
        column = _image_column(place, table)
        captions = _captions(place, table)
        table = _undecoded(table, column)
    keep, entries = [], []
    for number, given in enumerate(captions):
        texts = given if isinstance(given, list) else [given]
        own = tuple(dict.fromkeys(text.strip() for text in texts if isinstance(text, str) and text.strip()))
        if not own:
            faults.add(f"{place}: row {number + 1} has no caption; write one or take the row away")
            continue
        keep.append(number)
        entries.append(Entry(str(number), own))
    if not entries:
        raise InputError(f"{place} has no rows; give a table with pictures and captions")
    if len(keep) < len(table):
        table = table.select(keep)
    return TableFiles(place=place, table=table, column=column), entries


@contextmanager
def _reading(place: Path) -> Iterator[None]:
    """Whatever a library raises on a stranger's table becomes one line that names it."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except ImportError as error:
        raise InputError(
            f"{place} is a table, which needs `datasets`: pip install 'dekag[datasets]'"
        ) from error
    except Exception as error:
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise InputError(f"{place} is no table that can be read: {reason}") from error


def _load(place: Path) -> Any:
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)
    if (place / _SPLITS).is_file():
        names = sorted(path.name for path in place.iterdir() if (path / _ON_DISK).is_file())
        raise InputError(f"{place} holds several datasets; give one of them: {', '.join(names)}")
    if (place / _ON_DISK).is_file():
        return datasets.load_from_disk(str(place))
    shards = [place] if place.is_file() else _shards(place)
    kinds = {path.suffix.lower() for path in shards}
    if len(kinds) > 1:
        raise InputError(
            f"{place} holds both {' and '.join(sorted(kinds))} files; give a folder with one kind"
        )
    return datasets.load_dataset(
        _BUILDERS[kinds.pop()],
        data_files={"train": [str(path.absolute()) for path in shards]},
        split="train",
        cache_dir=str(scratch()),
    )


def _shards(folder: Path) -> list[Path]:
    files = (path for path in folder.iterdir() if path.is_file() and path.name[0] != ".")
    return sorted(path for path in files if path.suffix.lower() in _BUILDERS)


def _image_column(place: Path, table: Any) -> str:
    """Name of the column of pictures."""
    import datasets

    pictures = [name for name, kind in table.features.items() if isinstance(kind, datasets.Image)]
    found = pictures or [name for name in _IMAGE_KEYS if name in table.features]
    if len(found) != 1:
        what = f"columns {', '.join(found)} all hold pictures" if found else "no column holds pictures"
        raise InputError(f"{place}: {what}; it has {', '.join(table.features)}, give one column image")
    return str(found[0])


def _undecoded(table: Any, column: str) -> Any:
    """The column of pictures alone, as bytes."""
    import datasets

    alone = table.select_columns([column])
    if isinstance(alone.features[column], datasets.Image):
        alone = alone.cast_column(column, datasets.Image(decode=False))
    return alone


def _captions(place: Path, table: Any) -> Sequence[Any]:
    """The captions of every row as they are given."""
    for name in _TEXT_KEYS:
        if name in table.features:
            return list(table.select_columns([name])[name])
    rows = list(table.select_columns(["json"])["json"]) if "json" in table.features else []
    for name in _TEXT_KEYS:
        if any(isinstance(row, Mapping) and name in row for row in rows):
            return [row and row.get(name) for row in rows]
    raise InputError(
        f"{place}: no column holds captions; it has {', '.join(table.features)},"
        f" give one of {', '.join(_TEXT_KEYS)}"
    )
