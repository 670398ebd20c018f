"""Prompts and images from a folder, in any of the three layouts that people keep them in."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image as PillowImage
from PIL import ImageOps, UnidentifiedImageError
from torch import Tensor

from dekag.data.text import read_lines, read_text
from dekag.types import Image, InputError

INDEX = "index.json"
METADATA = "metadata.jsonl"
CAPTION_KEYS = ("text", "caption", "prompt")
"""Where a line of metadata.jsonl may hold the prompt; the first that is there counts."""

_FORMATS = ("PNG", "JPEG", "WEBP")
_EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp"})
_MODES = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"})
"""Pillow's names of pixels of at most 8 bits a channel."""
_Rows = list[tuple[Path, str]]


@dataclass(frozen=True, kw_only=True)
class CloudImages:
    """Prompts and the image that the cloud drew for each, float [prompts, 3, height, width] in [0, 1]."""

    prompts: tuple[str, ...]
    images: Image

    def __post_init__(self) -> None:
        if len(self.prompts) != len(self.images):
            raise InputError(f"{len(self.prompts)} prompts need as many images, got {len(self.images)}")


def read_folder(folder: Path, *, pixels: int | None = None) -> CloudImages:
    """Prompts and images of a folder, all of them in memory; image i belongs to prompt i.

    The first of these layouts that the folder has is read:
    - `index.json`, as `dekag.tasks.generate` writes it: `{"images": [{"file": ..., "prompt": ...}, ...]}`. It is
      the whole truth: other files are left alone.
    - `metadata.jsonl`, an imagefolder of Hugging Face: `{"file_name": ..., "text": ...}` a line; "caption" or
      "prompt" do as well. Images beside it that it does not name are an error.
    - An image and a UTF-8 text file with its caption, one line, of the same stem: `0001.png`, `0001.txt`.
    Folders below it belong to it. The order is that of the index, else that of the names. Hidden files are left
    alone, links are followed.

    Images are PNG, JPEG or WebP, turned as their EXIF data say and put on white where they are transparent.
    With `pixels` the central square of each is resized (Lanczos) to that side; without, all must have one
    size. Raises InputError if anything is missing, damaged or ambiguous.
    """
    if pixels is not None and pixels < 1:
        raise InputError(f"the side of the images must be at least 1 pixel, got {pixels}")
    rows = folder_rows(folder)
    images = read_pictures([path for path, _ in rows], pixels)
    return CloudImages(prompts=tuple(prompt for _, prompt in rows), images=images)


def open_picture(source: Path | bytes) -> PillowImage.Image:
    """A PNG, JPEG or WebP, from a file or its bytes, as 8-bit RGB on white and the right way up.

    Raises InputError, whose message begins with "is", if it is none or damaged.
    """
    try:
        with PillowImage.open(
            BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS
        ) as picture:
            if picture.mode not in _MODES:
                raise InputError(f"is a picture of mode {picture.mode}; save it with 8 bits a channel")
            upright = _upright(picture)
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError("is no PNG, JPEG or WebP picture; save it as one of these") from None
    except PillowImage.DecompressionBombError:
        raise InputError("is too large a picture to be read safely; make it smaller") from None
    except Exception as error:  # a damaged file has Pillow raise whatever its bytes lead to
        raise InputError("is damaged or cut short; make the picture again") from error
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    coloured = upright.convert("RGBA")
    white = PillowImage.new("RGBA", coloured.size, "white")
    return PillowImage.alpha_composite(white, coloured).convert("RGB")


def _upright(picture: PillowImage.Image) -> PillowImage.Image:
    """The picture as its EXIF data turn it; as it is where those are damaged."""
    picture.load()
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # of the tags alone: the pixels are there
        return picture.copy()


def picture_tensor(picture: PillowImage.Image) -> Float[Tensor, "3 height width"]:
    """The pixels of an RGB picture, in [0, 1]."""
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255).permute(2, 0, 1)


def read_pictures(paths: Sequence[Path], pixels: int | None) -> Image:
    """All images in one tensor, which is the only place where they are all held; as `read_folder` says."""
    images, first = torch.empty(0), paths[0]
    unreadable: list[str] = []
    for number, path in enumerate(paths):
        try:
            picture = open_picture(path)
        except InputError as error:
            unreadable.append(f"{path} {error}")
            continue
        if pixels is not None:
            picture = _square(picture, pixels)
        shape = (3, picture.height, picture.width)
        if not len(images):
            images, first = torch.empty(len(paths), *shape), path
        if images.shape[1:] != shape:
            raise InputError(
                f"{path} has {picture.width}x{picture.height} pixels, but {first.name} has"
                f" {images.shape[3]}x{images.shape[2]}; give images of one size, or the side to resize them to"
            )
        images[number] = picture_tensor(picture)
    if unreadable:
        raise InputError(f"{unreadable[0]} ({len(unreadable)} of {len(paths)} images cannot be read)")
    return images


