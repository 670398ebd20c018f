"""Worlds: read from a folder that a stranger may have written, made of one's own parts, and what each command says."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import dekag
from tiny_worlds import PROMPTS, miniature

import dekag as package
from dekag.bundle.canonical import digest_folder
from dekag.codec import JsccCodec, JsccConfig, load_codec, save_codec
from dekag.data.endpoint import ImageEndpoint
from dekag.generation.diffusers import Sampling
from dekag.serving.edge.settings import EdgeSettings
from dekag.serving.http.settings import load_settings
from dekag.tasks.keys import judges_key
from dekag.tasks.sweep.bench import BenchSpec, bench_digest
from dekag.types import Condition, InputError
from dekag.wire.png import png_bytes, read_image
from dekag.world import Model, World, load_world, locate, shipped_worlds
from dekag.world.new import NewWorld, describe_world, new_world, split_prompts
from dekag.world.shipped import WEIGHTS


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature(tmp_path_factory.mktemp("worlds") / "tiny")


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny world that a test may spoil; its models are those of the original."""
    folder = tmp_path / "world"
    shutil.copytree(tiny, folder)
    return folder


def changed(folder: Path, **entries: Any) -> Path:
    """Change entries of a world.json; None takes one away."""
    file = folder / "world.json"
    content = {**json.loads(file.read_text()), **entries}
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))
    return folder


def test_the_shipped_worlds_load_by_name() -> None:
    assert shipped_worlds() == ("emoji", "paper", "permissive")
    for name in shipped_worlds():
        assert load_world(name).name == name
    assert load_world("emoji") == load_world(WEIGHTS / "emoji")


def test_a_world_in_a_folder_delivers_as_the_shipped_one_does(tiny: Path) -> None:
    shipped, own = load_world("emoji"), load_world(tiny)
    few = Sampling(steps=2, guidance=2.0)
    shipped = replace(shipped, edge_model=replace(shipped.edge_model, sampling=few))
    condition = Condition(uses=128, snr_db=8.0)
    one, other = (package.load(world).deliver(["a red apple"], condition) for world in (shipped, own))
    assert torch.equal(one.image, other.image)
    assert one.bundles == other.bundles


def test_a_world_is_made_in_python_of_objects() -> None:
    """A generator and a codec that are loaded already, prompts as a dictionary; what is lacking says so."""
    shipped = load_world("emoji")
    edge, codec = shipped.edge(), shipped.codec()
    world = World(name="mine", edge_model=Model(source=edge), codec_model=codec, prompt_splits=PROMPTS)
    assert world.edge() is edge
    assert world.side == 64
    assert world.prompts("distill") == PROMPTS["distill"]
    delivery = package.load(world, align=False).deliver(["a red apple"], Condition(uses=64, snr_db=5.0))
    assert delivery.bundles == {}
    for ask, lacking in (
        (lambda: world.cloud(), "model of a cloud"),
        (lambda: world.reference(), "cloud and no pictures of one"),
        (lambda: world.judges(), "judge"),
        (lambda: world.update("generation"), "generation update"),
        (lambda: package.load(world), "update"),
    ):
        with pytest.raises(InputError, match=f"the world mine has no {lacking}; name one, or train one"):
            ask()
    with pytest.raises(InputError, match="unknown split 'cars' of prompts; the world mine has distill"):
        world.prompts("cars")


