"""The recipe's training: what was interrupted ends where it would have ended."""

import json
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from stages.loop import (
    LONGEST_STEP,
    STABLE,
    STATE,
    Budget,
    LoopConfig,
    Loss,
    Progress,
    State,
    moving_mean,
    read_header,
    share_factor,
    train,
)
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from dekag.training.schedule import warmup_stable_decay

CONFIG = LoopConfig(rate=1e-2, batch=8, warmup_steps=5, weight_decay=0.1, seed=3, checkpoint_seconds=-1)
"""Writes a checkpoint after every step; by steps, its rate falls after 28 of 40."""
STEPS = Budget(steps=40)


class InterruptedRunError(Exception):
    """Stands for the power cut."""


def model() -> nn.Sequential:
    """A convolution as the recipe's are laid out in memory, a normalisation with a buffer, and a linear layer."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(20, 2))
    return net.to(memory_format=torch.channels_last)


def loss_of(net: nn.Module, *, fail_at: int = -1, planted: Callable[[int], float] | None = None) -> Loss:
    """Distance from what a picture's corner holds; it fails at its call with this number, counted from 0, and is
    multiplied by what `planted` says of the call."""
    calls = iter(range(10**6))

    def loss(rng: torch.Generator) -> Tensor:
        call = next(calls)
        if call == fail_at:
            raise InterruptedRunError
        x = torch.randn(8, 3, 4, 4, generator=rng)
        value = (net(x) - x[:, :2, 0, 0]).square().mean()
        return value if planted is None else value * planted(call)

    return loss


def nothing(progress: Progress) -> None:
    """Reports nothing."""


def trained(
    folder: Path,
    budget: Budget = STEPS,
    config: LoopConfig = CONFIG,
    clock: Callable[[], float] = time.monotonic,
    **options: Any,
) -> tuple[nn.Sequential, Progress]:
    net = model()
    loss = loss_of(net, **options)
    return net, train(net, loss, config, budget, folder, report=nothing, clock=clock)


def interrupted(folder: Path, at: int, budget: Budget = STEPS, config: LoopConfig = CONFIG) -> None:
    with pytest.raises(InterruptedRunError):
        trained(folder, budget, config, fail_at=at)


class Clock:
    """A clock that stands still but for what a step takes."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def tick(self, call: int) -> float:
        """For `planted`: a second for every step."""
        self.now += 1
        return 1.0


def content(path: Path) -> tuple[bytes, dict[str, object]]:
    """A checkpoint's tensors, byte for byte with their names and places, and its progress but for the clock's."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    progress = json.loads(header.pop("__metadata__")["progress"])
    del progress["seconds"], progress["pictures_per_second"]
    return json.dumps(header, sort_keys=True).encode() + raw[8 + length :], progress


def equal(first: nn.Module, second: nn.Module) -> bool:
    other = second.state_dict()
    return all(torch.equal(tensor, other[name]) for name, tensor in first.state_dict().items())


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Sequential, Path]:
    """A run that was not interrupted."""
    folder = tmp_path_factory.mktemp("straight")
    return trained(folder)[0], folder


@pytest.mark.parametrize("places", [(0,), (1,), (3,), (27,), (28,), (29,), (39,), (2, 0, 9, 19, 5)])
def test_an_interrupted_run_by_steps_ends_in_the_same_bytes(
    straight: tuple[nn.Sequential, Path], tmp_path: Path, places: tuple[int, ...]
) -> None:
    """Before the first checkpoint, in the warm-up, around the fall of the rate, in it, and several times."""
    for at in places:
        interrupted(tmp_path, at)
    again, progress = trained(tmp_path)
    assert progress.step == 40
    assert equal(straight[0], again)
    for name in (STATE, STABLE):
        assert content(tmp_path / name) == content(straight[1] / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == [STABLE, STATE]


MUON = replace(CONFIG, rate=5e-2, muon="weight")


def wide_model() -> nn.Sequential:
    """A kernel and a linear layer that are matrices, one laid out either way, and a kernel that is too small."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 2, 2), nn.Flatten(), nn.Linear(2, 2))
    net.append(nn.Sequential(nn.Linear(2, 32), nn.Linear(32, 32), nn.Linear(32, 2)))
    return net.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("laid_out", [torch.channels_last, torch.contiguous_format])
