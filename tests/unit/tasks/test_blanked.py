"""What a safety checker blanks is named and left out, and that an edge's own is not asked is said."""

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import dekag
from tiny_pipelines import CAPTIONS, build, save, stable_diffusion
from tiny_safety import checked_pipeline, cloud_that_blanks, unchecked

from dekag.alignment.config import MakdConfig
from dekag.errors import InputError, SafetyWarning
from dekag.generation.diffusers import DiffusersGenerator, Sampling
from dekag.tasks.align_generation import GenerationTask, align_generation
from dekag.tasks.material import DISTIL_SEEDS, ImageSource, material
from dekag.tasks.validate import VALIDATION_SEED, Extras, validation
from dekag.training.run import ALONE, Run
from dekag.world import Model, World

SEEDS = [DISTIL_SEEDS + place for place in range(len(CAPTIONS))]
SAMPLING = Sampling(steps=2, guidance=2.0)
QUICK = MakdConfig(metaword_steps=1, joint_steps=1, frozen_steps=1, batch=2, rank=2)


@pytest.fixture(scope="module")
def edge() -> DiffusersGenerator:
    return DiffusersGenerator(pipeline=build(stable_diffusion, seed=1), sampling=SAMPLING)


def world(edge: DiffusersGenerator, cloud: DiffusersGenerator, **splits: list[str]) -> World:
    return World(
        name="tiny",
        edge_model=Model(source=edge),
        cloud_model=Model(source=cloud),
        pixels=16,
        prompt_splits={"distill": CAPTIONS, **splits},
    )


def drawn_unchecked(cloud: DiffusersGenerator) -> torch.Tensor:
    """What the cloud draws without its checker."""
    return replace(cloud, pipeline=unchecked(cloud.pipeline)).images(CAPTIONS, seeds=SEEDS)


def in_8_bits(images: torch.Tensor) -> torch.Tensor:
    return (255 * images).round() / 255


def test_a_blanked_picture_is_named_and_the_others_are_left(edge: DiffusersGenerator, tmp_path: Path) -> None:
    """The others are those that the cloud draws without its checker, and a second run finds the same."""
    cloud = cloud_that_blanks(CAPTIONS, SEEDS, [1])
    run = Run(resume=tmp_path / "state")
    for _ in range(2):
        with pytest.warns(
            SafetyWarning, match="blanked 1 of 3 pictures: prompt 1 .'a cat face on.*left out"
        ) as told:
            data = material(world(edge, cloud), ImageSource(), run)
        assert len(told) == 1
        assert data.train.prompts == (CAPTIONS[0], CAPTIONS[2])
        assert torch.equal(data.train.images[:], in_8_bits(drawn_unchecked(cloud)[[0, 2]]))


@pytest.mark.slow
def test_what_is_not_blanked_is_distilled(edge: DiffusersGenerator, tmp_path: Path) -> None:
    cloud = cloud_that_blanks(CAPTIONS, SEEDS, [1])
    with pytest.warns(SafetyWarning, match="blanked 1 of 3 pictures"):
        data = material(world(edge, cloud), ImageSource(), ALONE)
    task = GenerationTask(config=QUICK, extras=Extras(guidance=(), strengths=()))
    bundle = align_generation(world(edge, cloud), data, task, tmp_path / "bundle")
    assert bundle.manifest.settings["images"] == 2


def test_a_cloud_whose_pictures_are_all_blanked_is_refused(edge: DiffusersGenerator) -> None:
    cloud = cloud_that_blanks(CAPTIONS, SEEDS, [0, 1, 2])
    with pytest.raises(InputError, match=r"blanked 3 of 3 pictures: .*; nothing is left, give other prompts"):
        material(world(edge, cloud), ImageSource(), ALONE)


def test_a_checker_that_flags_nothing_says_nothing(edge: DiffusersGenerator) -> None:
    cloud = cloud_that_blanks(CAPTIONS, SEEDS, [])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = material(world(edge, cloud), ImageSource(), ALONE)
    assert torch.equal(data.train.images[:], in_8_bits(drawn_unchecked(cloud)))


def test_a_blanked_picture_chooses_no_settings(edge: DiffusersGenerator) -> None:
    cloud = cloud_that_blanks(CAPTIONS, [VALIDATION_SEED] * 3, [0])
    tiny = world(edge, cloud, validation=CAPTIONS)
    unflagged = Model(source=replace(cloud, pipeline=unchecked(cloud.pipeline)))
    data = material(replace(tiny, cloud_model=unflagged), ImageSource(), ALONE)
    with pytest.warns(SafetyWarning, match="blanked 1 of 3 pictures: prompt 0"):
        check = validation(tiny, tiny.edge(), data, ALONE)
    assert tuple(getattr(check, "prompts", ())) == tuple(CAPTIONS[1:])


def test_a_blanked_picture_is_no_reference() -> None:
    """Where a picture for each prompt is needed, as in an evaluation, a black one would be a silent wrong result."""
    cloud = cloud_that_blanks(CAPTIONS, SEEDS, [2])
    with pytest.raises(InputError, match="safety checker of the pipeline blanked 1 of 3 pictures: prompt 2"):
        cloud.images(CAPTIONS, seeds=SEEDS)


def test_that_an_edges_checker_is_not_asked_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(checked_pipeline(), tmp_path / "edge")
    (tmp_path / "prompts.txt").write_text("\n".join(CAPTIONS))
    words = (
        "generate",
        "--prompts-file",
        tmp_path / "prompts.txt",
        "--edge",
        tmp_path / "edge",
        "--steps",
        2,
    )
    with warnings.catch_warnings():
        done = dekag(capsys, *words, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert done.err.count("the safety checker of the edge is not asked") == 1
