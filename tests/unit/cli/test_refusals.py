"""What can be known of a command's words is refused before torch is imported, with nothing drawn, bought or written."""

import importlib
import os
import resource
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from commands_in_one_process import run_lines

from dekag import choices
from dekag.tasks.sweep.run import DIGITAL, SHIPPED
from dekag.world.shipped import WEIGHTS

ALIGN = "align generation --out {out}"
CALA = "align transmission --out {out}"
DRAW = "generate --prompts-file {prompts} --out {out}"
DELIVER = "deliver 'a red apple'"
SWEEP = "evaluate transmission --out {out}"
NEW = "world new {out} --edge emoji/edge"
EDGE = "serve edge --folder {empty}/edge"
CLOUD = "serve cloud --folder {empty}/cloud"
PUBLISH = "registry publish emoji/makd --name a"

CASES = {
    # files that are not there, or are something else
    "generate --prompts-file {no} --out {out}": "does not exist; give a text file with one prompt a line",
    "generate --prompts-file {empty} --out {out}": "is a folder; give a text file with one prompt a line",
    f"{ALIGN} --prompts-file {{no}}": "does not exist; give a text file with one prompt a line",
    f"{ALIGN} --prompts-file {{empty}}": "is a folder; give a text file with one prompt a line",
    f"{ALIGN} --images {{no}}": "--images: {no} does not exist; give a folder of pictures",
    f"{ALIGN} --images {{file}}": "--images: {file} is a file; give a folder of pictures",
    f"{NEW} --prompts {{no}}": "does not exist; give a text file with one prompt a line",
    f"{NEW} --images {{no}}": "{no} does not exist; give a folder of pictures",
    f"{NEW}": "give the prompts as a file",
    f"{SWEEP} --thresholds {{no}}": "{no} does not exist; give the file that python -m dekag.baseline wrote",
    f"{SWEEP} --codec {{no}}": "unknown codec",
    f"{SWEEP} --codec a={{no}}": "a further codec is given as NAME=FOLDER",
    f"{CALA} --codec {{no}}": "unknown codec",
    "receive {no} --out {out}": "{no} does not exist; give a frame (.frame) or a SigMF recording",
    "receive {no}.sigmf-meta --out {out}": "does not exist; give a frame (.frame) or a SigMF recording",
    "radio receive {no} --out {out}": "does not exist; give a frame",
    "radio papr {no}": "does not exist; give a frame",
    f"{DRAW} --bundle {{no}}": "unknown bundle",
    "bundle inspect {no}": "unknown bundle",
    "bundle pack {no} --out {out}.tar": "unknown bundle",
    "bundle export {no} --out {out}": "unknown bundle",
    "jobs submit a --prompts-file {no}": "does not exist; give a text file with one prompt a line",
    "jobs submit a --spec {no}": "--spec: {no} does not exist; give a JSON file",
    f"{EDGE} --tokens-file {{no}}": "--tokens-file: {no} does not exist; give a file with a token a line",
    f"{EDGE} --registry {{empty}} --root {{no}}": "--root: {no} does not exist; give that of the registry",
    f"{CLOUD} --tokens-file {{no}}": "--tokens-file: {no} does not exist; give a file with a token a line",
    f"{PUBLISH} --registry {{no}} --keys {{empty}}": "there is no registry at {no}",
    "registry publish {no} --registry {empty} --keys {empty} --name a": "unknown bundle",
    "registry promote abc --registry {empty} --keys {no}": "there are no keys in {no}",
    "registry withdraw abc --registry {no} --keys {empty} --channel a": "there is no registry at {no}",
    "registry list --registry {no} --keys {empty}": "there is no registry at {no}",
    "registry refresh --registry {no} --keys {empty}": "there is no registry at {no}",
    "registry rotate-keys root --registry {no} --keys {empty}": "there is no registry at {no}",
    "registry canary {no} 'a red apple' --out {out}": "unknown bundle",
    "registry pull {empty} --registry {no}": "there is no registry at {no}",
    # places that are taken by something else, or cannot be made
    f"{DELIVER} --out {{file}}": "{file} is a file; give a folder to write to",
    f"{DELIVER} --out {{file}}/out": "{file} is no folder, so {file}/out cannot be made in it",
    "generate --prompts-file {prompts} --out {file}": "is a file; give a folder",
    "demo --out {file}": "is a file; give a folder",
    "receive {prompts} --out {file}": "is a file; give a folder",
    "radio receive {prompts} --out {file}": "is a file; give a folder",
    "radio send 'a red apple' --out {file}/out": "is no folder",
    "radio send 'a red apple' --out {out} --drawn {file}": "is a file; give a folder",
    "align generation --out {file}": "{file} exists and is not a bundle, so it is kept; choose another folder",
    "align generation --out {foreign}": "{foreign} exists and is not a bundle, so it is kept",
    "align generation --out {mixed}": "{mixed} exists and is not a bundle, so it is kept",
    "align generation --out {file}/out": "is no folder",
    "align transmission --out {foreign}": "exists and is not a bundle",
    "align transmission --out {foreign} --method full": "exists and is not a codec",
    "train codec --out {foreign}": "exists and is not a codec, so it is kept; choose another folder",
    "train codec --out {file}": "exists and is not a codec",
    f"{ALIGN} --resume {{file}}": "is a file; give a folder",
    f"{CALA} --resume {{file}}": "is a file; give a folder",
    "train codec --out {out} --resume {file}": "is a file; give a folder",
    f"{ALIGN} --log {{file}}": "is a file; give a folder",
    "world new {foreign} --edge emoji/edge --prompts {prompts}": "exists and is not empty; give a new folder",
    "world new {file} --edge emoji/edge --prompts {prompts}": "is a file; give a folder",
    f"{NEW} --prompts {{prompts}} --cloud-pixels 64": "--cloud-pixels is of a cloud that draws; give its model",
    "evaluate transmission --out {file}": "is a file; give a folder",
    "evaluate accuracy --sheet {file}/sheet.png": "is no folder",
    "evaluate accuracy --sheet {empty}/sheet.jpg": "must end in .png",
    "bundle pack emoji/makd --out {out}.zip": "must end in .tar or .tar.gz or .tgz",
    "bundle pack emoji/makd --out {empty}": "is a folder; give a file",
    "bundle export emoji/makd --out {file}": "is a file; give a folder",
    "registry canary emoji/makd 'a red apple' --out {empty}": "is a folder; give a file",
    "registry export --registry {empty} --root {prompts} --out {empty}": "is a folder; give a file",
    "registry import {file} --from {prompts}": "is a file; give a folder",
    "registry pull {file} --registry {empty}": "is a file; give a folder",
    "registry init --registry {empty}/registry --keys {foreign}": "exists and is not empty; give a new folder",
    "cloud backup {empty}": "is a folder; give a file",
    "up --folder {file}": "is a file; give a folder",
    "serve edge --folder {file}": "is a file; give a folder",
    "serve cloud --folder {file}": "is a file; give a folder",
    # names that there is nothing of
    f"{DRAW} --world emojis": "unknown world 'emojis'",
    f"{DRAW} --model emoji/egde": "unknown pipeline 'emoji/egde'; give a folder or one of: emoji/cloud, emoji/edge",
    f"{DRAW} --model {{empty}}": "{empty} is no diffusers pipeline folder: it has no model_index.json",
    f"{DRAW} --device tpu": "device must be auto, cpu, cuda or one GPU as cuda:1, got 'tpu'",
    f"{DELIVER} --out {{out}} --device cuda:x": "device must be auto",
    f"{DELIVER} --out {{out}} --world emojis": "unknown world",
    f"{DELIVER} --out {{out}} --channel rician": "unknown channel 'rician'; known are awgn, rayleigh, tdl-a",
    "deliver ' ' --out {out}": "prompt 0 is empty; say what to draw",
    "demo --out {out} --world emojis": "unknown world",
    "demo --out {out} --device tpu": "device must be auto",
    "receive {prompts} --out {out} --world emojis": "unknown world",
    "up --folder {empty}/up --world emojis": "unknown world",
    "world show emojis": "unknown world",
    "world new {out} --edge emoji/egde --prompts {prompts}": "unknown pipeline",
    "train codec --out {out} --world emojis": "unknown world",
    "train codec --out {out} --constellation 3psk": "unknown constellation '3psk'; known are analogue, qpsk",
    "train codec --out {out} --device tpu": "device must be auto",
    f"{ALIGN} --method makdd": "unknown method 'makdd'; known are makd, textual_inversion",
    f"{ALIGN} --adapter lorra": "adapter must be one of none, full, lora, lokr, dora, loha, got 'lorra'",
    f"{ALIGN} --tracker tensorbord": "unknown tracker 'tensorbord'; known are aim, comet_ml, mlflow, tensorboard",
    f"{ALIGN} --domain nosuch": "unknown split 'distill:nosuch' of prompts; the world emoji has distill,",
    f"{ALIGN} --device tpu": "device must be auto",
    f"{ALIGN} --cloud emoji/clout": "unknown pipeline",
    f"{ALIGN} --judge nosuch": "a judge is given as NAME=SOURCE",
    f"{ALIGN} --judge a={{no}}": "unknown judge",
    f"{CALA} --method calla": "unknown method 'calla'; known are cala, shared_lora",
    "evaluate generation --methods makd,nosuch": "unknown method 'nosuch'; known are all, makd",
    "evaluate generation --world emojis": "unknown world",
    "evaluate generation --device tpu": "device must be auto",
    f"{SWEEP} --methods nosuch": "unknown method 'nosuch'; known are no_ka, cala, digital, jpeg, webp, avif",
    f"{SWEEP} --grid tiny": "unknown grid 'tiny'; known are held-out, full, small",
    f"{SWEEP} --engine cloud": "unknown engine 'cloud'; known are inline, processes, ray, slurm",
    f"{SWEEP} --channels nosuch": "unknown channel 'nosuch'",
    f"{SWEEP} --constellations 3psk": "unknown constellation",
    "evaluate accuracy --model emoji/egde": "unknown pipeline",
    "bundle inspect emoji/edge": "emoji/edge is a pipeline, and a bundle is needed here",
    "bundle export emoji/makd --out {out} --to nosuch": "unknown layout 'nosuch'; known are diffusers, peft",
    "radio send 'a red apple' --out {out} --channel rician": "unknown channel",
    "radio send 'a red apple' --out {out} --world emojis": "unknown world",
    f"{EDGE} --world emojis": "unknown world",
    f"{EDGE} --device tpu": "device must be auto",
    f"{CLOUD} --world emojis": "unknown world",
    "registry canary emoji/makd ' ' --out {out}": "prompt 0 is empty",
    # values that nothing can be done with
    f"{DRAW} --seeds 0,x": "seeds must be whole numbers separated by commas",
    f"{DRAW} --seeds 18446744073709551616": "seeds must be distinct, from 0 to",
    f"{DRAW} --guidance nan": "guidance must be a number of at least 0, got nan",
    f"{DRAW} --steps 1001": "steps must be 1 to 1000, got 1001",
    "train codec --out {out} --width 162": "width must be a multiple of 4, as the attention has 4 heads, got 162",
    f"{ALIGN} --words ''": "words must have at least 1 characters, got 0",
    f"{ALIGN} --words ' '": "--words must be at least one word, as glossy, got ' '",
    f"{ALIGN} --token 'a b'": "--token must be lower-case letters, digits, _ and - in angle brackets, as <dekag>",
    f"{ALIGN} --token apple": "--token must be lower-case letters",
    f"{ALIGN} --targets '('": "--targets must be a regular expression, got '('",
    f"{ALIGN} --tracker tensorboard": "the tracker tensorboard writes to a folder: give one as --log",
}
"""Words -> part of what is said; {no} is not there, {file}, {foreign} and {mixed} are somebody's."""

