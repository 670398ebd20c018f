"""The transforms of diffusers' text-to-image scripts on PIL pictures, with the calls that torchvision makes.

Pictures are resized, cropped and flipped by Pillow and become a tensor through numpy, as in torchvision, so
that neither is faster than the other. Only what the script uses is here.
"""

import random
import time
from collections.abc import Callable
from enum import Enum
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


class InterpolationMode(Enum):
    """Filters by torchvision's names; the values are Pillow's."""

    NEAREST = Image.Resampling.NEAREST
    BILINEAR = Image.Resampling.BILINEAR
    BICUBIC = Image.Resampling.BICUBIC
    LANCZOS = Image.Resampling.LANCZOS


class Compose:
    """One transform after the other; `seconds` is the time that all of them have taken so far."""

    seconds: ClassVar[float] = 0.0

    def __init__(self, transforms: list[Callable[[Any], Any]]) -> None:
        self.transforms = transforms

    def __call__(self, picture: Any) -> Any:
        started = time.perf_counter()
        for transform in self.transforms:
            picture = transform(picture)
        Compose.seconds += time.perf_counter() - started
        return picture


class Resize:
    """The shorter edge to `size` pixels."""

    def __init__(self, size: int, interpolation: InterpolationMode = InterpolationMode.BILINEAR) -> None:
        self.size, self.filter = size, interpolation.value

    def __call__(self, picture: Image.Image) -> Image.Image:
        shorter = min(picture.size)
        width, height = (edge * self.size // shorter for edge in picture.size)
        return picture.resize((width, height), self.filter)


class CenterCrop:
    """A square of `size` pixels from the middle."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, picture: Image.Image) -> Image.Image:
        left, top = ((edge - self.size) // 2 for edge in picture.size)
        return picture.crop((left, top, left + self.size, top + self.size))


class RandomCrop:
    """A square of `size` pixels from anywhere."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, picture: Image.Image) -> Image.Image:
        left, top = (random.randint(0, edge - self.size) for edge in picture.size)
        return picture.crop((left, top, left + self.size, top + self.size))


class RandomHorizontalFlip:
    """Mirrored half of the time."""

    def __call__(self, picture: Image.Image) -> Image.Image:
        return ImageOps.mirror(picture) if random.random() < 0.5 else picture


class Lambda:
    """A function as a transform."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __call__(self, picture: Any) -> Any:
        return self.function(picture)


class ToTensor:
    """An 8-bit picture to [3, height, width] in [0, 1]."""

    def __call__(self, picture: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(picture, np.uint8, copy=True))
        return pixels.permute(2, 0, 1).contiguous().to(torch.float32).div(255)


class Normalize:
    """Minus the mean, over the spread, by channel."""

    def __init__(self, mean: list[float], std: list[float]) -> None:
        self.mean, self.std = mean, std

    def __call__(self, pixels: Tensor) -> Tensor:
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (self.mean, self.std))
        return pixels.clone().sub_(mean).div_(std)
