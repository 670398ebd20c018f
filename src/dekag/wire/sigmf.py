"""Symbols as SigMF recordings, so that a delivery can leave the program, cross a radio, and come back.

A recording is two files, `NAME.sigmf-data` with complex float32 samples and `NAME.sigmf-meta` with JSON
(Signal Metadata Format 1.2). Images follow one another without the padding of a batch, and an annotation marks
each; a sample is one payload symbol, or one of an OFDM waveform. What both ends know is in the namespace `dekag`:
the condition, the seed, the number of columns of the batch, the waveform, and where the sender named them
its world, the ids of its updates and the channel that it reckons with.
"""

import json
from dataclasses import asdict, dataclass
from importlib import import_module
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Complex
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from dekag.channel import ChannelSettings
from dekag.codec.papr import SINGLE_CARRIER, Waveform
from dekag.types import Condition, InputError, Symbols
from dekag.version import __version__
from dekag.wire.condition import ConditionModel
from dekag.wire.files import staged

NAMESPACE = "dekag"
VERSION = "1.0.0"
"""Of the namespace; a reader takes any version of the same first number."""
DATATYPE = "cf32_le"
SAMPLE_BYTES = 8
MAX_SAMPLE_RATE_HZ = 1e12
MAX_SYMBOLS = 2**28
"""Largest batch, padding included, that is made for a recording."""

_Int = Annotated[int, Field(ge=-(2**63), lt=2**63)]
_Number = Annotated[float, Field(allow_inf_nan=False)]
_Text = Annotated[str, Field(pattern="^[ -~]{1,200}$")]


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Symbols of one delivery, sent or received, with what both ends know of it.

    symbols: complex64 [batch, uses], 0 beyond each image's payload.
    condition: that of each image.
    seed: of the delivery, any integer of 64 bits with a sign.
    sample_rate_hz: samples per second on the air, if that is settled.
    waveform: how symbols became samples. clip_db: the ratio that the sender clipped at, if it did.
    world: name of the sender's world. bundles: ids of its updates by kind, None if it says nothing of them.
    channel: the channel that the condition was made for, by name.
    """

    symbols: Symbols
    condition: Condition
    seed: int
    sample_rate_hz: float | None = None
    waveform: Waveform = SINGLE_CARRIER
    clip_db: float | None = None
    world: str | None = None
    bundles: dict[str, str] | None = None
    channel: ChannelSettings | None = None


class _Waveform(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    subcarriers: _Int
    oversampling: _Int


class _Channel(BaseModel):
    """The fields of `ChannelSettings`; what is left out is None."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: _Text
    blocks: _Int | None = None
    correlation: _Number | None = None
    pilots: _Int | None = None
    delay_spread_ns: _Number | None = None
    speed_m_s: _Number | None = None
    antennas: _Text | None = None
    estimation: _Text | None = None


class _Batch(BaseModel):
    """The fields of the namespace that describe the whole batch and come first."""

    seed: _Int
    columns: Annotated[int, Field(ge=1, le=MAX_SYMBOLS)]


class _Extension(ConditionModel, _Batch):
    """The fields of the namespace: `Condition`'s, one value an image, and those of the batch."""

    order: Literal["images, symbols", "images, OFDM symbols, samples"] | None = None
    waveform: _Waveform | None = None
    clip_db: _Number | None = None
    preset: _Text | None = None
    bundles: Annotated[dict[_Text, _Text], Field(max_length=8)] | None = None
    channel: _Channel | None = None


def write_recording(path: Path, recording: Recording) -> None:
    """Write `path` with the suffixes of SigMF, the metadata last; an existing file is kept.

    Raises InputError if the recording breaks its contract, or either file exists.
    """
    sigmf, (meta, _) = _library(), recording_files(path)
    _check(recording)
    require_free(path)
    samples = _modulate(recording)
    file = sigmf.SigMFFile(global_info=_global_info(recording))
    file.add_capture(0)
    start = 0
    for image, length in enumerate(recording.waveform.samples(recording.condition.payload.cpu()).tolist()):
        file.add_annotation(start, length=length, metadata={"core:label": f"image {image}"})
        start += length
    file.set_data_file(data_buffer=BytesIO(samples.numpy().astype("<c8").tobytes()))
    with staged(meta.parent) as stage:
        file.tofile(stage / meta.name)


def require_free(path: Path) -> None:
    """InputError if a file of the recording exists, or the radio package is missing: before work is done for it."""
    _library()
    for file in recording_files(path):
        if file.exists():
            raise InputError(f"{file} exists and is kept; choose another name")