def _square(picture: PillowImage.Image, pixels: int) -> PillowImage.Image:
    """The centre, cut out first: resized in place, as `ImageOps.fit` does, it would mix with what is around."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    centre = picture.crop((left, top, left + side, top + side))
    return centre.resize((pixels, pixels), PillowImage.Resampling.LANCZOS)


def centred(picture: PillowImage.Image, size: tuple[int, int]) -> PillowImage.Image:
    """A picture of that width and height; of another, its centre of the same shape, resized."""
    if picture.size == size:
        return picture
    factor = min(picture.width / size[0], picture.height / size[1])
    width, height = max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    centre = picture.crop((left, top, left + width, top + height))
    return centre.resize(size, PillowImage.Resampling.LANCZOS)


def folder_rows(folder: Path) -> list[tuple[Path, str]]:
    """File and prompt of every image of a folder; nothing but the lists is read. Raises InputError as `read_folder`."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; give a folder with images and their prompts")
    if (folder / INDEX).is_file():
        return _indexed(folder)
    if (folder / METADATA).is_file():
        return _described(folder)
    return _captioned(folder)


def _indexed(folder: Path) -> _Rows:
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
    rows = [
        _row(f"{where}: image {number}", folder, entry, "file", ("prompt",))
        for number, entry in enumerate(entries, 1)
    ]
    return _existing(where, rows)


def _described(folder: Path) -> _Rows:
    where, rows = folder / METADATA, []
    for number, line in enumerate(read_lines(where, right="give one object a line"), 1):
        if line.strip():
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{where}: line {number} is no JSON; give one object a line") from error
            rows.append(_row(f"{where}: line {number}", folder, entry, "file_name", CAPTION_KEYS))
    if not rows:
        raise InputError(f'{where} is empty; give a line {{"file_name": ..., "text": ...}} for every image')
    known = {path for path, _ in rows}
    if nameless := [
        path.relative_to(folder) for path in _files(folder) if _is_picture(path) and path not in known
    ]:
        raise InputError(
            f"{where}: {len(nameless)} images beside it have no line, the first is {nameless[0]};"
            " give each its line or take it away"
        )
    return _existing(where, rows)


def _captioned(folder: Path) -> _Rows:
    files = _files(folder)
    pictures = [path for path in files if _is_picture(path)]
    captions = {path.with_suffix(""): path for path in files if path.suffix.lower() == ".txt"}
    if not pictures and not captions:
        what = (
            "holds no images that we know how to pair with prompts" if any(folder.iterdir()) else "is empty"
        )
        raise InputError(
            f"{folder} {what}; give an {INDEX}, a {METADATA},"
            " or PNG, JPEG or WebP files each with a caption as 0001.png with 0001.txt"
        )
    if silent := [path.relative_to(folder) for path in pictures if path.with_suffix("") not in captions]:
        raise InputError(
            f"{folder}: {len(silent)} images have no caption, the first is {silent[0]};"
            f" write its prompt into {silent[0].with_suffix('.txt')}"
        )
    stems = {path.with_suffix("") for path in pictures}
    if blind := [path.relative_to(folder) for stem, path in captions.items() if stem not in stems]:
        raise InputError(
            f"{folder}: {len(blind)} captions have no image, the first is {blind[0]};"
            f" add {blind[0].with_suffix('.png')} or take the caption away"
        )
    return [(path, _caption(captions[path.with_suffix("")])) for path in pictures]


def _row(where: str, folder: Path, entry: Any, file_key: str, prompt_keys: Sequence[str]) -> tuple[Path, str]:
    """File and prompt of one entry of a list that somebody else may have written."""
    fields = entry if isinstance(entry, dict) else {}
    name = fields.get(file_key)
    prompt = next((fields[key] for key in prompt_keys if key in fields), None)
    if not isinstance(name, str) or not isinstance(prompt, str):
        wanted = " or ".join(prompt_keys)
        raise InputError(f"{where} must have the texts {file_key} and {wanted}")
    if not prompt.strip():
        raise InputError(f"{where}, {name!r}, has an empty prompt; say what it shows")
    # as Windows reads it, which knows every way out: /, \, C: and ..
    path = PureWindowsPath(name)
    if path.anchor or ".." in path.parts:
        raise InputError(f"{where} names {name!r}, which is outside of the folder; put the image into it")
    return folder / name, prompt


def _existing(where: Path, rows: _Rows) -> _Rows:
    if missing := [path.name for path, _ in rows if not path.is_file()]:
        raise InputError(
            f"{where}: {len(missing)} of its {len(rows)} images are missing, the first is {missing[0]!r};"
            " put them back or take their entries away"
        )
    return rows


def _caption(path: Path) -> str:
    right = "a caption is one line that says what the image shows"
    lines = [line.strip() for line in read_lines(path, right=right)]
    lines = [line for line in lines if line]
    if len(lines) != 1:
        what = f"has {len(lines)} lines" if lines else "is empty"
        raise InputError(f"{path} {what}; {right}")
    return lines[0]


def _files(folder: Path) -> list[Path]:
    """All files below a folder, by name, but for hidden ones and those of hidden folders."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(
        path for path in files if not any(p.startswith(".") for p in path.relative_to(folder).parts)
    )


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in _EXTENSIONS
