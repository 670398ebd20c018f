"""The pictures of a folder and their captions, in any of the layouts that people keep them in."""

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from dekag.data.entries import Entry, Faults, merged
from dekag.data.text import read_lines, read_text
from dekag.errors import InputError

INDEX = "index.json"
METADATA = "metadata.jsonl"
TABLE = "metadata.csv"
CAPTION_KEYS = ("text", "caption", "prompt")
"""Where a line of metadata may hold the captions; the first that is there counts."""
CAPTION_SUFFIXES = (".txt", ".caption")
"""Of files with captions beside pictures; the first that is there counts."""

_EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp"})
_REPEATED = re.compile(r"(\d+)_(.+)")
"""A folder of sd-scripts: how often its pictures count, and what they show."""
_LISTED = tuple[str, Sequence[str]]


def folder_entries(folder: Path, faults: Faults) -> list[Entry]:
    """Every picture of a folder with its captions; no picture is opened.

    The first of these layouts that the folder has is read:
    - `index.json`, as `dekag.tasks.generate` writes it: `{"images": [{"file": ..., "prompt": ...}, ...]}`. It is
      the whole truth: other files are left alone.
    - `metadata.jsonl` or `metadata.csv`, an imagefolder of Hugging Face: `file_name` and `text`, `caption` or
      `prompt`; in JSON a list of captions as well, and lines of one file add up. Images beside it that it does not
      name are an error.
    - An image and a UTF-8 text file of the same stem with its captions, one a line: `0001.png` with `0001.txt` or
      `0001.caption`. In folders named as sd-scripts has them, `10_thing`, every picture counts ten times, and one
      without a text file has the caption "thing".
    Folders below it belong to it. The order is that of the index, else that of the names. Hidden files are left
    alone, links are followed.
    Raises InputError if anything is missing, damaged or ambiguous, unless `faults` skips it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; give a folder with images and their prompts")
    if (folder / INDEX).is_file():
        return _indexed(folder, faults)
    for name, read in ((METADATA, _read_jsonl), (TABLE, _read_csv)):
        if (folder / name).is_file():
            return _described(folder, name, read(folder, faults), faults)
    return _captioned(folder, faults)


def _indexed(folder: Path, faults: Faults) -> list[Entry]:
    where = folder / INDEX
    try:
        entries = json.loads(read_text(where, right="draw the images again"))["images"]
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f'{where} must be JSON of the form {{"images": [{{"file": ..., "prompt": ...}}]}}'
        ) from error
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{where} lists no images; draw them again")
    rows = (
        _row(f"{where}: image {number}", entry, "file", ("prompt",), faults)
        for number, entry in enumerate(entries, 1)
    )
    return _existing(folder, INDEX, merged(row for row in rows if row is not None), faults)


def _read_jsonl(folder: Path, faults: Faults) -> Iterator[_LISTED]:
    where = folder / METADATA
    for number, line in enumerate(read_lines(where, right="give one object a line"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            faults.add(f"{where}: line {number} is no JSON; give one object a line")
            continue
        if row := _row(f"{where}: line {number}", entry, "file_name", CAPTION_KEYS, faults):
            yield row


def _read_csv(folder: Path, faults: Faults) -> Iterator[_LISTED]:
    where = folder / TABLE
    text = read_text(where, right="give a line of column names, among them file_name and text")
    try:
        table = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        for entry in table:
            if row := _row(f"{where}: line {table.line_num}", entry, "file_name", CAPTION_KEYS, faults):
                yield row
    except csv.Error as error:
        raise InputError(f"{where} is no table of commas that can be read: {error}") from error


def _described(folder: Path, name: str, rows: Iterable[_LISTED], faults: Faults) -> list[Entry]:
    where = folder / name
    entries = merged(rows)
    if not entries:
        raise InputError(f'{where} is empty; give a line {{"file_name": ..., "text": ...}} for every image')
    known = {entry.place for entry in entries}
    if nameless := [path for path in _walk(folder) if _is_picture(path) and path not in known]:
        faults.add(
            f"{where}: {len(nameless)} images beside it have no line, the first is {min(nameless, key=_parts)};"
            " give each its line or take it away",
            len(nameless),
        )
    return _existing(folder, name, entries, faults)


def _captioned(folder: Path, faults: Faults) -> list[Entry]:
    files = _files(folder)
    pictures = [path for path in files if _is_picture(path)]
    captions = _caption_files(files)
    if not pictures and not captions:
        what = (
            "holds no images that we know how to pair with prompts" if any(folder.iterdir()) else "is empty"
        )
        raise InputError(
            f"{folder} {what}; give an {INDEX}, a {METADATA},"
            " or PNG, JPEG or WebP files each with a caption as 0001.png with 0001.txt"
        )
    repeats = _repeats(pictures)
    if silent := [path for path in pictures if _stem(path) not in captions and path not in repeats]:
        faults.add(
            f"{folder}: {len(silent)} images have no caption, the first is {silent[0]};"
            f" write its prompt into {_stem(silent[0])}.txt",
            len(silent),
        )
    stems = {_stem(path) for path in pictures}
    if blind := [path for stem, path in captions.items() if stem not in stems]:
        faults.add(
            f"{folder}: {len(blind)} captions have no image, the first is {blind[0]};"
            f" add {_stem(blind[0])}.png or take the caption away",
            len(blind),
        )
    found = []
    for path in pictures:
        times, thing = repeats.get(path, (1, None))
        text = captions.get(_stem(path))
        own = _captions(folder / text, faults) if text is not None else (() if thing is None else (thing,))
        if own:
            found.append(Entry(path, own, times))
    return found


def _caption_files(files: Sequence[str]) -> dict[str, str]:
    """The file with the captions of each stem."""
    found: dict[str, str] = {}
    for suffix in reversed(CAPTION_SUFFIXES):
        found |= {_stem(path): path for path in files if path.lower().endswith(suffix)}
    return dict(sorted(found.items(), key=lambda item: _parts(item[1])))


def _repeats(pictures: Sequence[str]) -> dict[str, tuple[int, str]]:
    """How often each picture counts and what it shows, if all are in folders named as sd-scripts has them."""
    named = {path: _REPEATED.fullmatch(path.split("/")[0]) for path in pictures if "/" in path}
    if len(named) < len(pictures) or not all(named.values()):
        return {}
    return {path: (int(match[1]), match[2].strip()) for path, match in named.items() if match is not None}


def _row(
    where: str, entry: Any, file_key: str, caption_keys: Sequence[str], faults: Faults
) -> tuple[str, list[str]] | None:
    """File and captions of one entry of a list that somebody else may have written; None for one that is skipped."""
    fields = entry if isinstance(entry, dict) else {}
    name = fields.get(file_key)
    given = next((fields[key] for key in caption_keys if key in fields), None)
    captions: list[Any] = given if isinstance(given, list) and caption_keys == CAPTION_KEYS else [given]
    if not isinstance(name, str) or not name or not all(isinstance(each, str) for each in captions or [None]):
        faults.add(f"{where} must have the texts {file_key} and {' or '.join(caption_keys)}")
        return None
    if not all(each.strip() for each in captions):
        faults.add(f"{where}, {name!r}, has an empty prompt; say what it shows")
        return None
    # as Windows reads it, which knows every way out: /, \, C: and ..
    path = PureWindowsPath(name)
    if path.anchor or ".." in path.parts or "\0" in name:
        faults.add(f"{where} names {name!r}, which is outside of the folder; put the image into it")
        return None
    return os.path.normpath(name), captions


def _existing(folder: Path, index: str, entries: list[Entry], faults: Faults) -> list[Entry]:
    missing = {entry.place for entry in entries if not os.path.isfile(folder / entry.place)}
    if missing:
        first = next(entry.place for entry in entries if entry.place in missing)
        faults.add(
            f"{folder / index}: {len(missing)} of its {len(entries)} images are missing, the first is"
            f" {os.path.basename(first)!r}; put them back or take their entries away",
            len(missing),
        )
    return [entry for entry in entries if entry.place not in missing]


def _captions(path: Path, faults: Faults) -> tuple[str, ...]:
    """The captions of a file, one a line; none if the file is skipped."""
    right = "a caption is a line that says what the image shows"
    try:
        lines = [line.strip() for line in read_lines(path, right=right)]
    except InputError as error:
        faults.add(str(error))
        return ()
    found = tuple(dict.fromkeys(line for line in lines if line))
    if not found:
        faults.add(f"{path} is empty; {right}")
    return found


def _files(folder: Path) -> list[str]:
    """All files of `_walk`, by name."""
    return sorted(_walk(folder), key=_parts)


def _walk(folder: Path) -> Iterator[str]:
    """All files below a folder, relative to it, but for hidden ones and those of hidden folders."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = os.path.relpath(parent, folder).replace(os.sep, "/")
        here = "" if inside == "." else f"{inside}/"
        # a pipe or a socket is no file, and a link that leads nowhere is not either
        for name in names:
            if name[0] != "." and os.path.isfile(os.path.join(parent, name)):
                yield here + name


def _parts(path: str) -> list[str]:
    return path.split("/")


def _stem(path: str) -> str:
    return os.path.splitext(path)[0]


def _is_picture(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in _EXTENSIONS
