"""What disks, copies and accidents make of a file."""

import random
from collections.abc import Callable
from pathlib import Path


def garbage(file: Path) -> None:
    """No database at all."""
    file.write_bytes(random.Random(0).randbytes(50_000))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:9000])


def spoil_a_page(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[4096:8192] = random.Random(0).randbytes(4096)
    file.write_bytes(raw)


SPOILS: list[Callable[[Path], None]] = [garbage, cut, spoil_a_page]


def random_damage(raw: bytes, rng: random.Random) -> bytes:
    """A cut, noise over a stretch, or single bytes."""
    kind, spoilt = rng.randrange(3), bytearray(raw)
    if kind == 0:
        return raw[: rng.randrange(len(raw))]
    if kind == 1:
        start, length = rng.randrange(len(raw)), rng.choice([4, 64, 1024, 8192])
        spoilt[start : start + length] = rng.randbytes(len(spoilt[start : start + length]))
    else:
        for _ in range(rng.choice([1, 10, 100])):
            spoilt[rng.randrange(len(raw))] = rng.randrange(256)
    return bytes(spoilt)
