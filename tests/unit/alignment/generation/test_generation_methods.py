"""The contract of a method of generation alignment: the table, and a method of one's own in one file."""

import importlib
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ConfigDict, ValidationError, create_model

from dekag.alignment.config import FewStepConfig, MakdConfig
from dekag.alignment.generation.bundles import apply_generation, pipeline_digest, save_generation
from dekag.alignment.generation.method import DistillationData, TrainingRun
from dekag.alignment.generation.methods import METHODS, find_method, method_config
from dekag.alignment.generation.update import apply_update, remove_update
from dekag.config import described_fields
from dekag.generation.diffusers import DiffusersGenerator, Sampling
from dekag.types import InputError
from dekag.world import load_world

PROMPTS = ["a red apple on a blue background", "a cat face on a pink background, on the left"]
QUICK = MakdConfig(metaword_steps=1, joint_steps=2, frozen_steps=3, batch=4, rank=2)


@pytest.fixture(scope="module")
def edge() -> DiffusersGenerator:
    return replace(load_world("emoji").edge(), sampling=Sampling(steps=3, guidance=2.0))


@pytest.fixture
def own() -> Iterator[str]:
    """A user's file is imported, and forgotten again."""
    module = importlib.import_module("own_method")
    METHODS["own_dora"] = module.Dora()
    yield "own_dora"
    del METHODS["own_dora"]


def test_a_method_of_ones_own_is_one_file(edge: DiffusersGenerator, own: str, tmp_path: Path) -> None:
    """It is found by its name, trains, and its bundle draws what it learned."""
    method, before = find_method(own), pipeline_digest(edge)
    config, told = method.config_type(steps=12), []
    images = edge.decode(edge(PROMPTS, seeds=[5, 6])).flip(1)
    data = DistillationData(prompts=PROMPTS, images=images)
    update = method.train(
        edge, data, config, TrainingRun(on_step=lambda stage, at: told.append((stage, at.step)))
    )
    assert told == [("dora", step + 1) for step in range(12)]
    assert pipeline_digest(edge) == before
    plain = edge(PROMPTS, seeds=[0, 1])
    aligned = apply_update(edge, update)
    drawn = aligned(PROMPTS, seeds=[0, 1])
    remove_update(aligned)
    moved = (drawn - plain).norm()
    assert moved > 0.01 * plain.norm()
    save_generation(tmp_path / "b", edge, update, settings=method.settings(config), quantisation="int8")
    loaded, bundle = apply_generation(edge, tmp_path / "b")
    again = loaded(PROMPTS, seeds=[0, 1])
    remove_update(loaded)
    assert (again - drawn).norm() < 0.1 * moved
    assert bundle.manifest.settings["steps"] == 12
    assert method.stages(config) == {}
    assert method.bundled


def test_what_a_bundle_says_of_each_method_is_its_own_configuration() -> None:
    for name, method in METHODS.items():
        assert method.config_type is MakdConfig
        assert method.settings(QUICK) == method_config(name, QUICK).settings()
        assert method.bundled == (name != "full")
    assert find_method("lokr").settings(QUICK)["adapter"] == "lokr"


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("makd", {"metaword": 1, "joint": 2, "frozen": 3}),
        ("textual_inversion", {"metaword": 6}),
        ("lora", {"joint": 3, "frozen": 3}),
        ("dreambooth", {"joint": 3, "frozen": 3}),
    ],
)
def test_stages_are_those_that_training_tells_of(
    edge: DiffusersGenerator, name: str, stages: dict[str, int]
) -> None:
    told: dict[str, int] = {}
    images = torch.zeros(2, 3, 64, 64)
    run = TrainingRun(on_step=lambda stage, at: told.update({stage: at.step}))
    METHODS[name].train(edge, DistillationData(prompts=PROMPTS, images=images), QUICK, run)
    assert METHODS[name].stages(QUICK) == stages == told


def test_without_vectors_there_is_no_stage_of_the_metaword(edge: DiffusersGenerator) -> None:
    config = replace(QUICK, vectors=0)
    assert METHODS["makd"].stages(config) == {"joint": 2, "frozen": 3}
    data = DistillationData(prompts=PROMPTS, images=torch.zeros(2, 3, 64, 64))
    assert METHODS["makd"].train(edge, data, config).metaword is None


def test_an_unknown_method_is_one_clear_line() -> None:
    with pytest.raises(InputError, match="unknown method 'dreams'; known are makd, textual_inversion, lora"):
        find_method("dreams")


def test_a_method_that_is_not_makd_has_no_configuration_of_makd(own: str) -> None:
    with pytest.raises(InputError, match="'own_dora' is not MAKD with something left out"):
        method_config(own, QUICK)


@pytest.mark.parametrize("config", [MakdConfig, FewStepConfig])
def test_every_number_has_a_help_text_a_default_and_is_within_its_bounds(config: type) -> None:
    for field in described_fields(config):
        assert field.help.endswith("."), field.name
        assert not field.required
    config()


@pytest.mark.parametrize("config", [MakdConfig, FewStepConfig])
def test_a_strict_model_of_pydantic_can_be_made_from_the_numbers(config: type) -> None:
    given: dict[str, Any] = {
        field.name: (field.annotated, field.default) for field in described_fields(config)
    }
    model = create_model("Job", __config__=ConfigDict(strict=True), **given)
    assert model().model_dump() == asdict(config())
    with pytest.raises(ValidationError):
        model(batch=0)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"joint_rate": 0.0}, "joint_rate must be above 0, got 0.0"),
        ({"prior_share": 1.5}, "prior_share must be at most 1, got 1.5"),
        ({"ema_decay": 1.0}, "ema_decay must be below 1, got 1.0"),
        ({"adapter": "ia3"}, "adapter must be one of none, full, lora, lokr, dora, loha, got 'ia3'"),
    ],
)
def test_numbers_out_of_bounds_are_refused(wrong: dict[str, object], text: str) -> None:
    with pytest.raises(InputError) as caught:
        MakdConfig(**wrong)  # type: ignore[arg-type]
    assert str(caught.value) == text
