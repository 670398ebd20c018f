"""Fewer steps are learnt on the steps that the sampler takes at the edge, or refused before anything is drawn."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from tiny_pipelines import CAPTIONS, EDGES, PIXELS

from dekag.alignment.config import FewStepConfig, MakdConfig
from dekag.alignment.generation.few_steps import FewStepPlan, distil_few_steps, plan_few_steps, student_loss
from dekag.data.images import CloudImages
from dekag.generation.diffusers import DiffusersGenerator, Sampling
from dekag.generation.schedule import affine_steps, with_scheduler
from dekag.tasks.align_generation import GenerationTask, align_generation, check_generation
from dekag.tasks.material import Material
from dekag.tasks.validate import Extras
from dekag.training.run import Run
from dekag.training.schedulers import set_for
from dekag.types import InputError
from dekag.world import Model, World

PROMPTS = CAPTIONS[:2]
SEEDS = [3, 4]
EXACT = 1e-4
"""Largest error that counts as none, in steps."""
STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
TRAILING = {**STABLE_DIFFUSION, "timestep_spacing": "trailing"}
pytestmark = [
    # the pipeline of PRX is built on it
    pytest.mark.filterwarnings("ignore:`LoraLoaderMixin` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
]

Case = tuple[str, Callable[[], Any] | None]
CASES: dict[str, Case] = {
    "SD, DDIM": ("sd-epsilon", partial(DDIMScheduler, **TRAILING, clip_sample=False)),
    "SD, v at an SNR of 0": (
        "sd-v",
        partial(
            DDIMScheduler,
            **TRAILING,
            clip_sample=False,
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
        ),
    ),
    "SD, Euler, v": ("sd-v", partial(EulerDiscreteScheduler, **TRAILING, prediction_type="v_prediction")),
    "SDXL, Euler": ("sdxl", partial(EulerDiscreteScheduler, **TRAILING)),
    "PRX, its own": ("prx", None),
    "FLUX.2, its own dynamic shift": ("flux2-klein", None),
    "FLUX.2, a fixed shift": ("flux2-klein", partial(FlowMatchEulerDiscreteScheduler, shift=3.0)),
}


def edge_of(case: Case, *, steps: int = 4) -> DiffusersGenerator:
    name, scheduler = case
    pipeline = tiny_pipelines.build(EDGES[name])
    if scheduler is not None:
        pipeline.scheduler = scheduler()
    return DiffusersGenerator(pipeline=pipeline, sampling=Sampling(steps=steps, guidance=3.0), pixels=PIXELS)


@pytest.fixture(scope="module", params=CASES)
def edge(request: pytest.FixtureRequest) -> DiffusersGenerator:
    return edge_of(CASES[request.param])


@pytest.fixture(scope="module")
def plan(edge: DiffusersGenerator) -> FewStepPlan:
    return plan_few_steps(edge, 2)


@pytest.fixture(scope="module")
def drawn(edge: DiffusersGenerator) -> torch.Tensor:
    """Every state of the edge's pipeline as it draws in two steps."""
    student = replace(edge, sampling=replace(edge.sampling, steps=2, guidance=1.0))
    return student.trajectory(PROMPTS, seeds=SEEDS)


@torch.no_grad()
def test_a_step_of_the_training_is_the_step_of_the_pipeline(
    edge: DiffusersGenerator, plan: FewStepPlan, drawn: torch.Tensor
) -> None:
    """Whatever the pipeline did between two states, the formula does."""
    told = edge.read(PROMPTS)
    for at, step in enumerate(plan.steps):
        start, end = drawn[:, at], drawn[:, at + 1]
        time = torch.full((2,), step.timestep)
        said = edge.family.predict(edge.pipeline, step.scale * start, time, told)
        landed = step.old * start + step.new * said
        error = float((landed - end).norm() / (end - start).norm())
        print(f"step {at}: {error:.1e} of the step")
        assert error < EXACT


@torch.no_grad()
def test_the_loss_of_what_the_edge_draws_itself_is_nothing(
    edge: DiffusersGenerator, plan: FewStepPlan, drawn: torch.Tensor
) -> None:
    loss = student_loss(edge, plan.steps, (drawn, edge.read(PROMPTS)), FewStepConfig(steps=2, batch=16))
    step = (drawn[:, 1:] - drawn[:, :-1]).square().mean((0, 2, 3, 4)).min()
    assert float(loss(torch.Generator().manual_seed(0))) < EXACT**2 * float(step)


