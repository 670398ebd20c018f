"""The command line through its entry point: what it writes, and one clear line for each kind of bad input."""

import json
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import dekag
from typer.testing import CliRunner

from dekag.cli import app
from dekag.world import shipped

HELP = [
    [],
    ["demo"],
    ["generate"],
    ["deliver"],
    ["receive"],
    ["align", "generation"],
    ["align", "transmission"],
    ["evaluate", "generation"],
    ["evaluate", "transmission"],
    ["evaluate", "accuracy"],
    ["bundle", "inspect"],
    ["bundle", "export"],
    ["bundle", "import"],
    ["radio", "send"],
    ["radio", "receive"],
    ["radio", "papr"],
    ["serve", "cloud"],
    ["serve", "edge"],
    ["cloud", "migrate"],
    ["cloud", "backup"],
    ["jobs", "submit"],
    ["jobs", "list"],
    ["jobs", "watch"],
    ["jobs", "cancel"],
    ["registry"],
    *(
        ["registry", command]
        for command in ("init", "publish", "promote", "withdraw", "list", "refresh", "rotate-keys")
    ),
    *(["registry", command] for command in ("export", "import", "pull")),
]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("a red apple on a blue background\na cat face on a pink background\n")
    return path


@pytest.mark.parametrize("words", HELP, ids=" ".join)
def test_every_command_has_help(words: list[str]) -> None:
    result = CliRunner().invoke(app, [*words, "--help"])
    assert result.exit_code == 0
    assert len(result.output) > 200


