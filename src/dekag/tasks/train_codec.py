"""A nominal codec for a world's latents: its transform is fitted, its layers are trained at one condition."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dekag.alignment.transmission.train import (
    ConditionRange,
    TransmissionData,
    channel_importance,
    fit,
    held_out_quality,
)
from dekag.codec import JsccCodec, JsccConfig, fit_klt, save_codec
from dekag.generation.diffusers import DiffusersGenerator
from dekag.tasks.config import CodecConfig
from dekag.training.loop import TrainConfig
from dekag.training.processes import from_main
from dekag.training.run import ALONE, Run
from dekag.types import InputError, Latent
from dekag.wire.files import staged
from dekag.world import World
from dekag.world.new import usual_uses

MOST_CELLS = 256
"""Cells that the codec's attention sees, if no patch is given."""
PROBES = 60
"""Latents at which the importance of the channels is measured, of pictures of PROBE_SIDE; fewer of larger ones."""
PROBE_SIDE = 64
FEWEST_PROBES = 4


@dataclass(frozen=True, kw_only=True)
class TrainedCodec:
    """A codec and where it was written.

    scores: step and mean latent SNR in dB of every validation at the nominal condition.
    """

    codec: JsccCodec
    folder: Path
    scores: tuple[tuple[int, float], ...] = ()


def train_codec(
    world: World,
    latents: Latent,
    config: CodecConfig,
    out: Path,
    run: Run = ALONE,
    *,
    held: Latent | None = None,
    start: JsccCodec | None = None,
) -> TrainedCodec:
    """Train a codec on what the world's edge draws, at the world's nominal SNR and the codec's highest rate; write it.

    What it is told of the condition stays untrained, as a single one teaches nothing of it: that is an update's.
    latents: [images, channels, rows, cols], unit scale, at least two. held: others, to validate with.
    start: a codec of the config's sizes to go on from, with its transform; it is changed.
    With `run.resume` an interrupted run goes on.
    Raises InputError for sizes that do not fit the latents, before anything is trained.
    """
    sizes = codec_sizes(tuple(latents.shape[1:]), config)
    run.on_stage("measure the importance of the latent channels")
    importance = from_main(partial(measured_importance, world.edge(device=run.device), latents, config.seed))
    if start is not None and start.config != sizes:
        raise InputError("the codec to go on from has other sizes than the config")
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        codec = start or JsccCodec(sizes)
    if start is None:
        codec.start_from(fit_klt(latents, importance, block=sizes.block), latents)
    kept = run.state_file("codec")
    nominal = ConditionRange(uses=(sizes.max_uses,), snrs_db=(float(world.nominal.snr_db),), blocks=(0,))
    data = TransmissionData(latents=latents, conditions=nominal, batch=config.batch, importance=importance)
    for name in codec.condition_modules:
        codec.get_submodule(name).requires_grad_(False)
    trained = fit(
        codec,
        data,
        TrainConfig(
            steps=config.steps,
            learning_rate=config.learning_rate,
            decay_fraction=0.5,
            weight_decay=0.01,
            ema_decay=0.998,
            seed=config.seed,
            precision=config.precision,
        ),
        checkpoint=None if kept is None else kept.depending_on(sizes=sizes, edge=world.edge_model.key()),
        on_step=partial(run.on_step, "codec"),
        validation=None if held is None else held_out_quality(codec, data, held, seed=config.seed),
    )

    def write() -> None:
        with staged(out) as folder:
            save_codec(codec.eval(), folder)

    from_main(write)
    return TrainedCodec(codec=codec.requires_grad_(True), folder=out, scores=trained.scores)


def check_training(world: World, config: CodecConfig) -> None:
    """Raise InputError for sizes that do not fit the world's latents; nothing is drawn for it."""
    codec_sizes(world.latents or world.edge().latent_shape, config)


def codec_sizes(latents: tuple[int, ...], config: CodecConfig) -> JsccConfig:
    """Sizes of a codec for latents of a shape [channels, rows, cols]; what the config leaves out is chosen here.

    The patch is the smallest power of two that leaves at most MOST_CELLS cells; the highest rate is
    `world.new.usual_uses`.
    """
    channels, rows, cols = latents
    patch = config.patch or _usual_patch(rows, cols)
    return JsccConfig(
        channels=channels,
        rows=rows,
        cols=cols,
        patch=patch,
        width=config.width,
        encoder_depth=config.encoder_depth,
        decoder_depth=config.decoder_depth,
        max_uses=config.max_uses or usual_uses((channels, rows, cols)),
        constellation=config.constellation,
    )


def _usual_patch(rows: int, cols: int) -> int:
    fitting = [p for p in (1, 2, 4, 8, 16, 32) if rows % p == 0 and cols % p == 0]
    small = [p for p in fitting if rows * cols // p**2 <= MOST_CELLS]
    if not small:
        raise InputError(f"latents of {rows} x {cols} cells have no usual patch; name one that divides both")
    return small[0]


def measured_importance(edge: DiffusersGenerator, latents: Latent, seed: int) -> Tensor:
    """Importance of the latent channels, float [channels] of mean 1, at a few of the latents."""
    many = (
        max(FEWEST_PROBES, round(PROBES * (PROBE_SIDE / edge.side) ** 2))
        if edge.side > PROBE_SIDE
        else PROBES
    )
    probes = latents[:: max(1, len(latents) // many)].float()
    rng = torch.Generator().manual_seed(seed)
    return channel_importance(lambda latent: edge.decode(latent).cpu(), probes, rng=rng)
