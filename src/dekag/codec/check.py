"""One small transmission with a codec, which tells whether it keeps its contract before hours are spent on it."""

import copy

import torch
from torch import Tensor, nn

from dekag.codec.contract import AdaptableCodec, Encoded, TrainableCodec, require_adaptable, require_trainable
from dekag.types import ChannelState, Condition, InputError, Received

POWER_TOLERANCE = 1e-3
"""Of an image's mean symbol power about 1."""


def check_codec(codec: object) -> AdaptableCodec:
    """The codec itself, once two random latents went through a copy of it, one at the highest rate, one at half.

    Raises InputError in one line that says what is missing or wrong: a member of the contract, the shape or type
    of symbols or latents, symbols beyond a payload, or a mean power that is not 1 for each image.
    """
    checked = require_adaptable(codec)
    check_transmission(codec)
    return checked


def check_transmission(codec: object) -> None:
    """As `check_codec`, of a TrainableCodec: an adapted codec is none that is saved as a folder."""
    tried = require_trainable(copy.deepcopy(codec))
    assert isinstance(tried, nn.Module)
    tried.eval()
    name = type(codec).__name__
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            _try(tried, name, _device(tried))
    except InputError:
        raise
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{name} cannot send a latent: {' '.join(str(error).split())[:200]}") from error


def _try(codec: TrainableCodec, name: str, device: torch.device) -> None:
    rng = torch.Generator().manual_seed(0)
    latent = torch.randn(2, *codec.latent_shape, generator=rng).to(device)
    longest = codec.max_uses
    condition = Condition(uses=torch.tensor([longest, max(1, longest // 2)]), snr_db=10.0)
    encoded = codec.transmit(latent, condition)
    _check_encoded(encoded, condition, name)
    gain = (torch.arange(encoded.symbols.shape[1]) < condition.payload[:, None]).to(encoded.symbols)
    state = ChannelState(gain=gain, noise_power=torch.full((2,), 0.1, device=device))
    decoded = codec.decode(Received(symbols=encoded.symbols, state=state), condition)
    if decoded.shape != latent.shape or not bool(decoded.isfinite().all()):
        wanted = f"finite latents {list(latent.shape)}"
        raise InputError(f"decode of {name} must return {wanted}, got {_described(decoded)}")


def _check_encoded(encoded: object, condition: Condition, name: str) -> None:
    if not isinstance(encoded, Encoded):
        raise InputError(f"transmit of {name} must return Encoded(symbols, commitment), got {type(encoded)}")
    symbols, commitment, longest = encoded.symbols, encoded.commitment, int(condition.payload.max())
    if not symbols.is_complex() or symbols.dim() != 2 or len(symbols) != 2 or symbols.shape[1] < longest:
        raise InputError(
            f"transmit of {name} must return complex symbols [2, {longest}], got {_described(symbols)}"
        )
    if commitment.shape != (2,):
        raise InputError(
            f"the commitment loss of {name} must be one number an image, got {_described(commitment)}"
        )
    energy = symbols.real.square() + symbols.imag.square()
    payload = condition.payload.to(symbols.device)
    beyond = torch.arange(symbols.shape[1], device=symbols.device) >= payload[:, None]
    if bool(energy[beyond].any()):
        raise InputError(f"symbols of {name} must be zero beyond an image's payload (codec.truncate)")
    power = energy.sum(1) / payload
    off = (power - 1).abs() > POWER_TOLERANCE
    if bool((off & (power > 0)).any()):
        found = ", ".join(f"{value:.3g}" for value in power.tolist())
        raise InputError(
            f"symbols of {name} must have mean power 1 for each image (codec.normalise_power), got {found}"
        )


def _described(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"


def _device(codec: nn.Module) -> torch.device:
    return next((tensor.device for tensor in codec.parameters()), torch.device("cpu"))
