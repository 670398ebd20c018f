"""Source coding of latents: a fixed Karhunen-Loeve transform, one step for all components, range coding.

```
latent -> weight, less the mean -> KLT of channels -> KLT of cells, one for each channel component
       -> round(y / step) -> range coder -> [step 7 bits | code | zeros up to the budget]
```
One step for all components is reverse water-filling (Cover and Thomas, Theorem 10.3.3) but for the 0.25 bit
of a scalar quantiser (Gish and Pierce 1968): components below it round to zero and cost almost nothing.
"""

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from scipy import special, stats
from torch import Tensor

from dekag.types import InputError, Latent

HEADER_BITS = 7
STEPS_PER_OCTAVE = 12
LIMIT = 1023
"""Largest magnitude of a quantised component; what lies beyond it is clipped."""
SMALLEST_SCALE = 1e-3
SCALE_ROWS = 4
"""Every fourth latent gives the scales, the others the bases: a basis flatters the data that made it."""
NODES, WEIGHTS = np.polynomial.legendre.leggauss(32)

Bits = NDArray[np.bool_]
Numbers = NDArray[np.float64]


@runtime_checkable
class Source(Protocol):
    """One item, a latent or an image without the batch dimension, to bits and back.

    header_bits: of every payload, the fixed-length field at its head.
    concealment: what the user is shown in place of an item that did not arrive.
    """

    @property
    def header_bits(self) -> int:
        """Bits of one item's header."""
        ...

    @property
    def concealment(self) -> Tensor:
        """What takes the place of an item that is lost."""
        ...

    def encode(self, item: Tensor, budget: int) -> Bits | None:
        """The item in at most `budget` bits, or None if it does not fit."""
        ...

    def decode(self, bits: Bits) -> Tensor | None:
        """The item of its bits, or None if they are no item."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class LatentSource:
    """Implements `Source` on latents, [channels, rows, cols].

    weight: of each channel, the square root of how much its errors show; mean: of the weighted latents.
    channel_basis: columns are the components of the channels. cell_basis: for each of them, columns are
    components of the cells. scale: of each component's distribution, its standard deviation if Gaussian, mean
    absolute value if Laplacian, whichever `fit` found likelier.
    """

    weight: Float[Tensor, " channels"]
    mean: Float[Tensor, "channels rows cols"]
    channel_basis: Float[Tensor, "channels components"]
    cell_basis: Float[Tensor, "components cells cell_components"]
    scale: Float[Tensor, " coefficients"]
    laplacian: Bool[Tensor, ""]

    @property
    def header_bits(self) -> int:
        """The index of the step."""
        return HEADER_BITS

    @property
    def concealment(self) -> Float[Tensor, "channels rows cols"]:
        """The mean latent."""
        return (self.mean / self.weight[:, None, None]).float()

    @property
    def steps(self) -> Numbers:
        """Quantisation steps by their index in the header, from 8 times the largest scale down."""
        octaves = np.arange(2**HEADER_BITS) / STEPS_PER_OCTAVE
        return np.asarray(8 * self.scale.max().item() * np.exp2(-octaves))

    def encode(self, item: Float[Tensor, "channels rows cols"], budget: int) -> Bits | None:
        """The latent at the finest step whose payload has at most `budget` bits, or None if none has."""
        components = self._transform(item)
        levels = _quantise(components, self.steps[:, None])
        sizes = self.model_bits(levels, np.arange(len(levels)))
        for index in np.flatnonzero(HEADER_BITS + sizes <= budget)[::-1].tolist():
            code = self._compress(levels[index], index, near=math.ceil(sizes[index]))
            if HEADER_BITS + len(code) <= budget:
                return np.concatenate([to_bits(index, HEADER_BITS), code])
        return None

    def decode(self, bits: Bits) -> Float[Tensor, "channels rows cols"] | None:
        """The latent of a payload, zeros behind it or not; None if no encoder could have made it."""
        index = from_bits(bits[:HEADER_BITS])
        levels = self._decompress(bits[HEADER_BITS:], index)
        if levels is None:
            return None
        step = self.steps[index]
        values = step * centroids(levels, self._spread(index), laplacian=bool(self.laplacian))
        return self._inverse(values)

    def model_bits(self, levels: NDArray[np.int32], index: int | NDArray[np.int_]) -> Numbers:
        """-log2 P of the levels, [..., coefficients], under the model at the step or steps of that index."""
        spread, reach = self._spread(index), np.abs(levels)
        # both laws are symmetric; upper tails keep their digits
        inside = self._tail((reach - 0.5) / spread) - self._tail((reach + 0.5) / spread)
        return np.asarray(-np.log2(np.maximum(inside, 2.0**-24)).sum(-1))

    def _tail(self, at: Numbers) -> Numbers:
        """P(variable of unit scale > at)."""
        if not self.laplacian:
            return np.asarray(special.ndtr(-at))
        half = np.exp(-np.abs(at)) / 2
        return np.where(at < 0, 1 - half, half)

    def _spread(self, index: int | NDArray[np.int_]) -> Numbers:
        return np.asarray(self.scale.numpy() / self.steps[index, None])

    def _transform(self, item: Tensor) -> Numbers:
        centred = item.double() * self.weight[:, None, None] - self.mean
        return np.asarray(_klt(centred[None], self.channel_basis, self.cell_basis)[0].numpy())

    def _inverse(self, components: Numbers) -> Tensor:
        grid = torch.from_numpy(components).reshape(len(self.channel_basis), -1)
        cells = torch.einsum("ipq,iq->ip", self.cell_basis, grid)
        latent = (self.channel_basis @ cells).reshape(self.mean.shape) + self.mean
        return (latent / self.weight[:, None, None]).float()

    def _compress(self, levels: NDArray[np.int32], index: int, *, near: int) -> Bits:
        coder = _constriction()
        encoder = coder.stream.queue.RangeEncoder()
        zeros, spread = np.zeros_like(self._spread(index)), self._spread(index)
        encoder.encode(levels, self._family(), zeros, spread)
        words = encoder.get_compressed().astype(">u4")
        whole = np.unpackbits(words.view(np.uint8)).astype(bool)

        def same(bits: Bits) -> bool:
            decoded = self._decompress(bits, index)
            return decoded is not None and np.array_equal(decoded, levels)

        return _shortest(whole, same, near=near)

    def _decompress(self, bits: Bits, index: int) -> NDArray[np.int32] | None:
        # two words more than there are: the decoder reads ahead
        padded = np.concatenate([bits, np.zeros(64 + -len(bits) % 32, dtype=bool)])
        words = np.packbits(padded).view(">u4").astype(np.uint32)
        spread = self._spread(index)
        decoder = _constriction().stream.queue.RangeDecoder(words)
        try:
            levels: NDArray[np.int32] = decoder.decode(self._family(), np.zeros_like(spread), spread)
        except AssertionError:  # constriction's answer to bits that lie outside the model
            return None
        return levels

    def _family(self) -> Any:
        models = _constriction().stream.model
        model = models.QuantizedLaplace if self.laplacian else models.QuantizedGaussian
        return model(-LIMIT, LIMIT)


def fit(latents: Latent, importance: Float[Tensor, " weights"] | None = None) -> LatentSource:
    """The transform and the model of latents that both ends know beforehand; never of those to be sent.

    importance: how much an error in each channel shows, as `codec.importance_of`; all alike if None.
    Raises InputError for fewer than two latents for each row that gives scales, or values that are not finite.
    """
    if len(latents) < 2 * SCALE_ROWS:
        raise InputError(f"a source is fitted to at least {2 * SCALE_ROWS} latents, got {len(latents)}")
    if not bool(latents.isfinite().all()):
        raise InputError("a source is fitted to finite latents, got NaN or infinity")
    weight = torch.ones(latents.shape[1]) if importance is None else importance
    if weight.shape != latents.shape[1:2] or not bool((weight > 0).all()):
        raise InputError(f"importance must be {latents.shape[1]} positive numbers, one for each channel")
    weight = weight.double().sqrt()
    weighted = latents.double() * weight[:, None, None]
    centred = weighted - weighted.mean(0)
    for_scales = torch.arange(len(latents)) % SCALE_ROWS == 0
    learned = centred[~for_scales]
    channel_basis = torch.linalg.eigh(torch.einsum("nchw,ndhw->cd", learned, learned)).eigenvectors
    grid = torch.einsum("cd,nchw->dnhw", channel_basis, learned).flatten(2)
    cell_basis = torch.linalg.eigh(grid.transpose(1, 2) @ grid).eigenvectors
    components = _klt(centred[for_scales], channel_basis, cell_basis).numpy()
    scales = {
        law: np.maximum(scale, SMALLEST_SCALE)
        for law, scale in (
            (stats.norm, np.sqrt(np.square(components).mean(0))),
            (stats.laplace, np.abs(components).mean(0)),
        )
    }
    best = max(scales, key=lambda law: float(law.logpdf(components, scale=scales[law]).sum()))
    return LatentSource(
        weight=weight,
        mean=weighted.mean(0),
        channel_basis=channel_basis,
        cell_basis=cell_basis,
        scale=torch.from_numpy(scales[best]),
        laplacian=torch.tensor(best is stats.laplace),
    )


def save_source(source: LatentSource, path: Path) -> None:
    """Write a source as safetensors, the bases in single precision."""
    tensors = {field.name: getattr(source, field.name) for field in fields(source)}
    floats = {n: t.float().contiguous() for n, t in tensors.items() if n != "laplacian"}
    save_file({**floats, "laplacian": source.laplacian}, path)


def load_source(path: Path) -> LatentSource:
    """Read a source. Raises InputError if the file holds none."""
    try:
        tensors = load_file(path)
        return LatentSource(**{n: t.double() if t.is_floating_point() else t for n, t in tensors.items()})
    except (OSError, SafetensorError, TypeError) as error:
        raise InputError(f"{path} holds no source as `save_source` writes it: {error}") from error


def to_bits(number: int, count: int) -> Bits:
    """The last `count` binary digits, the most significant first."""
    return np.array([number >> place & 1 for place in range(count - 1, -1, -1)], dtype=bool)


def from_bits(digits: Bits) -> int:
    """The number of binary digits."""
    return int("0" + "".join("1" if digit else "0" for digit in digits), 2)


def centroids(levels: NDArray[np.int32], spread: Numbers, *, laplacian: bool) -> Numbers:
    """Mean of a variable of that spread within each level's cell of width 1: the best reconstruction."""
    law = stats.laplace if laplacian else stats.norm
    reach = np.abs(levels)[:, None]
    at = reach + NODES / 2
    # relative to the near edge, so that a cell far out in the tail does not underflow
    near = law.logpdf(np.maximum(reach - 0.5, 0) / spread[:, None])
    # where scipy's logarithm is -inf at the near edge already, no node has any density
    density = np.exp(law.logpdf(at / spread[:, None]) - np.where(np.isfinite(near), near, 0.0))
    mass = (WEIGHTS * density).sum(1)
    # where all of it lies closer to the edge than any node, the edge itself
    edge = np.maximum(np.abs(levels) - 0.5, 0.0)
    mean = np.divide((WEIGHTS * density * at).sum(1), mass, out=edge, where=mass > 0)
    return np.asarray(np.where(levels == 0, 0.0, np.sign(levels) * mean))


