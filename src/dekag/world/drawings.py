"""What a cloud drew once, as one file that a world may carry: a zip of PNG files, each by its prompt and seed.

```
index.json    {"format": 1, "cloud": DIGEST, "drawings": [{"prompt", "seed", "file", "sha256"}, ...]}
00000.png ...
```
"""

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from dekag.types import Image, InputError
from dekag.wire.files import replacing
from dekag.wire.png import png_bytes, read_image

INDEX = "index.json"
FORMAT = 1
UNREADABLE = (OSError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What a zip says that is cut, damaged, encrypted, packed in another way, or lacks a file."""
_EPOCH = (1980, 1, 1, 0, 0, 0)
Drawing = tuple[str, int]
"""Prompt and seed."""


@runtime_checkable
class Cloud(Protocol):
    """What draws the reference: a model, an endpoint, or pictures that were drawn once."""

    def images(self, prompts: Sequence[str], *, seeds: Sequence[int]) -> Image:
        """One image for each prompt and its seed."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class KeptDrawings:
    """Implements `Cloud` by a file of drawings, and by the model for what is not in it; 8 bits a channel.

    key: digest of all that the model's drawings depend on; a file of another model is not used.
    """

    file: Path
    key: str
    load: Callable[[], Cloud]

    def images(self, prompts: Sequence[str], *, seeds: Sequence[int]) -> Image:
        """One image for each prompt and its seed. Raises InputError if the file is damaged."""
        wanted = list(zip(prompts, seeds, strict=True))
        found = self._kept([drawing for drawing in wanted if drawing in self._index])
        if missing := [drawing for drawing in dict.fromkeys(wanted) if drawing not in found]:
            drawn = self._cloud.images([text for text, _ in missing], seeds=[seed for _, seed in missing])
            found |= dict(zip(missing, rounded(drawn).split(1), strict=True))
        return torch.cat([found[drawing] for drawing in wanted])

    @cached_property
    def _cloud(self) -> Cloud:
        return self.load()

    @cached_property
    def _index(self) -> dict[Drawing, tuple[str, str]]:
        """Name and sha256 of each drawing of the file; none if they are another model's."""
        try:
            with zipfile.ZipFile(self.file) as archive:
                content = json.loads(archive.read(INDEX))
            rows = {(row["prompt"], row["seed"]): (row["file"], row["sha256"]) for row in content["drawings"]}
            return rows if content["format"] == FORMAT and content["cloud"] == self.key else {}
        except (*UNREADABLE, ValueError, TypeError) as error:
            raise InputError(f"{self.file} holds no drawings: {error}; make it again") from error

    def _kept(self, wanted: Sequence[Drawing]) -> dict[Drawing, Image]:
        with zipfile.ZipFile(self.file) as archive:
            return {drawing: self._read(archive, *self._index[drawing]) for drawing in wanted}

    def _read(self, archive: zipfile.ZipFile, name: str, sha256: str) -> Image:
        try:
            raw = archive.read(name)
        except UNREADABLE as error:
            raise InputError(f"{self.file} is damaged: {error}; make it again") from error
        if hashlib.sha256(raw).hexdigest() != sha256:
            raise InputError(f"{self.file} is damaged: {name} is not what it says; make it again")
        return read_image(io.BytesIO(raw), name=f"{self.file}: {name}")


def write_drawings(path: Path, cloud: Cloud, key: str, drawings: Sequence[Drawing]) -> None:
    """Let a cloud draw, and write the file whole or not at all; the same drawings give the same bytes."""
    images = cloud.images([text for text, _ in drawings], seeds=[seed for _, seed in drawings])
    files = {f"{place:05d}.png": raw for place, raw in enumerate(png_bytes(images))}
    rows = [
        {"prompt": text, "seed": seed, "file": name, "sha256": hashlib.sha256(raw).hexdigest()}
        for (text, seed), (name, raw) in zip(drawings, files.items(), strict=True)
    ]
    index = {"format": FORMAT, "cloud": key, "drawings": rows}
    with replacing(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(INDEX, _EPOCH), json.dumps(index, ensure_ascii=False))
        for name, raw in files.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), raw)


def rounded(images: Image) -> Image:
    """Images with 8 bits a channel, as a file of them has."""
    return (images * 255).round() / 255
