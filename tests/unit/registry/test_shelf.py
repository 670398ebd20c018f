"""The edge's shelf and the canary: what is put there stays, and state is whole whatever happens."""

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from published_registry import CANARY, PNG, check_shelf, make_bundle

from dekag.bundle.bundle import load_bundle
from dekag.bundle.sound import pack
from dekag.registry import Canary, Shelf
from dekag.registry.state import MAX_NOTES
from dekag.types import InputError


def put(shelf: Shelf, seed: int, *, canary: bytes | None = None) -> str:
    """Put a bundle of its own on the shelf."""
    source = shelf.folder.parent / f"bundle{seed}"
    make_bundle(source, seed=seed)
    pack(source, shelf.folder / "given.tar")
    return shelf.put(shelf.folder / "given.tar", name=f"cala-{seed}", canary=canary)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "shelf", keep=2)


def test_put_activate_and_roll_back(shelf: Shelf) -> None:
    """The active bundle is the last that was activated; rolling back goes to the one before it that did not fail."""
    assert shelf.active("transmission") is None
    first, second, third = (put(shelf, seed) for seed in range(3))
    for bundle in (first, second, third):
        shelf.activate(bundle)
    assert shelf.active("transmission") == third
    assert shelf.active("generation") is None
    shelf.mark_bad(second, "NaN")
    shelf.mark_bad(third, "PSNR 8.1 dB is under the floor of 20 dB")
    assert shelf.roll_back("transmission") == first
    assert shelf.active("transmission") == first
    assert [bundle.bad for bundle in shelf.bundles()][:2] == [None, "NaN"]
    with pytest.raises(InputError, match="failed its test \\(NaN\\)"):
        shelf.activate(second)
    assert shelf.roll_back("transmission") is None
    assert shelf.active("transmission") is None


def test_a_bundle_that_failed_stays_so_when_it_is_pulled_again(shelf: Shelf) -> None:
    bad = put(shelf, 0)
    shelf.mark_bad(bad, "NaN")
    shelf.remove(bad)
    assert put(shelf, 0) == bad
    with pytest.raises(InputError, match="failed its test"):
        shelf.activate(bad)


def test_another_process_sees_the_same(shelf: Shelf) -> None:
    """The state is on the disk: a second shelf on the folder agrees with the first one at every step."""
    other = Shelf(shelf.folder, keep=2)
    first = put(shelf, 0, canary=CANARY.to_json())
    other.activate(first)
    other.pin(first)
    assert shelf.bundles() == other.bundles()
    assert shelf.active("transmission") == first
    assert shelf.canary(first) == CANARY
    assert load_bundle(other.path(first)).id == first
    assert shelf.bundles()[0].name == "cala-0"


def test_remove_and_prune_keep_what_is_needed(shelf: Shelf) -> None:
    """Active, pinned, the one to roll back to and the last two stay."""
    ids = [put(shelf, seed) for seed in range(7)]
    shelf.pin(ids[0])
    shelf.activate(ids[1])
    shelf.activate(ids[3])
    for bundle, reason in ((ids[3], "active"), (ids[0], "pinned")):
        with pytest.raises(InputError, match=reason):
            shelf.remove(bundle)
    assert shelf.prune() == [ids[2], ids[4]]
    assert [bundle.id for bundle in shelf.bundles()] == [ids[0], ids[1], ids[3], ids[5], ids[6]]
    shelf.unpin(ids[0])
    shelf.remove(ids[0])
    (shelf.folder / "incoming").mkdir()
    for name, age_s in (("old", 9e5), ("new", 9e3)):
        (shelf.folder / "incoming" / f"{name}.part").touch()
        os.utime(shelf.folder / "incoming" / f"{name}.part", (time.time() - age_s,) * 2)
    shelf.prune()
    assert os.listdir(shelf.folder / "incoming") == ["new.part"]
    check_shelf(shelf)
    with pytest.raises(InputError, match="not on the shelf"):
        shelf.path(ids[0])


def test_only_sound_bundles_are_put(shelf: Shelf, tmp_path: Path) -> None:
    first = put(shelf, 0)
    (shelf.folder / "x.tar").write_bytes(b"no tar")
    with pytest.raises(InputError):
        shelf.put(shelf.folder / "x.tar", name="x")
    make_bundle(tmp_path / "b", seed=1)
    pack(tmp_path / "b", shelf.folder / "x.tar")
    with pytest.raises(InputError, match="not abc"):
        shelf.put(shelf.folder / "x.tar", name="x", bundle_id="abc")
    with pytest.raises(InputError, match="canary"):
        shelf.put(shelf.folder / "x.tar", name="x", canary=b"{}")
    assert [bundle.id for bundle in shelf.bundles()] == [first]


