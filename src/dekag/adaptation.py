"""T-KA from end to end: what the aligned edge draws, and CALA or a rival of it on the preset's codec."""

from collections.abc import Callable
from pathlib import Path

from dekag import presets, zoo
from dekag.alignment.adapted import AdaptedCodec
from dekag.alignment.bundle import Bundle, Quantisation, Setting
from dekag.alignment.cala import CalaConfig
from dekag.alignment.codec_rivals import adapt
from dekag.alignment.updates import apply_generation, save_transmission
from dekag.codec import TrainedRange, load_codec, save_codec
from dekag.distillation import DISTIL_SEEDS, kept
from dekag.training.loop import Progress, TrainConfig
from dekag.training.processes import from_main
from dekag.training.transmission import FAST, ConditionRange, TransmissionData
from dekag.types import Latent

CALA_RANGE = ConditionRange(
    uses=(64, 128, 256, 512),
    snrs_db=tuple(2.5 * step - 5 for step in range(11)),
    blocks=(0, 1, 8, FAST),
    correlations=(0.0, 0.9),
    pilots=(0, 0, 2),
)
"""The grid that an update is trained on; what it is tested on lies between."""
LEARNING_RATE = 3e-3


def edge_latents(
    preset: str, *, draws: int, seed: int, resume: Path | None, on_stage: Callable[[str], None]
) -> Latent:
    """What the aligned edge draws for the distillation prompts, each `draws` times: a codec's training data."""
    chosen = presets.preset(preset)
    prompts = zoo.prompts(presets.named(chosen.world, "world"), "distill")

    def draw_all() -> Latent:
        edge, _ = apply_generation(presets.edge(chosen), presets.folder(chosen.makd, "bundle"))
        seeds = [
            DISTIL_SEEDS + 10_000 * (seed + draw) + i for draw in range(draws) for i in range(len(prompts))
        ]
        return edge(prompts * draws, seeds=seeds).half()

    on_stage(f"edge draws {draws * len(prompts)} latents")
    return from_main(lambda: kept(resume, "edge", draw_all))


def transmission_training(method: str, steps: int, seed: int, *, precision: str = "no") -> TrainConfig:
    """How CALA and every rival of it are trained; all weights of a codec take a third of the learning rate."""
    return TrainConfig(
        steps=steps,
        learning_rate=LEARNING_RATE / (3 if method == "full" else 1),
        decay_fraction=0.5,
        weight_decay=0.01,
        ema_decay=0.998,
        seed=seed,
        precision=precision,
    )


def trained_range(conditions: ConditionRange) -> TrainedRange:
    """The least and the most of every field that training met."""
    blocks = [max(conditions.uses) if count == FAST else count for count in conditions.blocks if count]
    return TrainedRange(
        uses_min=min(conditions.uses),
        uses_max=max(conditions.uses),
        snr_db_min=min(conditions.snrs_db),
        snr_db_max=max(conditions.snrs_db),
        fading=bool(blocks),
        blocks_min=min(blocks, default=1),
        blocks_max=max(blocks, default=1),
        correlation_max=max(conditions.correlations),
        estimated=max(conditions.pilots) > 0,
    )


def align_transmission(
    preset: str,
    latents: Latent,
    size: CalaConfig,
    out: Path,
    *,
    method: str = "cala",
    conditions: ConditionRange = CALA_RANGE,
    training: TrainConfig,
    batch: int,
    quantisation: Quantisation,
    resume: Path | None,
    on_step: Callable[[str, Progress], None],
) -> Bundle | None:
    """CALA, or a rival of it by name, on the preset's codec.

    Writes a bundle, or for `full`, which is no update, a codec.
    """
    codec = load_codec(presets.folder(presets.preset(preset).codec, "codec"))
    adapted = adapt(
        method,
        codec,
        TransmissionData(latents=latents, conditions=conditions, batch=batch),
        size,
        training,
        checkpoint=None if resume is None else resume / f"{method}.pt",
        on_step=lambda progress: on_step(method, progress),
    )
    if not isinstance(adapted, AdaptedCodec):
        from_main(lambda: save_codec(adapted, out))
        return None
    settings: dict[str, Setting] = {
        "method": method,
        "steps": training.steps,
        "batch": batch,
        "seed": training.seed,
        "learning_rate": training.learning_rate,
        "precision": training.precision,
        **trained_range(conditions).to_settings(),
    }
    return from_main(
        lambda: save_transmission(out, adapted, codec, settings=settings, quantisation=quantisation)
    )
