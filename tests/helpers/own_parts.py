"""What the tests of a codec and a channel of one's own share."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from own_channel import Bursts
from own_codec import ConvCodec

from dekag.alignment.config import CalaConfig
from dekag.alignment.transmission.train import FAST, ConditionRange
from dekag.channel import CHANNELS, ChannelKind
from dekag.codec import CODECS
from dekag.types import Latent

SHAPE, USES = (8, 4, 4), 64
SIZE = CalaConfig(rank=4, norm_rank=2)
RANGE = ConditionRange(uses=(16, 64), snrs_db=(0.0, 5.0, 10.0, 15.0), blocks=(0, 1, 4, FAST))


@contextmanager
def registered() -> Iterator[None]:
    """Within, both have a name, as a user's own module gives them when it is imported."""
    CODECS["conv"] = ConvCodec
    CHANNELS["bursts"] = ChannelKind(channel=lambda settings: Bursts())
    try:
        yield
    finally:
        del CODECS["conv"], CHANNELS["bursts"]


def base(shape: tuple[int, int, int] = SHAPE, uses: int = USES) -> ConvCodec:
    torch.manual_seed(0)
    return ConvCodec(shape, uses).eval()


def latents(batch: int, seed: int = 1) -> Latent:
    """Gaussian latents, each of 16 numbers spread over 128."""
    mix = torch.randn(16, 128, generator=torch.Generator().manual_seed(5)) / 4
    drawn = torch.randn(batch, 16, generator=torch.Generator().manual_seed(seed)) @ mix
    return drawn.reshape(batch, *SHAPE)
