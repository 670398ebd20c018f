"""How a pipeline sets its scheduler is learnt from the pipeline, and odd schedulers are one clear line."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_pipelines
import torch
from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from tiny_pipelines import CAPTIONS, EDGES, PIXELS

from dekag.generation.diffusers import DiffusersGenerator, Sampling, load_generator
from dekag.generation.schedule import is_part_of, refined, schedule_of
from dekag.types import InputError
from dekag.world import load_world

pytestmark = [
    pytest.mark.filterwarnings("ignore:`LoraLoaderMixin` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
]


@pytest.mark.parametrize("name", sorted(EDGES))
def test_the_schedule_is_the_one_that_a_drawing_leaves_behind(name: str) -> None:
    edge = DiffusersGenerator(
        pipeline=tiny_pipelines.build(EDGES[name]), sampling=Sampling(steps=3, guidance=2.0), pixels=PIXELS
    )
    fresh = edge.schedule().fresh()
    assert edge.pipeline.scheduler.timesteps is not fresh.timesteps
    edge(CAPTIONS[:1], seeds=[0])
    torch.testing.assert_close(fresh.timesteps, edge.pipeline.scheduler.timesteps)
    if hasattr(fresh, "sigmas"):
        torch.testing.assert_close(fresh.sigmas, edge.pipeline.scheduler.sigmas)


def test_flux_shifts_by_the_picture_and_by_the_steps() -> None:
    edge = DiffusersGenerator(pipeline=tiny_pipelines.build(EDGES["flux2-klein"]), pixels=PIXELS)
    _, rows, cols = edge.latent_shape
    for steps in (2, 4):
        named = replace(edge, sampling=Sampling(steps=steps)).schedule().named
        assert named["mu"] == pytest.approx(compute_empirical_mu(rows * cols, steps))
        assert np.allclose(named["sigmas"], np.linspace(1.0, 1 / steps, steps))


def test_a_pipeline_that_sets_no_scheduler_is_one_clear_line() -> None:
    pipeline = SimpleNamespace(scheduler=EulerDiscreteScheduler())
    with pytest.raises(InputError, match="SimpleNamespace does not set its EulerDiscreteScheduler"):
        schedule_of(pipeline, lambda _: None)


def scheduler_set(kind: Any, steps: int, **options: Any) -> Any:
    made = kind(**options)
    made.set_timesteps(steps)
    return made


@pytest.mark.parametrize(("spacing", "nested"), [("trailing", True), ("leading", False), ("linspace", False)])
@pytest.mark.parametrize(("few", "many"), [(2, 4), (4, 12), (1, 50), (5, 30), (8, 24)])
def test_trailing_times_are_among_those_of_more_steps(
    spacing: str, nested: bool, few: int, many: int
) -> None:
    """Trailing: 1000 (1 - i / n), rounded; the others begin or end elsewhere (Lin et al. 2024, Tab. 2)."""
    short, long = (scheduler_set(EulerDiscreteScheduler, n, timestep_spacing=spacing) for n in (few, many))
    assert is_part_of(short, long) == nested


def test_a_finer_flow_leads_through_the_same_states_and_can_be_set_again() -> None:
    flow = scheduler_set(FlowMatchEulerDiscreteScheduler, 4, shift=3.0)
    finer = refined(flow, 3)
    assert finer is not None
    torch.testing.assert_close(finer.sigmas[::3], flow.sigmas)
    assert len(finer.timesteps) == 12
    assert type(finer).__name__ == "FlowMatchEulerDiscreteScheduler"
    assert is_part_of(flow, finer)
    x = torch.ones(1, 1, 1, 1)
    for _ in range(2):
        finer.set_timesteps(99, device="cpu", mu=2.0)
        state = x
        for t in finer.timesteps:
            # the velocity from noise 1 to a latent of 3, which is the same everywhere
            state = finer.step(-2 * x, t, state).prev_sample
        torch.testing.assert_close(state, 3 * x)


def test_what_is_no_flow_is_not_made_finer() -> None:
    assert refined(scheduler_set(EulerDiscreteScheduler, 4), 3) is None


@pytest.mark.parametrize(
    "odd", [{"beta_schedule": "of_my_own"}, {"num_train_timesteps": "many"}, {"trained_betas": "none"}]
)
def test_a_scheduler_that_diffusers_cannot_make_is_one_clear_line(
    odd: dict[str, Any], tmp_path: Path
) -> None:
    source = load_world("emoji").edge_model.source
    assert isinstance(source, str | Path)
    shutil.copytree(source, tmp_path / "edge")
    file = tmp_path / "edge" / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | odd))
    with pytest.raises(InputError, match="is no diffusers pipeline folder") as told:
        load_generator(tmp_path / "edge")
    assert "\n" not in str(told.value)