def read_recording(path: Path) -> Recording:
    """Read what `write_recording` wrote, or what a radio made of it; `path` with or without a suffix.

    A checksum is compared where there is one. Samples are returned as they are, NaN included.
    Raises InputError, one line, if the files are missing, damaged, truncated or not of this namespace.
    """
    sigmf, (meta, data) = _library(), recording_files(path)
    metadata = _metadata(sigmf, meta)
    extension = _extension(meta, metadata["global"])
    condition = extension.condition()
    columns, payload = extension.columns, condition.payload
    if not int(payload.max()) <= columns <= MAX_SYMBOLS // len(condition):
        raise InputError(
            f"{meta}: {columns} columns do not fit {len(condition)} images of up to {int(payload.max())} symbols"
        )
    waveform = SINGLE_CARRIER if extension.waveform is None else Waveform(**extension.waveform.model_dump())
    _check_size(data, int(waveform.samples(payload).sum()), "samples" if waveform.subcarriers else "symbols")
    try:
        file = sigmf.SigMFFile(metadata=metadata, data_file=data)
    except sigmf.error.SigMFFileError as error:
        raise InputError(
            f"{data}: the samples do not have the sha512 of {meta.name}; copy both again"
        ) from error
    return Recording(
        symbols=_demodulate(torch.from_numpy(file.read_samples().copy()), condition, columns, waveform),
        condition=condition,
        seed=extension.seed,
        sample_rate_hz=metadata["global"].get("core:sample_rate"),
        waveform=waveform,
        clip_db=extension.clip_db,
        world=extension.preset,
        bundles=extension.bundles,
        channel=None if extension.channel is None else ChannelSettings(**extension.channel.model_dump()),
    )


def _modulate(recording: Recording) -> Complex[Tensor, " samples"]:
    """The samples of all images, one after another."""
    symbols, waveform = recording.symbols.cpu(), recording.waveform
    lengths = recording.condition.payload.tolist()
    if not waveform.subcarriers:
        return symbols[_used(recording.condition, symbols.shape[1])]
    return torch.cat([waveform.modulate(row[:n]).flatten() for row, n in zip(symbols, lengths, strict=True)])


def _demodulate(
    samples: Complex[Tensor, " samples"], condition: Condition, columns: int, waveform: Waveform
) -> Symbols:
    """Symbols of a batch from the samples of all images; a sample that is NaN spoils its OFDM symbol."""
    symbols = torch.zeros(len(condition), columns, dtype=torch.complex64)
    if not waveform.subcarriers:
        symbols[_used(condition, columns)] = samples
        return symbols
    pieces = samples.split(waveform.samples(condition.payload).tolist())
    for row, length in enumerate(condition.payload.tolist()):
        blocks = pieces[row].unflatten(0, (-1, waveform.subcarriers * waveform.oversampling))
        symbols[row, :length] = waveform.demodulate(blocks, length)
    return symbols


def _library() -> ModuleType:
    try:
        return import_module("sigmf")
    except ModuleNotFoundError as error:
        raise InputError('radio files need the sigmf package: pip install "dekag[radio]"') from error


def recording_files(path: Path) -> tuple[Path, Path]:
    """Metadata and data file of a recording, named with or without a suffix; InputError if it is no name."""
    if not path.name:
        raise InputError(f"{path} is a folder; give the name of a recording in it")
    if path.suffix == ".sigmf":
        raise InputError(
            f"{path} names a SigMF archive; unpack it with tar and give the name of its recording"
        )
    stem = path.stem if path.suffix in (".sigmf-meta", ".sigmf-data") else path.name
    return path.with_name(f"{stem}.sigmf-meta"), path.with_name(f"{stem}.sigmf-data")


def _used(condition: Condition, columns: int) -> torch.Tensor:
    """Whether a column of an image's row carries payload, bool [batch, columns]."""
    return torch.arange(columns) < condition.payload.cpu()[:, None]


def _check(recording: Recording) -> None:
    symbols, condition, rate = recording.symbols, recording.condition, recording.sample_rate_hz
    if symbols.dtype != torch.complex64:
        raise InputError(f"a recording holds complex64 symbols, got {symbols.dtype}")
    if len(condition) != len(symbols):
        raise InputError(f"the condition describes {len(condition)} images, but there are {len(symbols)}")
    columns, longest = symbols.shape[1], int(condition.payload.max())
    if longest > columns:
        raise InputError(
            f"the condition has a payload of {longest} uses, but there are {columns} symbols an image"
        )
    if bool((symbols.cpu()[~_used(condition, columns)] != 0).any()):
        raise InputError("symbols beyond an image's payload must be 0, for they are not sent")
    if not -(2**63) <= recording.seed < 2**63:
        raise InputError(f"a seed must be an integer of 64 bits, got {recording.seed}")
    if rate is not None and not 0 < rate <= MAX_SAMPLE_RATE_HZ:
        raise InputError(f"a sample rate must be above 0 and at most {MAX_SAMPLE_RATE_HZ:g} Hz, got {rate}")


