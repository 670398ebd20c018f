"""The training loop: an interrupted run ends in the same bytes as one that was not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from missing_packages import complaints
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from dekag.training.loop import (
    GOLDEN,
    Loss,
    Progress,
    TrainConfig,
    Trained,
    Validation,
    checkpoint_gradients,
    step_rng,
    train,
)
from dekag.training.schedule import rate_factor, warmup_stable_decay
from dekag.training.trackers import Tracking
from dekag.types import InputError


class InterruptedRunError(Exception):
    """Stands for the power cut."""


def model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 3)


def loss_of(net: nn.Linear) -> Loss:
    def loss(rng: torch.Generator) -> Tensor:
        x = torch.randn(8, 4, generator=rng)
        return (net(x) - x[:, :3]).square().mean()

    return loss


CONFIG = TrainConfig(steps=40, learning_rate=1e-2, warmup_steps=5, checkpoint_every=10, seed=3)


def stop_at_27(progress: Progress) -> None:
    if progress.step == 27:
        raise InterruptedRunError


def equal(first: nn.Module, second: nn.Module) -> bool:
    other = second.state_dict()
    return all(torch.equal(tensor, other[name]) for name, tensor in first.state_dict().items())


def scorer(net: nn.Linear) -> Callable[[int], float]:
    """Highest at the validation next to step 16; the weights tell too, a little."""
    return lambda step: -abs(step - 16.0) + 1e-3 * net.weight.mean().item()


@pytest.mark.parametrize("accumulation", [1, 3])
def test_interrupted_and_uninterrupted_runs_end_in_the_same_bytes(tmp_path: Path, accumulation: int) -> None:
    config = replace(CONFIG, accumulation=accumulation)
    straight = model()
    train(straight, loss_of(straight), config)
    broken = model()
    with pytest.raises(InterruptedRunError):
        train(broken, loss_of(broken), config, checkpoint=tmp_path / "state.pt", on_step=stop_at_27)
    resumed = model()
    train(resumed, loss_of(resumed), config, checkpoint=tmp_path / "state.pt")
    assert equal(straight, resumed)
    assert not list(tmp_path.glob("*.part"))


def test_dropout_is_drawn_again_and_the_global_generator_stays(tmp_path: Path) -> None:
    config = replace(CONFIG, precision="bf16")

    def dropped(net: nn.Linear) -> Loss:
        drop = nn.Dropout(0.5)

        def loss(rng: torch.Generator) -> Tensor:
            x = torch.randn(8, 4, generator=rng)
            return (net(drop(x)).float() - x[:, :3]).square().mean()

        return loss

    straight, broken, resumed = model(), model(), model()
    train(straight, dropped(straight), config)
    with pytest.raises(InterruptedRunError):
        train(broken, dropped(broken), config, checkpoint=tmp_path / "state.pt", on_step=stop_at_27)
    torch.manual_seed(77)
    before = torch.get_rng_state()
    train(resumed, dropped(resumed), config, checkpoint=tmp_path / "state.pt")
    assert equal(straight, resumed)
    assert torch.equal(torch.get_rng_state(), before)
    assert straight.weight.dtype == torch.float32


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    first = model()
    train(first, loss_of(first), CONFIG, checkpoint=tmp_path / "state.pt")
    again, steps = model(), []
    train(again, loss_of(again), CONFIG, checkpoint=tmp_path / "state.pt", on_step=steps.append)
    assert not steps
    assert torch.equal(first.weight, again.weight)


def test_frozen_parameters_stay(tmp_path: Path) -> None:
    net = model()
    net.bias.requires_grad_(False)
    before = net.bias.clone()
    train(net, loss_of(net), CONFIG)
    assert torch.equal(net.bias, before)


def test_training_lowers_the_loss() -> None:
    net = model()
    fresh = torch.Generator().manual_seed(10**6)
    start = loss_of(net)(fresh).item()
    train(net, loss_of(net), CONFIG)
    assert loss_of(net)(torch.Generator().manual_seed(10**6)).item() < 0.8 * start


def test_first_share_of_a_step_is_drawn_as_ever() -> None:
    """For seed 0, whose runs may be under way; another share or another seed draws something else."""
    draw = torch.randn(5, generator=step_rng(0, 12))
    assert torch.equal(draw, torch.randn(5, generator=torch.Generator().manual_seed(12)))
    assert not torch.equal(draw, torch.randn(5, generator=step_rng(0, 12, 1)))


def test_training_seeds_draw_different_batches() -> None:
    """torch's generator on the CPU heeds 32 bits of a seed: a seed above them would be no seed at all."""
    draws = [torch.randn(5, generator=step_rng(seed, step)) for seed in range(4) for step in range(50)]
    assert len({tuple(draw.tolist()) for draw in draws}) == 200


