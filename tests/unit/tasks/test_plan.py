"""What an alignment says of itself beforehand is what it then is."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_pipelines
import torch
from command_line import dekag
from PIL import Image

from dekag.alignment.config import MakdConfig
from dekag.alignment.generation.makd import distil
from dekag.alignment.generation.method import DistillationData
from dekag.alignment.generation.methods import method_config
from dekag.generation.diffusers import DiffusersGenerator, Sampling
from dekag.tasks.align_generation import GenerationTask, check_generation
from dekag.tasks.material import ImageSource
from dekag.tasks.plan import plan_generation
from dekag.types import InputError
from dekag.world import Model, World

PROMPTS = tuple(tiny_pipelines.CAPTIONS)
CONFIG = MakdConfig(metaword_steps=1, joint_steps=2, frozen_steps=3, batch=4, accumulation=2, rank=2)


@pytest.fixture(scope="module")
def edge() -> DiffusersGenerator:
    pipeline = tiny_pipelines.build(tiny_pipelines.stable_diffusion)
    return DiffusersGenerator(pipeline=pipeline, sampling=Sampling(steps=2))


@pytest.fixture(scope="module")
def world(edge: DiffusersGenerator) -> World:
    return World(name="mine", edge_model=Model(source=edge), pixels=tiny_pipelines.PIXELS)


def folder_of(folder: Path, rows: list[dict[str, object]]) -> Path:
    folder.mkdir()
    for row in rows:
        Image.new("RGB", (8, 8)).save(folder / str(row["file_name"]))
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("method", ["makd", "textual_inversion", "lora", "lokr"])
def test_a_plan_counts_what_is_trained(
    method: str, edge: DiffusersGenerator, world: World, tmp_path: Path
) -> None:
    rows = [{"file_name": f"{n}.png", "text": [f"a {n}", "a thing"]} for n in range(3)]
    folder = folder_of(tmp_path / "images", rows)
    task = GenerationTask(method=method, config=CONFIG)
    before = {name: value.clone() for name, value in edge.denoiser.state_dict().items()}
    plan = plan_generation(world, ImageSource(folder=folder), task)
    assert (plan.pairs, plan.prompts, plan.to_buy, plan.images_a_step) == (6, 4, 0, 8)
    assert sum(plan.steps.values()) == 6
    assert plan.draws == 6 * 8 / 6
    data = DistillationData(
        prompts=PROMPTS, images=torch.rand(3, 3, tiny_pipelines.PIXELS, tiny_pipelines.PIXELS)
    )
    quick = replace(method_config(method, CONFIG), metaword_steps=1, joint_steps=1, frozen_steps=0)
    update = distil(edge, data, quick)
    word = 0 if update.metaword is None else sum(v.numel() for v in update.metaword.vectors.values())
    assert plan.trained_parameters == word + sum(v.numel() for v in update.adapter.values())
    assert plan.training_bytes == 20 * plan.trained_parameters
    assert plan.edge_parameters == plan.weights_bytes // 4
    assert all(torch.equal(value, before[name]) for name, value in edge.denoiser.state_dict().items())


def test_a_plan_of_a_world_s_own_prompts(world: World, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("one\ntwo\n")
    source = ImageSource(prompts_file=tmp_path / "p.txt", draws=3)
    plan = plan_generation(world, source, GenerationTask(config=CONFIG))
    assert (plan.pairs, plan.prompts) == (6, 2)
    assert plan.text_bytes % 3 == 0


def test_lora_plus_trains_every_stage_or_is_refused(edge: DiffusersGenerator, world: World) -> None:
    """The metaword's stage has no matrices B, and Kronecker products have none at all."""
    config = replace(CONFIG, lora_plus=8.0)
    side = tiny_pipelines.PIXELS
    data = DistillationData(prompts=PROMPTS, images=torch.rand(3, 3, side, side))
    assert distil(edge, data, config).adapter
    for method in ("lokr", "textual_inversion"):
        with pytest.raises(InputError, match="lora_plus is a factor on the rate of the matrices B, which"):
            check_generation(world, GenerationTask(method=method, config=config))


def test_an_edge_in_half_precision_is_trained_so_or_refused() -> None:
    """What is trained is fp32; the edge's own weights are as they were."""
    pipeline = tiny_pipelines.build(tiny_pipelines.stable_diffusion).to(torch.bfloat16)
    half = DiffusersGenerator(pipeline=pipeline, sampling=Sampling(steps=2))
    own = World(name="half", edge_model=Model(source=half), pixels=tiny_pipelines.PIXELS)
    with pytest.raises(InputError, match="the edge is held in bfloat16: train it with precision bf16"):
        check_generation(own, GenerationTask(config=CONFIG))
    before = {name: value.clone() for name, value in half.denoiser.state_dict().items()}
    side = tiny_pipelines.PIXELS
    data = DistillationData(prompts=PROMPTS, images=torch.rand(3, 3, side, side))
    update = distil(half, data, replace(CONFIG, precision="bf16"))
    assert {value.dtype for value in update.adapter.values()} == {torch.float32}
    assert all(value.isfinite().all() for value in update.adapter.values())
    assert any(value.abs().max() > 0 for name, value in update.adapter.items() if "lora_B" in name)
    assert all(torch.equal(value, before[name]) for name, value in half.denoiser.state_dict().items())
    pipeline.to(torch.float16)
    with pytest.raises(InputError, match="float16, in which nothing is trained: hold it in bf16 or fp32"):
        check_generation(own, GenerationTask(config=replace(CONFIG, precision="bf16")))


def test_the_command_says_it_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = dekag(capsys, "align", "generation", "--plan", "--out", tmp_path / "out", "--draws", 1)
    assert done.code == 0
    lines = dict(line.split(None, 1) for line in done.out.splitlines())
    assert lines["trained"] == "248,320 of 4,368,659 parameters of the edge"
    assert lines["steps"].startswith("100 metaword, 200 joint, 600 frozen, of 64 images each")
    assert lines["to"] == "buy      0 pictures"
    assert not (tmp_path / "out").exists()