def test_the_teacher_starts_where_the_student_starts_and_meets_its_times(
    edge: DiffusersGenerator, plan: FewStepPlan, drawn: torch.Tensor
) -> None:
    taught = plan.teacher.trajectory(PROMPTS, seeds=SEEDS)
    torch.testing.assert_close(taught[:, 0], drawn[:, 0])
    assert taught.shape[1] - 1 == 4 == 2 * plan.every
    times = plan.teacher.pipeline.scheduler.timesteps[:: plan.every].float()
    torch.testing.assert_close(times, torch.tensor([step.timestep for step in plan.steps]))
    scheduler = plan.teacher.pipeline.scheduler
    noise = torch.cat(
        [edge.family.noise(edge.pipeline, torch.Generator().manual_seed(s), pixels=PIXELS) for s in SEEDS]
    )
    torch.testing.assert_close(taught[:, 0], noise * float(getattr(scheduler, "init_noise_sigma", 1.0)))


def test_planning_leaves_the_edge_as_it_was(edge: DiffusersGenerator) -> None:
    before = edge(PROMPTS, seeds=SEEDS)
    scheduler, config = edge.pipeline.scheduler, dict(edge.pipeline.config)
    plan_few_steps(edge, 2)
    assert edge.pipeline.scheduler is scheduler
    assert dict(edge.pipeline.config) == config
    assert torch.equal(edge(PROMPTS, seeds=SEEDS), before)


@pytest.mark.parametrize("case", ["SDXL, Euler", "FLUX.2, its own dynamic shift"])
def test_the_update_draws_what_it_was_trained_for(case: str) -> None:
    """An update that changes nothing yet: its sampling draws, to the bit, what the plan's steps were made for."""
    edge = edge_of(CASES[case])
    few = FewStepConfig(steps=2, rank=2, train_steps=2, batch=2)
    before = edge(PROMPTS, seeds=SEEDS)
    _, sampling = distil_few_steps(edge, PROMPTS, few)
    assert torch.equal(edge(PROMPTS, seeds=SEEDS), before)
    at_the_edge = replace(edge, sampling=sampling).schedule().fresh()
    times = [step.timestep for step in plan_few_steps(edge, 2).steps]
    assert at_the_edge.timesteps.tolist() == pytest.approx(times)


# refusals, before anything is drawn


class Deaf:
    """A denoiser that may not be asked: refusals come before."""

    def __init__(self, denoiser: torch.nn.Module) -> None:
        self.hook = denoiser.register_forward_pre_hook(self.fail)

    def fail(self, *_: Any) -> None:
        raise AssertionError("something was drawn")


