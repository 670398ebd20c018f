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
Pairs = Float[Tensor, "batch uses 2"]


class Spreading:
    """The transform and its inverse, for images of some payloads."""

    def __init__(self, payload: Payload) -> None:
        self.lengths: list[int] = payload.unique().tolist()
        self.members = [(payload == length).nonzero() for length in self.lengths]

    def spread(self, pairs: Pairs) -> Pairs:
        """Row i's first `payload[i]` numbers to their transform, zeros beyond them; keeps the energy."""
        return torch.view_as_real(self.spread_rows(torch.view_as_complex(pairs.contiguous())))

    def despread(self, pairs: Pairs) -> Pairs:
        """The inverse of `spread`."""
        return torch.view_as_real(self.despread_rows(torch.view_as_complex(pairs.contiguous())))

    def spread_rows(self, components: Rows) -> Rows:
        """As `spread`."""
        return self._of_each(components, torch.fft.fft) * _signs_like(components)

    def despread_rows(self, symbols: Rows) -> Rows:
        """As `despread`."""
        return self._of_each(symbols * _signs_like(symbols), torch.fft.ifft)

    def _of_each(self, rows: Rows, transform: Callable[..., Tensor]) -> Rows:
        """Rows of equal payload are transformed together."""
        if self.lengths == [rows.shape[1]]:
            return transform(rows, norm="ortho")
        out = torch.zeros_like(rows)
        for length, members in zip(self.lengths, self.members, strict=True):
            part = transform(rows[members[:, 0], :length], norm="ortho")
            out = out.index_put((members, torch.arange(length, device=rows.device)), part)
        return out


class PairSpreading:
    """The same in real numbers, for images whose whole width is payload, as products of matrices of that size.

    y_k = n^(-1/2) s_k sum_j x_j exp(-2 pi i j k / n), and the inverse.
    """

    def __init__(self, like: Pairs, signs: Float[Tensor, " width"]) -> None:
        index = torch.arange(like.shape[1], device=like.device)
        # a tensor, as the exporter of ONNX knows no remainder of a size
        uses = index.new_full((), like.shape[1])
        # the product modulo n is exact; its multiples of 2 pi would not be
        angle = 2 * torch.pi * (index[:, None] * index % uses).to(like.dtype) / uses
        root = uses.to(like.dtype).rsqrt()
        self.cosine, self.sine = angle.cos() * root, angle.sin() * root
        self.signs = signs[: like.shape[1], None]

    def spread(self, pairs: Pairs) -> Pairs:
        """As `spread`."""
        real, imaginary = pairs.unbind(2)
        turned = [
            real @ self.cosine + imaginary @ self.sine,
            imaginary @ self.cosine - real @ self.sine,
        ]
        return torch.stack(turned, dim=2) * self.signs

    def despread(self, pairs: Pairs) -> Pairs:
        """As `despread`."""
        real, imaginary = (pairs * self.signs).unbind(2)
        turned = [
            real @ self.cosine - imaginary @ self.sine,
            real @ self.sine + imaginary @ self.cosine,
        ]
        return torch.stack(turned, dim=2)


@lru_cache(maxsize=8)
def rudin_shapiro(length: int) -> Float[Tensor, " length"]:
    """Signs of which the spectrum is flat within 3 dB: -1 for each pair of ones in k's binary digits.

    Rudin 1959, Proc. Amer. Math. Soc. 10.
    """
    return torch.tensor([1.0 - 2.0 * ((k & (k >> 1)).bit_count() % 2) for k in range(length)])


def _signs_like(rows: Rows) -> Float[Tensor, " width"]:
    return rudin_shapiro(rows.shape[1]).to(rows.device)
