"""The precision that is chosen is the faster one, once for a run."""

import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dekag.training.loop import TrainConfig, train
from dekag.training.precision import faster_precision


def slow_in(slow: torch.dtype, model: nn.Linear) -> Tensor:
    """A loss that takes longer in one precision."""
    out = model(torch.ones(1, 4))
    end = time.process_time() + (0.004 if out.dtype == slow else 0.001)
    while time.process_time() < end:
        pass
    return out.float().square().mean()


@pytest.mark.parametrize(("slow", "right"), [(torch.float32, "bf16"), (torch.bfloat16, "no")])
def test_the_faster_one(slow: torch.dtype, right: str) -> None:
    model = nn.Linear(4, 4)
    chosen, ratio = faster_precision(lambda: slow_in(slow, model), torch.device("cpu"))
    assert chosen == right
    assert (ratio < 1) == (right == "bf16")


def test_a_resumed_run_stays_in_its_precision(tmp_path: Path) -> None:
    """Chosen at the start, whatever is faster later; the measurement leaves no gradient behind."""
    seen: list[torch.dtype] = []

    def run(steps: int, slow: torch.dtype) -> Tensor:
        torch.manual_seed(0)
        model = nn.Linear(4, 4)

        def loss(rng: torch.Generator) -> Tensor:
            seen.append(model(torch.ones(1, 4)).dtype)
            return slow_in(slow, model)

        config = TrainConfig(steps=steps, learning_rate=1e-2, precision="auto", checkpoint_every=1)
        train(model, loss, config, checkpoint=tmp_path / "state")
        return model.weight.detach().clone()

    run(2, torch.float32)
    seen.clear()
    resumed = run(4, torch.bfloat16)
    assert seen == [torch.bfloat16] * 2
    (tmp_path / "state").unlink()
    assert torch.equal(run(4, torch.float32), resumed)