PACKAGES = {
    f"{ALIGN} --tracker wandb": (
        "wandb",
        "the tracker wandb needs a package that is missing: pip install 'wandb'",
    ),
    f"{ALIGN} --tracker tensorboard --log {{out}}": (
        "tensorboard tensorboardX",
        "pip install 'dekag[trackers]'",
    ),
    f"{ALIGN} --images {{out}} --endpoint http://localhost:1/v1": ("openai", 'pip install "dekag[endpoint]"'),
    f"{ALIGN} --judge a=efficientnet-lite0": ("efficientnet_lite_pytorch", 'pip install "dekag[judges]"'),
    f"{SWEEP} --lpips": ("lpips", 'pip install "dekag[lpips]"'),
    f"{SWEEP} --methods no_ka,digital": ("constriction", 'pip install "dekag[baseline]"'),
    f"{SWEEP} --engine ray": ("ray", "this engine needs ray"),
    f"{SWEEP} --engine slurm": ("submitit", "this engine needs submitit"),
    "radio papr {prompts}": ("sigmf", 'pip install "dekag[radio]"'),
    "jobs list": ("httpx2", 'pip install "dekag[serve]"'),
    "registry list --registry {empty} --keys {empty}": ("tuf", 'pip install "dekag[serve]"'),
    "up --folder {empty}/up": ("granian", 'pip install "dekag[serve]"'),
    EDGE: ("granian", 'pip install "dekag[serve]"'),
    CLOUD: ("fastapi", 'pip install "dekag[serve]"'),
}
"""Words -> packages that are not installed, and part of what is said."""

