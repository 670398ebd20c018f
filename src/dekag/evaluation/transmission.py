"""T-KA measured in memory: PSNR of received images under a few conditions. `dekag.tasks.sweep` measures at scale."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dekag.channel import recover
from dekag.evaluation.metrics import psnr_db
from dekag.evaluation.statistics import Mean, mean_interval
from dekag.evaluation.table import Cell, Table, Tabular
from dekag.types import Channel, Codec, Condition, Generator, Image, Latent, PerImage

CODEC_NAMES = {"no_ka": "without T-KA", "cala": "with CALA"}
"""What the codecs of a demonstration are called in a table; others keep their own names."""


@dataclass(frozen=True, kw_only=True)
class TransmissionScores(Tabular):
    """PSNR of the received against the drawn image, in dB.

    by_condition: by cell of the grid and codec. overall: by codec, over the grid. gain_db: of each codec over
    `no_ka`, paired by image. Intervals are over images.
    """

    by_condition: dict[str, dict[str, Mean]]
    overall: dict[str, Mean]
    gain_db: dict[str, Mean]

    def to_json(self) -> dict[str, Any]:
        """As JSON values: codec by codec, then the gain; of several adapted codecs it is by codec as well."""
        gains = {codec: mean.to_json() for codec, mean in self.gain_db.items()}
        return {
            **{
                codec: {
                    "psnr_db": mean.to_json(),
                    "by_condition": {cell: by[codec].to_json() for cell, by in self.by_condition.items()},
                }
                for codec, mean in self.overall.items()
            },
            "gain_db": next(iter(gains.values())) if len(gains) == 1 else gains,
        }

    def tables(self) -> list[Table]:
        """PSNR by condition and codec, with the mean over the grid."""
        codecs = list(self.overall)
        gains = ", ".join(
            f"gain {Cell(mean, 2).text} dB" if len(self.gain_db) == 1 else f"{codec} {Cell(mean, 2).text} dB"
            for codec, mean in self.gain_db.items()
        )
        rows = {cell: [Cell(by[codec], 2) for codec in codecs] for cell, by in self.by_condition.items()}
        overall = [Cell(self.overall[codec], 2) for codec in codecs]
        return [
            Table(
                title="PSNR of received images in dB",
                headings=("condition", *(CODEC_NAMES.get(codec, codec) for codec in codecs)),
                sections=(rows, {"mean over the grid": overall}),
                caption=gains,
            )
        ]


@torch.no_grad()
def transmit(
    codec: Codec, channel: Channel, latents: Latent, condition: Condition, *, rng: torch.Generator
) -> Latent:
    """Latents through the codec and the channel."""
    whole = condition.expand(len(latents))
    symbols = codec.encode(latents, whole)
    return recover(codec, channel(symbols, whole, rng=rng), whole).latent


def score_transmission(
    codecs: Mapping[str, Codec],
    channel: Channel,
    generator: Generator,
    latents: Latent,
    conditions: Mapping[str, Condition],
    *,
    seed: int = 0,
) -> TransmissionScores:
    """Send the latents with every codec under every condition; `codecs` must have `no_ka`.

    The reference is the image that the latent decodes to. All codecs meet the same gains and noise.
    """
    reference: Image = generator.decode(latents)
    values: dict[str, dict[str, PerImage]] = {}
    for number, (cell, condition) in enumerate(conditions.items()):
        values[cell] = {}
        for name, codec in codecs.items():
            rng = torch.Generator().manual_seed((seed << 16) + number)
            arrived = transmit(codec, channel, latents, condition, rng=rng)
            values[cell][name] = psnr_db(reference, generator.decode(arrived))
    images = torch.arange(len(latents)).repeat(len(conditions))
    flat = {name: torch.cat([by_codec[name] for by_codec in values.values()]) for name in codecs}
    return TransmissionScores(
        by_condition={
            cell: {name: mean_interval(value) for name, value in by_codec.items()}
            for cell, by_codec in values.items()
        },
        overall={name: mean_interval(value, images) for name, value in flat.items()},
        gain_db={
            name: mean_interval(value - flat["no_ka"], images)
            for name, value in flat.items()
            if name != "no_ka"
        },
    )
