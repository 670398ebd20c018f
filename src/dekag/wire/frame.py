"""Symbols as one binary frame, for whoever fetches a delivery over HTTP and decodes it: a page, another program.

```
offset  bytes   little-endian
0       8       89 44 4B 47 0D 0A 1A 0A   (magic; a transfer as text breaks it)
8       4       version, 2
12      4       length n of the header, a multiple of 4
16      n       header: canonical JSON in ASCII, spaces at its end
16+n    8bc     symbols, b images of c columns, real and imaginary part as float32
        8bc     gains, and
        4b      noise power of each image, float32: these two only in a frame of received symbols
        4       CRC-32 of everything before it
```
The header holds what both ends know: condition, seed, columns, world (as `preset`), ids of the updates. The checksum
finds accidents; it keeps nobody out. A radio takes `dekag.wire.sigmf`.
"""

import json
import struct
import zlib
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Complex, Float
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import Tensor

from dekag.types import Condition, InputError, Symbols
from dekag.wire.condition import ConditionModel

MAGIC = b"\x89DKG\r\n\x1a\n"
VERSION = 2
"""Of version 1 were symbols of codecs that did not send the image's scale."""
MEDIA_TYPE = "application/vnd.dekag.wire.frame"
SUFFIX = ".frame"
MAX_FRAME_BYTES = 2**24
MAX_HEADER_BYTES = 2**18
MAX_IMAGES = 1024

_PREFIX = struct.Struct("<8sII")
_CHECKSUM = struct.Struct("<I")