LISTED = {
    f"{ALIGN} --precision bf17": ("no", "bf16"),
    f"{ALIGN} --draw-precision bf17": ("fp32", "bf16", "fp16"),
    f"{ALIGN} --quantisation int2": ("fp32", "fp16", "int8", "int4"),
    f"{CALA} --precision fp16": ("no", "bf16"),
    f"{DELIVER} --out {{out}} --precision fp8": ("fp32", "bf16", "fp16"),
    "registry rotate-keys leaf --registry {empty} --keys {empty}": (
        "root",
        "targets",
        "snapshot",
        "timestamp",
    ),
}
"""Words -> the names that there are, of choices that the command line itself refuses."""

HEAVY = ("torch", "diffusers", "transformers", "accelerate", "peft", "scipy")


class Places(NamedTuple):
    """What the words name."""

    no: Path
    file: Path
    empty: Path
    foreign: Path
    mixed: Path
    prompts: Path
    out: Path

    def fill(self, text: str) -> str:
        """The text with the places in it."""
        return text.format(**self._asdict())


class Said(NamedTuple):
    """How a command ended."""

    code: object
    lines: list[str]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    folder = tmp_path_factory.mktemp("places")
    places = Places(*(folder / name for name in Places._fields))._replace(out=folder / "new" / "out")
    places.file.write_text("somebody's")
    places.empty.mkdir()
    places.foreign.mkdir()
    (places.foreign / "thesis.txt").write_text("years of work")
    shutil.copytree(WEIGHTS / "emoji" / "makd", places.mixed)
    (places.mixed / "thesis.txt").write_text("years of work")
    places.prompts.write_text("a red apple\na blue car\n")
    return places