def test_no_two_shares_of_a_long_run_are_drawn_alike() -> None:
    shares = torch.arange(1024) * GOLDEN % 2**32
    apart = shares.sort().values.diff()
    assert apart.min() > 10**6  # steps


def test_accumulated_step_is_the_step_of_the_whole_batch() -> None:
    """Four shares and one call with their mean loss differ by rounding alone, clipping included."""
    config = replace(CONFIG, max_grad_norm=0.05)
    parts, whole = model(), model()
    losses: list[list[float]] = [[], []]
    train(
        parts,
        loss_of(parts),
        replace(config, accumulation=4),
        on_step=lambda progress: losses[0].append(progress.loss),
    )
    count = iter(range(config.steps))

    def mean(_: torch.Generator) -> Tensor:
        step = next(count)
        return torch.stack([loss_of(whole)(step_rng(config.seed, step, k)) for k in range(4)]).mean()

    train(whole, mean, config, on_step=lambda progress: losses[1].append(progress.loss))
    torch.testing.assert_close(parts.weight, whole.weight, rtol=0, atol=1e-6)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_rate_factor_scales_the_step_of_the_first_match() -> None:
    config = TrainConfig(steps=1, learning_rate=1e-3, warmup_steps=0, decay_fraction=0.0, ema_decay=0.0)
    moved = []
    for factors in ((), (("bias", 4.0), ("b", 9.0), ("weight", 0.0))):
        net = model()
        train(net, loss_of(net), replace(config, rate_factors=factors))
        moved.append(((net.weight - model().weight).abs(), (net.bias - model().bias).abs()))
    torch.testing.assert_close(moved[1][1], 4 * moved[0][1], rtol=1e-3, atol=0)
    assert moved[1][0].max() == 0 < moved[0][0].min()
    assert rate_factor("unet.to_q.lora_B.dekag.weight", ((r"lora_B", 16.0),)) == 16.0
    assert rate_factor("unet.to_q.lora_A.dekag.weight", ((r"lora_B", 16.0),)) == 1.0


@pytest.mark.parametrize("keep", ["last", "best"])
def test_validation_leaves_the_run_as_it_is_and_keeps_the_best_average(tmp_path: Path, keep: str) -> None:
    plain, early = model(), model()
    train(plain, loss_of(plain), CONFIG)
    # 40 steps that end at 15: the constant stretch and the warm-up do not depend on the number of steps
    train(early, loss_of(early), replace(CONFIG, steps=15, decay_fraction=0.0))

    def run(on_step: Callable[[Progress], None] | None) -> tuple[nn.Linear, Trained]:
        net = model()
        seen: list[bool] = []

        def validate(step: int) -> float:
            seen.append(net.training or torch.is_grad_enabled())
            return scorer(net)(step)

        trained = train(
            net,
            loss_of(net),
            replace(CONFIG, keep=keep),
            checkpoint=tmp_path / "state.pt",
            on_step=on_step,
            validation=Validation(score=validate, every=5),
        )
        assert not any(seen)
        return net, trained

    with pytest.raises(InterruptedRunError):
        run(stop_at_27)
    net, trained = run(None)
    assert equal(net, plain if keep == "last" else early)
    assert [step for step, _ in trained.scores] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert (trained.steps, trained.best_step) == (40, 15)
    assert trained.best_score == max(score for _, score in trained.scores)
    # a finished run tells the same again
    assert run(None)[1] == trained


