"""The one way from received symbols to latents: what is measured goes it, and what is delivered."""

from dataclasses import dataclass

from jaxtyping import Int64
from torch import Tensor

from dekag.channel.equaliser import mmse_equalise
from dekag.channel.erasure import erase_invalid
from dekag.types import Codec, Condition, Latent, Received


@dataclass(frozen=True, kw_only=True)
class Recovered:
    """Latents of received symbols, and how many payload uses of each image were erased."""

    latent: Latent
    erased_uses: Int64[Tensor, " batch"]


def recover(codec: Codec, received: Received, condition: Condition) -> Recovered:
    """Erase what cannot be used, equalise, decode; `condition` has one row for each image.

    Differentiable in the symbols. Symbols, gains and noise powers that are all finite keep every bit.
    """
    erased = erase_invalid(received, condition)
    return Recovered(latent=codec.decode(mmse_equalise(erased.received), condition), erased_uses=erased.uses)