@pytest.fixture(scope="module")
def said(places: Places) -> dict[str, Said]:
    """What every command says in a process that cannot import torch."""
    missing = {
        **dict.fromkeys([*CASES, *LISTED], ""),
        **{words: packages for words, (packages, _) in PACKAGES.items()},
    }
    asked = [(shlex.split(places.fill(words)), packages.split()) for words, packages in missing.items()]
    return {
        words: Said(code=ended.code, lines=ended.text.strip().splitlines())
        for words, ended in zip(missing, run_lines(asked, places.empty, absent=HEAVY), strict=True)
    }


@pytest.mark.parametrize("words", CASES)
def test_what_can_be_known_is_refused_before_torch_is_imported(
    words: str, said: dict[str, Said], places: Places
) -> None:
    assert said[words].code == 2, said[words]
    (line,) = said[words].lines
    assert line.startswith("dekag: ")
    assert places.fill(CASES[words]) in line


@pytest.mark.parametrize("words", PACKAGES)
def test_a_missing_package_is_named_before_torch_is_imported(words: str, said: dict[str, Said]) -> None:
    assert said[words].code == 2, said[words]
    (line,) = said[words].lines
    assert PACKAGES[words][1] in line


@pytest.mark.parametrize("words", LISTED)
def test_a_choice_lists_what_there_is(words: str, said: dict[str, Said]) -> None:
    assert said[words].code == 2, said[words]
    assert all(f"'{name}'" in " ".join(said[words].lines) for name in LISTED[words])


