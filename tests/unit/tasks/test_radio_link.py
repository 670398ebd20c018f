"""`dekag radio` from prompts to pictures: what a delivery shows, and one clear line for what cannot be received."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import Say, exit_code

from dekag.evaluation.metrics import psnr_db
from dekag.tasks import papr, receive
from dekag.wire.png import read_image
from dekag.wire.sigmf import read_recording, write_recording

PROMPTS = ("a red apple on a blue background", "a cat face on a pink background")
CHANNELS = {
    "awgn": ("--snr-db", 8, "--uses", 200),
    "rayleigh": ("--channel", "rayleigh", "--blocks", 4, "--pilots", 2, "--correlation", 0.5),
    "tdl": ("--channel", "tdl-c", "--delay-spread", 300, "--speed", 3, "--uses", 256),
    "mimo": ("--channel", "cdl-a", "--antennas", "2x2", "--estimation", "ls", "--uses", 256),
}


@pytest.fixture(scope="module")
def trip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of two pictures over AWGN, made once; with the pictures as they were drawn."""
    folder = tmp_path_factory.mktemp("radio")
    files = ("--out", folder / "trip", "--drawn", folder / "drawn")
    assert exit_code("radio", "send", *PROMPTS, "--snr-db", 15, *files) == 0
    return folder / "trip"


