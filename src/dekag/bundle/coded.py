"""Quantised tensors as a file holds them, read and checked without torch; `quantise` makes them."""

from collections.abc import Mapping
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from dekag.bundle.container import plain_text
from dekag.errors import InputError

Bits = Literal[8, 4]
SCALE: Final = ".scale"
GROUP = 64
"""Numbers of 4 bits that share a scale."""
PAD = -8
_MAX_DIMS = 5
Array = NDArray[Any]


def check_coded(arrays: Mapping[str, Array]) -> None:
    """Raise InputError unless each matrix has its scale of the right shape and nothing is left over."""
    used = set()
    for name, array in arrays.items():
        if is_coded(array):
            _check_scale(name, array, arrays.get(name + SCALE))
            used.add(name + SCALE)
    for name, array in arrays.items():
        if not is_coded(array) and name not in used and (array.dtype != np.float16 or array.ndim > 1):
            raise InputError(
                f"'{plain_text(name)}' is neither a quantised matrix, nor the scale of one, nor an fp16 vector"
            )


def is_coded(array: Array) -> bool:
    """Whether the numbers are those of a quantised matrix."""
    return array.dtype in (np.int8, np.uint8)


def vector_dim(name: str) -> int:
    """The dimension that counts the vectors; the first one inside a vector is the other of 0 and 1."""
    return 1 if name.endswith(".lora_B.weight") else 0


def numbers(name: str, array: Array) -> Array:
    """The whole numbers of a coded matrix in its own shape, int8."""
    return array if array.dtype == np.int8 else _unpacked(name, array)


def _check_scale(name: str, array: Array, scale: Array | None) -> None:
    shown = f"'{plain_text(name)}'"
    if not 2 <= array.ndim <= _MAX_DIMS or not array.size:
        raise InputError(f"{shown} must have 2 to {_MAX_DIMS} dimensions to be a quantised matrix")
    if scale is None:
        raise InputError(f"{shown} is quantised and must have a scale, by its own name and '{SCALE}'")
    found = numbers(name, array)
    count = found.shape[vector_dim(name)]
    shape = (count, 1 if array.dtype == np.int8 else -(-(found.size // count) // GROUP))
    if scale.dtype != np.float16 or scale.shape != shape:
        kind = plain_text(f"{scale.dtype} {list(scale.shape)}")
        raise InputError(f"the scale of {shown} must be float16 {list(shape)}, got {kind}")
    if not bool((np.isfinite(scale) & (scale >= 0)).all()):
        raise InputError(f"the scale of {shown} must be finite and at least 0")


def _unpacked(name: str, packed: Array) -> Array:
    dim = 1 - vector_dim(name)
    shape = (*packed.shape[:dim], 2 * packed.shape[dim], *packed.shape[dim + 1 :])
    halves = np.stack((packed & 15, packed >> 4), dim + 1).reshape(shape).astype(np.int8)
    found = (halves ^ 8) - 8
    if bool((found.take(-1, dim) == PAD).all()):
        found = np.delete(found, -1, dim)
    if bool((found == PAD).any()):
        raise InputError(f"'{plain_text(name)}' holds -8 elsewhere than after the end of an odd length")
    return found
