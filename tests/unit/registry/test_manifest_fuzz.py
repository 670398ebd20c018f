"""Fuzzing of what an edge parses before it trusts it: manifests, tensor files, channels, canaries.

Every case ends in the thing or in one line, within a second. `make test-slow` goes on for five minutes.
"""

import copy
import hashlib
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from published_registry import CANARY, make_bundle

from dekag.bundle import bundle as bundles
from dekag.bundle.canonical import digest_json
from dekag.bundle.container import CALA, MANIFEST
from dekag.registry import Canary
from dekag.registry.listing import Channel, Listed
from dekag.types import InputError

NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, -(2**63), 10**400, 0.5, -0.0, 1e308, 5e-324),
    *(
        "",
        "a",
        "A" * 64,
        "0" * 64,
        "../..",
        "\0",
        "\ud800",
        "\u202e",
        "x" * 100_000,
        "nan",
        "1e999",
        "<dekag>",
    ),
    *([], {}, [[]], [0] * 1000, {"": 0}, {"__proto__": {}}, {"dtype": "F16", "shape": [2**50]}),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something could be put in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in places(part, (*path, key)))]


def changed(fields: dict[str, Any], rng: random.Random) -> Any:
    """The same value but for some places, where there is something nasty, nothing, or what stood elsewhere."""
    value: Any = copy.deepcopy(fields)
    for _ in range(rng.randint(1, 3)):
        *path, last = rng.choice(places(value)[1:] or [(0,)])
        target = value
        for key in path:
            target = target[key]
        action = rng.randrange(4)
        if action == 0:
            del target[last]
        elif action == 1 and isinstance(target, dict):
            target[str(rng.choice(NASTY))[:200]] = target[last]
        else:
            target[last] = copy.deepcopy(rng.choice(NASTY))
        if not places(value)[1:]:
            break
    return value


def garbled(raw: bytes, rng: random.Random) -> bytes:
    """Some bytes flipped, cut, doubled, or nested deeply."""
    data = bytearray(raw)
    for _ in range(rng.randint(1, 8)):
        place = rng.randrange(len(data) + 1)
        data[place : place + rng.randrange(4)] = rng.choice(
            (
                b"",
                b"[" * 2000,
                b'{"a":' * 1000,
                b"\xff",
                b"\0",
                b"1" * 5000,
                b"NaN",
                b"-",
                b'"',
                rng.randbytes(3),
            )
        )
    return bytes(data)


def texts(fields: dict[str, Any], rng: random.Random) -> bytes:
    """A text near to these fields."""
    if rng.random() < 0.5:
        return garbled(json.dumps(fields).encode(), rng)
    return json.dumps(changed(fields, rng)).encode()


class Fuzz:
    """The parsers, each with a way to make a case for it."""

    def __init__(self, folder: Path) -> None:
        make_bundle(folder / "b")
        self.files = {path.name: path.read_bytes() for path in (folder / "b").iterdir()}
        self.manifest = json.loads(self.files[MANIFEST])
        listed = Listed(id="a" * 64, kind="transmission", base_digest="b" * 64, name="cala")
        self.channel = json.loads(Channel(channel="stable", version=1, bundles=(listed,)).to_json())
        self.canary = json.loads(CANARY.to_json())

    def cases(self, rng: random.Random) -> list[Callable[[], object]]:
        """One case for each parser; a manifest is signed anew, so that more than its id is looked at."""
        manifest = changed(self.manifest, rng)
        if isinstance(manifest, dict):
            manifest.pop("id", None)
            try:
                manifest["id"] = digest_json(manifest)
            except InputError:
                manifest["id"] = "0" * 64
        signed = self._spelt(manifest)
        text, channel, canary = (texts(f, rng) for f in (self.manifest, self.channel, self.canary))
        tensors = self._with_tensors(rng)
        return [
            lambda: bundles._open("a bundle", {**self.files, MANIFEST: signed}),
            lambda: bundles._open("a bundle", {**self.files, MANIFEST: text}),
            lambda: bundles._open("a bundle", tensors),
            lambda: Channel.from_json(channel, channel="stable"),
            lambda: Canary.from_json(canary),
        ]

    def _spelt(self, fields: Any) -> bytes:
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        return text.encode() + b"\n"

    def _with_tensors(self, rng: random.Random) -> dict[str, bytes]:
        """A bundle whose tensor file is garbled and whose manifest has the digest of that."""
        raw = self.files[CALA]
        end = 8 + int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8:end])
        text = texts(header, rng)
        raw = len(text).to_bytes(8, "little") + text + raw[end:]
        raw = garbled(raw, rng) if rng.random() < 0.3 else raw
        fields = copy.deepcopy(self.manifest)
        fields["files"][CALA] |= {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": max(1, len(raw))}
        fields.pop("id")
        return {MANIFEST: self._spelt({**fields, "id": digest_json(fields)}), CALA: raw}


def fuzz(folder: Path, seconds: float) -> None:
    """Make cases until the time is over."""
    made, rng = Fuzz(folder), random.Random(0)
    cases, refused, longest = 0, 0, 0.0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for case in made.cases(rng):
            start = time.process_time()
            try:
                case()
            except InputError as error:
                refused += 1
                one_line = str(error)
                if not one_line.isprintable() or len(one_line) > 1000:
                    raise AssertionError(f"no line for an operator: {one_line!r}") from error
            longest = max(longest, time.process_time() - start)
            cases += 1
    print(f"{cases} cases in {seconds:g} s, {refused} refused, the longest took {1000 * longest:.0f} ms")
    assert refused > cases / 2
    assert longest < 1


def test_fuzz(tmp_path: Path) -> None:
    """Two seconds of the five minutes below."""
    fuzz(tmp_path, 2)


@pytest.mark.slow
def test_long_fuzz(tmp_path: Path) -> None:
    """Five minutes of manifests, tensor files, channels and canaries: no exception but ours, no hang."""
    fuzz(tmp_path, 300)
