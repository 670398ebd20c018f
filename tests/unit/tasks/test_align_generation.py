"""G-KA as a whole: where images come from, what is chosen on validation prompts, and what the bundle then holds."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dekag.alignment.config import FewStepConfig, MakdConfig
from dekag.alignment.generation.few_steps import distil_few_steps
from dekag.alignment.generation.makd import distil
from dekag.alignment.generation.method import DistillationData
from dekag.alignment.generation.methods import method_config
from dekag.alignment.generation.update import apply_update, remove_update
from dekag.data.endpoint import ImageEndpoint
from dekag.data.images import CloudImages
from dekag.evaluation.generation import EDGE_SEED, draw
from dekag.generation.diffusers import DiffusersGenerator, Sampling
from dekag.tasks.align_generation import GenerationTask, align_generation, check_generation, train_update
from dekag.tasks.material import ImageSource, Material, held_back, is_held_back, material
from dekag.tasks.validate import VALIDATION_SEED, DenoisingValidation, Extras, Validation, tuned
from dekag.training.run import ALONE, Run, Tracking
from dekag.types import InputError
from dekag.wire.png import png_bytes
from dekag.world import Model, World, load_world

PROMPTS = ("a red apple on a blue background", "a cat face on a pink background, on the left")
QUICK = MakdConfig(metaword_steps=2, joint_steps=2, frozen_steps=4, validate_every=2, batch=4, rank=2)


@pytest.fixture(scope="module")
def edge() -> DiffusersGenerator:
    return replace(load_world("emoji").edge(), sampling=Sampling(steps=4, guidance=3.0))


@pytest.fixture(scope="module")
def data(edge: DiffusersGenerator) -> CloudImages:
    return CloudImages(prompts=PROMPTS, images=edge.decode(edge(PROMPTS, seeds=[5, 6])).flip(1))


def test_images_of_a_folder_are_distilled_with_their_own_prompts(data: CloudImages, tmp_path: Path) -> None:
    rows = [{"file": f"{i}.png", "prompt": prompt} for i, prompt in enumerate(PROMPTS)]
    (tmp_path / "index.json").write_text(json.dumps({"images": rows}))
    for row, png in zip(rows, png_bytes(data.images), strict=True):
        (tmp_path / row["file"]).write_bytes(png)
    read = material(load_world("emoji"), ImageSource(folder=tmp_path), ALONE).train
    assert read.prompts == PROMPTS
    torch.testing.assert_close(read.images[:], data.images, atol=1 / 255, rtol=0)


def test_a_prompt_can_be_drawn_several_times_from_seeds_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text(f"{PROMPTS[0]}\n")
    source = ImageSource(prompts_file=tmp_path / "prompts.txt", draws=2)
    run = Run(resume=tmp_path / "state")
    drawn = material(load_world("emoji"), source, run).train
    assert drawn.prompts == (PROMPTS[0], PROMPTS[0])
    assert not torch.equal(drawn.images[0], drawn.images[1])
    again = material(load_world("emoji"), source, run).train
    assert torch.equal(again.images[:], drawn.images[:])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"prompts_file": Path("p"), "domain": "food"}, "not as both"),
        (
            {"endpoint": ImageEndpoint(base_url="http://localhost:1/v1", model="m")},
            "need a folder that keeps them",
        ),
        ({"folder": Path("f"), "domain": "food"}, "brings its own prompts"),
    ],
)
def test_sources_that_contradict_each_other_are_refused(options: dict[str, object], text: str) -> None:
    with pytest.raises(InputError, match=text):
        ImageSource(**options)  # type: ignore[arg-type]


def test_an_unknown_domain_is_one_clear_line() -> None:
    with pytest.raises(InputError, match="distill:cars"):
        ImageSource(domain="cars").prompts(load_world("emoji"))


def test_validation_draws_sheets_and_chooses_the_guidance(
    edge: DiffusersGenerator, data: CloudImages, tmp_path: Path
) -> None:
    """The score of a generator that draws the reference itself is the highest there is."""
    check = Validation(
        prompts=PROMPTS,
        cloud=data.images,
        judges=load_world("emoji").judges(),
        pictures=tmp_path / "pictures",
    )
    extras = Extras(guidance=(1.5, 2.0), few_steps=FewStepConfig(steps=2, rank=2, train_steps=2, batch=4))
    pairs = DistillationData(prompts=data.prompts, images=data.images)
    update = train_update(edge, pairs, GenerationTask(config=QUICK, extras=extras), check, ALONE)
    assert update.sampling is not None
    assert update.sampling.guidance in (1.5, 2.0)
    assert (update.few_step_sampling.steps, len(update.few_step) > 0) == (2, True)  # type: ignore[union-attr]
    sheets = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert sheets == ["frozen-000002.png", "frozen-000004.png"]
    drawn = edge.decode(edge(PROMPTS, seeds=[2500, 2500]))
    assert replace(check, cloud=drawn, pictures=None).score(edge) == pytest.approx(1.0, abs=1e-4)


def test_the_strength_that_draws_as_the_cloud_is_chosen(edge: DiffusersGenerator, data: CloudImages) -> None:
    update = distil(edge, DistillationData(prompts=PROMPTS, images=data.images), QUICK)
    half = apply_update(edge, tuned(update, None, 0.5))
    cloud = draw(half, PROMPTS, [EDGE_SEED + VALIDATION_SEED])
    remove_update(half)
    check = Validation(prompts=PROMPTS, cloud=cloud, judges=load_world("emoji").judges())
    assert check.choose(edge, update, Extras(guidance=(), strengths=(1.0, 0.5, 0.3))) == (None, 0.5)
    assert check.choose(edge, replace(update, adapter={}), Extras(guidance=())) == (None, 1.0)


@pytest.mark.parametrize("method", ["lora", "lokr"])
def test_an_update_without_strength_draws_as_none(
    edge: DiffusersGenerator, data: CloudImages, method: str
) -> None:
    update = distil(edge, DistillationData(prompts=PROMPTS, images=data.images), method_config(method, QUICK))
    plain, drawings = edge(PROMPTS, seeds=[1, 2]), []
    for strength in (0.0, 1.0):
        aligned = apply_update(edge, tuned(update, None, strength))
        drawings.append(aligned(PROMPTS, seeds=[1, 2]))
        remove_update(aligned)
    torch.testing.assert_close(drawings[0], plain)
    assert not torch.allclose(drawings[1], plain, atol=1e-3)


def test_few_steps_are_learnt_alike_with_activations_computed_again(edge: DiffusersGenerator) -> None:
    config = FewStepConfig(steps=2, rank=2, train_steps=2, batch=4)
    kept, _ = distil_few_steps(edge, PROMPTS, config)
    again, _ = distil_few_steps(edge, PROMPTS, replace(config, gradient_checkpointing=True))
    halves, _ = distil_few_steps(edge, PROMPTS, replace(config, precision="bf16"))
    torch.testing.assert_close(again, kept)
    assert any(not torch.equal(halves[name], kept[name]) for name in kept)


def bare() -> World:
    """The shipped pair alone: no prompts, no judges, no updates."""
    return replace(load_world("emoji"), prompt_splits={}, judge_models={}, updates={})


def test_a_world_without_prompts_aligns_with_images_of_its_own(data: CloudImages, tmp_path: Path) -> None:
    """No validation prompts, no prior: the update is trained on the images alone, and the bundle says so."""
    task = GenerationTask(method="lora", config=QUICK)
    bundle = align_generation(bare(), Material(train=data, drawn_by_cloud=True), task, tmp_path / "b")
    assert bundle.manifest.metaword is None
    assert bundle.manifest.quantisation == "int8"
    assert bundle.manifest.settings["method"] == "lora"
    assert bundle.noise_map() is not None


def test_images_from_elsewhere_ask_for_no_cloud(data: CloudImages, tmp_path: Path) -> None:
    """A cloud that cannot be loaded is no hindrance where the images came from a folder; shared noise needs it."""
    gone = replace(bare(), cloud_model=Model(source="owner/no-such-model"))
    said: list[str] = []
    task = GenerationTask(config=QUICK)
    bundle = align_generation(gone, Material(train=data), task, tmp_path / "b", Run(on_stage=said.append))
    assert bundle.noise_map() is None
    assert "nothing to validate with: the last step counts" in said


def many(edge: DiffusersGenerator) -> CloudImages:
    """Forty prompts with pictures; their colours are the cloud's own."""
    prompts = tuple(f"a picture of number {n}" for n in range(40))
    return CloudImages(prompts=prompts, images=edge.decode(edge(prompts, seeds=list(range(40)))).flip(1))


