"""Each component over all uses of a payload: a unitary discrete Fourier transform of its symbols.

What is worth more power would leave a constellation's grid, and a fade would take some components whole. Spread,
every use has the same power on average and every component meets the mean of the channel.
"""

from collections.abc import Callable

import torch
from jaxtyping import Complex, Int64
from torch import Tensor

Rows = Complex[Tensor, "batch width"]
Payload = Int64[Tensor, " batch"]


def spread(components: Rows, payload: Payload) -> Rows:
    """Row i's first `payload[i]` numbers to their transform, zeros beyond them; keeps the energy."""
    return _by_payload(components, payload, torch.fft.fft)


def despread(symbols: Rows, payload: Payload) -> Rows:
    """The inverse of `spread`."""
    return _by_payload(symbols, payload, torch.fft.ifft)


def _by_payload(rows: Rows, payload: Payload, transform: Callable[..., Tensor]) -> Rows:
    """Rows of equal payload are transformed together."""
    out = torch.zeros_like(rows)
    for length in payload.unique().tolist():
        chosen = (payload == length).nonzero().flatten()
        part = transform(rows[chosen, :length], norm="ortho")
        out = out.index_put((chosen[:, None], torch.arange(length, device=rows.device)), part)
    return out
