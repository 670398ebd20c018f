"""T-KA from end to end: what the aligned edge draws, and CALA or a rival of it on the world's codec."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from dekag.alignment.config import CalaConfig
from dekag.alignment.generation.bundles import apply_generation
from dekag.alignment.transmission.adapted import AdaptedCodec
from dekag.alignment.transmission.bundles import save_transmission
from dekag.alignment.transmission.methods import adapt, adapted_codec
from dekag.alignment.transmission.train import FAST, ConditionRange, TransmissionData
from dekag.bundle.bundle import Bundle
from dekag.bundle.manifest import Quantisation, Setting
from dekag.codec import TrainableCodec, TrainedRange, save_codec
from dekag.engine.drawing import with_engine
from dekag.tasks.keys import update_key
from dekag.tasks.material import DISTIL_SEEDS
from dekag.training.kept import kept_rows
from dekag.training.loop import TrainConfig
from dekag.training.processes import from_main
from dekag.training.run import ALONE, Run
from dekag.types import Latent
from dekag.wire.rows import map_rows
from dekag.world import World

RATES = (1 / 8, 1 / 4, 1 / 2, 1)
"""Shares of a codec's highest rate that an update is trained at."""
FEWEST_USES = 32
"""What eight blocks with pilots fill."""
CALA_RANGE = ConditionRange(
    uses=(64, 128, 256, 512),
    snrs_db=tuple(2.5 * step - 5 for step in range(13)),
    blocks=(0, 1, 8, FAST),
    correlations=(0.0, 0.9),
    pilots=(0, 0, 2),
)
"""The grid that an update is trained on; what it is tested on lies between, and 20 dB not at its end."""
LEARNING_RATE = 3e-3


def edge_latents(
    world: World, run: Run, *, draws: int = 2, seed: int = 0, codec: TrainableCodec | None = None
) -> Latent:
    """What the edge draws for the distillation prompts, each `draws` times: a codec's training data.

    The edge carries the world's update where there is one, as the latents that are really sent are its.
    Raises InputError, before anything is drawn, if `codec` takes other latents.
    """
    prompts = world.prompts("distill")
    seeds = [DISTIL_SEEDS + 10_000 * (seed + draw) + i for draw in range(draws) for i in range(len(prompts))]

    def inputs() -> dict[str, object]:
        edge, update = world.edge_model.key(), update_key(world)
        return {"prompts": prompts, "seeds": seeds, "edge": edge, "update": update}

    def drawn() -> Iterator[Latent]:
        device = run.device
        edge = world.edge(device=device) if codec is None else world.fitting_edge(codec, device=device)
        if "generation" in world.updates:
            edge, _ = apply_generation(edge, world.update("generation"), merge=True)
        edge = with_engine(edge, world.engine)
        texts = prompts * draws
        for at in range(0, len(texts), edge.at_once):
            part = slice(at, at + edge.at_once)
            yield edge(texts[part], seeds=seeds[part]).half()

    run.on_stage(f"edge draws {len(seeds)} latents")
    return map_rows(from_main(lambda: kept_rows(run.resume, "edge", len(seeds), drawn, inputs)), "edge")


def conditions_of(max_uses: int) -> ConditionRange:
    """The range that updates are trained over, for a codec of that highest rate; of 512 it is CALA_RANGE."""
    uses = sorted({max(min(FEWEST_USES, max_uses), round(rate * max_uses)) for rate in RATES})
    return replace(CALA_RANGE, uses=tuple(uses))


def transmission_training(
    method: str, steps: int, seed: int, *, precision: Literal["no", "bf16", "auto"] = "no"
) -> TrainConfig:
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


@dataclass(frozen=True, kw_only=True)
class TransmissionTask:
    """What is to be learned: CALA or a rival by name, of that size, over a range of conditions, and how it travels.

    conditions: that of `conditions_of` the codec's highest rate if None.
    """

    method: str = "cala"
    size: CalaConfig = field(default_factory=CalaConfig)
    conditions: ConditionRange | None = None
    training: TrainConfig
    batch: int = 32
    quantisation: Quantisation = "int8"


def check_transmission(world: World, task: TransmissionTask) -> None:
    """Raise InputError for a method that is unknown, or that cannot adapt the world's codec at that size.

    Nothing is drawn for it.
    """
    adapted_codec(task.method, world.codec(), task.size)


def align_transmission(
    world: World, latents: Latent, task: TransmissionTask, out: Path, run: Run = ALONE
) -> Bundle | None:
    """CALA, or a rival of it by name, on the world's codec.

    Writes a bundle, or for `full`, which is no update, a codec.
    """
    codec, training = world.codec(), task.training
    conditions = task.conditions or conditions_of(codec.max_uses)
    adapted = adapt(
        task.method,
        codec,
        TransmissionData(latents=latents, conditions=conditions, batch=task.batch),
        task.size,
        training,
        checkpoint=run.state_file(task.method),
        on_step=partial(run.on_step, task.method),
    )
    if not isinstance(adapted, AdaptedCodec):
        from_main(lambda: save_codec(adapted, out))
        return None
    settings: dict[str, Setting] = {
        "method": task.method,
        "steps": training.steps,
        "batch": task.batch,
        "seed": training.seed,
        "learning_rate": training.learning_rate,
        "precision": training.precision,
        **trained_range(conditions).to_settings(),
    }
    return from_main(
        lambda: save_transmission(out, adapted, codec, settings=settings, quantisation=task.quantisation)
    )