def test_images_from_elsewhere_are_held_back_by_a_digest_of_the_prompt(edge: DiffusersGenerator) -> None:
    data = many(edge)
    parts = held_back(data)
    assert parts.held_back is not None
    assert set(parts.held_back.prompts) == {prompt for prompt in data.prompts if is_held_back(prompt)}
    assert set(parts.train.prompts).isdisjoint(parts.held_back.prompts)
    assert len(parts.train.prompts) + len(parts.held_back.prompts) == 40
    for part in (parts.train, parts.held_back):
        for prompt, image in zip(part.prompts, part.images, strict=True):
            assert torch.equal(image, data.images[data.prompts.index(prompt)])


@pytest.mark.slow
def test_without_judges_the_held_out_denoising_loss_chooses(edge: DiffusersGenerator, tmp_path: Path) -> None:
    """It is the same at every call, tells an update from none, and leaves the guidance alone."""
    parts = held_back(many(edge))
    assert parts.held_back is not None
    said: list[str] = []
    task = GenerationTask(config=QUICK)
    bundle = align_generation(bare(), parts, task, tmp_path / "b", Run(on_stage=said.append))
    assert "the world has no judge: settings are chosen by the held-out denoising loss" in said
    assert "sampling_guidance" not in bundle.manifest.settings
    check = DenoisingValidation(prompts=parts.held_back.prompts, latents=edge.encode(parts.held_back.images))
    assert check.score(edge) == check.score(edge)
    wrong = replace(check, latents=check.latents.roll(1, 0) * 3)
    assert wrong.score(edge) < check.score(edge)