def test_validation_sees_the_average_that_the_run_would_end_with() -> None:
    ended = model()
    train(ended, loss_of(ended), CONFIG)
    net = model()
    seen: list[Tensor] = []

    def validate(step: int) -> float:
        seen.append(net.weight.detach().clone())
        return 0.0

    trained = train(net, loss_of(net), CONFIG, validation=Validation(score=validate, every=39))
    assert torch.equal(seen[-1], ended.weight)
    # of equal scores the first is the best
    assert trained == Trained(steps=40, best_step=39, best_score=0.0, scores=((39, 0.0), (40, 0.0)))


def test_without_validation_nothing_is_best() -> None:
    net = model()
    trained = train(net, loss_of(net), CONFIG)
    assert trained == Trained(steps=40, best_step=None, best_score=None, scores=())


def test_tensorboard_holds_what_was_logged(tmp_path: Path) -> None:
    net = model()
    reports: list[Progress] = []
    trained = train(
        net,
        loss_of(net),
        replace(CONFIG, track_every=15, rate_factors=(("bias", 2.0),)),
        on_step=reports.append,
        validation=Validation(score=scorer(net), every=20),
        tracking=Tracking(trackers=("tensorboard",), folder=tmp_path),
    )
    events = EventAccumulator(str(tmp_path / "dekag"))
    events.Reload()

    def series(tag: str) -> tuple[list[int], list[float]]:
        scalars = events.Scalars(tag)
        return [s.step for s in scalars], [s.value for s in scalars]

    assert series("loss") == ([15, 30, 40], pytest.approx([reports[i].loss for i in (14, 29, 39)]))
    factors = [warmup_stable_decay(step - 1, 40, 5, 0.3) for step in (15, 30, 40)]
    assert series("learning_rate")[1] == pytest.approx([1e-2 * factor for factor in factors])
    assert series("score") == ([20, 40], pytest.approx([score for _, score in trained.scores]))
    assert min(series("gradient_norm")[1] + series("steps_per_second")[1]) > 0


def tiny_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
        layers_per_block=1,
    )


def test_gradient_checkpointing_keeps_the_gradients_and_stores_less() -> None:
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 8)
    gradients, stored = [], []
    for on in (False, True):
        unet = tiny_unet().train()
        if on:
            checkpoint_gradients(nn.ModuleDict({"unet": unet}))
        kept: list[int] = []

        def keep(tensor: Tensor, kept: list[int] = kept) -> Tensor:
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            value = unet(x, torch.tensor([3, 500]), text).sample.square().mean()
        stored.append(sum(kept))
        value.backward()
        gradients.append({name: p.grad for name, p in unet.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-5, atol=1e-8)
    assert stored[1] < 0.5 * stored[0]
    with pytest.raises(InputError, match="no part of Linear supports gradient checkpointing"):
        checkpoint_gradients(model())


def old_format(path: Path) -> None:
    """Take out of a checkpoint what files of the first format lack."""
    content = torch.load(path, weights_only=True)
    torch.save({key: content[key] for key in ("step", "model", "average", "optimizer")}, path)


def test_checkpoint_of_the_first_format_is_resumed(tmp_path: Path) -> None:
    straight, broken, resumed = model(), model(), model()
    train(straight, loss_of(straight), CONFIG)
    with pytest.raises(InterruptedRunError):
        train(broken, loss_of(broken), CONFIG, checkpoint=tmp_path / "state.pt", on_step=stop_at_27)
    old_format(tmp_path / "state.pt")
    with pytest.raises(InputError, match="is of a run with accumulation 1, this one has 2"):
        train(resumed, loss_of(resumed), replace(CONFIG, accumulation=2), checkpoint=tmp_path / "state.pt")
    train(resumed, loss_of(resumed), CONFIG, checkpoint=tmp_path / "state.pt")
    assert equal(straight, resumed)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"seed": 4}, "is of a run with seed 3, this one has 4"),
        ({"accumulation": 2}, "is of a run with accumulation 1, this one has 2"),
        ({"rate_factors": (("bias", 2.0),)}, "is of a run with rate_factors"),
    ],
)
def test_another_run_does_not_go_on_from_a_checkpoint(
    tmp_path: Path, change: dict[str, Any], line: str
) -> None:
    net = model()
    train(net, loss_of(net), CONFIG, checkpoint=tmp_path / "state.pt")
    with pytest.raises(InputError, match=line):
        train(net, loss_of(net), replace(CONFIG, **change), checkpoint=tmp_path / "state.pt")


