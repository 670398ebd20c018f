"""What an encoder wants to see, read from the preprocessor_config.json beside its weights.

The image processors of transformers go through 8-bit PIL images one at a time when torchvision is absent, and
fill fields that the file leaves out by the class that they guess; here the file is all there is.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import ImageProcessingMixin

from dekag.types import Image, InputError

Resampling = Literal["bilinear", "bicubic"]
RESAMPLING: dict[int, Resampling] = {2: "bilinear", 3: "bicubic"}
"""PIL's numbers of the filters that torch has too, antialiased alike."""
WHOLE = 384
"""Pixels from which on ConvNeXt is shown the whole picture."""
Size = tuple[int, int]
Colour = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Resize, cut out the centre, normalise.

    resize: pixels of the shorter edge, or of height and width.
    crop: height and width that are cut out of the resized picture; None keeps all of it.
    resample: the interpolation, antialiased. mean, std: what the encoder's colours in [0, 1] are centred on
        and divided by.
    """

    resize: int | Size
    crop: Size | None = None
    resample: Resampling = "bicubic"
    mean: Colour
    std: Colour

    def __post_init__(self) -> None:
        height, width = self._square()
        cut = self.crop or (height, width)
        if not (1 <= cut[0] <= height and 1 <= cut[1] <= width):
            raise InputError(f"cannot cut {cut[0]} x {cut[1]} out of {height} x {width} pixels")
        if min(self.std) <= 0:
            raise InputError(f"std must be positive, got {self.std}")

    def __call__(self, images: Image) -> Tensor:
        """Images in [0, 1] to pixel values, float [batch, 3, height, width].

        What the filter overshoots is cut off, as it is in 8-bit pictures.
        """
        rows, columns = self.resized(*images.shape[2:])
        sized = F.interpolate(images, (rows, columns), mode=self.resample, antialias=True).clamp(0, 1)
        height, width = self.crop or (rows, columns)
        top, left = (rows - height) // 2, (columns - width) // 2
        seen = sized[:, :, top : top + height, left : left + width]
        mean, std = (torch.tensor(c, device=images.device).view(3, 1, 1) for c in (self.mean, self.std))
        return (seen - mean) / std

    @property
    def input_size(self) -> Size:
        """Height and width of what is left of a square picture."""
        return self.crop or self._square()

    def resized(self, rows: int, columns: int) -> Size:
        """Height and width that a picture of this size has before its centre is cut out."""
        if not isinstance(self.resize, int):
            return self.resize
        shorter = min(rows, columns)
        return rows * self.resize // shorter, columns * self.resize // shorter

    def _square(self) -> Size:
        return _pair(self.resize) if isinstance(self.resize, int) else self.resize


def load_preprocessing(source: str | Path) -> Preprocessing:
    """The preprocessing of a model directory or hub id.

    Raises InputError if there is no preprocessor_config.json or it asks for what is not done here.
    """
    try:
        # what a processor of images and texts saves in one file is read as well
        given, _ = ImageProcessingMixin.get_image_processor_dict(source)
    except (OSError, ValueError) as error:
        raise InputError(f"{source} has no preprocessor_config.json that can be read") from error
    try:
        return _from_json(given)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the preprocessor_config.json of {source} cannot be used: {error}") from error


def _from_json(given: dict[str, Any]) -> Preprocessing:
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if not given.get(step, True):
            raise InputError(f"{step} is off")
    if abs(given.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        raise InputError(f"rescale_factor must be 1/255, got {given['rescale_factor']}")
    if given["resample"] not in RESAMPLING:
        raise InputError(f"resample must be one of {RESAMPLING}, got {given['resample']}")
    resize, crop = _steps(given)
    return Preprocessing(
        resize=resize,
        crop=crop,
        resample=RESAMPLING[given["resample"]],
        mean=_colour(given["image_mean"]),
        std=_colour(given["image_std"]),
    )


def _steps(given: dict[str, Any]) -> tuple[int | Size, Size | None]:
    """What is resized to and what is cut out."""
    size = given["size"]
    if given.get("crop_pct") is not None:
        # ConvNeXt's: what is shown at 384 pixels and more is squeezed, not cut
        edge = size["shortest_edge"] if isinstance(size, dict) else size
        return (_pair(edge), None) if edge >= WHOLE else (int(edge / given["crop_pct"]), (edge, edge))
    crop = _pair(given["crop_size"]) if given.get("do_center_crop", "crop_size" in given) else None
    if isinstance(size, dict):
        return (size["shortest_edge"] if "shortest_edge" in size else _pair(size)), crop
    # older files give one number: the shorter edge if a crop follows, else both edges
    return (_pair(size) if crop is None else size), crop


def _pair(size: int | dict[str, int]) -> Size:
    return (size, size) if isinstance(size, int) else (size["height"], size["width"])


def _colour(values: list[float]) -> Colour:
    red, green, blue = values
    return float(red), float(green), float(blue)
