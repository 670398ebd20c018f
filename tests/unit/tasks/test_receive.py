"""`dekag receive`: frames and recordings become the pictures that a delivery shows, and a bad one is one line."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import Say

from dekag import link
from dekag.bundle.sound import pack
from dekag.channel import BlockFading
from dekag.types import Condition, Image
from dekag.wire.frame import Frame, write_frame
from dekag.wire.png import read_image
from dekag.wire.sigmf import Recording, write_recording
from dekag.world import load_world, shipped

PROMPTS = ["a red apple on a blue background", "a cat face on a pink background"]
CONDITION = Condition(uses=256, snr_db=12.0, rayleigh=True, blocks=4)


@pytest.fixture(scope="module")
def system() -> link.Link:
    return load_world("emoji").system().link


@pytest.fixture(scope="module")
def sent(system: link.Link) -> Frame:
    """Two pictures as sent."""
    condition = CONDITION.expand(2)
    symbols = link.send(system, PROMPTS, condition, seeds=[0, 1]).symbols
    return Frame(
        symbols=symbols,
        condition=condition,
        seed=0,
        world="emoji",
        bundles=dict(system.bundles),
        delivery="one",
    )


def over_the_air(frame: Frame, seed: int) -> Frame:
    received = BlockFading()(frame.symbols, frame.condition, rng=torch.Generator().manual_seed(seed))
    state = received.state
    return replace(
        frame, symbols=received.symbols, gain=state.gain, noise_power=state.noise_power, channel_seed=seed
    )


def expected(system: link.Link, frame: Frame, seed: int) -> Image:
    received = BlockFading()(frame.symbols, frame.condition, rng=torch.Generator().manual_seed(seed))
    return link.receive(system, received, frame.condition).image


def assert_pictures(folder: Path, images: Image) -> None:
    got = torch.cat([read_image(path) for path in sorted(folder.glob("*.png"))])
    assert got.shape == images.shape
    assert float((got - images).abs().max()) <= 0.5 / 255 + 1e-6


def test_frames_as_sent_and_as_received_show_the_same(
    system: link.Link, sent: Frame, tmp_path: Path, say: Say
) -> None:
    """The channel simulated here or at the edge with one seed: the pictures that the link itself gives."""
    (tmp_path / "sent.frame").write_bytes(write_frame(sent))
    (tmp_path / "received.frame").write_bytes(write_frame(over_the_air(sent, 7)))
    words = ("--channel-seed", 7, "--out", tmp_path / "a", "--json")
    code, printed, _ = say("receive", tmp_path / "sent.frame", *words)
    assert code == 0
    index = json.loads(printed)
    assert index == json.loads((tmp_path / "a" / "index.json").read_text())
    assert index["files"][0]["bundles"] == system.bundles
    assert index["files"][0]["channel_seed"] == 7
    code, printed, _ = say("receive", tmp_path / "received.frame", "--out", tmp_path / "b")
    assert (code, printed) == (0, f"wrote 2 images and index.json to {tmp_path / 'b'}; 0 uses erased\n")
    assert_pictures(tmp_path / "a", expected(system, sent, 7))
    for path in (tmp_path / "a").glob("*.png"):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_files_of_both_kinds_are_numbered_throughout(sent: Frame, tmp_path: Path, say: Say) -> None:
    """A frame, a recording and a frame without updates: six pictures in their order, each named in the index."""
    (tmp_path / "one.frame").write_bytes(write_frame(sent))
    write_recording(
        tmp_path / "two",
        Recording(
            symbols=sent.symbols, condition=sent.condition, seed=0, world="emoji", bundles=sent.bundles
        ),
    )
    (tmp_path / "three.frame").write_bytes(write_frame(replace(sent, bundles={})))
    files = [tmp_path / name for name in ("one.frame", "two", "three.frame")]
    code, printed, _ = say("receive", *files, "--out", tmp_path / "out", "--json")
    assert code == 0
    index = json.loads(printed)["files"]
    assert [file["file"] for file in index] == ["one.frame", "two", "three.frame"]
    names = [row["file"] for file in index for row in file["images"]]
    assert names == [f"{number:04d}.png" for number in range(6)]
    first, second, third = (
        [(tmp_path / "out" / name).read_bytes() for name in names[i : i + 2]] for i in (0, 2, 4)
    )
    assert first == second != third


def test_the_senders_bundle_can_be_given(sent: Frame, tmp_path: Path, say: Say) -> None:
    """A tar of the shipped update gives what the shipped update gives; no other one is taken for it."""
    (tmp_path / "one.frame").write_bytes(write_frame(sent))
    pack(shipped("emoji/cala"), tmp_path / "cala.tar")
    for words in ((), ("--bundle", tmp_path / "cala.tar")):
        code, _, _ = say("receive", tmp_path / "one.frame", *words, "--out", tmp_path / f"out{len(words)}")
        assert code == 0
    assert (tmp_path / "out0" / "0000.png").read_bytes() == (tmp_path / "out2" / "0000.png").read_bytes()
    (tmp_path / "two.frame").write_bytes(write_frame(replace(sent, bundles={"transmission": "ab" * 32})))
    code, _, err = say("receive", tmp_path / "two.frame", "--out", tmp_path / "other")
    assert code == 2
    assert "transmission update abababababab" in err


def test_symbols_that_are_not_numbers_are_erased_and_counted(sent: Frame, tmp_path: Path, say: Say) -> None:
    """Spoilt uses cost quality, never the picture."""
    spoilt = sent.symbols.clone()
    spoilt[0, :40] = complex("nan")
    (tmp_path / "one.frame").write_bytes(write_frame(replace(sent, symbols=spoilt)))
    code, printed, _ = say("receive", tmp_path / "one.frame", "--out", tmp_path / "out")
    assert code == 0
    assert "; 40 uses erased" in printed


BAD: dict[str, tuple[Callable[[Frame], bytes | None], str]] = {
    "missing": (lambda _: None, "does not exist; give a frame (.frame) or a SigMF recording"),
    "truncated": (lambda frame: write_frame(frame)[:-9], "truncated"),
    "no frame": (lambda _: b"\x89PNG\r\n\x1a\n" * 9, "no frame"),
    "received twice": (lambda frame: write_frame(over_the_air(frame, 1)), "leave out --channel-seed"),
    "unknown world": (
        lambda frame: write_frame(replace(frame, world="emojis")),
        "emojis', which does not ship",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_received_is_one_line_and_leaves_nothing(
    case: str, sent: Frame, tmp_path: Path, say: Say
) -> None:
    make, text = BAD[case]
    raw = make(sent)
    if raw is not None:
        (tmp_path / "one.frame").write_bytes(raw)
    code, printed, err = say(
        "receive", tmp_path / "one.frame", "--channel-seed", 1, "--out", tmp_path / "out"
    )
    said = [line for line in err.splitlines() if line.startswith("dekag: ")]
    assert (code, printed, len(said)) == (2, "", 1)
    assert text in said[0]
    assert not (tmp_path / "out").exists()