def test_what_a_kill_leaves_is_put_right(shelf: Shelf, tmp_path: Path) -> None:
    """A file without an entry is taken up if it is whole, an entry without a file and half-written files go."""
    first, second = put(shelf, 0), put(shelf, 1)
    shelf.activate(first)
    shelf.activate(second)
    shelf.path(second).unlink()
    third = make_bundle(tmp_path / "third", seed=3)
    pack(tmp_path / "third", shelf.folder / f"{third}.tar")
    (shelf.folder / f"{'a' * 64}.tar").write_bytes(b"half")
    (shelf.folder / ".part-99-state.json").write_bytes(b"{")
    (shelf.folder / "stranger.tar").write_bytes(b"not ours")
    again = Shelf(shelf.folder)
    assert {bundle.id for bundle in again.bundles()} == {first, third}
    assert again.active("transmission") == first
    assert not list(shelf.folder.glob(".part-*"))
    assert (shelf.folder / "stranger.tar").exists()
    (shelf.folder / "stranger.tar").unlink()
    check_shelf(again)


def test_verify_drops_what_the_disk_damaged(shelf: Shelf) -> None:
    first, second = put(shelf, 0), put(shelf, 1)
    shelf.activate(first)
    shelf.activate(second)
    raw = bytearray(shelf.path(second).read_bytes())
    raw[700] ^= 1
    shelf.path(second).write_bytes(raw)
    assert shelf.verify() == [second]
    assert shelf.active("transmission") == first
    assert put(shelf, 1) == second
    shelf.activate(second)


def test_notes_do_not_grow_without_end(shelf: Shelf) -> None:
    """A thousand activations of two bundles leave a short history."""
    ids = [put(shelf, seed) for seed in range(2)]
    for number in range(20):
        shelf.activate(ids[number % 2])
    fields = json.loads((shelf.folder / "state.json").read_bytes())
    assert len(fields["history"]["transmission"]) == 2
    assert MAX_NOTES < 1000


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"schema":1,"bundles":3}', b"\xff" * 9])
def test_a_damaged_state_is_named(shelf: Shelf, raw: bytes) -> None:
    """It is not guessed at: one line says what to do, and after that the bundles are there again."""
    first = put(shelf, 0)
    (shelf.folder / "state.json").write_bytes(raw)
    with pytest.raises(InputError, match=re.escape("state.json is damaged; delete it")):
        Shelf(shelf.folder)
    (shelf.folder / "state.json").unlink()
    assert [bundle.id for bundle in Shelf(shelf.folder).bundles()] == [first]


def test_a_canary_comes_back() -> None:
    assert Canary.from_json(CANARY.to_json()) == CANARY


BAD_CANARIES: dict[str, Callable[[dict[str, Any]], object]] = {
    "other schema": lambda f: f.update(schema=2),
    "more": lambda f: f.update(code="import os"),
    "no prompts": lambda f: f.update(prompts=[], seeds=[], references=[]),
    "uneven": lambda f: f.update(seeds=[1, 2]),
    "no number": lambda f: f.update(floor_db="high"),
    "endless": lambda f: f.update(steps=10**6),
    "not finite": lambda f: f.update(floor_db=1e999),
    "no picture": lambda f: f.update(references=["AAAA"]),
    "no base64": lambda f: f.update(references=["*"]),
    "long prompt": lambda f: f.update(prompts=["x" * 5000]),
    "negative seed": lambda f: f.update(seeds=[-1]),
    "truth as seed": lambda f: f.update(seeds=[True]),
}


@pytest.mark.parametrize("change", BAD_CANARIES.values(), ids=BAD_CANARIES.keys())
def test_a_forged_canary_is_refused(change: Callable[[dict[str, Any]], object]) -> None:
    fields = json.loads(CANARY.to_json())
    change(fields)
    with pytest.raises(InputError) as caught:
        Canary.from_json(json.dumps(fields).encode())
    assert str(caught.value).isprintable()


def test_a_canary_has_a_size() -> None:
    with pytest.raises(InputError, match="at most"):
        Canary.from_json(b" " * (9 << 20))
    large = Canary(prompts=("a",), seeds=(0,), floor_db=20.0, references=(PNG + bytes(9 << 20),))
    with pytest.raises(InputError, match="at most"):
        large.to_json()


def test_a_state_of_an_older_dekag_is_brought_up_to_date(shelf: Shelf) -> None:
    """What the old file does not say of a bundle, as its bytes, is read from the bundle itself."""
    first, second = put(shelf, 0), put(shelf, 1)
    shelf.activate(first)
    shelf.activate(second)
    shelf.pin(first)
    path = shelf.folder / "state.json"
    old = json.loads(path.read_bytes())
    del old["schema"]
    for entry in old["bundles"]:
        del entry["bytes"]
    path.write_text(json.dumps(old))
    again = Shelf(shelf.folder)
    assert again.active("transmission") == second
    assert {bundle.id: bundle.pinned for bundle in again.bundles()} == {first: True, second: False}
    assert all(bundle.bytes == again.path(bundle.id).stat().st_size for bundle in again.bundles())
    again.unpin(first)
    assert json.loads(path.read_bytes())["schema"] == 1
    path.write_text(json.dumps({"bundles": [first, second], "active": {"transmission": first}}))
    assert Shelf(shelf.folder).active("transmission") == first


def test_a_state_of_a_newer_dekag_is_left_alone(shelf: Shelf) -> None:
    path = shelf.folder / "state.json"
    path.write_bytes(b'{"schema":2}')
    with pytest.raises(InputError, match="newer dekag; upgrade"):
        Shelf(shelf.folder)
    assert path.read_bytes() == b'{"schema":2}'