BAD: Mapping[str, tuple[Callable[[Path], object], str]] = {
    "no file": (lambda w: (w / "world.json").unlink(), "give a folder with a world.json"),
    "no JSON": (lambda w: (w / "world.json").write_text("{"), "Invalid JSON"),
    "a list": (lambda w: (w / "world.json").write_text("[]"), "the file is wrong"),
    "too long": (lambda w: (w / "world.json").write_text(" " * 2**21), "longer than 1048576 bytes"),
    "an unknown key": (lambda w: changed(w, code="x.py"), "code is wrong: Extra inputs are not permitted"),
    "an unknown key within": (
        lambda w: changed(w, edge={"source": "edge", "trust_remote_code": True}),
        "edge.trust",
    ),
    "another format": (lambda w: changed(w, format=2), "format is wrong"),
    "no edge": (lambda w: changed(w, edge=None), "edge is wrong: Field required"),
    "a name of escapes": (lambda w: changed(w, name="\x1b[2J"), "name is wrong"),
    "an absolute path": (lambda w: changed(w, codec="/etc"), "leaves the folder"),
    "a path upwards": (lambda w: changed(w, codec="../x"), "leaves the folder"),
    "a path of Windows": (lambda w: changed(w, codec="C:\\x"), "leaves the folder"),
    "a missing part": (lambda w: changed(w, codec="codex"), "codex is not there"),
    "a part of another kind": (lambda w: changed(w, codec="mini-dino"), "holds no codec"),
    "a pipeline that is none": (lambda w: changed(w, cloud={"source": "codec"}), "codec holds no pipeline"),
    "a file as codec": (lambda w: changed(w, codec="prompts.json"), "is no folder, and a codec is one"),
    "a link": (
        lambda w: ((w / "codex").symlink_to(w / "codec"), changed(w, codec="codex")),
        "codex is a link",
    ),
    "a link within": (
        lambda w: (w / "codec" / "more.bin").symlink_to("/etc/passwd"),
        "codec/more.bin is a link",
    ),
    "a hub's codec": (lambda w: changed(w, codec="hub:owner/name"), "is no codec of a hub"),
    "a hub id that is none": (
        lambda w: changed(w, cloud={"source": "hub:/etc/passwd"}),
        "is no pipeline of a hub",
    ),
    "latents of another codec": (lambda w: changed(w, latents=[4, 64, 64]), "is for latents [32, 8, 8]"),
    "NaN": (lambda w: changed(w, nominal={"uses": 8, "snr_db": float("nan")}), "world.json"),
    "zero steps": (lambda w: changed(w, edge={"source": "edge", "steps": 0}), "edge.steps is wrong"),
    "prompts that are a list": (
        lambda w: (w / "prompts.json").write_text('["a"]'),
        "must hold prompts by split",
    ),
    "an empty prompt": (
        lambda w: (w / "prompts.json").write_text('{"heldout": [" "]}'),
        "must hold prompts by split",
    ),
    "nothing to report": (
        lambda w: (w / "prompts.json").write_text('{"distill": ["a"]}'),
        "reported split heldout",
    ),
    "a commit that is none": (
        lambda w: changed(w, cloud={"source": "hub:a/b", "revision": "main"}),
        "cloud",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_world_of_a_stranger_is_refused_in_one_line(
    case: str, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is loaded, by every command alike."""
    spoil, text = BAD[case]
    spoil(copy)
    done = dekag(capsys, "world", "show", copy)
    assert (done.code, len(done.complaints)) == (2, 1), done.err
    assert text in done.complaints[0]
    assert "\x1b" not in done.err
    again = dekag(capsys, "deliver", "a red apple", "--world", copy, "--out", tmp_path / "out")
    assert again.complaints == done.complaints
    assert not (tmp_path / "out").exists()


def test_a_digest_that_does_not_fit_is_found_before_loading(copy: Path) -> None:
    right = digest_folder(copy / "edge")
    entry = {"source": "edge", "steps": 2, "guidance": 2.0}
    assert load_world(changed(copy, edge={**entry, "sha256": right})).edge().side == 64
    with pytest.raises(InputError, match="is not what the world names: its digest is another one"):
        load_world(changed(copy, edge={**entry, "sha256": "0" * 64})).edge()


def test_what_is_trained_into_the_folder_belongs_to_the_world(copy: Path) -> None:
    (copy / "makd").rename(copy / "generation")
    (copy / "judges").mkdir()
    (copy / "mini-dino").rename(copy / "judges" / "dino")
    world = load_world(changed(copy, updates=None, judges=None, codec=None))
    assert world.update("generation") == copy / "generation"
    assert set(world.updates) == {"generation"}
    assert list(world.judge_models) == ["dino"]
    assert world.codec_model == copy / "codec"


def test_a_part_can_be_named_in_place_of_the_worlds_own(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An edge, a codec, a bundle, each by folder or shipped name; the report says which updates were used."""
    other = JsccCodec(replace(load_codec(tiny / "codec").config, max_uses=100)).eval()  # type: ignore[attr-defined]

    save_codec(other, tmp_path / "codec")
    done = dekag(
        capsys, "deliver", "a red apple", "--world", tiny, "--no-ka", "--codec", tmp_path / "codec",
        "--uses", 101, "--out", tmp_path / "out",
    )  # fmt: skip
    assert "at most 100 payload uses" in done.complaints[0]
    words = ("deliver", "a red apple", "--world", tiny, "--uses", 64, "--json")
    done = dekag(capsys, *words, "--bundle", "emoji/food", "--out", tmp_path / "food")
    assert done.code == 0
    report = json.loads(done.out)
    assert report["world"] == "tiny"
    food = json.loads((WEIGHTS / "emoji" / "food" / "bundle.json").read_text())["id"]
    assert report["bundles"]["generation"] == food
    twice = dekag(capsys, *words, "--bundle", "emoji/food", "--bundle", "emoji/makd", "--out", tmp_path / "x")
    assert "at most one bundle for generation" in twice.complaints[0]


def test_the_old_option_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = dekag(capsys, "deliver", "a red apple", "--preset", "emoji", "--out", tmp_path / "out")
    assert done.code == 0
    assert "dekag: warning: --preset is now called --world" in done.err


def test_prompts_are_split_by_a_digest_whatever_their_order() -> None:
    prompts = [f"a picture of thing {n}" for n in range(200)]
    splits = split_prompts(prompts)
    assert {name: len(texts) for name, texts in splits.items()} == {
        "distill": 160,
        "validation": 20,
        "heldout": 20,
    }
    assert sorted(text for texts in splits.values() for text in texts) == sorted(prompts)
    again = split_prompts([*reversed(prompts), prompts[0]])
    assert {name: set(texts) for name, texts in again.items()} == {name: set(t) for name, t in splits.items()}
    with pytest.raises(InputError, match="5 different prompts are too few to split: give at least 6"):
        split_prompts(prompts[:5])


def pictures(folder: Path, count: int = 12) -> Path:
    """A folder of pictures with a caption beside each."""
    folder.mkdir()
    images = torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for number, png in enumerate(png_bytes(images)):
        (folder / f"{number}.png").write_bytes(png)
        (folder / f"{number}.txt").write_text(f"a picture of thing {number}")
    return folder


def test_a_new_world_has_its_own_parts_and_can_be_moved(tmp_path: Path) -> None:
    made_of = NewWorld(edge="emoji/edge", images=pictures(tmp_path / "pictures"), sampling=Sampling(steps=2))
    world = new_world(tmp_path / "mine", made_of)
    shutil.rmtree(tmp_path / "pictures")
    shutil.move(tmp_path / "mine", tmp_path / "moved")
    world = load_world(tmp_path / "moved")
    assert (world.name, world.pixels, world.latents) == ("mine", 64, (32, 8, 8))
    assert world.edge_model.sampling.steps == 2
    assert not world.has_cloud
    prompts = world.prompts("heldout")
    drawn = world.reference().images(prompts, seeds=[0] * len(prompts))
    assert drawn.shape == (len(prompts), 3, 64, 64)
    assert describe_world(world)["lacks"] == ["ceiling", "judges", "codec", "generation", "transmission"]
    assert int(world.nominal.uses) == 512


def test_a_cloud_draws_as_it_is_told(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("".join(f"thing {n}\n" for n in range(20)))
    made_of = NewWorld(
        edge="emoji/edge",
        cloud="emoji/cloud",
        cloud_sampling=Sampling(steps=1, guidance=0.0),
        cloud_pixels=32,
        prompts_file=tmp_path / "prompts.txt",
    )
    world = new_world(tmp_path / "mine", made_of)
    assert world.pixels == 64
    assert isinstance(world.cloud_model, Model)
    assert world.cloud_model.pixels == 32
    assert world.cloud_model.sampling.steps == 1
    assert world.cloud().images(["thing 1"], seeds=[0]).shape == (1, 3, 32, 32)


def test_an_endpoint_can_be_the_cloud(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("".join(f"thing {n}\n" for n in range(20)))
    made_of = NewWorld(
        edge="emoji/edge",
        endpoint="http://localhost:1/v1",
        endpoint_model="m",
        prompts_file=tmp_path / "prompts.txt",
    )
    world = new_world(tmp_path / "mine", made_of)
    assert isinstance(world.cloud_model, ImageEndpoint)
    assert world.has_cloud


NO_WORLD: Mapping[str, tuple[Callable[[Path], tuple[object, ...]], str]] = {
    "two clouds": (
        lambda t: ("--images", pictures(t / "p"), "--cloud", "emoji/cloud"),
        "give one of a cloud, a folder of images and an endpoint",
    ),
    "no prompts": (lambda _: ("--cloud", "emoji/cloud"), "give the prompts as a file"),
    "two kinds of prompts": (lambda t: ("--images", t, "--prompts", t / "p.txt"), "brings its own prompts"),
    "an unknown edge": (
        lambda t: ("--edge", "./none", "--images", pictures(t / "p")),
        "unknown pipeline './none'",
    ),
    "few pictures": (
        lambda t: ("--images", pictures(t / "p", 3)),
        "3 different prompts are too few to split",
    ),
    "no pictures": (lambda t: ("--images", t / "none"), "none does not exist; give a folder of pictures"),
}


@pytest.mark.parametrize("case", NO_WORLD)
def test_what_makes_no_world_is_refused_in_one_line_and_leaves_nothing(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, text = NO_WORLD[case]
    words = make(tmp_path)
    edge = () if "--edge" in words else ("--edge", "emoji/edge")
    done = dekag(capsys, "world", "new", tmp_path / "new" / "mine", *edge, *words)
    assert (done.code, len(done.complaints)) == (2, 1), done.err
    assert text in done.complaints[0]
    assert not (tmp_path / "new" / "mine").exists()


def test_a_folder_that_is_in_use_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    words = ("--edge", "emoji/edge", "--images", pictures(tmp_path / "p"))
    done = dekag(capsys, "world", "new", tmp_path / "mine", *words)
    assert "exists and is not empty" in done.complaints[0]
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_show_names_the_command_that_fills_each_gap(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = dekag(capsys, "world", "show", "emoji", "--json")
    assert json.loads(done.out)["lacks"] == {}
    lacking = dekag(capsys, "world", "show", "paper", "--json")
    assert set(json.loads(lacking.out)["lacks"]) == {
        "prompts",
        "judges",
        "codec",
        "generation",
        "transmission",
    }


def test_the_old_variable_of_a_service_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEKAG_EDGE_PRESET", "paper")
    with pytest.warns(UserWarning, match="DEKAG_EDGE_PRESET is now called DEKAG_EDGE_WORLD"):
        assert load_settings(EdgeSettings).world == "paper"
    monkeypatch.setenv("DEKAG_EDGE_WORLD", "permissive")
    assert load_settings(EdgeSettings).world == "permissive"
    assert load_settings(EdgeSettings, world="emoji").world == "emoji"


OTHER_CODEC: Mapping[str, tuple[object, ...]] = {
    "deliver": ("deliver", "a red apple", "--no-ka"),
    "align transmission": ("align", "transmission"),
}


@pytest.mark.parametrize("case", OTHER_CODEC)
def test_a_codec_of_other_latents_is_refused_before_a_picture(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codec = JsccCodec(JsccConfig(channels=4, rows=8, cols=8, width=16, max_uses=64))
    save_codec(codec.eval(), tmp_path / "codec")
    done = dekag(capsys, *OTHER_CODEC[case], "--codec", tmp_path / "codec", "--out", tmp_path / "out")
    assert done.complaints == [
        "dekag: the codec takes latents [4, 8, 8], and those of the edge are [32, 8, 8]; train one for it"
    ]
    assert "loss" not in done.err
    assert not (tmp_path / "out").exists()


def test_what_a_world_lacks_is_said_before_a_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The edge of `paper` is in no cache, and nothing asks for it."""
    done = dekag(capsys, "deliver", "a red apple", "--world", "paper", "--out", tmp_path / "out")
    assert done.complaints == ["dekag: the world paper has no update; name one, or train one"]
    plain = dekag(capsys, "deliver", "a red apple", "--world", "paper", "--no-ka", "--out", tmp_path / "out")
    assert plain.complaints == ["dekag: the world paper has no codec; name one, or train one"]


def test_a_world_draws_in_the_precision_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another one than fp32 gives other pictures of the same thing."""
    shown = {}
    for precision in ("fp32", "bf16"):
        words = ("deliver", "a red apple", "--no-ka", "--precision", precision, "--out", tmp_path / precision)
        assert dekag(capsys, *words).code == 0
        shown[precision] = read_image(tmp_path / precision / "0000_seed0.png")
    assert not torch.equal(*shown.values())
    assert float((shown["fp32"] - shown["bf16"]).abs().mean()) < 0.1


def test_a_judge_that_pip_brings_can_be_asked_by_sweeps_and_trainings() -> None:
    """It has no folder whose content could be digested, and its name stands for it."""
    assert locate("efficientnet-lite0", "judge") == "efficientnet-lite0"
    world = replace(load_world("emoji"), judge_models={"imagenet": "efficientnet-lite0"})
    spec = BenchSpec(world=world, latents=Path("none"))
    digests = {
        bench_digest(spec, torch.nn.Identity()),
        bench_digest(replace(spec, world=load_world("emoji")), torch.nn.Identity()),
    }
    assert len(digests) == 2
    assert judges_key(world, torch.zeros(1, 3, 8, 8)).keys() == {"imagenet"}
    with pytest.raises(InputError, match="unknown judge 'efficientnet-lite9'"):
        locate("efficientnet-lite9", "judge")
