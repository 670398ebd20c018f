"""Source coding of latents: Karhunen-Loeve transform, an energy for each latent, one step, range coding.

```
latent -> weight, less the mean -> KLT -> level(y / step), cheap levels first
       -> range coder -> [step 7 bits | energy 3 bits | code | zeros up to the budget]
```
One step for all components is reverse water-filling (Cover and Thomas, Theorem 10.3.3) but for the 0.25 bit
of a scalar quantiser (Gish and Pierce 1968): components below it round to zero and cost almost nothing. The scales of
all components follow the energy of the latent, of which the header tells the nearest of eight. A level is the nearest
one or the next towards 0, whichever is better by error and bits together (Sullivan and Wiegand 1998).
"""

import importlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
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

from dekag.baseline.choice import Quality
from dekag.codec.klt import fit_klt, from_blocks, to_blocks, usual_block
from dekag.types import InputError, Latent

STEP_BITS = 7
ENERGY_BITS = 3
HEADER_BITS = STEP_BITS + ENERGY_BITS
ENERGIES_DB = tuple(1.5 * number - 6.0 for number in range(2**ENERGY_BITS))
"""Of a latent, over that of the mean one."""
PRICE = 0.12
"""Of a bit, in squared steps: what a bit buys of a uniform quantiser at high rate, 2 ln 2 / 12."""
BUDGETS = tuple(round(2 ** (octave / 2)) for octave in range(8, 27))
"""Bits at which it is measured what the source is worth: 16 to 8192."""
SPARED_BITS = 2
MEASURED = 64
"""Latents of which that is the mean."""
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
    quality: what it is worth at a number of bits.
    """

    @property
    def header_bits(self) -> int:
        """Bits of one item's header."""
        ...

    @property
    def concealment(self) -> Tensor:
        """What takes the place of an item that is lost."""
        ...

    @property
    def quality(self) -> Quality:
        """Mean decibels of items like those that are sent, by bits."""
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
    basis: columns are the components of a square of the grid, by falling variance (`codec.fit_klt`). scale: of each
    component's distribution in a latent of mean energy, its standard deviation if Gaussian, mean absolute value if
    Laplacian, whichever `fit` found likelier.
    """

    weight: Float[Tensor, " channels"]
    mean: Float[Tensor, "channels rows cols"]
    basis: Float[Tensor, "numbers components"]
    scale: Float[Tensor, " coefficients"]
    laplacian: Bool[Tensor, ""]
    quality: Quality

    @property
    def header_bits(self) -> int:
        """The indices of step and energy."""
        return HEADER_BITS

    @property
    def concealment(self) -> Float[Tensor, "channels rows cols"]:
        """The mean latent."""
        return (self.mean / self.weight[:, None, None]).float()

    @property
    def steps(self) -> Numbers:
        """Quantisation steps by their index in the header, from 8 times the largest scale down."""
        octaves = np.arange(2**STEP_BITS) / STEPS_PER_OCTAVE
        return np.asarray(8 * self.scale.max().item() * np.exp2(-octaves))

    def encode(self, item: Float[Tensor, "channels rows cols"], budget: int) -> Bits | None:
        """The latent with the least error of all steps whose payload has at most `budget` bits, or None if none has."""
        components = self._transform(item)
        energy = self._energy(components)
        levels, sizes, errors = self._quantised(components, energy)
        # the shortest code of an interval may have a little fewer bits than its logarithm
        fitting = np.flatnonzero(HEADER_BITS + sizes - SPARED_BITS <= budget)
        for index in fitting[np.argsort(errors[fitting], kind="stable")].tolist():
            code = self._compress(levels[index], index, energy, near=math.ceil(sizes[index]))
            if HEADER_BITS + len(code) <= budget:
                return np.concatenate([to_bits(index, STEP_BITS), to_bits(energy, ENERGY_BITS), code])
        return None

    def decode(self, bits: Bits) -> Float[Tensor, "channels rows cols"] | None:
        """The latent of a payload, zeros behind it or not; None if no encoder could have made it."""
        index, energy = from_bits(bits[:STEP_BITS]), from_bits(bits[STEP_BITS:HEADER_BITS])
        levels = self._decompress(bits[HEADER_BITS:], index, energy)
        if levels is None:
            return None
        spread = self._spread(index, energy)
        return self._inverse(self.steps[index] * centroids(levels, spread, laplacian=bool(self.laplacian)))

    def _quantised(self, components: Numbers, energy: int) -> tuple[NDArray[np.int32], Numbers, Numbers]:
        """Levels at every step, [steps, coefficients], their bits under the model, and squared errors."""
        steps, indices = self.steps[:, None], np.arange(2**STEP_BITS)
        nearest = _quantise(components, steps)
        nearer = (nearest - np.sign(nearest)).astype(np.int32)
        best, cost = nearest, np.full(nearest.shape, np.inf)
        for levels in (nearest, nearer):
            error = np.square(components / steps - levels)
            own = error + PRICE * self._level_bits(levels, indices, energy)
            best, cost = np.where(own < cost, levels, best), np.minimum(own, cost)
        errors = np.square(components - steps * best).sum(1)
        return best, self.model_bits(best, indices, energy), errors

    def _energy(self, components: Numbers) -> int:
        """The index of the energy under which the components are likeliest."""
        laplacian = bool(self.laplacian)
        relative = np.abs(components) / self.scale.numpy()
        mean = relative.mean() if laplacian else np.sqrt(np.square(relative).mean())
        decibels = 20 * np.log10(max(mean, 1e-9))
        return int(np.argmin(np.abs(np.array(ENERGIES_DB) - decibels)))

    def model_bits(self, levels: NDArray[np.int32], index: int | NDArray[np.int_], energy: int) -> Numbers:
        """-log2 P of the levels, [..., coefficients], under the model at the step or steps of that index."""
        return np.asarray(self._level_bits(levels, index, energy).sum(-1))

    def _level_bits(self, levels: NDArray[np.int32], index: int | NDArray[np.int_], energy: int) -> Numbers:
        spread, reach = self._spread(index, energy), np.abs(levels)
        # both laws are symmetric; upper tails keep their digits
        inside = self._tail((reach - 0.5) / spread) - self._tail((reach + 0.5) / spread)
        return np.asarray(-np.log2(np.maximum(inside, 2.0**-24)))

    def _tail(self, at: Numbers) -> Numbers:
        """P(variable of unit scale > at)."""
        if not self.laplacian:
            return np.asarray(special.ndtr(-at))
        half = np.exp(-np.abs(at)) / 2
        return np.where(at < 0, 1 - half, half)

    def _spread(self, index: int | NDArray[np.int_], energy: int) -> Numbers:
        factor = 10 ** (ENERGIES_DB[energy] / 20)
        return np.asarray(factor * self.scale.numpy() / self.steps[index, None])

    def _transform(self, item: Tensor) -> Numbers:
        centred = item.double() * self.weight[:, None, None] - self.mean
        return np.asarray(_components(centred[None], self.basis)[0].numpy())

    def _inverse(self, components: Numbers) -> Tensor:
        block, grid = _block(self.basis, self.mean), (self.mean.shape[1], self.mean.shape[2])
        rows = torch.from_numpy(components).unflatten(0, (self.basis.shape[1], -1)).T @ self.basis.T
        latent = from_blocks(rows[None], block, grid)[0] + self.mean
        return (latent / self.weight[:, None, None]).float()

    def _compress(self, levels: NDArray[np.int32], index: int, energy: int, *, near: int) -> Bits:
        coder = _constriction()
        encoder = coder.stream.queue.RangeEncoder()
        spread = self._spread(index, energy)
        zeros = np.zeros_like(spread)
        encoder.encode(levels, self._family(), zeros, spread)
        words = encoder.get_compressed().astype(">u4")
        whole = np.unpackbits(words.view(np.uint8)).astype(bool)

        def same(bits: Bits) -> bool:
            decoded = self._decompress(bits, index, energy)
            return decoded is not None and np.array_equal(decoded, levels)

        return _shortest(whole, same, near=near)

    def _decompress(self, bits: Bits, index: int, energy: int) -> NDArray[np.int32] | None:
        # two words more than there are: the decoder reads ahead
        padded = np.concatenate([bits, np.zeros(64 + -len(bits) % 32, dtype=bool)])
        words = np.packbits(padded).view(">u4").astype(np.uint32)
        spread = self._spread(index, energy)
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
    for_scales = torch.arange(len(latents)) % SCALE_ROWS == 0
    klt = fit_klt(latents[~for_scales], weight, block=usual_block(*latents.shape[1:]))
    root, basis = weight.double().sqrt(), klt.basis.double()
    mean = (latents.double() * root[:, None, None]).mean(0)
    held = latents[for_scales].double() * root[:, None, None] - mean
    components = _components(held, basis).numpy()
    scales = {
        law: np.maximum(scale, SMALLEST_SCALE)
        for law, scale in (
            (stats.norm, np.sqrt(np.square(components).mean(0))),
            (stats.laplace, np.abs(components).mean(0)),
        )
    }
    best = max(scales, key=lambda law: float(law.logpdf(components, scale=scales[law]).sum()))
    source = LatentSource(
        weight=root,
        mean=mean,
        basis=basis,
        scale=torch.from_numpy(scales[best]),
        laplacian=torch.tensor(best is stats.laplace),
        quality=Quality(budgets=(0,), decibels=(0.0,), lost=0.0),
    )
    return replace(source, quality=_quality(source, components[:MEASURED]))


def _quality(source: LatentSource, components: Numbers) -> Quality:
    """Weighted error in decibels below the mean energy of the latents, by the ideal lengths of the code."""
    size, energy = source.mean.numel(), float(np.square(components).sum(1).mean())
    fits = {budget: [] for budget in BUDGETS}  # type: dict[int, list[float]]
    for row in components:
        _, sizes, errors = source._quantised(row, source._energy(row))
        whole = float(np.square(row).sum())
        for budget in BUDGETS:
            fitting = errors[HEADER_BITS + sizes <= budget]
            fits[budget].append(float(fitting.min()) if len(fitting) else whole)
    floor = size * 1e-9

    def decibels(errors: Iterable[float]) -> float:
        return float(-10 * np.log10((np.array(list(errors)) + floor) / energy).mean())

    lost = decibels(np.square(components).sum(1))
    return Quality.measured(BUDGETS, lambda budget: decibels(fits[budget]), lost)


def save_source(source: LatentSource, path: Path) -> None:
    """Write a source as safetensors, in single precision."""
    tensors = {name: getattr(source, name) for name in ("weight", "mean", "basis", "scale")}
    floats = {name: tensor.float().contiguous() for name, tensor in tensors.items()}
    save_file({**floats, "laplacian": source.laplacian, **source.quality.tensors()}, path)


def load_source(path: Path) -> LatentSource:
    """Read a source. Raises InputError if the file holds none."""
    try:
        tensors = load_file(path)
        quality = Quality.of_tensors(tensors)
        doubles = {n: t.double() if t.is_floating_point() else t for n, t in tensors.items()}
        return LatentSource(**doubles, quality=quality)
    except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
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


def _block(basis: Tensor, like: Tensor) -> int:
    """Side of the squares that a basis transforms."""
    return math.isqrt(basis.shape[0] // like.shape[0])


def _components(centred: Latent, basis: Tensor) -> Float[Tensor, "batch coefficients"]:
    """Components of all squares, then the next ones."""
    rows = to_blocks(centred, _block(basis, centred[0]))
    return (rows @ basis).transpose(1, 2).flatten(1)


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
