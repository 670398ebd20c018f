"""A sampler that cannot draw as it is configured is refused in one line when it is loaded."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from diffusers import DDPMScheduler, LCMScheduler
from tiny_pipelines import CLOUDS, EDGES, build, save, stable_diffusion

from dekag.errors import InputError
from dekag.generation.diffusers import Sampling, load_generator
from dekag.generation.samplers import check_sampler
from dekag.world import load_world

pytestmark = pytest.mark.filterwarnings("ignore:`LoraLoaderMixin` is deprecated:FutureWarning")

ODD: dict[str, tuple[Mapping[str, object], int | None, str]] = {
    "more steps than noise levels": ({"num_train_timesteps": 10}, 20, "cannot draw in 20 steps: "),
    "the usual steps of the pipeline": ({"num_train_timesteps": 10}, None, "cannot draw in 50 steps: "),
    "no noise levels": ({"num_train_timesteps": 0}, 2, "cannot draw in 2 steps: "),
    "an unknown prediction": ({"prediction_type": "noise"}, 2, "prediction_type given as noise"),
    "an unknown spacing": ({"timestep_spacing": "even"}, 2, "even is not supported"),
    "an unknown schedule of noise": ({"beta_schedule": "steep"}, 2, "steep is not implemented"),
    "a level beyond the last one": ({"steps_offset": 1}, 1000, "cannot draw in 1000 steps: index 1000"),
    "betas of more than 1": ({"beta_end": 2.0}, 2, "lead to what is no number"),
    "betas of less than 0": ({"beta_start": -1.0}, 2, "is no diffusers pipeline folder"),
    "few betas": ({"trained_betas": [0.1, 0.2]}, 2, "out of bounds"),
    "a word for a number": ({"num_train_timesteps": "1000"}, 2, "is no diffusers pipeline folder"),
}
"""Entries of scheduler_config.json, steps, and part of what is said."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline") / "edge"
    save(build(stable_diffusion), folder)
    return folder


@pytest.mark.parametrize("name", ODD)
def test_an_odd_configuration_is_one_line(name: str, saved: Path) -> None:
    """One of these drew black pictures, the others ended in a traceback once the models were loaded."""
    change, steps, text = ODD[name]
    file = saved / "scheduler" / "scheduler_config.json"
    sound = file.read_text()
    try:
        file.write_text(json.dumps({**json.loads(sound), **change}))
        with pytest.raises(InputError) as raised:
            load_generator(saved, sampling=Sampling(steps=steps))
    finally:
        file.write_text(sound)
    assert text in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_sound_configuration_is_loaded(saved: Path) -> None:
    for steps in (None, 1, 4, 999):
        load_generator(saved, sampling=Sampling(steps=steps))


@pytest.mark.parametrize("family", {**EDGES, **CLOUDS})
def test_every_family_passes(family: str) -> None:
    check_sampler(build({**EDGES, **CLOUDS}[family]), None)


def test_what_ships_passes() -> None:
    load_world("emoji").edge()
    load_world("emoji").cloud()


def test_a_sampler_that_cannot_be_walked_by_itself_is_left_alone() -> None:
    """One whose class wants more than others do is the pipeline's own business; learned variances are half of it."""
    pipeline = build(stable_diffusion)

    class Particular(LCMScheduler):  # type: ignore[misc]
        def step(self, *_: object, **__: object) -> None:
            raise TypeError("it wants the picture as well")

    for scheduler in (Particular(), DDPMScheduler(variance_type="learned_range")):
        pipeline.scheduler = scheduler
        check_sampler(pipeline, 4)
