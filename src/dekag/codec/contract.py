"""What a codec offers so that updates of it can be trained, sent, measured and used at an edge.

`dekag.types.Codec` is what a delivery needs. The further contracts are:

```
TrainableCodec   sizes, and an encoding that tells its commitment loss      training, radio, sweep
AdaptableCodec   a torch module that its settings describe                  CALA, its rivals, files, an edge
PairDecoder      a decoder in real numbers                                  ONNX
QamCodec         other constellations                                       the sweep's `constellations`
```
Attributes that a codec may leave out:

importance         float [channels], how much an error in each latent channel shows, mean 1; all alike
condition_modules  names of linear layers that are told the condition; there are none
gated_modules      names of the modules that CALA may gate; all of a kind that can be gated
attention_modules  name -> channels of the modules whose outputs SNR attention weighs; there are none
side_uses          symbols of an image that tell how the others are to be read, as its scale; none
energy_profile     where the energy of what is sent lies (`codec.recognition`); noise is then not told from pictures
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dekag.codec.constellation import Constellation
from dekag.types import Codec, Condition, InputError, Latent, PerImage, Symbols

Pairs = Float[Tensor, "batch uses 2"]
"""Complex numbers as real and imaginary parts."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """What training needs of an encoding: symbols sent, complex [batch, uses], and the commitment loss.

    commitment: mean square distance of an image's symbols from the points that were sent; 0 without a quantiser.
    """

    symbols: Symbols
    commitment: PerImage


@runtime_checkable
class TrainableCodec(Codec, Protocol):
    """A codec that is trained through a channel.

    latent_shape: channels, rows and columns of the latents that it takes. max_uses: payload symbols of an image
    at the highest rate. What encodes and what decodes raises InputError for latents of another shape and for a
    condition of a larger payload or of another number of images (`check_latent`, `check_payload`).
    """

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of the latents."""
        ...

    @property
    def max_uses(self) -> int:
        """Payload symbols of an image at the highest rate."""
        ...

    def transmit(self, latent: Latent, condition: Condition) -> Encoded:
        """Latents, unit scale, to symbols of which each image has mean power 1, zero beyond its payload."""
        ...


@runtime_checkable
class AdaptableCodec(TrainableCodec, Protocol):
    """A torch module that is a TrainableCodec, of which an update can be trained, and which is saved as a folder.

    settings: what makes an equal codec but for its weights, JSON values; `from_settings` makes that codec, and
    raises InputError for settings that are not such. Weights are the module's `state_dict`, stored in fp16.
    The first dimension of what its modules are given is the image, as each is gated for its own condition.
    """

    def settings(self) -> Mapping[str, Any]:
        """What `from_settings` makes the same codec of, as JSON values."""
        ...

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "AdaptableCodec":
        """A codec of these sizes with fresh weights."""
        ...

    # what every torch.nn.Module has
    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """As of `torch.nn.Module`."""
        ...

    def set_submodule(self, target: str, module: nn.Module) -> None:
        """As of `torch.nn.Module`."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """As of `torch.nn.Module`."""
        ...

    def requires_grad_(self, requires_grad: bool) -> "AdaptableCodec":
        """As of `torch.nn.Module`."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """As of `torch.nn.Module`."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any:
        """As of `torch.nn.Module`."""
        ...

    def eval(self) -> "AdaptableCodec":
        """As of `torch.nn.Module`."""
        ...

    def to(self, device: torch.device | str) -> "AdaptableCodec":
        """As of `torch.nn.Module`."""
        ...


@runtime_checkable
class CodecClass(Protocol):
    """A class of AdaptableCodecs: the class itself, not a codec."""

    def from_settings(self, settings: Mapping[str, Any]) -> AdaptableCodec:
        """As `AdaptableCodec.from_settings`."""
        ...


@runtime_checkable
class PairDecoder(Protocol):
    """A codec whose decoder exists in real numbers alone, so that it can leave for where there are no complex ones."""

    def decode_pairs(
        self, symbols: Pairs, reliability: Float[Tensor, "batch uses"], condition: Condition
    ) -> Latent:
        """Equalised symbols as pairs to latents, as `decode` for images of which every symbol is payload.

        reliability: share of each symbol that survived, in [0, 1]; 0 where it was not received. The number of
        symbols varies from 1 to `max_uses`; the fields of `condition` are floats, for they may be traced.
        """
        ...