NOT_TRAINABLE = {
    "a metaword that the edge knows": (
        GenerationTask(config=replace(QUICK, token="<taken>")),
        "in the vocabulary",
    ),
    "targets of no layer": (
        GenerationTask(config=replace(QUICK, targets="decoder")),
        "targets 'decoder' matches no layer; the family's own are ",
    ),
    "targets of no layer, few steps": (
        GenerationTask(config=QUICK, extras=Extras(few_steps=FewStepConfig(steps=2, targets="decoder"))),
        "matches no layer",
    ),
    "a whole denoiser": (GenerationTask(method="full", config=QUICK), "no bundle carries"),
}


@pytest.mark.parametrize("name", NOT_TRAINABLE)
def test_what_cannot_be_trained_is_known_before_anything_is_drawn(name: str) -> None:
    """Nothing of the world can draw: its cloud cannot be loaded, and its edge is asked for no picture."""
    generator = replace(load_world("emoji").edge(), sampling=Sampling(steps=4, guidance=3.0))
    generator.pipeline.tokenizer.add_tokens(["<taken>"])
    world = replace(
        bare(), edge_model=Model(source=generator), cloud_model=Model(source="owner/no-such-model")
    )
    task, text = NOT_TRAINABLE[name]
    check_generation(world, GenerationTask(config=QUICK))
    with pytest.raises(InputError, match=re.escape(text)):
        check_generation(world, task)


def test_a_folder_of_something_else_is_kept_and_nothing_is_trained(data: CloudImages, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    run = Run(on_step=lambda *_: pytest.fail("it trains"))
    with pytest.raises(InputError, match="exists and is not a bundle, so it is kept"):
        align_generation(bare(), Material(train=data), GenerationTask(config=QUICK), tmp_path, run)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_images_from_elsewhere_are_validated_without_the_worlds_cloud(
    data: CloudImages, tmp_path: Path
) -> None:
    """A world with prompts to validate with, whose cloud cannot be loaded: it is not the one that is distilled."""
    gone = replace(load_world("emoji"), cloud_model=Model(source="owner/no-such-model"))
    prior = {name: prompts for name, prompts in gone.splits.items() if name != "prior"}
    said: list[str] = []
    bundle = align_generation(
        replace(gone, prompt_splits=prior),
        held_back(data),
        GenerationTask(config=QUICK),
        tmp_path / "b",
        Run(on_stage=said.append),
    )
    assert bundle.noise_map() is None
    assert "nothing to validate with: the last step counts" in said
    assert "no model of a cloud drew the images: the update has no map of shared noise" in said


def test_full_fine_tuning_makes_no_bundle(data: CloudImages, tmp_path: Path) -> None:
    task = GenerationTask(method="full", config=QUICK)
    with pytest.raises(InputError, match="no bundle carries"):
        align_generation(load_world("emoji"), Material(train=data), task, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_an_unknown_tracker_is_one_clear_line(data: CloudImages, tmp_path: Path) -> None:
    run = Run(tracking=Tracking(trackers=("ledger",)))
    with pytest.raises(InputError, match="ledger"):
        align_generation(bare(), Material(train=data), GenerationTask(config=QUICK), tmp_path / "b", run)
    assert not (tmp_path / "b").exists()
