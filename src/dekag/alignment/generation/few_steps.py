"""Fewer steps at the edge: a second low-rank update with which an aligned edge draws in four steps or fewer.

The aligned edge draws with many guided steps and keeps where it came by; the update learns to take several of
those steps, guidance included, at once (progressive distillation, Salimans and Ho 2022; guidance as in Meng et
al. 2023). Nothing of the cloud is needed. This goes beyond DeKA-g.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dekag.alignment.config import FewStepConfig
from dekag.alignment.generation import adapters
from dekag.alignment.generation.makd import CHECKPOINT_STEPS, checkpointed
from dekag.alignment.generation.method import UNWATCHED, TrainingRun, trainable
from dekag.generation.diffusers import DiffusersGenerator, Sampling
from dekag.generation.families import Conditioning
from dekag.generation.schedule import AffineStep, Schedule, affine_steps, is_part_of, refined, with_scheduler
from dekag.training.loop import Loss, TrainConfig, train
from dekag.types import InputError
from dekag.wire.rows import columns_on_disk, rows_on_disk

ADAPTER = "dekag_few_steps"
STAGE = "few steps"
"""The stage that `run.on_step` gets."""
TEACHER_SEED = 400_000
NO_GUIDANCE = 1.0
"""Guidance scale at which diffusers' pipelines leave the unconditional half out."""


@dataclass(frozen=True, eq=False)
class FewStepPlan:
    """What the student is to do, `steps`, and the teacher, of whose states the student meets one in `every`."""

    teacher: DiffusersGenerator
    every: int
    steps: Sequence[AffineStep]


def plan_few_steps(aligned: DiffusersGenerator, steps: int) -> FewStepPlan:
    """How a generator that draws in more steps teaches itself to draw in some; nothing is drawn for that.

    The student's steps are those of its pipeline at as many steps. The teacher's are its own if they lead through
    the student's times; those of a flow are divided finer, as they lead to the same latents at any time.
    Raises InputError if the steps do not divide the teacher's, if the sampler is not a deterministic one of first
    order, or if it is of another start or other times in fewer steps.
    """
    many = aligned.sampling.steps
    if many is None or many % steps or many == steps:
        raise InputError(f"the student's {steps} steps must divide the teacher's, which are {many}")
    every = many // steps
    unguided = replace(aligned.sampling, steps=steps, guidance=NO_GUIDANCE)
    student, own = replace(aligned, sampling=unguided).schedule(), aligned.schedule()
    rows, few = affine_steps(student.fresh), student.fresh()
    if len(rows) == steps and is_part_of(few, own.fresh()):
        return FewStepPlan(aligned, every, rows)
    finer = refined(few, every) if len(rows) == steps else None
    if finer is None:
        raise InputError(
            f"the times of {type(few).__name__} in {steps} steps are not among those in {many}, so that nothing can be"
            f" learnt of them{_spacing(student, own)}"
        )
    teacher = replace(aligned, pipeline=with_scheduler(aligned.pipeline, finer))
    return FewStepPlan(teacher, every, rows)


def _spacing(student: Schedule, teacher: Schedule) -> str:
    """The end of a line that says which spacing of the sampler's times would be right, if one is."""
    config = student.scheduler.config
    if "timestep_spacing" not in config:
        return ""
    trailing = type(student.scheduler).from_config(config, timestep_spacing="trailing")
    few, many = (replace(schedule, scheduler=trailing).fresh() for schedule in (student, teacher))
    found = config.timestep_spacing
    return f": its timestep_spacing is {found!r}, with 'trailing' they are" if is_part_of(few, many) else ""


def distil_few_steps(
    aligned: DiffusersGenerator,
    prompts: Sequence[str],
    config: FewStepConfig,
    run: TrainingRun = UNWATCHED,
) -> tuple[dict[str, Tensor], Sampling]:
    """A low-rank update on top of the generator's own, and the sampling to draw with: no guidance, few steps.

    The generator draws every prompt once as its teacher; it is left as it was. Nothing is validated.
    Raises InputError as `plan_few_steps` does, before anything is drawn.
    """
    plan = plan_few_steps(aligned, config.steps)
    run = run.depending_on(aligned, config, prompts=prompts)
    seeds = [TEACHER_SEED + config.seed + i for i in range(len(prompts))]
    states = rows_on_disk(len(prompts), _trajectories(plan, prompts, seeds))
    denoiser, word = aligned.denoiser, aligned.metaword
    peft = adapters.config_for("lora", rank=config.rank, targets=config.targets or aligned.family.targets)
    with ExitStack() as stack:
        stack.enter_context(aligned.active())
        read_prompts = list(prompts) if word is None else word.add_to(prompts)
        conditioning = columns_on_disk(len(prompts), aligned.read_parts(read_prompts))
        stack.enter_context(adapters.fresh(denoiser, ADAPTER, peft, seed=config.seed))
        if config.gradient_checkpointing:
            stack.enter_context(checkpointed(denoiser))
        denoiser.set_adapter([*aligned.adapters, ADAPTER])
        adapters.train_only(denoiser, ADAPTER)
        _train(aligned, student_loss(aligned, plan.steps, (states, conditioning), config), config, run)
        learned = adapters.tensors(denoiser, ADAPTER)
    return learned, replace(aligned.sampling, steps=config.steps, guidance=NO_GUIDANCE)


def _trajectories(plan: FewStepPlan, prompts: Sequence[str], seeds: Sequence[int]) -> Iterator[Tensor]:
    """The teacher's states at the student's times, some prompts at a time."""
    size = plan.teacher.at_once
    for at in range(0, len(prompts), size):
        part = slice(at, at + size)
        yield plan.teacher.trajectory(prompts[part], seeds=seeds[part], every=plan.every)


def _train(aligned: DiffusersGenerator, loss: Loss, config: FewStepConfig, run: TrainingRun) -> None:
    """Train what of the denoiser asks for a gradient."""
    train(
        trainable(dict(aligned.denoiser.named_parameters())),
        loss,
        TrainConfig(
            steps=config.train_steps,
            learning_rate=config.learning_rate,
            ema_decay=0.99,
            accumulation=config.accumulation,
            precision=config.precision,
            seed=config.seed,
            checkpoint_every=CHECKPOINT_STEPS,
        ),
        checkpoint=run.state_file(STAGE),
        on_step=run.hook(STAGE),
    )


def student_loss(
    aligned: DiffusersGenerator,
    line: Sequence[AffineStep],
    drawn: tuple[Tensor, Conditioning],
    config: FewStepConfig,
) -> Loss:
    """Mean square error of the state after one of the student's steps.

    `drawn` are states [images, steps + 1, c, rows, cols] and what the denoiser is told of their prompts.
    """
    states, conditioning = drawn
    device = aligned.denoiser.device
    timesteps = torch.tensor([step.timestep for step in line])
    factors = torch.tensor([[step.scale, step.old, step.new] for step in line])

    def loss(rng: torch.Generator) -> Tensor:
        index = torch.randint(len(states), (config.batch,), generator=rng)
        step = torch.randint(config.steps, (config.batch,), generator=rng)
        start, end = (states[index, at].to(device) for at in (step, step + 1))
        of_batch = {name: values[index.to(values.device)].to(device) for name, values in conditioning.items()}
        scale, old, new = factors[step].to(start).T[..., None, None, None]
        predicted = aligned.family.predict(
            aligned.pipeline, scale * start, timesteps[step].to(start.device), of_batch
        )
        error: Tensor = (old * start + new * predicted.float() - end).square().mean()
        return error

    return loss
