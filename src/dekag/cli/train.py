"""`dekag train`: what a world needs before anything is aligned."""

from typing import Annotated

import typer

from dekag.cli.console import console, joined, progress, working
from dekag.cli.generated import with_options
from dekag.cli.options import CodecOut, Device, Resume, TrainingWorld
from dekag.tasks.config import CodecConfig

app = typer.Typer(no_args_is_help=True, help="Train a codec for a world's latents.")


@app.callback()
def _train() -> None:
    """Train a codec for a world's latents."""


@app.command("codec")
@with_options
def train_codec(
    out: CodecOut,
    world: TrainingWorld,
    config: CodecConfig,
    draws: Annotated[int, typer.Option(min=1, help="Edge drawings of each prompt to learn from.")] = 2,
    resume: Resume = None,
    device: Device = "cpu",
) -> None:
    """Train a codec at the world's nominal condition, on what its edge draws.

    Written to the folder codec of a world, it is that world's.
    """
    from dekag.tasks.align_transmission import edge_latents
    from dekag.tasks.train_codec import check_training, train_codec
    from dekag.training.run import Run

    loaded = world.load()
    check_training(loaded, config)
    with joined(device) as resolved:
        with working("train codec") as stage:
            run = Run(device=resolved, resume=resume, on_stage=stage)
            latents = edge_latents(loaded, run, draws=draws, seed=config.seed)
        with progress("train codec") as on_step:
            run = Run(device=resolved, resume=resume, on_step=on_step)
            trained = train_codec(loaded, latents, config, out, run)
        if not console.quiet:
            sizes = trained.codec.config
            shape = f"{sizes.channels} x {sizes.rows} x {sizes.cols}"
            print(f"wrote a codec for latents {shape}, up to {sizes.max_uses} uses, to {out}")