_Text = Annotated[str, Field(pattern="^[ -~]{1,200}$")]
_Delivery = Annotated[str, Field(pattern="^[ -~]{1,2000}$")]


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Symbols of one delivery, as sent or as received, with what both ends know of it.

    symbols: complex64 [batch, uses], 0 beyond each image's payload; NaN counts as not received.
    condition: that of each image. seed: of the delivery, any integer of 64 bits with a sign.
    world: name of the sender's world. bundles: ids of its updates by kind.
    delivery: its name at the edge, if it has one.
    gain, noise_power: what the receiver knows of the channel, complex64 [batch, uses] and float32 [batch],
        above 0 or NaN; None of symbols as sent. channel_seed: of the channel that was simulated, if one was.
    """

    symbols: Symbols
    condition: Condition
    seed: int
    world: str
    bundles: dict[str, str]
    delivery: str | None = None
    gain: Complex[Tensor, "batch uses"] | None = None
    noise_power: Float[Tensor, " batch"] | None = None
    channel_seed: int | None = None


class _Columns(ConditionModel):
    """The condition of the images that a frame may hold."""

    @field_validator("*")
    @classmethod
    def _bounded(cls, column: list[Any]) -> list[Any]:
        if len(column) > MAX_IMAGES:
            raise ValueError(f"at most {MAX_IMAGES} images, got {len(column)}")
        return column


class _Header(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    columns: Annotated[int, Field(ge=1, le=MAX_FRAME_BYTES // 8)]
    condition: _Columns
    received: bool
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)]
    preset: _Text
    bundles: Annotated[dict[_Text, _Text], Field(max_length=8)]
    delivery: _Delivery | None
    channel_seed: Annotated[int, Field(ge=0, lt=2**63)] | None


def write_frame(frame: Frame) -> bytes:
    """The frame as bytes; the same frame gives the same bytes. Raises InputError if it breaks its contract."""
    _check(frame)
    header = _header(frame)
    parts = [_PREFIX.pack(MAGIC, VERSION, len(header)), header, _floats(frame.symbols)]
    if frame.gain is not None and frame.noise_power is not None:
        parts += [_floats(frame.gain), _floats(frame.noise_power)]
    raw = b"".join(parts)
    if len(raw) + _CHECKSUM.size > MAX_FRAME_BYTES:
        raise InputError(f"a frame holds at most {MAX_FRAME_BYTES} bytes, got {len(raw)}; send fewer images")
    return raw + _CHECKSUM.pack(zlib.crc32(raw))


def read_frame(raw: bytes, *, max_bytes: int = MAX_FRAME_BYTES) -> Frame:
    """Read what `write_frame` wrote. Numbers are returned as they are, NaN included.

    Raises InputError, one line, if the bytes are too many, damaged, truncated or no frame.
    """
    header, start = _read_header(raw, max_bytes)
    condition = header.condition.condition()
    shape = (len(condition), header.columns)
    numbers = 2 * shape[0] * shape[1]
    total = 2 * numbers + shape[0] if header.received else numbers
    expected = start + 4 * total + _CHECKSUM.size
    if len(raw) != expected:
        fault = "truncated" if len(raw) < expected else "too long"
        raise InputError(f"the frame is {fault}: {len(raw)} bytes, but its header describes {expected}")
    if zlib.crc32(raw[: -_CHECKSUM.size]) != _CHECKSUM.unpack(raw[-_CHECKSUM.size :])[0]:
        raise InputError(
            "the frame is damaged: its bytes do not have the checksum at their end; fetch it again"
        )
    payload = torch.from_numpy(np.frombuffer(raw, dtype="<f4", count=total, offset=start).astype(np.float32))
    frame = Frame(
        symbols=_complex(payload[:numbers], shape),
        condition=condition,
        seed=header.seed,
        world=header.preset,
        bundles=header.bundles,
        delivery=header.delivery,
        gain=_complex(payload[numbers : 2 * numbers], shape) if header.received else None,
        noise_power=payload[2 * numbers :] if header.received else None,
        channel_seed=header.channel_seed,
    )
    _check(frame)
    return frame


def _header(frame: Frame) -> bytes:
    try:
        header = _Header(
            columns=frame.symbols.shape[1],
            condition=_Columns.of(frame.condition),
            received=frame.gain is not None,
            seed=frame.seed,
            preset=frame.world,
            bundles=frame.bundles,
            delivery=frame.delivery,
            channel_seed=frame.channel_seed,
        )
    except ValidationError as error:
        raise _unfit(error) from error
    text = json.dumps(header.model_dump(), sort_keys=True, separators=(",", ":"), allow_nan=False)
    # padded, so that a page can lay a Float32Array over what follows
    return text.encode("ascii").ljust(-(-len(text) // 4) * 4)


def _read_header(raw: bytes, max_bytes: int) -> tuple[_Header, int]:
    """The header and where the numbers start."""
    if len(raw) > max_bytes:
        raise InputError(f"a frame of {len(raw)} bytes is more than the {max_bytes} that are taken")
    if len(raw) < _PREFIX.size:
        raise InputError(f"a frame has at least {_PREFIX.size} bytes, got {len(raw)}")
    magic, version, length = _PREFIX.unpack_from(raw)
    if magic != MAGIC:
        raise InputError("these bytes are no frame of dekag: they do not start with its magic number")
    if version != VERSION:
        raise InputError(f"the frame has version {version}, this dekag reads {VERSION}")
    end = _PREFIX.size + length
    if length > MAX_HEADER_BYTES or length % 4 or end > len(raw):
        raise InputError(
            f"a frame's header has a multiple of 4 and at most {MAX_HEADER_BYTES} bytes within the frame,"
            f" got {length}"
        )
    try:
        return _Header.model_validate_json(raw[_PREFIX.size : end]), end
    except ValidationError as error:
        raise _unfit(error) from error


def _unfit(error: ValidationError) -> InputError:
    first = error.errors(include_input=False, include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "JSON"
    return InputError(f"a frame's header is wrong: {_plain(where)}: {_plain(first['msg'])}")


def _check(frame: Frame) -> None:
    symbols, condition = frame.symbols, frame.condition
    if symbols.dtype != torch.complex64:
        raise InputError(f"a frame holds complex64 symbols, got {symbols.dtype}")
    if not len(condition) == len(symbols) <= MAX_IMAGES:
        raise InputError(
            f"the condition describes {len(condition)} images, but there are {len(symbols)} of at most {MAX_IMAGES}"
        )
    columns, longest = symbols.shape[1], int(condition.payload.max())
    if longest > columns:
        raise InputError(f"the condition has a payload of {longest} uses, but there are {columns} columns")
    beyond = torch.arange(columns) >= condition.payload.cpu()[:, None]
    if bool((symbols.cpu()[beyond] != 0).any()):
        raise InputError("symbols beyond an image's payload must be 0, for they are not sent")
    if (frame.gain is None) != (frame.noise_power is None):
        raise InputError("received symbols come with gain and noise power, symbols as sent with neither")
    if frame.gain is not None and frame.gain.shape != symbols.shape:
        raise InputError(f"the gain must have the symbols' shape, got {list(frame.gain.shape)}")
    if frame.noise_power is not None and bool((frame.noise_power <= 0).any()):
        raise InputError("the noise power of each image must be above 0, or NaN where it is unknown")


def _floats(values: Tensor) -> bytes:
    """Real numbers, or real and imaginary parts in turn, as little-endian float32."""
    real = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
    return real.detach().cpu().float().numpy().astype("<f4").tobytes()


def _complex(numbers: Tensor, shape: tuple[int, int]) -> Complex[Tensor, "batch uses"]:
    return torch.view_as_complex(numbers.clone().reshape(*shape, 2))


def _plain(text: str) -> str:
    """A stranger's text for an error message: short, one line, nothing that a terminal obeys."""
    return ascii(" ".join(text.split()))[1:-1][:200]
