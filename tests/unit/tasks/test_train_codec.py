"""A codec of one's own latents: sizes that are chosen, what training writes, and what large latents cost."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import tiny_pipelines
import torch
from command_line import dekag
from tiny_worlds import miniature

from dekag.channel import BlockFading
from dekag.codec import JsccCodec, JsccConfig, fit_klt, load_codec
from dekag.config import described_fields
from dekag.evaluation.transmission import transmit
from dekag.generation.diffusers import DiffusersGenerator, Sampling
from dekag.tasks.align_transmission import CALA_RANGE, conditions_of
from dekag.tasks.config import CodecConfig
from dekag.tasks.train_codec import codec_sizes, train_codec
from dekag.training.run import Run
from dekag.types import Condition, InputError
from dekag.world import Model, World, load_world
from dekag.world.new import NewWorld, new_world

QUICK = CodecConfig(steps=4, batch=4, width=16)


@pytest.mark.parametrize(
    ("shape", "patch", "uses"),
    [
        ((32, 8, 8), 1, 512),
        ((4, 16, 16), 1, 256),
        ((16, 8, 8), 1, 256),
        ((4, 64, 64), 4, 4096),
        ((16, 128, 128), 8, 4096),
        ((4, 96, 64), 8, 4096),
        ((1, 1, 3), 1, 2),
    ],
)
def test_sizes_follow_the_latents(shape: tuple[int, int, int], patch: int, uses: int) -> None:
    sizes = codec_sizes(shape, CodecConfig())
    assert (sizes.patch, sizes.max_uses) == (patch, uses)


@pytest.mark.parametrize(
    ("shape", "options", "text"),
    [
        ((4, 67, 67), {}, "67 x 67 cells have no usual patch"),
        ((4, 64, 64), {"patch": 3}, "the patch must divide rows and columns, got 3 for 64 x 64"),
        ((4, 8, 8), {"max_uses": 130}, "latents of 256 numbers fill 129 uses, got 130"),
        ((4, 8, 8), {"constellation": "8psk"}, "8psk"),
    ],
)
def test_sizes_that_do_not_fit_are_one_line(
    shape: tuple[int, int, int], options: dict[str, object], text: str
) -> None:
    with pytest.raises(InputError, match=text):
        JsccCodec(codec_sizes(shape, CodecConfig(**options)))  # type: ignore[arg-type]


def test_what_the_corrections_see_as_one_changes_nothing_at_the_start() -> None:
    """Without noise to speak of, codecs of cells and of patches give back what they were given."""
    latents = torch.randn(300, 4, 8, 8, generator=torch.Generator().manual_seed(0)).cumsum(3) / 3
    losses = []
    for patch in (1, 2):
        torch.manual_seed(0)
        codec = JsccCodec(
            JsccConfig(
                channels=4, rows=8, cols=8, patch=patch, width=16, max_uses=128, constellation="analogue"
            )
        )
        codec.start_from(fit_klt(latents, torch.ones(4)), latents)
        rng = torch.Generator().manual_seed(0)
        back = transmit(codec, BlockFading(), latents[:50], Condition(uses=128, snr_db=40.0), rng=rng)
        losses.append(float((back - latents[:50]).square().mean() / latents[:50].var()))
    assert max(losses) < 0.02


def test_the_range_of_updates_follows_the_codec() -> None:
    assert conditions_of(512) == CALA_RANGE
    assert conditions_of(256).uses == (32, 64, 128, 256)
    assert conditions_of(16).uses == (16,)


def test_training_is_resumed_and_written_whole(tmp_path: Path) -> None:
    """The same codec in one go and in two; `out` is a folder that load_codec reads."""
    world = replace(load_world("emoji"), updates={})
    latents = torch.randn(4, 32, 8, 8, generator=torch.Generator().manual_seed(0))
    whole = train_codec(world, latents, QUICK, tmp_path / "whole")

    def stop(_: str, progress: object) -> None:
        if progress.step == 2:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_codec(world, latents, QUICK, tmp_path / "out", Run(resume=tmp_path / "state", on_step=stop))
    assert not (tmp_path / "out").exists()
    again = train_codec(world, latents, QUICK, tmp_path / "out", Run(resume=tmp_path / "state"))
    for name, tensor in whole.codec.state_dict().items():
        assert torch.equal(tensor, again.codec.state_dict()[name])
    assert load_codec(tmp_path / "out").max_uses == 512


def test_a_world_with_a_trained_codec_delivers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = miniature(tmp_path / "world", updates=None)
    done = dekag(
        capsys, "train", "codec", "--world", world, "--steps", 2, "--batch", 2, "--width", 16, "--max-uses", 64,
        "--out", tmp_path / "codec",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "wrote a codec for latents 32 x 8 x 8, up to 64 uses" in done.out
    words = (
        "deliver",
        "a red apple",
        "--world",
        world,
        "--no-ka",
        "--codec",
        tmp_path / "codec",
        "--uses",
        64,
    )
    done = dekag(capsys, *words, "--out", tmp_path / "out", "--json")
    assert json.loads(done.out)["ledger"]["channel_uses"] == 64


def test_every_number_of_the_training_is_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    """Options are made of the configuration: names, defaults and bounds."""
    done = dekag(capsys, "train", "codec", "--help")
    for field in described_fields(CodecConfig):
        assert f"--{field.name.replace('_', '-')}" in done.out
    refused = dekag(capsys, "train", "codec", "--steps", -1, "--out", "x")
    assert refused.code == 2
    assert "--steps" in refused.err


LARGE = """
import resource, sys
from dekag.cli import main
try:
    main(sys.argv[1:])
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, "MiB", file=sys.stderr)
"""


@pytest.mark.slow
def test_latents_of_stable_diffusion_are_trained_in_sensible_time_and_memory(tmp_path: Path) -> None:
    """4 x 64 x 64: 200 steps of 8 and a delivery, under 6 GB; the command says the seconds of a step."""
    pipeline = tiny_pipelines.build(partial(tiny_pipelines.stable_diffusion, channels=4, pixels=128))
    tiny_pipelines.save(pipeline, tmp_path / "edge")
    (tmp_path / "prompts.txt").write_text("".join(f"a picture of {n}\n" for n in range(20)))
    made_of = NewWorld(
        edge=str(tmp_path / "edge"),
        cloud=str(tmp_path / "edge"),
        prompts_file=tmp_path / "prompts.txt",
        sampling=Sampling(steps=2, guidance=2.0),
    )
    world = tmp_path / "large"
    assert new_world(world, made_of).latents == (4, 64, 64)

    def run(*words: object) -> str:
        done = subprocess.run(
            [sys.executable, "-c", LARGE, *map(str, words)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        memory = re.search(r"(\d+) MiB", done.stderr)
        assert memory is not None
        print(memory.group(0))
        assert int(memory.group(1)) < 6 * 1024
        return done.stderr

    said = run("train", "codec", "--world", world, "--out", world / "codec", "--steps", 200, "--batch", 8)
    seconds = re.findall(r"([\d.]+) s a step", said)
    print("seconds a step:", seconds)
    assert seconds
    run("deliver", "a picture of 3", "--world", world, "--no-ka", "--out", tmp_path / "out")


def test_a_world_of_objects_is_trained_as_well(tmp_path: Path) -> None:
    """No folder anywhere: a pipeline in memory, latents of its own, a codec that the world then has."""
    pipeline = tiny_pipelines.build(tiny_pipelines.stable_diffusion)
    edge = DiffusersGenerator(pipeline=pipeline, sampling=Sampling(steps=2, guidance=2.0))
    world = World(name="mine", edge_model=Model(source=edge))
    latents = edge(["a red apple"] * 6, seeds=range(6))
    trained = train_codec(world, latents, QUICK, tmp_path / "codec")
    system = replace(world, codec_model=trained.codec).system(align=False)
    delivery = system.deliver(["a red apple"], Condition(uses=trained.codec.max_uses, snr_db=20.0))
    assert delivery.image.shape == (1, 3, 16, 16)
