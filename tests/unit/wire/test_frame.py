"""Frames come back bit by bit, their layout is what the page reads, and a bad one is one clear line."""

import json
import math
import os
import random
import shutil
import struct
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sent_symbols import odd_symbols

from dekag.bundle.bundle import load_bundle
from dekag.bundle.canonical import canonical_json, digest_json
from dekag.types import Condition, InputError
from dekag.wire.frame import MAX_FRAME_BYTES, Frame, read_frame, write_frame
from dekag.world import shipped

FUZZ_SECONDS = float(os.environ.get("DEKAG_FUZZ_SECONDS", "600"))
SHORT_SECONDS = 5.0
MOST_SECONDS = 1.0
"""Longest that a parser may take on one input."""


def sent() -> Frame:
    symbols, condition = odd_symbols()
    return Frame(symbols=symbols, condition=condition, seed=-(2**63), world="emoji", bundles={})


def received() -> Frame:
    frame = sent()
    return replace(
        frame,
        gain=torch.full_like(frame.symbols, 0.3 - 0.4j),
        noise_power=torch.tensor([0.1, 1e-9, 3.0]),
        bundles={"generation": "ab" * 32, "transmission": "cd" * 32},
        delivery="d-17",
        channel_seed=2**63 - 1,
    )


def bits(values: torch.Tensor | None) -> bytes:
    return b"" if values is None else values.numpy().tobytes()


def assert_same(one: Frame, other: Frame) -> None:
    for field in fields(Frame):
        first, second = getattr(one, field.name), getattr(other, field.name)
        if isinstance(first, Condition):
            for name in (f.name for f in fields(Condition)):
                assert torch.equal(getattr(first, name), getattr(second, name))
        elif isinstance(first, torch.Tensor):
            assert (bits(first), first.dtype, first.shape) == (bits(second), second.dtype, second.shape)
        else:
            assert first == second


def sealed(raw: bytes) -> bytes:
    """The bytes with their checksum made right again: what a malicious sender would do."""
    return raw[:-4] + struct.pack("<I", zlib.crc32(raw[:-4]))