@runtime_checkable
class QamCodec(AdaptableCodec, Protocol):
    """An AdaptableCodec that can send the points of more than one constellation."""

    @property
    def constellation(self) -> Constellation:
        """The constellation of the symbols."""
        ...

    def with_constellation(self, name: str) -> "QamCodec":
        """A copy that sends another one; raises InputError, listing the known ones, if there is none."""
        ...


TRAINABLE = {
    "latent_shape": "channels, rows and columns of the latents it takes",
    "max_uses": "payload symbols of an image at the highest rate",
    "transmit": "latents to symbols and commitment loss",
    "encode": "latents to symbols",
    "decode": "equalised symbols to latents",
}
"""Members of TrainableCodec, and what each is."""
ADAPTABLE = {
    **TRAINABLE,
    "settings": "what config.json says of it",
    "from_settings": "the codec of such settings",
}
"""Members of AdaptableCodec that a torch module does not have by itself."""


def require_trainable(codec: object) -> TrainableCodec:
    """The codec itself. Raises InputError, naming what it lacks, if it is no TrainableCodec."""
    _require(codec, TRAINABLE)
    assert isinstance(codec, TrainableCodec)
    return codec


def require_adaptable(codec: object) -> AdaptableCodec:
    """The codec itself. Raises InputError, naming what it lacks, if it is no AdaptableCodec."""
    _require(codec, ADAPTABLE)
    assert isinstance(codec, AdaptableCodec)
    return codec


def importance_of(codec: object) -> Float[Tensor, " channels"]:
    """The importance of a TrainableCodec's latent channels, mean 1: its own, or ones.

    Raises InputError if it is not one finite number of at least 0 for each channel.
    """
    channels = require_trainable(codec).latent_shape[0]
    importance = getattr(codec, "importance", None)
    if importance is None:
        return torch.ones(channels)
    if not isinstance(importance, Tensor) or importance.shape != (channels,):
        raise InputError(f"importance of {_name(codec)} must be {channels} numbers, one for each channel")
    if not bool(((importance >= 0) & importance.isfinite()).all()):
        raise InputError(f"importance of {_name(codec)} must be finite and at least 0")
    return importance


def check_latent(codec: TrainableCodec, latent: Latent, condition: Condition) -> None:
    """Raise InputError unless a codec takes the latents, and the condition is one of theirs that it serves."""
    if tuple(latent.shape[1:]) != codec.latent_shape:
        expected = f"[batch, {', '.join(map(str, codec.latent_shape))}]"
        raise InputError(f"the codec takes latents {expected}, got {list(latent.shape)}")
    if len(condition) != len(latent):
        raise InputError(f"the condition describes {len(condition)} images, but there are {len(latent)}")
    check_payload(codec, condition)


def check_payload(codec: TrainableCodec, condition: Condition) -> None:
    """Raise InputError if a condition has more payload than a codec sends."""
    limit = int(condition.payload.max())
    if limit > codec.max_uses:
        raise InputError(f"the codec sends at most {codec.max_uses} payload uses an image, got {limit}")


def _require(codec: object, members: Mapping[str, str]) -> None:
    if not isinstance(codec, nn.Module):
        raise InputError(f"{_name(codec)} is no torch.nn.Module, so that nothing of it can be trained")
    lacking = [f"{name} ({what})" for name, what in members.items() if not hasattr(codec, name)]
    if lacking:
        raise InputError(f"{_name(codec)} is no codec that can be trained: it lacks {', '.join(lacking)}")
    shape: object = codec.latent_shape
    limit: object = codec.max_uses
    if not (
        isinstance(shape, tuple) and len(shape) == 3 and all(isinstance(n, int) and n > 0 for n in shape)
    ):
        raise InputError(f"latent_shape of {_name(codec)} must be channels, rows and columns, got {shape}")
    if not (isinstance(limit, int) and limit > 0):
        raise InputError(f"max_uses of {_name(codec)} must be a positive whole number, got {limit}")


def _name(codec: object) -> str:
    return type(codec).__name__
