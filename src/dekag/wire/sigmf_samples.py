"""The samples of a SigMF recording: what a datatype means, and the numbers of a data file."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Complex
from torch import Tensor

from dekag.types import InputError
from dekag.wire.sigmf_metadata import plain

NAME = re.compile(r"c(f32|f64|[iu]16|[iu]32)_(le|be)|c([iu]8)")
"""Complex datatypes of SigMF: kind and bits of each part, and the order of its bytes where it has several."""
READABLE = "cf32, cf64, ci16, ci32, cu16 or cu32 with _le or _be, ci8 or cu8"
"""The same as a message names it."""


@dataclass(frozen=True, kw_only=True)
class Datatype:
    """How a sample is stored: a real and an imaginary part, one after the other.

    component: of one part, with its byte order. midpoint: what stands for 0, half the range of unsigned integers.
    """

    component: np.dtype[np.generic]
    midpoint: float = 0.0

    @property
    def sample_bytes(self) -> int:
        """Bytes of a sample, both parts."""
        return 2 * self.component.itemsize

    @property
    def is_integer(self) -> bool:
        """Whether samples are whole numbers, which have no absolute scale."""
        return self.component.kind != "f"


def datatype_named(name: str) -> Datatype:
    """The datatype that SigMF calls so, as cf32_le. Raises InputError, naming those that are read, for others."""
    match = NAME.fullmatch(name)
    if match is None:
        raise InputError(f"samples must be {READABLE}, got {plain(name)}; convert the recording")
    kind, order, byte = match.groups()
    number = byte or kind
    bits = int(number[1:])
    component = np.dtype(f"{'>' if order == 'be' else '<'}{number[0]}{bits // 8}")
    # offset binary of unsigned integers: the sign is the highest bit, inverted
    return Datatype(component=component, midpoint=2.0 ** (bits - 1) if number[0] == "u" else 0.0)


def read_samples(data: Path, datatype: Datatype, *, start: int, count: int) -> Complex[Tensor, " samples"]:
    """So many samples of a file from that one on, complex64, as they are: NaN included, integers not scaled."""
    offset = start * datatype.sample_bytes
    numbers = np.fromfile(data, dtype=datatype.component, count=2 * count, offset=offset)
    if datatype.is_integer:
        # in float64 the midpoint of 32 bits is exact
        numbers = numbers.astype(np.float64) - datatype.midpoint
    with np.errstate(over="ignore"):  # what complex64 cannot hold becomes infinite, which is no sample
        parts = numbers.astype(np.float32)
    return torch.from_numpy(parts.view(np.complex64))


def check_size(data: Path, datatype: Datatype, *, start: int, count: int, noun: str) -> None:
    """InputError unless a data file ends with `count` samples, `noun` for short, that begin with that one."""
    if not data.is_file():
        raise InputError(f"{data} is no file; a recording is a .sigmf-meta and a .sigmf-data file")
    size, expected = data.stat().st_size, datatype.sample_bytes * (start + count)
    if size != expected:
        fault = "truncated" if size < expected else "too long"
        after = f" after the {start} before core:sample_start" if start else ""
        raise InputError(f"{data} is {fault}: {size} bytes, but {count} {noun}{after} are {expected}")


def sha512_of(data: Path) -> str:
    """The checksum of a data file, as metadata hold it."""
    with data.open("rb") as file:
        return hashlib.file_digest(file, "sha512").hexdigest()
