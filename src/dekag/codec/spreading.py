"""Each component over all uses of a payload: a unitary discrete Fourier transform, with signs.

What is worth more power would leave a constellation's grid, and a fade would take some components whole. Spread,
every use has the same power on average and every component meets the mean of the channel. A component becomes a
pure tone, which OFDM would turn back into one peak: the Rudin-Shapiro signs flatten it, and leave a symmetric
constellation as it is.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from jaxtyping import Complex, Float, Int64
from torch import Tensor

Rows = Complex[Tensor, "batch width"]
Payload = Int64[Tensor, " batch"]


def spread(components: Rows, payload: Payload) -> Rows:
    """Row i's first `payload[i]` numbers to their transform, zeros beyond them; keeps the energy."""
    spectrum = _by_payload(components, payload, torch.fft.fft)
    return spectrum * rudin_shapiro(spectrum.shape[1]).to(spectrum.device)


def despread(symbols: Rows, payload: Payload) -> Rows:
    """The inverse of `spread`."""
    signs = rudin_shapiro(symbols.shape[1]).to(symbols.device)
    return _by_payload(symbols * signs, payload, torch.fft.ifft)


def despread_pairs(
    symbols: Float[Tensor, "batch uses 2"], signs: Float[Tensor, " width"]
) -> Float[Tensor, "batch uses 2"]:
    """`despread` in real numbers, of rows whose whole width is payload; `signs` are `rudin_shapiro` of any length.

    y_k = n^(-1/2) sum_j s_j x_j exp(2 pi i j k / n), as a product of matrices of whatever size n asks for.
    """
    index = torch.arange(symbols.shape[1], device=symbols.device)
    # a tensor, as the exporter of ONNX knows no remainder of a size
    uses = index.new_full((), symbols.shape[1])
    # the product modulo n is exact; its multiples of 2 pi would not be
    angle = 2 * torch.pi * (index[:, None] * index % uses).to(symbols.dtype) / uses
    real, imaginary = (symbols * signs[: symbols.shape[1], None]).unbind(2)
    cosine, sine = angle.cos(), angle.sin()
    turned = torch.stack([real @ cosine - imaginary @ sine, real @ sine + imaginary @ cosine], dim=2)
    return turned * uses.to(symbols.dtype).rsqrt()


@lru_cache(maxsize=8)
def rudin_shapiro(length: int) -> Float[Tensor, " length"]:
    """Signs of which the spectrum is flat within 3 dB: -1 for each pair of ones in k's binary digits.

    Rudin 1959, Proc. Amer. Math. Soc. 10.
    """
    return torch.tensor([1.0 - 2.0 * ((k & (k >> 1)).bit_count() % 2) for k in range(length)])


def _by_payload(rows: Rows, payload: Payload, transform: Callable[..., Tensor]) -> Rows:
    """Rows of equal payload are transformed together."""
    out = torch.zeros_like(rows)
    for length in payload.unique().tolist():
        members = (payload == length).nonzero().flatten()
        part = transform(rows[members, :length], norm="ortho")
        out = out.index_put((members[:, None], torch.arange(length, device=rows.device)), part)
    return out
