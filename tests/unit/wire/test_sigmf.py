"""Recordings come back bit by bit, other tools can read them, and a bad one is one clear line."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from full_disk import full_after
from sent_symbols import odd_symbols

from dekag.channel import BlockFading
from dekag.types import Condition, InputError
from dekag.wire.sigmf import Recording, read_recording, write_recording

sigmf = import_module("sigmf")
Metadata = dict[str, Any]


def recording() -> Recording:
    symbols, condition = odd_symbols()
    return Recording(symbols=symbols, condition=condition, seed=-(2**63), sample_rate_hz=1.92e6)


def written(folder: Path) -> tuple[Path, Path]:
    write_recording(folder / "trip", recording())
    return folder / "trip.sigmf-meta", folder / "trip.sigmf-data"


def assert_same(one: Recording, other: Recording) -> None:
    assert one.symbols.dtype == other.symbols.dtype
    assert torch.equal(one.symbols.view(torch.int64), other.symbols.view(torch.int64))
    for field in fields(Condition):
        assert torch.equal(getattr(one.condition, field.name), getattr(other.condition, field.name))
        assert getattr(one.condition, field.name).dtype == getattr(other.condition, field.name).dtype
    assert (one.seed, one.sample_rate_hz) == (other.seed, other.sample_rate_hz)


@pytest.mark.parametrize("name", ["trip", "trip.sigmf-meta", "trip.sigmf-data", "trip.2.5ghz", "new/trip"])
def test_a_recording_comes_back_bit_by_bit(tmp_path: Path, name: str) -> None:
    write_recording(tmp_path / name, recording())
    assert_same(read_recording(tmp_path / name), recording())


def test_no_sample_rate_and_the_largest_seed(tmp_path: Path) -> None:
    kept = replace(recording(), sample_rate_hz=None, seed=2**63 - 1)
    write_recording(tmp_path / "trip", kept)
    assert_same(read_recording(tmp_path / "trip"), kept)


def test_received_symbols_that_are_not_numbers_come_back(tmp_path: Path) -> None:
    """NaN and infinity of a saturated receiver are for the decoder to judge."""
    given = recording()
    given.symbols[0, 1], given.symbols[2, 3] = complex("nan"), complex(float("inf"), -0.0)
    write_recording(tmp_path / "trip", given)
    assert_same(read_recording(tmp_path / "trip"), given)


def test_the_files_are_plain_sigmf(tmp_path: Path) -> None:
    """Read with numpy and the SigMF library alone: the payloads one after another, marked by annotations."""
    meta, data = written(tmp_path)
    given = recording()
    payloads = [row[:length] for row, length in zip(given.symbols, (5, 4, 12), strict=True)]
    assert np.array_equal(np.fromfile(data, dtype="<c8"), torch.cat(payloads).numpy())
    file = sigmf.fromfile(meta)
    file.validate()
    assert np.array_equal(file.read_samples(), torch.cat(payloads).numpy())
    spans = [(a["core:sample_start"], a["core:sample_count"]) for a in file.get_annotations()]
    assert spans == [(0, 5), (5, 4), (9, 12)]
    facts = json.loads(meta.read_text())["global"]
    assert facts["core:datatype"] == "cf32_le"
    assert facts["core:sha512"] == hashlib.sha512(data.read_bytes()).hexdigest()
    assert facts["core:sample_rate"] == 1.92e6
    assert facts["core:extensions"] == [{"name": "dekag", "version": "2.0.0", "optional": True}]
    assert facts["dekag:blocks"] == [1, 2, 3]


def test_the_same_recording_gives_the_same_bytes(tmp_path: Path) -> None:
    one, other = written(tmp_path / "one"), written(tmp_path / "other")
    assert [file.read_bytes() for file in one] == [file.read_bytes() for file in other]


def test_what_a_radio_returns_is_read(tmp_path: Path) -> None:
    """Out over a channel of another program: it writes other samples, its own keys, and no checksum."""
    meta, data = written(tmp_path)
    sent = read_recording(meta)
    rng = torch.Generator().manual_seed(2)
    arrived = BlockFading()(sent.symbols, sent.condition, rng=rng).symbols
    used = torch.arange(14) < sent.condition.payload[:, None]
    arrived[used].numpy().astype("<c8").tofile(data)
    facts = json.loads(meta.read_text())
    del facts["global"]["core:sha512"]
    facts["global"] |= {"core:recorder": "another program", "core:hw": "a radio"}
    facts["captures"][0]["core:frequency"] = 2.45e9
    meta.write_text(json.dumps(facts))
    assert_same(read_recording(meta), replace(sent, symbols=arrived))


DATATYPES = {
    "cf32_le": "<f4",
    "cf32_be": ">f4",
    "cf64_le": "<f8",
    "cf64_be": ">f8",
    "ci32_le": "<i4",
    "ci32_be": ">i4",
    "ci16_le": "<i2",
    "ci16_be": ">i2",
    "cu16_le": "<u2",
    "cu16_be": ">u2",
    "ci8": "i1",
    "cu8": "u1",
}


@pytest.mark.parametrize("name", DATATYPES)
def test_every_datatype_and_byte_order_is_read(tmp_path: Path, name: str) -> None:
    """Floats come back as they are, integers of a quarter of the full scale at that of mean power 1 + N0.

    Rounding to b bits leaves at most half a step in each part, 8 / 2^b of the largest symbol in both together; float32
    leaves 1e-6.
    """
    meta, data = written(tmp_path)
    sent = read_recording(meta)
    kind = np.dtype(DATATYPES[name])
    parts = np.fromfile(data, dtype="<f4").astype(np.float64)
    if kind.kind != "f":
        full = 2.0 ** (8 * kind.itemsize - 1)
        parts = np.round(parts / np.abs(parts).max() * full / 4) + (full if kind.kind == "u" else 0)
    parts.astype(kind).tofile(data)
    facts = json.loads(meta.read_text())
    facts["global"]["core:datatype"] = name
    facts["global"].pop("core:sha512")
    meta.write_text(json.dumps(facts))
    found = read_recording(meta).symbols
    if kind.kind == "f":
        assert torch.equal(found, sent.symbols)
        return
    payload = sent.condition.payload
    expected = (payload * (1 + 10 ** (-sent.condition.snr_db / 10))).sum() / payload.sum()
    assert found.abs().square().sum() / payload.sum() == pytest.approx(float(expected), rel=1e-5)
    scale = (expected * payload.sum() / sent.symbols.abs().square().sum()).sqrt()
    step = 8 * float(sent.symbols.abs().max()) / 2 ** (8 * kind.itemsize) + 1e-6
    torch.testing.assert_close(found / scale, sent.symbols, rtol=0, atol=step)


def test_silence_of_integers_stays_silence(tmp_path: Path) -> None:
    meta, data = written(tmp_path)
    np.full(2 * 21, 128, dtype="u1").tofile(data)
    facts = json.loads(meta.read_text())
    facts["global"]["core:datatype"] = "cu8"
    meta.write_text(json.dumps(facts))
    assert not read_recording(meta, received=True).symbols.any()


@pytest.mark.parametrize("moved", [False, True])
def test_samples_begin_where_the_first_capture_begins(tmp_path: Path, moved: bool) -> None:
    """Seven samples of nothing before the first image; annotations that were moved with it, or left as sent."""
    meta, data = written(tmp_path)
    sent = read_recording(meta)
    data.write_bytes(np.full(7, np.nan, dtype="<c8").tobytes() + data.read_bytes())
    facts = json.loads(meta.read_text())
    facts["captures"][0]["core:sample_start"] = 7
    for mark in facts["annotations"]:
        mark["core:sample_start"] += 7 * moved
    meta.write_text(json.dumps(facts))
    assert_same(read_recording(meta, received=True), sent)


def complaint(path: Path) -> str:
    """The one line that reading this gives, without the folder."""
    with pytest.raises(InputError) as error:
        read_recording(path)
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 500
    return text.replace(f"{path.parent}/", "")


def test_damaged_data(tmp_path: Path) -> None:
    meta, data = written(tmp_path)
    whole = data.read_bytes()
    data.write_bytes(whole[:-3])
    assert complaint(meta) == "trip.sigmf-data is truncated: 165 bytes, but 21 symbols are 168"
    data.write_bytes(b"")
    assert complaint(meta) == "trip.sigmf-data is truncated: 0 bytes, but 21 symbols are 168"
    data.write_bytes(whole + b"more")
    assert complaint(meta) == "trip.sigmf-data is too long: 172 bytes, but 21 symbols are 168"
    data.write_bytes(whole[:7] + bytes([whole[7] ^ 1]) + whole[8:])
    assert complaint(meta) == (
        "trip.sigmf-data: the samples do not have the sha512 of trip.sigmf-meta; copy both again if they are as sent;"
        " if a radio made the samples, say so: received"
    )
    assert read_recording(meta, received=True).seed == recording().seed
    data.unlink()
    assert complaint(meta) == (
        "trip.sigmf-data is no file; a recording is a .sigmf-meta and a .sigmf-data file"
    )


def test_damaged_metadata(tmp_path: Path) -> None:
    meta, _ = written(tmp_path)
    text = meta.read_text()
    meta.write_text(text[: len(text) // 2])
    assert complaint(meta).startswith("trip.sigmf-meta is not JSON: ")
    meta.write_text(text.replace("1920000.0", "NaN"))
    assert complaint(meta) == "trip.sigmf-meta is not JSON: NaN is no number of JSON; copy it again"
    for raw in (b"", b"\xff\xfe\x00", b"[" * 100000):
        meta.write_bytes(raw)
        assert complaint(meta).startswith("trip.sigmf-meta is not JSON: ")
    meta.unlink()
    assert complaint(meta) == (
        "trip.sigmf-meta cannot be read (No such file or directory);"
        " a recording is a .sigmf-meta and a .sigmf-data file"
    )


def without(key: str) -> Callable[[Metadata], object]:
    return lambda metadata: metadata["global"].pop(key)


def changed(key: str, value: object) -> Callable[[Metadata], object]:
    return lambda metadata: metadata["global"].update({key: value})


def extension(version: str) -> Callable[[Metadata], object]:
    return changed("core:extensions", [{"name": "dekag", "version": version, "optional": True}])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (without("core:datatype"), "is not SigMF metadata: 'core:datatype' is a required property"),
        (
            lambda metadata: metadata.pop("captures"),
            "is not SigMF metadata: 'captures' is a required property",
        ),
        (
            lambda metadata: metadata.update({"global": []}),
            "is not SigMF metadata: [] is not of type 'object'",
        ),
        (
            changed("core:datatype", "rf32_le"),
            "samples must be cf32, cf64, ci16, ci32, cu16 or cu32 with _le or _be, ci8 or cu8, got rf32_le; convert",
        ),
        (
            changed("core:datatype", "ci16_le"),
            "trip.sigmf-data is too long: 168 bytes, but 21 symbols are 84",
        ),
        (
            lambda m: m["captures"][0].update({"core:sample_start": 2}),
            "trip.sigmf-data is truncated: 168 bytes, but 21 symbols after the 2 before core:sample_start are 184",
        ),
        (
            lambda m: m["annotations"][1].update({"core:sample_start": 6}),
            "image 1 is marked at sample 6 with 4 samples, but the condition places it at 5 with 4; mend",
        ),
        (
            lambda m: m["annotations"][2].update({"core:label": "image 3"}),
            "there is an annotation of image 3 of 3 images",
        ),
        (changed("core:num_channels", 2), "core:num_channels is set, but a delivery is one channel"),
        (
            changed("core:dataset", "passwd"),
            "core:dataset is set, but a delivery is one channel in a data file",
        ),
        (changed("core:trailing_bytes", 8), "core:trailing_bytes is set"),
        (lambda m: m["captures"][0].update({"core:header_bytes": 8}), "core:header_bytes is set"),
        (without("core:extensions"), "no extension 'dekag', so the recording is not a delivery of dekag"),
        (extension("1.0.0"), "extension 'dekag' has version 1.0.0, this dekag reads 2.0.0"),
        (extension("3.0.0"), "extension 'dekag' has version 3.0.0, this dekag reads 2.0.0"),
        (without("dekag:seed"), "dekag:seed is wrong: Field required"),
        (changed("dekag:power", 3), "dekag:power is wrong: Extra inputs are not permitted"),
        (changed("dekag:seed", "7"), "dekag:seed is wrong: Input should be a valid integer"),
        (changed("dekag:seed", 2**63), "dekag:seed is wrong: Input should be less than"),
        (changed("dekag:uses", [5, 8, 1e3]), "dekag:uses.2 is wrong: Input should be a valid integer"),
        (changed("dekag:uses", []), "dekag:uses is wrong: List should have at least 1 item"),
        (changed("dekag:rayleigh", [0, 1, 1]), "dekag:rayleigh.0 is wrong: Input should be a valid boolean"),
        (changed("dekag:uses", [5, 8]), "the fields must describe the same number of images"),
        (changed("dekag:uses", [5, 8, 15]), "14 columns do not fit 3 images of up to 15 symbols"),
        (changed("dekag:columns", 2**28), "268435456 columns do not fit 3 images of up to 12 symbols"),
        (changed("dekag:snr_db", [0.0, 1e300, 0.0]), "snr_db must be within +-300 dB, got inf"),
        (changed("dekag:uses", [5, 8, 11]), "trip.sigmf-data is too long: 168 bytes, but 20 symbols are 160"),
    ],
)
def test_foreign_metadata(tmp_path: Path, change: Callable[[Metadata], object], text: str) -> None:
    meta, _ = written(tmp_path)
    metadata = json.loads(meta.read_text())
    change(metadata)
    meta.write_text(json.dumps(metadata))
    assert text in complaint(meta)


def test_a_stranger_does_not_write_to_the_terminal(tmp_path: Path) -> None:
    meta, _ = written(tmp_path)
    metadata = json.loads(meta.read_text())
    metadata["global"]["core:datatype"] = "cf32\x1b[2J\n" + "x" * 1000
    meta.write_text(json.dumps(metadata))
    assert complaint(meta).isprintable()


@pytest.mark.parametrize("cut", [0.0, 0.3, 0.6, 0.9, 1.0])
def test_a_copy_that_stopped_is_never_read(tmp_path: Path, cut: float) -> None:
    """Either file cut anywhere but at its last line end."""
    for index in (0, 1):
        files = written(tmp_path / str(index))
        raw = files[index].read_bytes()
        files[index].write_bytes(raw[: int(cut * (len(raw) - 2))])
        complaint(files[0])


@pytest.mark.parametrize("suffix", ["sigmf-meta", "sigmf-data"])
def test_an_existing_file_is_kept(tmp_path: Path, suffix: str) -> None:
    kept = tmp_path / f"trip.{suffix}"
    kept.write_text("a measurement")
    with pytest.raises(InputError, match=rf"trip\.{suffix} exists and is kept; choose another name$"):
        write_recording(tmp_path / "trip", recording())
    assert [path.name for path in tmp_path.iterdir()] == [kept.name]
    assert kept.read_text() == "a measurement"


@pytest.mark.parametrize("room", [0, 100, 400])
def test_a_write_that_fails_leaves_nothing(room: int, tmp_path: Path) -> None:
    """The disk is full at once, within the 168 bytes of samples or within the metadata: no file is left."""
    with full_after(room), pytest.raises(OSError, match="File too large"):
        write_recording(tmp_path / "trip", recording())
    assert list(tmp_path.iterdir()) == []


def test_recordings_of_one_folder_leave_each_other_alone(tmp_path: Path) -> None:
    write_recording(tmp_path / "first", recording())
    write_recording(tmp_path / "second", replace(recording(), seed=5))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{name}.sigmf-{kind}" for name in ("first", "second") for kind in ("data", "meta")
    ]
    assert [read_recording(tmp_path / name).seed for name in ("first", "second")] == [-(2**63), 5]
    shutil.copy(tmp_path / "second.sigmf-data", tmp_path / "first.sigmf-data")
    assert_same(read_recording(tmp_path / "first"), recording())


def test_what_cannot_be_recorded(tmp_path: Path) -> None:
    good = recording()
    padded = good.symbols.clone()
    padded[0, 13] = 1j
    wrong = {
        "a recording holds complex64 symbols, got torch.complex128": replace(
            good, symbols=good.symbols.to(torch.complex128)
        ),
        "the condition describes 2 images, but there are 3": replace(good, condition=good.condition[:2]),
        "the condition has a payload of 12 uses, but there are 11 symbols an image": replace(
            good, symbols=good.symbols[:, :11]
        ),
        "symbols beyond an image's payload must be 0, for they are not sent": replace(good, symbols=padded),
        f"a seed must be an integer of 64 bits, got {2**63}": replace(good, seed=2**63),
        "a sample rate must be above 0 and at most 1e+12 Hz, got 0.0": replace(good, sample_rate_hz=0.0),
        "a sample rate must be above 0 and at most 1e+12 Hz, got nan": replace(
            good, sample_rate_hz=float("nan")
        ),
    }
    for text, bad in wrong.items():
        with pytest.raises(InputError) as error:
            write_recording(tmp_path / "trip", bad)
        assert str(error.value) == text
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_no_recording(tmp_path: Path) -> None:
    assert complaint(tmp_path / "trip.sigmf") == (
        "trip.sigmf names a SigMF archive; unpack it with tar and give the name of its recording"
    )
    assert "is a folder; give the name of a recording in it" in complaint(Path())
