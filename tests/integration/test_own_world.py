"""A pair of one's own by the command line alone: from a folder of pictures to a delivery, figures and a service.

No cloud is anywhere: the pictures are all that is known of it.
"""

import json
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines
import torch
from command_line import dekag
from running_service import run_service
from tiny_judges import save_clip, save_dinov2

from dekag.wire.png import png_bytes

WORLDS: dict[str, Callable[[], Any]] = {
    "sd 4 x 16 x 16": partial(tiny_pipelines.stable_diffusion, channels=4, pixels=32),
    "sd 16 x 8 x 8": partial(tiny_pipelines.stable_diffusion, channels=16, pixels=16),
    "sdxl 4 x 16 x 16": partial(tiny_pipelines.stable_diffusion_xl, channels=4, pixels=32),
    "sdxl 16 x 8 x 8": partial(tiny_pipelines.stable_diffusion_xl, channels=16, pixels=16),
    "prx 4 x 16 x 16": partial(tiny_pipelines.prx, channels=4, pixels=32),
    "prx 16 x 8 x 8": partial(tiny_pipelines.prx, channels=16, pixels=16),
}
SHORT = "sd 4 x 16 x 16"
"""The one that every run of the tests tries."""


def pictures(folder: Path, side: int) -> Path:
    """Pictures with a caption beside each, enough for every split."""
    folder.mkdir()
    colours, things = ("red", "green", "blue", "pink"), ("apple", "cat face", "tree", "picture", "background")
    captions = [f"a {colour} {thing}" for colour in colours for thing in things]
    images = torch.rand(len(captions), 3, side, side, generator=torch.Generator().manual_seed(0))
    for number, (caption, png) in enumerate(zip(captions, png_bytes(images), strict=True)):
        (folder / f"{number:02d}.png").write_bytes(png)
        (folder / f"{number:02d}.txt").write_text(caption)
    return folder


Say = Callable[..., str]
QUICK = ("--batch", 4, "--steps", 2)


@pytest.mark.filterwarnings("ignore:`LoraLoaderMixin` is deprecated:FutureWarning")  # of PRX about itself
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == SHORT else pytest.mark.slow) for name in WORLDS]
)
def test_from_pictures_to_a_service(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command succeeds, and what reports there are name the world."""
    pipeline = tiny_pipelines.build(WORLDS[name])
    tiny_pipelines.save(pipeline, tmp_path / "edge")
    pictures(tmp_path / "pictures", side=2 * int(name.split()[-1]))
    world = tmp_path / "mine"

    def say(*words: object) -> str:
        done = dekag(capsys, *words)
        assert done.code == 0, done.err
        return done.out

    make(say, world)
    deliver(say, world)
    over_the_radio(say, world)
    unnamed = dekag(capsys, "radio", "receive", tmp_path / "trip", "--out", tmp_path / "x")
    assert "is of the world 'mine', which does not ship" in unnamed.complaints[0]
    measure(say, world)
    say("bundle", "export", world / "generation", "--out", tmp_path / "export")
    assert list((tmp_path / "export").iterdir())
    serve(world)


def make(say: Say, world: Path) -> None:
    """A world of the pictures, and everything that it lacks but a cloud."""
    parts = ("--edge", world.parent / "edge", "--images", world.parent / "pictures")
    made = say("world", "new", world, *parts, "--steps", 2, "--guidance", 2, "--json")
    assert set(json.loads(made)["lacks"]) == {"ceiling", "judges", "codec", "generation", "transmission"}
    save_dinov2(world / "judges" / "dino")
    save_clip(world / "judges" / "clip")
    say("train", "codec", "--world", world, "--out", world / "codec", "--width", 16, *QUICK)
    say(
        "align", "generation", "--world", world, "--out", world / "generation", *QUICK, "--metaword-steps", 2,
        "--frozen-steps", 2, "--rank", 2, "--words", "red apple", "--validate-every", 0,
    )  # fmt: skip
    say("align", "transmission", "--world", world, "--out", world / "transmission", *QUICK)
    assert set(json.loads(say("world", "show", world, "--json"))["lacks"]) == {"ceiling"}


def deliver(say: Say, world: Path) -> None:
    """With a bundle of one's own."""
    words = ("--world", world, "--bundle", world / "generation", "--out", world.parent / "delivered")
    report = json.loads(say("deliver", "a red apple", *words, "--json"))
    assert report["world"] == "mine"
    assert set(report["bundles"]) == {"generation", "transmission"}


def over_the_radio(say: Say, world: Path) -> None:
    """There and back."""
    trip, got = world.parent / "trip", world.parent / "got"
    say("radio", "send", "a red apple", "--world", world, "--out", trip)
    received = json.loads(say("radio", "receive", trip, "--world", world, "--out", got, "--json"))
    assert received["world"] == "mine"


def measure(say: Say, world: Path) -> None:
    """The demonstration and both evaluations; what needs a cloud is absent."""
    out, few = world.parent, ("--world", world, "--prompts", 2, "--seeds", 1)
    say("demo", *few, "--out", out / "demo")
    found = json.loads((out / "demo" / "report.json").read_text())
    assert found["world"] == "mine"
    assert set(found["generation"]["heldout"]) == {"no_ka", "makd", "floor"}
    assert "gap_closed" not in found["generation"]["heldout"]["makd"]
    scores = json.loads(say("evaluate", "generation", *few, "--device", "cpu", "--json"))
    assert scores["world"] == "mine"
    assert set(scores["own"]["heldout"]["makd"]["consistency"]) == {"dino", "clip"}
    grid = ("--images", 2, "--draws", 0, "--snrs", 10, "--channels", "awgn")
    words = ("--world", world, "--out", out / "sweep", *grid, "--json")
    assert json.loads(say("evaluate", "transmission", *words))["world"] == "mine"


def serve(world: Path) -> None:
    """An edge draws with the world's update."""
    folder = world.parent / "service"
    folder.mkdir()
    asked = json.dumps({"prompt": "a red apple", "model": "edge"}).encode()
    with run_service("edge", folder, world=str(world), threads=1) as edge:
        request = urllib.request.Request(
            f"{edge.url}/v1/images/generations", asked, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            drawn = json.loads(answer.read())
    identity = json.loads((world / "generation" / "bundle.json").read_text())["id"]
    assert drawn["gsc"]["bundle"] == identity