def with_header(change: Callable[[dict[str, object]], object]) -> bytes:
    """A sound frame with another header."""
    raw = write_frame(sent())
    length = struct.unpack_from("<I", raw, 12)[0]
    header = json.loads(raw[16 : 16 + length])
    change(header)
    text = json.dumps(header).encode()
    text = text.ljust(-(-len(text) // 4) * 4)
    return sealed(raw[:12] + struct.pack("<I", len(text)) + text + raw[16 + length :])


@pytest.mark.parametrize("make", [sent, received])
def test_a_frame_comes_back_bit_by_bit(make: Callable[[], Frame]) -> None:
    assert_same(read_frame(write_frame(make())), make())
    assert write_frame(read_frame(write_frame(make()))) == write_frame(make())


@settings(max_examples=60, deadline=None)
@given(
    images=st.integers(1, 4),
    columns=st.integers(1, 40),
    seed=st.integers(-(2**63), 2**63 - 1),
    snr_db=st.floats(-300, 300, width=32),
    text=st.from_regex(r"[ -~]{1,40}", fullmatch=True),
    noise=st.lists(st.floats(min_value=2**-100, width=32) | st.just(math.nan), min_size=4, max_size=4),
)
def test_any_frame_comes_back(
    images: int, columns: int, seed: int, snr_db: float, text: str, noise: list[float]
) -> None:
    """Round trip of any contents, numbers that are none included."""
    rng = torch.Generator().manual_seed(seed % 2**31)
    symbols = torch.randn(images, columns, dtype=torch.complex64, generator=rng)
    symbols[0, 0] = complex(noise[0], noise[1])
    frame = Frame(
        symbols=symbols,
        condition=Condition(uses=columns, snr_db=snr_db).expand(images),
        seed=seed,
        world=text,
        bundles={text: text},
        gain=symbols * 2,
        noise_power=torch.tensor(noise)[:images],
    )
    assert_same(read_frame(write_frame(frame)), frame)


def test_the_layout_is_what_the_page_reads() -> None:
    """Read with struct and numpy alone, at the offsets that the module states."""
    raw, frame = write_frame(received()), received()
    magic, version, length = struct.unpack_from("<8sII", raw)
    assert (magic, version, length % 4) == (b"\x89DKG\r\n\x1a\n", 2, 0)
    header = json.loads(raw[16 : 16 + length])
    assert (header["columns"], header["received"], header["condition"]["uses"]) == (14, True, [5, 8, 12])
    numbers = np.frombuffer(raw[16 + length : -4], dtype="<f4")
    assert frame.gain is not None
    assert np.array_equal(numbers[:84].view("<c8").reshape(3, 14), frame.symbols.numpy())
    assert np.array_equal(numbers[84:168].view("<c8").reshape(3, 14), frame.gain.numpy())
    assert np.array_equal(numbers[168:], np.array([0.1, 1e-9, 3.0], dtype="<f4"))
    assert zlib.crc32(raw[:-4]) == struct.unpack("<I", raw[-4:])[0]


def test_symbols_that_are_not_numbers_come_back() -> None:
    """NaN and infinity of a saturated receiver are for the decoder to judge."""
    frame = received()
    frame.symbols[0, 1], frame.symbols[2, 3] = complex("nan"), complex(float("inf"), -0.0)
    assert_same(read_frame(write_frame(frame)), frame)


def test_every_cut_and_every_flipped_bit_is_refused() -> None:
    """A checksum of 32 bits finds every single flip, wherever it is."""
    raw = write_frame(received())
    for length in range(len(raw)):
        with pytest.raises(InputError):
            read_frame(raw[:length])
    for bit in range(8 * len(raw)):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(InputError):
            read_frame(bytes(flipped))
    with pytest.raises(InputError, match="too long"):
        read_frame(raw + b"\0")


HEADERS: dict[str, tuple[Callable[[dict[str, object]], object], str]] = {
    "huge columns": (lambda h: h.update(columns=2**60), "columns"),
    "most columns": (lambda h: h.update(columns=MAX_FRAME_BYTES // 8), "truncated"),
    "no columns": (lambda h: h.update(columns=0), "columns"),
    "columns as text": (lambda h: h.update(columns="14"), "columns"),
    "another field": (lambda h: h.update(path="../x"), "path"),
    "no seed": (lambda h: h.pop("seed"), "seed"),
    "long seed": (lambda h: h.update(seed=2**63), "seed"),
    "seed as a truth": (lambda h: h.update(seed=False), "seed"),
    "images of two counts": (lambda h: h["condition"].update(uses=[5, 5]), "number of images"),  # type: ignore[attr-defined]
    "uses beyond the columns": (lambda h: h["condition"].update(uses=[5, 8, 15]), "columns"),  # type: ignore[attr-defined]
    "uses that overflow": (lambda h: h["condition"].update(uses=[2**63]), "uses"),  # type: ignore[attr-defined]
    "endless snr": (lambda h: h["condition"].update(snr_db=[float("inf")]), "snr_db"),  # type: ignore[attr-defined]
    "controls in the preset": (lambda h: h.update(preset="\x1b[2J"), "preset"),
    "many images": (lambda h: h["condition"].update(uses=[5] * 2000), "uses"),  # type: ignore[attr-defined]
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_that_lies_is_one_line(case: str) -> None:
    change, text = HEADERS[case]
    with pytest.raises(InputError, match=text) as error:
        read_frame(with_header(change))
    assert "\n" not in str(error.value)
    assert "\x1b" not in str(error.value)


@pytest.mark.parametrize(
    "text", [b"[" * 100_000, b'{"columns":' * 40_000, b"9" * 100_000, b"\xff" * 8, b"    "]
)
def test_a_header_that_is_no_header_is_refused_at_once(text: bytes) -> None:
    """Depth, length and bytes that are no text: nothing recurses, nothing hangs."""
    raw = struct.pack("<8sII", b"\x89DKG\r\n\x1a\n", 1, len(text)) + text + bytes(4)
    started = time.perf_counter()
    with pytest.raises(InputError):
        read_frame(sealed(raw))
    assert time.perf_counter() - started < MOST_SECONDS


def test_too_many_bytes_are_refused_before_they_are_read() -> None:
    with pytest.raises(InputError, match="more than the 100"):
        read_frame(bytes(101), max_bytes=100)
    long = Condition(uses=2**17, snr_db=0.0).expand(20)
    with pytest.raises(InputError, match="fewer images"):
        write_frame(replace(sent(), symbols=torch.zeros(20, 2**17, dtype=torch.complex64), condition=long))


def test_a_frame_that_breaks_its_contract_is_not_written() -> None:
    frame = sent()
    for change, text in (
        ({"symbols": frame.symbols.to(torch.complex128)}, "complex64"),
        ({"symbols": frame.symbols + 1}, "beyond"),
        ({"symbols": frame.symbols[:, :11]}, "payload of 12"),
        ({"condition": frame.condition[:2]}, "describes 2 images"),
        ({"gain": frame.symbols}, "neither"),
        ({"gain": frame.symbols, "noise_power": torch.zeros(3)}, "above 0"),
        ({"world": "\n"}, "preset"),
        ({"channel_seed": -1}, "channel_seed"),
    ):
        with pytest.raises(InputError, match=text):
            write_frame(replace(frame, **change))


def mutated(raw: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, a piece cut out, repeated or moved."""
    data = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randrange(len(data) + 1), rng.choice([1, 1, 2, 4, 16, 300])
        piece = data[at : at + length]
        match rng.randrange(5):
            case 0:
                data[at : at + length] = rng.randbytes(len(piece))
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = piece * rng.choice([1, 2, 50])
            case 3:
                data[at : at + 4] = rng.choice(
                    [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"9999"]
                )
            case _:
                data[at:at] = rng.choice(
                    [b"[", b"{", b'"', b"-", b"1e999", b"NaN", b"null", b"\\u0000", b","]
                )
    return bytes(data) or b"\0"


def fuzz(parse: Callable[[bytes], object], seeds: list[bytes], seconds: float) -> tuple[int, float]:
    """Inputs tried, and the longest seconds that one took; any error but InputError comes through."""
    rng, corpus = random.Random(1), list(seeds)
    tried, longest, end = 0, 0.0, time.monotonic() + seconds
    while time.monotonic() < end:
        raw = mutated(rng.choice(corpus), rng)
        started = time.perf_counter()
        parse(raw)
        tried, longest = tried + 1, max(longest, time.perf_counter() - started)
    return tried, longest


def parse_frame(raw: bytes) -> None:
    """As it came, and with a checksum made right, so that what lies behind it is met as well."""
    for bytes_ in (raw, sealed(raw.ljust(20, b"\0"))):
        try:
            frame = read_frame(bytes_)
        except InputError:
            continue
        write_frame(frame)


def report(name: str, figures: tuple[int, float]) -> None:
    tried, longest = figures
    print(f"{name}: {tried} mutations, longest {1000 * longest:.1f} ms")
    assert tried > 100
    assert longest < MOST_SECONDS


def manifest_parser(folder: Path) -> tuple[Callable[[bytes], None], bytes]:
    """A parser of bundle.json beside its tensor files, and the sound bytes to start from."""
    shutil.copytree(shipped("emoji/cala"), folder)
    manifest = folder / "bundle.json"

    def parse(raw: bytes) -> None:
        for text in (raw, resealed(raw)):
            manifest.write_bytes(text)
            with suppress(InputError):
                load_bundle(folder)

    return parse, manifest.read_bytes()


def resealed(raw: bytes) -> bytes:
    """The manifest with the id of what it now says, in canonical form, if it is JSON at all."""
    try:
        values = json.loads(raw)
        return canonical_json({**values, "id": digest_json({k: v for k, v in values.items() if k != "id"})})
    except (ValueError, TypeError, AttributeError, RecursionError):
        return raw


@pytest.mark.alone
@pytest.mark.parametrize(
    "seconds", [SHORT_SECONDS, pytest.param(FUZZ_SECONDS, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_parsers_refuse_in_time(seconds: float, tmp_path: Path) -> None:
    """Ten minutes of mutations: nothing but InputError, and nothing that takes a second."""
    report("frame", fuzz(parse_frame, [write_frame(sent()), write_frame(received())], seconds / 2))
    parse, sound = manifest_parser(tmp_path / "bundle")
    report("manifest", fuzz(parse, [sound], seconds / 2))
