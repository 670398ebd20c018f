"""Two processes that train together: `torchrun --nproc_per_node 2 two_process_training.py FOLDER {break,resume}`.

`break` trains one run to its end and another until step 16, where the second process is killed; `resume` goes
on with that one. Each process writes what its model ends with to FOLDER.
"""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor, nn

from dekag.training.loop import Loss, Progress, TrainConfig, Validation, train

CONFIG = TrainConfig(
    steps=24,
    learning_rate=1e-2,
    warmup_steps=5,
    checkpoint_every=6,
    seed=3,
    max_grad_norm=0.1,
    weight_decay=0.01,
    ema_decay=0.9,
    keep="best",
)


def model(seed: int = 0) -> nn.Sequential:
    """Two layers with dropout between them."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.2), nn.Linear(6, 3))


def loss_of(net: nn.Module) -> Loss:
    def loss(rng: torch.Generator) -> Tensor:
        x = torch.randn(8, 4, generator=rng)
        return nn.functional.mse_loss(net(x), x[:, :3])

    return loss


def scorer(net: nn.Module) -> float:
    """Minus the error on fixed data."""
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(9))
    return -nn.functional.mse_loss(net(x), x[:, :3]).item()


def killed_at(calls: int, loss: Loss) -> Loss:
    """The loss, which kills the second process at a call."""
    count = 0

    def counted(rng: torch.Generator) -> Tensor:
        nonlocal count
        count += 1
        if count == calls and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return loss(rng)

    return counted


def main() -> None:
    folder, stage = Path(sys.argv[1]), sys.argv[2]
    rank = int(os.environ["RANK"])

    def run(name: str, net: nn.Module, loss: Loss, checkpoint: Path | None = None) -> None:
        reports: list[Progress] = []
        trained = train(
            net,
            loss,
            CONFIG,
            checkpoint=checkpoint,
            on_step=reports.append,
            validation=Validation(score=lambda _: scorer(net), every=8),
        )
        content = {
            "model": net.state_dict(),
            "losses": [report.loss for report in reports],
            "scores": trained.scores,
            "best_step": trained.best_step,
        }
        torch.save(content, folder / f"{name}-{rank}.pt")

    # every process starts from other weights: those of the main process count
    net = model(seed=rank)
    if stage == "resume":
        run("resumed", net, loss_of(net), folder / "state.pt")
    else:
        run("straight", net, loss_of(net))
        norm = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
        train(norm, loss_of(norm), replace(CONFIG, keep="last"))
        torch.save(norm.state_dict(), folder / f"norm-{rank}.pt")
        net = model(seed=rank)
        run("broken", net, killed_at(16, loss_of(net)), folder / "state.pt")
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