def test_muon_trains_the_matrices_and_adamw_the_rest(laid_out: torch.memory_format, tmp_path: Path) -> None:
    """The step of a matrix is orthogonal, whatever its gradient and however it lies in memory."""
    net = wide_model().to(memory_format=laid_out)
    state = State(net, replace(MUON, weight_decay=0.0), torch.device("cpu"))
    assert set(state.matrices) == {"0.weight", "4.1.weight"}
    before = [p.detach().clone() for p in net.parameters()]
    loss_of(net)(torch.Generator().manual_seed(0)).backward()
    state.step()
    for (name, now), old in zip(net.named_parameters(), before, strict=True):
        assert now.grad is None
        assert not torch.equal(now, old)
        if name in state.matrices:
            change = (now.detach() - old).flatten(1)
            spread = torch.linalg.svdvals(change / (MUON.rate * 0.2 * max(change.shape) ** 0.5))
            assert float(spread[:2].min()) > 0.5
            assert float(spread.max()) < 1.5


@pytest.mark.parametrize("places", [(1,), (27,), (2, 0, 9, 19, 5)])
def test_an_interrupted_run_with_muon_ends_in_the_same_bytes(tmp_path: Path, places: tuple[int, ...]) -> None:
    def run(folder: Path, fail_at: int = -1) -> nn.Sequential:
        net = wide_model()
        train(net, loss_of(net, fail_at=fail_at), MUON, STEPS, folder, report=nothing)
        return net

    straight = run(tmp_path / "straight")
    for at in places:
        with pytest.raises(InterruptedRunError):
            run(tmp_path / "broken", at)
    assert equal(straight, run(tmp_path / "broken"))
    for name in (STATE, STABLE):
        assert content(tmp_path / "broken" / name) == content(tmp_path / "straight" / name)


@pytest.mark.parametrize("at", [5, 33])
def test_a_run_with_rare_checkpoints_repeats_what_was_lost(
    straight: tuple[nn.Sequential, Path], tmp_path: Path, at: int
) -> None:
    """The only checkpoint on the way is where the rate begins to fall."""
    config = replace(CONFIG, checkpoint_seconds=1e6)
    interrupted(tmp_path, at, config=config)
    assert (tmp_path / STATE).exists() == (at == 33)
    again, _ = trained(tmp_path, config=config)
    assert equal(straight[0], again)
    assert content(tmp_path / STABLE) == content(straight[1] / STABLE)


def test_interrupted_between_the_two_files_of_a_checkpoint(
    straight: tuple[nn.Sequential, Path], tmp_path: Path
) -> None:
    interrupted(tmp_path, 10)
    older = (tmp_path / STABLE).read_bytes()
    interrupted(tmp_path, 5)
    (tmp_path / STABLE).write_bytes(older)
    assert equal(straight[0], trained(tmp_path)[0])


@pytest.mark.parametrize("at", [4, 25, 33])
def test_by_the_clock_a_run_goes_on_from_its_exact_state(tmp_path: Path, at: int) -> None:
    """The clock gives each step a second, so the rate falls after 28 of 40 and the end is the one by steps."""
    clock = Clock()
    budget = Budget(seconds=40.0)
    straight, progress = trained(tmp_path / "straight", budget, clock=clock.monotonic, planted=clock.tick)
    assert (progress.step, progress.seconds) == (40, 40.0)
    with pytest.raises(InterruptedRunError):
        trained(tmp_path / "broken", budget, fail_at=at, clock=clock.monotonic, planted=clock.tick)
    reached, used = read_header(tmp_path / "broken" / STATE)
    assert (reached.step, reached.seconds, used) == (at, float(at), at / 40)
    state = State(model(), CONFIG, torch.device("cpu"))
    assert state.resume(tmp_path / "broken", budget) == reached
    stored = load_file(tmp_path / "broken" / STATE)
    assert state.tensors().keys() == stored.keys()
    assert all(torch.equal(value, stored[name]) for name, value in state.tensors().items())
    assert all(own["step"] == at for own in state.optimizers["adamw"].state.values())
    clock.now += 1000  # between the starts nobody trains
    again, progress = trained(tmp_path / "broken", budget, clock=clock.monotonic, planted=clock.tick)
    assert (progress.step, progress.seconds) == (40, 40.0)
    assert equal(straight, again)