def _global_info(recording: Recording) -> dict[str, Any]:
    condition, waveform = recording.condition, recording.waveform
    extension = _Extension.of(
        condition,
        seed=recording.seed,
        columns=recording.symbols.shape[1],
        order="images, OFDM symbols, samples" if waveform.subcarriers else "images, symbols",
        waveform=_Waveform(**asdict(waveform)),
        clip_db=recording.clip_db,
        preset=recording.world,
        bundles=recording.bundles,
        channel=None if recording.channel is None else _Channel(**asdict(recording.channel)),
    )
    rate = {} if recording.sample_rate_hz is None else {"core:sample_rate": recording.sample_rate_hz}
    return {
        "core:datatype": DATATYPE,
        "core:generator": f"dekag {__version__}",
        # the samples can be read without the namespace
        "core:extensions": [{"name": NAMESPACE, "version": VERSION, "optional": True}],
        **rate,
        **{f"{NAMESPACE}:{name}": value for name, value in extension.model_dump(exclude_none=True).items()},
    }


def _metadata(sigmf: ModuleType, meta: Path) -> dict[str, Any]:
    """JSON of a metadata file that the schema of SigMF accepts and that describes one plain data file."""
    try:
        metadata = json.loads(meta.read_text(encoding="utf-8"), parse_constant=_refuse)
    except OSError as error:
        raise InputError(
            f"{meta} cannot be read ({error.strerror}); a recording is a .sigmf-meta and a .sigmf-data file"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{meta} is not JSON: {_plain(error)}; copy it again") from error
    jsonschema = import_module("jsonschema")
    try:
        jsonschema.validate(metadata, sigmf.schema.get_schema())
    except jsonschema.ValidationError as error:
        raise InputError(f"{meta} is not SigMF metadata: {_plain(error.message)}") from error
    facts = metadata["global"]
    if facts["core:datatype"] != DATATYPE:
        raise InputError(
            f"{meta}: samples must be {DATATYPE}, got {_plain(facts['core:datatype'])}; convert the recording"
        )
    odd = [key for key in ("core:dataset", "core:metadata_only", "core:trailing_bytes") if facts.get(key)]
    odd += ["core:header_bytes" for capture in metadata["captures"] if capture.get("core:header_bytes")]
    if odd or facts.get("core:num_channels", 1) != 1:
        named = odd[0] if odd else "core:num_channels"
        raise InputError(
            f"{meta}: {named} is set, but a delivery is one channel in a data file without headers"
        )
    return dict(metadata)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _extension(meta: Path, facts: dict[str, Any]) -> _Extension:
    """The namespace's fields, checked."""
    versions = [e["version"] for e in facts.get("core:extensions", []) if e["name"] == NAMESPACE]
    if not versions:
        raise InputError(f"{meta}: no extension {NAMESPACE!r}, so the recording is not a delivery of dekag")
    if versions[0].split(".")[0] != VERSION.split(".")[0]:
        raise InputError(
            f"{meta}: extension {NAMESPACE!r} has version {_plain(versions[0])}, this dekag reads {VERSION}"
        )
    prefix = f"{NAMESPACE}:"
    ours = {key.removeprefix(prefix): value for key, value in facts.items() if key.startswith(prefix)}
    try:
        return _Extension(**ours)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{meta}: {prefix}{_plain(where)} is wrong: {_plain(first['msg'])}") from error


def _check_size(data: Path, samples: int, noun: str) -> None:
    if not data.is_file():
        raise InputError(f"{data} is no file; a recording is a .sigmf-meta and a .sigmf-data file")
    size, expected = data.stat().st_size, SAMPLE_BYTES * samples
    if size != expected:
        fault = "truncated" if size < expected else "too long"
        raise InputError(f"{data} is {fault}: {size} bytes, but {samples} {noun} are {expected}")


def _plain(text: object) -> str:
    """A stranger's text for an error message: short, one line, nothing that a terminal obeys."""
    return ascii(" ".join(str(text).split()))[1:-1][:200]