def test_a_refusal_leaves_nothing_and_changes_nothing(said: dict[str, Said], places: Places) -> None:
    assert len(said) == len(CASES) + len(PACKAGES) + len(LISTED)
    assert not places.out.parent.exists()
    assert [path.name for path in places.foreign.iterdir()] == ["thesis.txt"]
    assert not list(places.empty.iterdir())
    assert places.file.read_text() == "somebody's"


QUICK = (
    "generate --prompts-file {no} --out {out}",
    f"{DELIVER} --out {{out}} --world emojis",
    f"{ALIGN} --method makdd",
    f"{ALIGN} --tracker tensorbord",
    "align generation --out {foreign}",
    f"{SWEEP} --grid tiny",
    "registry list --registry {no} --keys {empty}",
    "serve edge --folder {file}",
)
LIMIT_S = 1.5
"""Most seconds from the start to the line; of the processor, as others may be at work on this machine."""


@pytest.mark.alone
@pytest.mark.parametrize("words", QUICK)
def test_a_refusal_is_quick(words: str, places: Places) -> None:
    """The process itself, as a user starts it; the better of two runs, since whatever else runs only adds."""
    seconds = []
    for _ in range(2):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "dekag", *shlex.split(places.fill(words))],
            capture_output=True,
            text=True,
            check=False,
            env={name: value for name, value in os.environ.items() if name != "PYTHONSTARTUP"},
        )
        wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        lines = done.stderr.splitlines()
        imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
        assert done.returncode == 2
        assert [line for line in lines if line.startswith("dekag: ")] == lines[-1:]
        assert "dekag.cli" in imported
        assert not imported & set(HEAVY)
    print(f"dekag {words}: {min(seconds):.2f} s of the processor, {wall:.2f} s by the clock")
    assert min(seconds) < LIMIT_S


@pytest.mark.parametrize(
    "name", [name for name, part in vars(choices).items() if isinstance(part, choices.Choice)]
)
def test_names_that_are_known_early_are_those_of_the_tables(name: str) -> None:
    """A closed form: the early names are the keys of the table, in its order."""
    choice = getattr(choices, name)
    if choice is choices.SENDING_METHODS:
        assert choice.usual == (*SHIPPED, *DIGITAL)
    elif choice.module:
        assert choice.usual == tuple(getattr(importlib.import_module(choice.module), choice.table))


def test_a_part_of_ones_own_is_known_early() -> None:
    """The file that adds to a table imports it, so that its names are known without another import."""
    from dekag.channel.named import CHANNELS

    CHANNELS["smoke-signals"] = CHANNELS["awgn"]
    try:
        choices.CHANNELS.require("smoke-signals")
    finally:
        del CHANNELS["smoke-signals"]
    with pytest.raises(choices.InputError, match="unknown channel 'smoke-signals'"):
        choices.CHANNELS.require("smoke-signals")
