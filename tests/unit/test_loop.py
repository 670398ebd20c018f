"""The training loop: an interrupted run ends in the same bytes as one that was not."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dekag.training.loop import Loss, Progress, TrainConfig, train
from dekag.training.schedule import warmup_stable_decay


class Interrupted(Exception):  # noqa: N818
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


def test_interrupted_and_uninterrupted_runs_end_in_the_same_bytes(tmp_path: Path) -> None:
    straight = model()
    train(straight, loss_of(straight), CONFIG)

    def stop_at_27(progress: Progress) -> None:
        if progress.step == 27:
            raise Interrupted

    broken = model()
    with pytest.raises(Interrupted):
        train(broken, loss_of(broken), CONFIG, checkpoint=tmp_path / "state.pt", on_step=stop_at_27)
    resumed = model()
    train(resumed, loss_of(resumed), CONFIG, checkpoint=tmp_path / "state.pt")
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name])
    assert not list(tmp_path.glob("*.part"))


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


def test_schedule_warms_up_holds_and_decays() -> None:
    factors = [warmup_stable_decay(step, 100, 10, 0.3) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert all(f == 1.0 for f in factors[9:70])
    assert factors[85] == pytest.approx(0.5)
    assert factors[99] == pytest.approx(1 / 30)
