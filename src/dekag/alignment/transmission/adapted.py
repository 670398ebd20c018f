"""A frozen copy of a codec with an update inside: what CALA and its rivals have in common."""

import copy
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dekag.bundle.manifest import Setting
from dekag.codec import (
    AdaptableCodec,
    Encoded,
    EnergyProfile,
    PairDecoder,
    Pairs,
    energy_profile_of,
    importance_of,
    require_adaptable,
)
from dekag.types import Condition, InputError, Latent, Received, Symbols


class AdaptedCodec(nn.Module, ABC):
    """Implements `codec.TrainableCodec` and `codec.PairDecoder`; the update alone requires a gradient.

    The codec that it is made from is left alone. Raises InputError if that is no AdaptableCodec.
    """

    codec: AdaptableCodec

    def __init__(self, codec: AdaptableCodec) -> None:
        super().__init__()
        self.codec = copy.deepcopy(require_adaptable(codec)).requires_grad_(False)

    @abstractmethod
    def adapted(self, condition: Condition, device: torch.device) -> AbstractContextManager[None]:
        """Within, the codec inside is what each image's condition asks for."""

    @abstractmethod
    def size(self) -> dict[str, Setting]:
        """What a bundle says of the update, so that an empty one of its size can be made."""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of the codec's latents."""
        return self.codec.latent_shape

    @property
    def max_uses(self) -> int:
        """Payload symbols of an image at the codec's highest rate."""
        return self.codec.max_uses

    @property
    def side_uses(self) -> int:
        """Symbols of an image that tell how the others are to be read."""
        return int(getattr(self.codec, "side_uses", 0))

    @property
    def importance(self) -> Float[Tensor, " channels"]:
        """Importance of the latent channels to the codec."""
        return importance_of(self.codec)

    def encode(self, latent: Latent, condition: Condition) -> Symbols:
        """As the codec's, adapted to each image's condition."""
        return self.transmit(latent, condition).symbols

    def transmit(self, latent: Latent, condition: Condition) -> Encoded:
        """As the codec's, adapted to each image's condition."""
        with self.adapted(condition, latent.device):
            return self.codec.transmit(latent, condition)

    def decode(self, received: Received, condition: Condition) -> Latent:
        """As the codec's, adapted to each image's condition."""
        with self.adapted(condition, received.symbols.device):
            return self.codec.decode(received, condition)

    def decode_pairs(
        self, symbols: Pairs, reliability: Float[Tensor, "batch uses"], condition: Condition
    ) -> Latent:
        """As the codec's, adapted to each image's condition; raises InputError if the codec has none."""
        if not isinstance(self.codec, PairDecoder):
            raise InputError(f"{type(self.codec).__name__} has no decoder in real numbers (decode_pairs)")
        with self.adapted(condition, symbols.device):
            return self.codec.decode_pairs(symbols, reliability, condition)

    def energy_profile(self, symbols: Symbols, condition: Condition) -> EnergyProfile | None:
        """As of the codec that it is made from, whose order of components an update keeps; None if that cannot tell."""
        return energy_profile_of(self.codec, symbols, condition)

    def train(self, mode: bool = True) -> "AdaptedCodec":
        """As of every module, but for the frozen codec, which stays in evaluation mode."""
        super().train(mode)
        self.codec.eval()
        return self