def copied(trip: Path, folder: Path) -> Path:
    for file in trip.parent.glob("trip.*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder / "trip"


def pictures(folder: Path) -> torch.Tensor:
    return torch.cat([read_image(path) for path in sorted(folder.glob("*.png"))])


@pytest.mark.parametrize("channel", CHANNELS)
def test_recorded_and_received_is_delivered(channel: str, tmp_path: Path, say: Say) -> None:
    """Over a simulated channel, the files are those of `dekag deliver` byte by byte, and the uses are the same."""
    words = (*PROMPTS, *CHANNELS[channel], "--seed", 5, "--json")
    code, sent, _ = say("radio", "send", *words, "--out", tmp_path / "trip")
    assert code == 0
    code, printed, _ = say(
        "radio", "receive", tmp_path / "trip", "--channel-seed", 5, "--out", tmp_path / "got", "--json"
    )
    assert code == 0
    index = json.loads(printed)
    assert index == json.loads((tmp_path / "got" / "index.json").read_text())
    code, delivered, _ = say("deliver", *words, "--out", tmp_path / "direct")
    assert code == 0
    ledger = json.loads(delivered)["ledger"]
    assert json.loads(sent)["pilot_uses"] == ledger["pilot_uses"]
    assert (ledger["pilot_uses"] > 0) == (channel != "awgn")
    assert sum(row["payload_uses"] for row in index["images"]) == ledger["payload_uses"]
    assert sum(row["side_uses"] for row in index["images"]) == ledger["side_uses"] == len(PROMPTS)
    assert sum(row["uses"] for row in index["images"]) == ledger["channel_uses"]
    got, direct = (sorted((tmp_path / name).glob("*.png")) for name in ("got", "direct"))
    assert [file.read_bytes() for file in got] == [file.read_bytes() for file in direct]


def test_without_a_channel_the_pictures_arrive(trip: Path, tmp_path: Path, say: Say) -> None:
    """As drawn, less what the codec loses at 15 dB: above 20 dB PSNR, and far from each other's picture."""
    code, printed, _ = say("radio", "receive", trip, "--out", tmp_path / "got")
    assert code == 0
    assert printed.strip() == f"wrote 2 images and index.json to {tmp_path / 'got'}; 0 uses erased"
    got, drawn = pictures(tmp_path / "got"), pictures(trip.parent / "drawn")
    assert bool((psnr_db(drawn, got) > 20).all())
    assert bool((psnr_db(drawn.flip(0), got) < 15).all())
    listed = json.loads((trip.parent / "drawn" / "index.json").read_text())["images"]
    assert [row["prompt"] for row in listed] == list(PROMPTS)


def test_the_ofdm_waveform_carries_the_same_symbols(trip: Path, tmp_path: Path, say: Say) -> None:
    """8 OFDM symbols of 72 subcarriers and 4 samples each for 512 symbols; the peaks are higher than without."""
    words = ("radio", "send", *PROMPTS, "--snr-db", 15, "--json")
    code, printed, _ = say(*words, "--ofdm", "--out", tmp_path / "trip")
    assert code == 0
    report = json.loads(printed)
    assert report["samples"] == 2 * 8 * 72 * 4
    assert (tmp_path / "trip.sigmf-data").stat().st_size == 8 * report["samples"]
    plain, ofdm = read_recording(trip), read_recording(tmp_path / "trip")
    torch.testing.assert_close(ofdm.symbols, plain.symbols, rtol=0, atol=1e-5)
    code, printed, _ = say("radio", "papr", trip, "--json")
    assert code == 0
    assert json.loads(printed)["highest_db"] < report["papr"]["highest_db"]
    assert report["papr"]["blocks"] == 16


def test_clipping_lowers_peaks_and_costs_quality(trip: Path, tmp_path: Path, say: Say) -> None:
    for name, clip in (("open", ()), ("clipped", ("--clip", 3))):
        code, printed, _ = say(
            "radio", "send", *PROMPTS, "--snr-db", 15, "--ofdm", *clip, "--out", tmp_path / name, "--json"
        )
        assert code == 0
        assert json.loads(printed)["clip_db"] == (3.0 if clip else None)
        say("radio", "receive", tmp_path / name, "--out", tmp_path / f"{name}-got")
    peaks = [papr.papr(tmp_path / name)["highest_db"] for name in ("clipped", "open")]
    assert 3 < peaks[0] < peaks[1] - 1
    drawn = pictures(trip.parent / "drawn")
    quality = [psnr_db(drawn, pictures(tmp_path / f"{name}-got")).mean() for name in ("clipped", "open")]
    assert 18 < quality[0] < quality[1]


def test_samples_that_are_no_numbers_are_counted(trip: Path, tmp_path: Path, say: Say) -> None:
    """A radio that lost 100 samples of the second picture, and wrote no checksum; the first keeps every bit."""
    path = copied(trip, tmp_path)
    data, meta = (path.with_name(f"trip.sigmf-{kind}") for kind in ("data", "meta"))
    samples = np.fromfile(data, dtype="<c8")
    samples[600:690], samples[690:700] = np.nan, np.inf
    samples.tofile(data)
    facts = json.loads(meta.read_text())
    del facts["global"]["core:sha512"]
    meta.write_text(json.dumps(facts))
    for out, source in (("whole", trip), ("lossy", path)):
        code, printed, _ = say("radio", "receive", source, "--out", tmp_path / out)
        assert code == 0
    assert "100 uses erased" in printed
    rows = json.loads((tmp_path / "lossy" / "index.json").read_text())["images"]
    assert [row["erased_uses"] for row in rows] == [0, 100]
    whole, lossy = (
        [p.read_bytes() for p in sorted((tmp_path / n).glob("*.png"))] for n in ("whole", "lossy")
    )
    assert whole[0] == lossy[0]
    assert whole[1] != lossy[1]
    code, _, err = say("radio", "papr", path)
    assert code == 2
    assert "holds samples that are no numbers; their peaks cannot be told" in err


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    meta = path.with_name(f"{path.name}.sigmf-meta")
    facts = json.loads(meta.read_text())
    change(facts["global"])
    meta.write_text(json.dumps(facts))


def unmarked(path: Path) -> None:
    """Drop the annotations, which mark two images."""
    meta = path.with_name(f"{path.name}.sigmf-meta")
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"annotations": []}))