def _quantise(components: Numbers, step: Numbers) -> NDArray[np.int32]:
    return np.clip(np.round(components / step), -LIMIT, LIMIT).astype(np.int32)


def _klt(centred: Latent, channel_basis: Tensor, cell_basis: Tensor) -> Float[Tensor, "batch coefficients"]:
    grid = torch.einsum("cd,nchw->ndhw", channel_basis, centred).flatten(2)
    return torch.einsum("nip,ipq->niq", grid, cell_basis).flatten(1)


def _shortest(whole: Bits, decodes: Callable[[Bits], bool], *, near: int) -> Bits:
    """The shortest bits that still decode, with zeros understood behind them; their number is looked for at `near`.

    The coder's words name one number in an interval, and any number in it will do: the one with fewest digits.
    If some number of n digits lies in it, one of n + 1 digits does, so that the first to fail ends the search.
    """
    value, size = from_bits(whole), len(whole)

    def at(length: int) -> Bits | None:
        below = value >> (size - length)
        for number in (below, below + 1):
            if number < 2**length and decodes(to_bits(number, length)):
                return to_bits(number, length)
        return None

    length = min(near, size)
    found = at(length)
    while found is None:
        length += 1
        assert length <= size
        found = at(length)
    while length > 0 and (shorter := at(length - 1)) is not None:
        length, found = length - 1, shorter
    return found


def _constriction() -> Any:
    """The range coder, an extra: imported on the first use."""
    try:
        return importlib.import_module("constriction")
    except ModuleNotFoundError as error:
        raise InputError("the digital baseline needs constriction: pip install 'dekag[baseline]'") from error
