"""Symbols as SigMF recordings, so that a delivery can leave the program, cross a radio, and come back.

A recording is two files, `NAME.sigmf-data` with complex samples and `NAME.sigmf-meta` with JSON (Signal Metadata
Format 1.2). Images follow one another without the padding of a batch, and an annotation marks each; a sample is one
payload symbol, or one of an OFDM waveform; pilots are not among them. What both ends know is in the namespace `dekag`:
the condition, the seed, the number of columns of the batch, the waveform, and where the sender named them
its world, the ids of its updates and the channel that it reckons with.

What is written is complex float32. Read are floats and integers of any width and byte order, from the sample at which
the first capture begins (`core:sample_start`).
"""

from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Complex
from torch import Tensor

from dekag.channel import ChannelSettings
from dekag.codec.papr import SINGLE_CARRIER, Waveform
from dekag.types import Condition, FieldError, InputError, Symbols
from dekag.units import snr_db_to_noise_power
from dekag.wire.files import staged
from dekag.wire.sigmf_metadata import (
    MAX_SYMBOLS,
    Extension,
    check_annotations,
    first_sample,
    global_info,
    read_extension,
    read_metadata,
)
from dekag.wire.sigmf_samples import check_size, datatype_named, read_samples, sha512_of

DATATYPE = "cf32_le"
"""Of what is written."""
MAX_SAMPLE_RATE_HZ = 1e12


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


def write_recording(path: Path, recording: Recording) -> None:
    """Write `path` with the suffixes of SigMF, the metadata last; an existing file is kept.

    Raises InputError if the recording breaks its contract, or either file exists.
    """
    sigmf, (meta, _) = _library(), recording_files(path)
    _check(recording)
    require_free(path)
    samples = _modulate(recording)
    file = sigmf.SigMFFile(
        global_info=global_info(_extension_of(recording), DATATYPE, recording.sample_rate_hz)
    )
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


def read_recording(path: Path, *, received: bool = False) -> Recording:
    """Read what `write_recording` wrote, or what a radio made of it; `path` with or without a suffix.

    A checksum is compared where there is one, unless the samples were `received`, of which the sender cannot know it.
    Floating-point samples are returned as they are, NaN included. Integers have no absolute scale: theirs is the one at
    which the mean power of the recording's symbols is 1 + N0, as of symbols that were received at the condition's SNR.
    Raises InputError, one line, if the files are missing, damaged, truncated or not of this namespace.
    """
    sigmf, (meta, data) = _library(), recording_files(path)
    metadata = read_metadata(sigmf, meta)
    extension = read_extension(meta, metadata["global"])
    condition, columns = extension.condition(), extension.columns
    longest = int(condition.payload.max())
    if not longest <= columns <= MAX_SYMBOLS // len(condition):
        raise InputError(
            f"{meta}: {columns} columns do not fit {len(condition)} images of up to {longest} symbols"
        )
    waveform = extension.waveform or SINGLE_CARRIER
    samples = _samples((meta, data), metadata, waveform, condition, received=received)
    symbols = _demodulate(samples, condition, columns, waveform)
    integer = datatype_named(metadata["global"]["core:datatype"]).is_integer
    return Recording(
        symbols=_scaled(symbols, condition) if integer else symbols,
        condition=condition,
        seed=extension.seed,
        sample_rate_hz=metadata["global"].get("core:sample_rate"),
        waveform=waveform,
        clip_db=extension.clip_db,
        world=extension.preset,
        bundles=extension.bundles,
        channel=extension.channel,
    )


def _samples(
    files: tuple[Path, Path],
    metadata: dict[str, Any],
    waveform: Waveform,
    condition: Condition,
    *,
    received: bool,
) -> Complex[Tensor, " samples"]:
    """The samples of all images, once the data file fits them and has the checksum."""
    (meta, data), facts, start = files, metadata["global"], first_sample(metadata)
    lengths = waveform.samples(condition.payload).tolist()
    try:
        datatype = datatype_named(facts["core:datatype"])
    except InputError as error:
        raise InputError(f"{meta}: {error}") from error
    noun = "samples" if waveform.subcarriers else "symbols"
    check_size(data, datatype, start=start, count=sum(lengths), noun=noun)
    check_annotations(meta, metadata, lengths)
    if not received and facts.get("core:sha512", "") not in ("", sha512_of(data)):
        raise FieldError(
            f"{data}: the samples do not have the sha512 of {meta.name}; copy both again if they are as sent; if a"
            " radio made the samples, say so: received",
            "received",
        )
    return read_samples(data, datatype, start=start, count=sum(lengths))


def _scaled(symbols: Symbols, condition: Condition) -> Symbols:
    """Symbols of a mean power of 1 + N0 over all payloads; silence stays silence."""
    payload = condition.payload.to(torch.float32)
    expected = (payload * (1 + snr_db_to_noise_power(condition.snr_db))).sum()
    energy = (symbols.real.square() + symbols.imag.square()).sum()
    return symbols * (expected / energy).sqrt() if float(energy) > 0 else symbols


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


def _extension_of(recording: Recording) -> Extension:
    return Extension.of(
        recording.condition,
        seed=recording.seed,
        columns=recording.symbols.shape[1],
        order="images, OFDM symbols, samples" if recording.waveform.subcarriers else "images, symbols",
        waveform=recording.waveform,
        clip_db=recording.clip_db,
        preset=recording.world,
        bundles=recording.bundles,
        channel=recording.channel,
    )