FOREIGN: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no extension": (lambda g: g.pop("core:extensions"), "not a delivery of dekag"),
    "no condition": (lambda g: g.pop("dekag:snr_db"), "dekag:snr_db is wrong: Field required"),
    "wrong digest": (lambda g: g.update({"core:sha512": "0" * 128}), "do not have the sha512"),
    "other update": (
        lambda g: g["dekag:bundles"].update(transmission="ab" * 32),
        "was encoded with the transmission update abababababab, and here is ",
    ),
    "unknown world": (
        lambda g: g.update({"dekag:preset": "emojis"}),
        "of the world 'emojis', which does not ship",
    ),
    "no world": (lambda g: g.pop("dekag:preset"), "does not name the world that sent it"),
    "unknown channel": (
        lambda g: g.update({"dekag:channel": {"name": "rician"}}),
        "unknown channel 'rician'; known are awgn",
    ),
    "channel of another kind": (
        lambda g: g.update({"dekag:channel": {"name": "tdl-c", "taps": 3}}),
        "dekag:channel.taps is wrong: Unexpected keyword argument",
    ),
    "odd waveform": (
        lambda g: g.update({"dekag:waveform": {"subcarriers": -1, "oversampling": 1}}),
        "a waveform has 0 to 4096 subcarriers",
    ),
    "another waveform": (
        lambda g: g.update({"dekag:waveform": {"subcarriers": 72, "oversampling": 4}}),
        "is truncated: 8192 bytes, but 4608 samples are 36864",
    ),
    "escape codes": (lambda g: g.update({"dekag:preset": "\x1b[2J"}), "dekag:preset is wrong"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_foreign_recording_is_one_line_and_leaves_nothing(
    case: str, trip: Path, tmp_path: Path, say: Say
) -> None:
    change, text = FOREIGN[case]
    path = copied(trip, tmp_path)
    changed(path, change)
    before = sorted(tmp_path.iterdir())
    code, printed, err = say("radio", "receive", path, "--channel-seed", 1, "--out", tmp_path / "new" / "got")
    said = [line for line in err.splitlines() if line.startswith("dekag: ")]
    assert code == 2
    assert len(said) == 1
    assert text in said[0]
    assert said[0].isprintable()
    assert "Traceback" not in err + printed
    assert not (tmp_path / "new" / "got").exists()
    assert sorted(file for file in tmp_path.iterdir() if file.name != "new") == before


def test_a_recording_of_longer_payloads_than_the_codec_has(trip: Path, tmp_path: Path, say: Say) -> None:
    recording = read_recording(trip)
    changes = {"dekag:uses": [1024], "dekag:columns": 1024}
    changes |= {f"dekag:{name}": [0] for name in ("blocks", "pilots")} | {"dekag:blocks": [1]}
    changes |= {
        "dekag:snr_db": [1.0],
        "dekag:correlation": [0.0],
        "dekag:phase": [0.0],
        "dekag:rayleigh": [False],
    }
    path = copied(trip, tmp_path)
    changed(path, lambda facts: facts.update(changes))
    unmarked(path)
    assert recording.symbols.numel() == 1024
    code, _, err = say("radio", "receive", path, "--out", tmp_path / "got")
    assert code == 2
    assert "has images of 1024 symbols, and the codec decodes at most 512" in err
    assert not (tmp_path / "got").exists()


BAD = {
    "an existing recording": (("--out", "TRIP"), "exists and is kept; choose another name"),
    "a folder": (("--out", "/"), "is a folder; give a file to write to"),
    "negative clip": (("--clip", -1), "a clipping ratio must be at least 0 dB and finite, got -1.0"),
    "subcarriers without ofdm": (("--subcarriers", 12), "ask for OFDM as well"),
    "too many subcarriers": (("--ofdm", "--subcarriers", 5000), "0 to 4096 subcarriers"),
    "sample rate": (("--sample-rate", 0), "a sample rate must be above 0"),
    "unknown channel": (("--channel", "tdl"), "unknown channel 'tdl'; known are awgn"),
    "too many uses": (("--uses", 513), "at most 512"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_to_send_is_one_line_and_leaves_nothing(
    case: str, trip: Path, tmp_path: Path, say: Say
) -> None:
    words, text = BAD[case]
    filled = [trip if word == "TRIP" else word for word in words]
    out = () if "--out" in words else ("--out", tmp_path / "new" / "trip")
    code, printed, err = say("radio", "send", "a dog", *filled, *out, "--drawn", tmp_path / "drawn")
    said = [line for line in err.splitlines() if line.startswith("dekag: ")]
    assert code == 2
    assert len(said) == 1
    assert text in said[0]
    assert "Traceback" not in err + printed
    assert list(tmp_path.rglob("*.*")) == []


def test_many_images_are_decoded_in_parts(trip: Path, tmp_path: Path) -> None:
    """One image at a time gives the same pictures to a grey level."""
    for name, batch in (("together", 64), ("apart", 1)):
        receive.receive(
            trip,
            tmp_path / name,
            world=None,
            task=receive.ReceiveTask(channel_seed=3, batch=batch),
            on_stage=lambda _: None,
        )
    together, apart = pictures(tmp_path / "together"), pictures(tmp_path / "apart")
    torch.testing.assert_close(together, apart, rtol=0, atol=1.01 / 255)


def test_everything_said_of_a_delivery_comes_back(trip: Path, tmp_path: Path) -> None:
    """Read and written again, the two files are the same bytes."""
    write_recording(tmp_path / "trip", read_recording(trip))
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (trip.parent / file.name).read_bytes()