REFUSED: dict[str, tuple[Case, str]] = {
    "SDXL as it comes": (
        ("sdxl", None),
        "EulerDiscreteScheduler in 4 steps are not among those in 8, .* is 'leading', with 'trailing' they are",
    ),
    "SD as it comes": (("sd-epsilon", None), "is 'leading', with 'trailing' they are"),
    "a memory": (
        ("sd-epsilon", partial(DPMSolverMultistepScheduler, **TRAILING)),
        "DPMSolverMultistepScheduler is none",
    ),
    "noise of its own": (
        ("sd-epsilon", partial(DDPMScheduler, **TRAILING, clip_sample=False)),
        "DDPMScheduler is none",
    ),
    "clipping": (("sd-v", partial(DDIMScheduler, **TRAILING, thresholding=True)), "DDIMScheduler is none"),
    "levels of Karras": (
        ("sd-epsilon", partial(EulerDiscreteScheduler, **TRAILING, use_karras_sigmas=True)),
        "in 4 steps are not among those in 8",
    ),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_what_cannot_be_learnt_is_refused_before_anything_is_drawn(case: str) -> None:
    made, line = REFUSED[case]
    edge = edge_of(made, steps=8)
    # StableDiffusionPipeline itself switches clipping off
    edge.pipeline.scheduler.register_to_config(thresholding=case == "clipping")
    Deaf(edge.denoiser)
    with pytest.raises(InputError, match=line) as told:
        distil_few_steps(edge, PROMPTS, FewStepConfig(steps=4))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("steps", [3, 4, 8])
def test_steps_that_do_not_divide_are_refused_before_anything_is_drawn(steps: int) -> None:
    edge = edge_of(CASES["SDXL, Euler"])
    Deaf(edge.denoiser)
    with pytest.raises(InputError, match="must divide the teacher's, which are 4"):
        plan_few_steps(edge, steps)


def test_an_alignment_that_would_fail_at_its_end_is_refused_at_its_start(tmp_path: Path) -> None:
    """Before the first stage, whose steps would be lost, and before a picture is drawn."""
    edge = edge_of(("sdxl", None))
    world = World(name="mine", edge_model=Model(source=edge))
    task = GenerationTask(
        config=MakdConfig(metaword_steps=2, joint_steps=2, frozen_steps=2),
        extras=Extras(few_steps=FewStepConfig(steps=2)),
        validate=False,
    )
    images = CloudImages(prompts=tuple(PROMPTS), images=torch.zeros(2, 3, PIXELS, PIXELS))
    Deaf(edge.denoiser)

    def stepped(*_: Any) -> None:
        raise AssertionError("something was trained")

    with pytest.raises(InputError, match="'leading', with 'trailing' they are"):
        align_generation(world, Material(train=images), task, tmp_path / "b", Run(on_step=stepped))
    with pytest.raises(InputError, match="'leading', with 'trailing' they are"):
        check_generation(world, task)
    check_generation(world, replace(task, extras=Extras()))


def test_an_edge_of_an_unknown_kind_of_sampler_is_refused_at_the_start() -> None:
    edge = edge_of(CASES["SD, DDIM"])
    pipeline = with_scheduler(edge.pipeline, FlowMatchEulerDiscreteScheduler(invert_sigmas=True))
    world = World(name="mine", edge_model=Model(source=replace(edge, pipeline=pipeline)))
    with pytest.raises(InputError, match="starts from noise of strength 1 alone"):
        check_generation(world, GenerationTask())


# closed forms


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_a_step_of_ddim_is_equation_12_of_song_et_al(steps: int) -> None:
    """x' = a' x0 + s' eps with x0 = (x - s eps) / a, so that old = a' / a and new = s' - s a' / a."""
    scheduler = DDIMScheduler(**TRAILING, clip_sample=False)
    power = scheduler.alphas_cumprod.double()
    for row in affine_steps(partial(set_for, scheduler, steps)):
        now = power[int(row.timestep)]
        before = int(row.timestep) - 1000 // steps
        then = power[before] if before >= 0 else torch.ones(())
        old = (then / now).sqrt()
        assert row.scale == 1.0
        assert row.old == pytest.approx(float(old), rel=1e-6)
        assert row.new == pytest.approx(float((1 - then).sqrt() - old * (1 - now).sqrt()), rel=1e-5)


def test_a_step_of_euler_is_the_difference_of_standard_deviations() -> None:
    """Karras et al. 2022, Alg. 1 without its second half: x + (sigma' - sigma) eps, of x / sqrt(sigma^2 + 1)."""
    scheduler = EulerDiscreteScheduler(**TRAILING)
    rows = affine_steps(partial(set_for, scheduler, 4))
    scheduler.set_timesteps(4)
    for row, now, then in zip(rows, scheduler.sigmas[:-1], scheduler.sigmas[1:], strict=True):
        assert row.old == pytest.approx(1.0)
        assert row.new == pytest.approx(float(then - now), rel=1e-4)
        assert row.scale == pytest.approx(float((now**2 + 1) ** -0.5), rel=1e-5)


def test_flow_steps_are_lines_from_all_noise_to_none() -> None:
    rows = affine_steps(partial(set_for, FlowMatchEulerDiscreteScheduler(), 4))
    assert [row.old for row in rows] == pytest.approx([1.0] * 4)
    assert sum(row.new for row in rows) == pytest.approx(-1.0, abs=1e-5)


def test_one_step_of_a_sampler_with_a_memory_has_nothing_to_remember() -> None:
    """DPM-Solver's first step is DDIM's (Lu et al. 2022, Eq. 4.1)."""
    (row,) = affine_steps(partial(set_for, DPMSolverMultistepScheduler(**TRAILING), 1))
    (ddim,) = affine_steps(partial(set_for, DDIMScheduler(**TRAILING, clip_sample=False), 1))
    assert (row.old, row.new) == pytest.approx((ddim.old, ddim.new), rel=1e-4)