@pytest.mark.parametrize(("pause", "counted"), [(1000.0, LONGEST_STEP), (LONGEST_STEP - 1, LONGEST_STEP)])
def test_a_pause_counts_as_one_long_step(tmp_path: Path, pause: float, counted: float) -> None:
    clock = Clock()

    def stopped_at_7(call: int) -> float:
        clock.now += pause if call == 7 else 0
        return clock.tick(call)

    _, progress = trained(tmp_path, clock=clock.monotonic, planted=stopped_at_7)
    assert progress.seconds == 39 + counted


def test_moving_average_follows_its_law(tmp_path: Path) -> None:
    """Against the weights of every step, which a run with one step more each time shows."""
    config = replace(CONFIG, ema_decay=0.5, decay_fraction=0.0)
    expected = [p.detach().clone() for p in model().parameters()]
    for step in range(12):
        net, _ = trained(tmp_path, Budget(steps=step + 1), config)
        own = load_file(tmp_path / STATE)
        decay = min(0.5, (1 + step) / (10 + step))
        for (name, shown), mean in zip(net.named_parameters(), expected, strict=True):
            mean.mul_(decay).add_((1 - decay) * own[f"model.{name}"])
            torch.testing.assert_close(shown.detach(), mean)
            assert torch.equal(shown.detach(), own[f"average.{name}"])


@pytest.mark.parametrize("steps", [10, 40, 1000])
@pytest.mark.parametrize("decay", [0.0, 0.3, 1.0])
def test_share_factor_is_the_schedule_of_dekag(steps: int, decay: float) -> None:
    config = replace(CONFIG, decay_fraction=decay, warmup_steps=7)
    for step in range(steps):
        expected = warmup_stable_decay(step, steps, 7, decay)
        assert share_factor(step, step / steps, config) == pytest.approx(expected, abs=1e-12)
    assert share_factor(steps, 1.0, config) == 0


def test_the_rate_of_every_step_follows_the_share(tmp_path: Path) -> None:
    """Of both groups of parameters; a factor of 0 leaves its parameters as they are."""
    rates: list[dict[float, float]] = []

    def seen(optimizer: torch.optim.Optimizer, *_: object) -> None:
        rates.append({group["factor"]: group["lr"] for group in optimizer.param_groups})

    hook = register_optimizer_step_pre_hook(seen)
    config = replace(CONFIG, rate_factors=(("^0.weight", 0.0), ("^3", 0.15)))
    net, _ = trained(tmp_path, config=config)
    hook.remove()
    assert rates == [
        {factor: 1e-2 * factor * share_factor(i, i / 40, config) for factor in (0.0, 0.15, 1.0)}
        for i in range(40)
    ]
    fresh = dict(model().named_parameters())
    kept = {name for name, p in net.named_parameters() if torch.equal(p, fresh[name])}
    assert kept == {"0.weight"}


@pytest.mark.parametrize("seconds", [-1.0, 1e6])
@pytest.mark.parametrize("steps", [44, 90])
def test_a_grown_budget_goes_on_from_before_the_rate_fell(tmp_path: Path, steps: int, seconds: float) -> None:
    """So it ends as if it had been given from the first, however little it has grown and however rare checkpoints
    are; and again if it is interrupted before its first checkpoint."""
    config = replace(CONFIG, checkpoint_seconds=seconds)
    straight, _ = trained(tmp_path / "straight", Budget(steps=steps), config)
    trained(tmp_path / "grown", config=config)
    reached, used = read_header(tmp_path / "grown" / STABLE)
    assert (reached.step, used) == (
        29,
        29 / 40,
    )  # the last step before the fall is the one at a share of 28 / 40
    interrupted(tmp_path / "grown", 0, Budget(steps=steps), config)
    again, progress = trained(tmp_path / "grown", Budget(steps=steps), config)
    assert progress.step == steps
    assert equal(straight, again)