def test_generate_names_files_by_line_and_seed(
    tmp_path: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = [
        "generate",
        "--model",
        "emoji/edge",
        "--prompts-file",
        prompts,
        "--seeds",
        "0,7",
        "--steps",
        2,
        "--out",
        out,
    ]
    done = dekag(capsys, *words, "--bundle", "emoji/makd", "--json")
    assert done.code == 0
    names = ["0000_seed0.png", "0000_seed7.png", "0001_seed0.png", "0001_seed7.png"]
    assert sorted(p.name for p in out.iterdir()) == [*names, "index.json"]
    index = json.loads((out / "index.json").read_text())
    assert [row["file"] for row in index["images"]] == names
    assert [row["seed"] for row in index["images"]] == [0, 7, 0, 7]
    assert json.loads(done.out) == index
    first = {p.name: p.read_bytes() for p in out.iterdir()}
    dekag(capsys, *words, "--bundle", "emoji/makd")
    assert {p.name: p.read_bytes() for p in out.iterdir()} == first


def test_deliver_writes_images_and_ledger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    link = ["--cbr", 0.02, "--snr-db", 8, "--channel", "rayleigh", "--blocks", 4]
    done = dekag(capsys, "deliver", "a red apple", *link, "--out", out, "--json")
    assert done.code == 0
    report = json.loads(done.out)
    assert report["ledger"]["channel_uses"] == round(0.02 * 3 * 64 * 64)
    assert (out / report["images"][0]["file"]).exists()
    assert report == json.loads((out / "report.json").read_text())


def test_bundle_inspect_says_what_is_inside(capsys: pytest.CaptureFixture[str]) -> None:
    done = dekag(capsys, "bundle", "inspect", "emoji/makd", "--json")
    assert done.code == 0
    manifest = json.loads(done.out)
    assert manifest["kind"] == "generation"
    assert manifest["metaword"]["token"] == "<dekag>"
    assert manifest["size_bytes"] < 2**20


DELIVER = ("deliver", "a red apple")
BAD = {
    "empty prompt": ((*DELIVER[:1], " "), "prompt 0 is empty"),
    "over-long prompt": ((*DELIVER[:1], "x" * 5000), "at most 4000"),
    "nan snr": ((*DELIVER, "--snr-db", "nan"), "snr_db"),
    "infinite snr": ((*DELIVER, "--snr-db", "inf"), "snr_db"),
    "zero uses": ((*DELIVER, "--uses", 0), "uses must be at least 1"),
    "too many uses": ((*DELIVER, "--uses", 513), "at most 512"),
    "both rates": ((*DELIVER, "--uses", 64, "--cbr", 0.01), "not as both"),
    "negative cbr": ((*DELIVER, "--cbr", -1), "positive number"),
    "unknown channel": ((*DELIVER, "--channel", "rician"), "known are awgn, rayleigh"),
    "blocks of awgn": ((*DELIVER, "--blocks", 4), "--blocks is not for awgn: it describes rayleigh"),
    "blocks of tdl": ((*DELIVER, "--channel", "tdl-c", "--blocks", 4), "--blocks is not for tdl-c"),
    "speed of rayleigh": (
        (*DELIVER, "--channel", "rayleigh", "--speed", 3),
        "--speed is not for rayleigh: it describes the channels tdl-a to tdl-e and cdl-a to cdl-e",
    ),
    "more streams than antennas": (
        (*DELIVER, "--channel", "tdl-c", "--antennas", "2x1"),
        "use 1x2 or 2x2",
    ),
    "too many blocks": (
        (*DELIVER, "--channel", "rayleigh", "--uses", 8, "--blocks", 9),
        "cannot hold 9 blocks",
    ),
    "unknown world": ((*DELIVER, "--world", "emojis"), "or one of: emoji"),
    "unknown preset": ((*DELIVER, "--preset", "emojis"), "or one of: emoji"),
    "unknown model": (("generate", "--prompts-file", "PROMPTS", "--model", "emoji/egde"), "emoji/edge"),
    "a judge as model": (
        ("generate", "--prompts-file", "PROMPTS", "--model", "emoji/mini-clip"),
        "a pipeline is needed",
    ),
    "unknown bundle": (("generate", "--prompts-file", "PROMPTS", "--bundle", "/no/such"), "unknown bundle"),
    "bundle of another kind": (
        ("generate", "--prompts-file", "PROMPTS", "--bundle", "emoji/cala"),
        "is needed here",
    ),
    "bundle of another base": (
        ("generate", "--prompts-file", "PROMPTS", "--model", "emoji/cloud", "--bundle", "emoji/makd"),
        "made for base model",
    ),
    "bad seeds": (("generate", "--prompts-file", "PROMPTS", "--seeds", "0,x"), "whole numbers"),
    "unknown device": (("generate", "--prompts-file", "PROMPTS", "--device", "tpu"), "auto, cpu, cuda or"),
    "missing device": (("generate", "--prompts-file", "PROMPTS", "--device", "cuda:99"), "no device cuda:99"),
    "unknown grid": (("evaluate", "transmission", "--grid", "tiny"), "known are held-out, full, small"),
    "unknown engine": (("evaluate", "transmission", "--engine", "cloud"), "known are inline, processes"),
    "a patch that divides nothing": (
        ("train", "codec", "--patch", 7),
        "the patch must divide rows and columns",
    ),
    "no prompt file": (("generate", "--prompts-file", "/no/such.txt"), "does not exist"),
}


@pytest.mark.parametrize("case", BAD, ids=str)
def test_bad_input_is_one_line_and_leaves_nothing(
    case: str,
    tmp_path: Path,
    prompts: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words, text = BAD[case]
    out = tmp_path / "new" / "out"
    filled = [prompts if word == "PROMPTS" else word for word in words]
    done = dekag(capsys, *filled, "--out", out)
    assert done.code == 2
    assert len(done.complaints) == 1
    assert text in done.complaints[0]
    assert "Traceback" not in done.err + done.out
    assert not out.exists()
    assert not out.parent.exists() or not list(out.parent.iterdir())


def test_a_bundle_of_another_base_is_refused_before_the_cloud_draws(
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = dekag(capsys, "evaluate", "generation", "--edge", "emoji/cloud", "--prompts", 2, "--seeds", 1)
    assert done.code == 2
    assert "made for base model" in done.complaints[0]
    assert "cloud draws" not in done.err


@pytest.mark.parametrize("damage", ["truncated", "flipped", "pickle"])
def test_a_damaged_bundle_is_refused(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for path in shipped("emoji/makd").glob("*[!d]"):
        (bundle / path.name).write_bytes(path.read_bytes())
    target = bundle / "lora.quantised.safetensors"
    data = bytearray(target.read_bytes())
    data[len(data) // 2] ^= 4
    target.write_bytes(
        {"truncated": bytes(data[:-100]), "flipped": bytes(data), "pickle": pickle.dumps({"a": 1})}[damage]
    )
    done = dekag(capsys, "bundle", "inspect", bundle)
    assert done.code == 2
    assert target.name in done.err
    assert len(done.err.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, prompts: Path) -> None:
    """A file-size limit stands for the full disk: the write fails half-way, as there."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    code = "import signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); from dekag.cli import main; main()"
    words = ["generate", "--prompts-file", prompts, "--steps", "1", "--out", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if line.startswith("dekag: ")]
    assert len(said) == 1
    assert "File too large" in said[0]
    assert [p.name for p in tmp_path.iterdir()] == ["prompts.txt"]


def test_a_long_prompt_is_a_warning_that_names_what_was_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "a red apple on a blue background " * 6 + "with a cactus"
    done = dekag(capsys, "deliver", long, "--no-ka", "--out", tmp_path / "out")
    assert done.code == 0
    warned = [line for line in done.err.splitlines() if "warning" in line]
    assert len(warned) == 1
    assert "cactus" in warned[0]