def test_another_model_does_not_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    net = model()
    train(net, loss_of(net), CONFIG, checkpoint=tmp_path / "state.pt")
    net.bias.requires_grad_(False)
    with pytest.raises(InputError, match="does not fit the model: they do not both train bias"):
        train(net, loss_of(net), CONFIG, checkpoint=tmp_path / "state.pt")
    wide = nn.Linear(4, 5)
    with pytest.raises(InputError, match="does not fit the model: they differ in bias"):
        train(wide, loss_of(net), CONFIG, checkpoint=tmp_path / "state.pt")


@pytest.mark.parametrize("length", [0, 100, 2000])
def test_damaged_checkpoint_is_one_line(tmp_path: Path, length: int) -> None:
    net = model()
    path = tmp_path / "state.pt"
    train(net, loss_of(net), CONFIG, checkpoint=path)
    path.write_bytes(path.read_bytes()[:length])
    before = net.weight.clone()
    with pytest.raises(InputError, match=r"state\.pt cannot be read as a checkpoint") as caught:
        train(net, loss_of(net), CONFIG, checkpoint=path)
    assert "\n" not in str(caught.value)
    assert torch.equal(net.weight, before)


def test_other_file_is_no_checkpoint(tmp_path: Path) -> None:
    net = model()
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(InputError, match=r"weights\.pt is not a checkpoint of a training run"):
        train(net, loss_of(net), CONFIG, checkpoint=tmp_path / "weights.pt")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"accumulation": 0}, "at least 1"),
    ],
)
def test_impossible_numbers_are_refused(change: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=line):
        replace(CONFIG, **change)


@pytest.mark.parametrize(
    ("change", "options", "line"),
    [
        ({"rate_factors": (("lora_B", 4.0),)}, {}, "'lora_B' matches none of the 2 trainable parameters"),
        ({"rate_factors": (("(", 4.0),)}, {}, r"'\(' is no regular expression"),
        ({"rate_factors": (("bias", -1.0),)}, {}, "at least 0, got -1"),
        ({"keep": "best"}, {}, "give a validation"),
        ({}, {"validation": Validation(score=lambda _: float("nan"), every=1)}, "finite, got nan at step 1"),
        (
            {},
            {"tracking": Tracking(trackers=("tensorflow",))},
            "unknown tracker 'tensorflow'; known are aim, .*, tensorboard, ",
        ),
        ({}, {"tracking": Tracking(trackers=("tensorboard",))}, "writes to a folder: give one"),
    ],
)
def test_impossible_runs_are_refused(change: dict[str, Any], options: dict[str, Any], line: str) -> None:
    net = model()
    with pytest.raises(InputError, match=line):
        train(net, loss_of(net), replace(CONFIG, **change), **options)


def test_missing_tracker_says_what_to_install() -> None:
    code = """
from pathlib import Path
from dekag.training.trackers import Tracking, tracked
with tracked(Tracking(trackers=("{}",), folder=Path("logs")), {{}}):
    pass
"""
    names = ("wandb", "tensorboard")
    said = complaints(*map(code.format, names), missing=[*names, "tensorboardX"])
    for line, package in zip(said, ("wandb", "dekag[trackers]"), strict=True):
        assert f"missing: pip install '{package}'" in line


def test_only_float32_is_trained() -> None:
    net = model().bfloat16()
    with pytest.raises(InputError, match="must be float32, but weight is bfloat16"):
        train(net, loss_of(net), replace(CONFIG, precision="bf16"))
    with pytest.raises(InputError, match="no parameter that requires a gradient"):
        train(net.requires_grad_(False), loss_of(net), CONFIG)


def test_schedule_warms_up_holds_and_decays() -> None:
    factors = [warmup_stable_decay(step, 100, 10, 0.3) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert all(f == 1.0 for f in factors[9:70])
    assert factors[85] == pytest.approx(0.5)
    assert factors[99] == pytest.approx(1 / 30)