def test_a_finished_run_takes_no_step_more(straight: tuple[nn.Sequential, Path]) -> None:
    before = content(straight[1] / STATE)
    again, progress = trained(straight[1], fail_at=0)
    assert progress.step == 40
    assert equal(straight[0], again)
    assert content(straight[1] / STATE) == before
    assert not again.training


@pytest.mark.parametrize("budget", [Budget(steps=0), Budget(seconds=0.0)])
def test_no_budget_is_no_step(tmp_path: Path, budget: Budget) -> None:
    net, progress = trained(tmp_path, budget, fail_at=0)
    assert progress.step == 0
    assert equal(net, model())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("at", [0, 5, 12, 38])
def test_a_loss_that_is_not_finite_ends_the_run_and_leaves_its_checkpoint(
    tmp_path: Path, at: int, value: float
) -> None:
    """Also at a step whose loss is not read, and at the last steps."""
    with pytest.raises(ValueError, match=r"not finite at step \d+"):
        trained(tmp_path, planted=lambda call: value if call == at else 1.0)
    assert (tmp_path / STATE).exists() == (at > 0)
    if at:
        assert read_header(tmp_path / STATE)[0].step == at
        assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / STATE).values())


def test_a_checkpoint_is_tensors_and_json(straight: tuple[nn.Sequential, Path]) -> None:
    with safe_open(straight[1] / STATE, "pt") as file:
        names, metadata = set(file.keys()), file.metadata()
    net = model()
    own = {name for name, _ in net.named_parameters()}
    moments = {f"optimizer.{n}.{key}" for n in own for key in ("step", "exp_avg", "exp_avg_sq")}
    assert names == {f"model.{n}" for n in net.state_dict()} | {f"average.{n}" for n in own} | moments
    assert metadata.keys() == {"progress", "share"}
    assert Progress(**json.loads(metadata["progress"])).step == 40
    assert float(metadata["share"]) == 1


@pytest.mark.parametrize(("steps", "reports"), [(40, 8), (40, 3), (5, 8), (40, 1), (7, 2)])
def test_reports_come_at_equal_shares(tmp_path: Path, steps: int, reports: int) -> None:
    """At the first step at or behind each share, once; the last is at the end, and averaged weights are shown."""
    net, seen = model(), []

    def report(progress: Progress) -> None:
        shown = [p.clone() for p in net.parameters()]
        seen.append((progress.step, net.training, torch.is_grad_enabled(), shown))

    config = replace(CONFIG, reports=reports)
    train(net, loss_of(net), config, Budget(steps=steps), tmp_path, report=report)
    assert [row[0] for row in seen] == sorted({-(-steps * k // reports) for k in range(1, reports + 1)})
    assert not any(row[1] or row[2] for row in seen)
    assert all(torch.equal(a, b) for a, b in zip(seen[-1][3], net.parameters(), strict=True))


def test_reports_change_nothing_and_none_comes_twice(
    straight: tuple[nn.Sequential, Path], tmp_path: Path
) -> None:
    steps: list[int] = []
    for at in (23, 100):
        net = model()
        try:
            train(
                net,
                loss_of(net, fail_at=at),
                CONFIG,
                STEPS,
                tmp_path,
                report=lambda progress: steps.append(progress.step),
            )
        except InterruptedRunError:
            assert at == 23
    assert steps == [5, 10, 15, 20, 25, 30, 35, 40]
    assert equal(straight[0], net)


def test_frozen_parameters_stay(tmp_path: Path) -> None:
    net = model()
    net[0].requires_grad_(False)
    train(net, loss_of(net), CONFIG, STEPS, tmp_path, report=nothing)
    assert torch.equal(net[0].weight, model()[0].weight)
    assert not torch.equal(net[3].weight, model()[3].weight)


def test_moving_mean() -> None:
    """The plain mean of the first ten values; then each new value has a tenth."""
    mean = 0.0
    for step, value in enumerate([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0, 5.0, 3.0], start=1):
        mean = moving_mean(mean, value, step)
    assert mean == pytest.approx(3.9)
    assert moving_mean(mean, 13.9, 1000) == pytest.approx(4.9)


@pytest.mark.parametrize("given", [{}, {"steps": 3, "seconds": 1.0}])
def test_a_budget_is_either_steps_or_seconds(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="either steps or seconds"):
        Budget(**given)
