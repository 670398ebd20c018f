"""The least distortion that Gaussian latents can reach: reverse water-filling at the capacity of the channel.

A latent of N real numbers is taken as Gaussian with a covariance of which only the eigenvalues matter: its
spectrum. `condition.payload` complex uses carry at most R bits of it, and no code of any length, joint or
separate, then leaves less error of Gaussian latents than D(R). A Gaussian source is the hardest of its covariance:
latents that are not Gaussian, and drawn ones are not (kurtosis 4), could do better. For those every line here is a
reference and no theorem, and being near it or far from it proves nothing impossible.

All distortions are mean square errors per latent number, all rates bits per image; arithmetic is in float64.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, Shaped
from scipy import stats
from scipy.special import exp1
from torch import Tensor

from dekag.channel.fading import block_index, complex_normal, correlate, num_blocks
from dekag.codec.constellation import Constellation
from dekag.types import Condition, InputError, Latent
from dekag.units import db_to_linear, linear_to_db

Spectrum = Float[Tensor, " components"]
"""Variances of uncorrelated components, as many as a latent has numbers, in any order."""

GAINS, LEAST_DRAWS = 2**17, 2**11
"""Block gains, and at least so many fades of all blocks, that are drawn for a condition of more than one block."""
BITS_PER_NAT = 1 / math.log(2)
SOURCE_DISPERSION = 0.5 * BITS_PER_NAT**2
"""Variance of the information density of a Gaussian component, bits^2."""
EXCESS = 0.1
"""Share of blocks that may have more error than `dispersed`."""
NODES = 2**15
"""Nodes of the quadrature over the gain of one block."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Distortion of each condition, float64 [batch]; `ergodic <= informed <= outage`, all equal without fading.

    ergodic: D(E[R(h)]). No code is below it, even one across infinitely many images.
    informed: E[D(R(h))]. No code that sends each image in its own J blocks is below it; it would need to be
        told |h|, which ours is not, and long blocks. It takes equal mean power in every block: the best split
        over independent blocks of one length, since D(R(h)) is convex in the split and the blocks are alike,
        and within 0.01 dB of the best over correlated ones in our trials. Gunduz and Erkip 2008 call it the
        informed transmitter's bound.
    informed_error: standard error of `informed` where gains were drawn (J > 1), else 0.
    dispersed: what the best code of so few uses keeps to in nine of ten blocks, mean over fades: D at the rate
        R(h) - sqrt(n V + k W) Q^-1(0.1), with the channel's dispersion V = P (P + 2) / (P + 1)^2 nat^2 a complex
        use, and W = 1/2 nat^2 for each of the k components that are sent (Kostina and Verdu 2013, equation 5 and
        Theorem 20). What block length alone costs; an approximation, no bound.
    outage: what ideal separate coding of one fixed rate reaches at the best such rate, where an outage leaves
        the mean latent. Not a bound: a joint code may be below it, a real digital one is above.
    """

    ergodic: Float[Tensor, " batch"]
    informed: Float[Tensor, " batch"]
    informed_error: Float[Tensor, " batch"]
    dispersed: Float[Tensor, " batch"]
    outage: Float[Tensor, " batch"]


@dataclass(frozen=True, kw_only=True)
class _Fades:
    """Bits that each of many fades lets through, ascending, and the weight of each, which sum to 1.

    dispersion: variance of the information that a block of so many uses carries, in bits^2.
    """

    bits: Float[Tensor, " fades"]
    weight: Float[Tensor, " fades"]
    dispersion: Float[Tensor, " fades"]

    @property
    def mean(self) -> Float[Tensor, ""]:
        """Mean bits."""
        return (self.weight * self.bits).sum()


def bound(
    spectrum: Spectrum,
    condition: Condition,
    *,
    rng: torch.Generator,
    constellation: Constellation | None = None,
) -> Bounds:
    """Bounds on the distortion of latents of that spectrum under each condition.

    constellation: of which a symbol takes one point, each alike; any complex symbol if None.
    The receiver knows the gain, the transmitter its statistics. With pilots the uses are those that are left
    and the gain is known all the same, which can only lower the bound. J = 1 and full correlation are
    integrated; other gains are drawn, from the same seed for every row of the condition.

    Raises InputError if the spectrum is not one.
    """
    seed = int(torch.randint(2**62, (1,), generator=rng, device=rng.device))
    rows = []
    for row in range(len(condition)):
        again = torch.Generator(rng.device).manual_seed(seed)
        one = condition[row : row + 1].to(torch.device("cpu"))
        rows.append(_bound_one(spectrum, one, _carried(constellation), rng=again))
    ergodic, informed, error, dispersed, outage = torch.tensor(rows, dtype=torch.float64).T
    return Bounds(
        ergodic=ergodic, informed=informed, informed_error=error, dispersed=dispersed, outage=outage
    )


Carried = Callable[[Tensor], tuple[Tensor, Tensor]]
"""SNR of a use to the bits that it carries on average, and their variance."""


def _carried(constellation: Constellation | None) -> Carried:
    if constellation is None or not constellation.bits:
        return lambda snr: (awgn_capacity(snr), awgn_dispersion(snr))
    return constellation.information


def _bound_one(
    spectrum: Spectrum, condition: Condition, carried: Carried, *, rng: torch.Generator
) -> tuple[float, float, float, float, float]:
    snr = db_to_linear(condition.snr_db.double())
    if not bool(condition.rayleigh):
        bits, variance = (condition.payload * value for value in carried(snr))
        sent = reverse_water_filling(spectrum, bits).item()
        fades = _Fades(bits=bits, weight=torch.ones_like(bits), dispersion=variance)
        return sent, sent, 0.0, _dispersed(spectrum, fades), sent
    single = int(condition.blocks) == 1 or float(condition.correlation) == 1.0
    fades = _one_gain(condition, snr, carried) if single else _drawn_gains(condition, snr, carried, rng=rng)
    mean = (_one_gain(condition, snr, carried) if not single else fades).mean
    ergodic = reverse_water_filling(spectrum, mean).item()
    distortion = reverse_water_filling(spectrum, fades.bits)
    informed = (fades.weight * distortion).sum()
    spread = (fades.weight * (distortion - informed).square()).sum()
    error = 0.0 if single else (spread / len(distortion)).sqrt().item()
    outage = _outage(spectrum, fades, distortion)
    return ergodic, informed.item(), error, _dispersed(spectrum, fades), outage


def _dispersed(spectrum: Spectrum, fades: _Fades) -> float:
    """Mean over fades of D(R - sqrt(n V + k W) Q^-1(EXCESS))."""
    deviation = (fades.dispersion + components_sent(spectrum, fades.bits) * SOURCE_DISPERSION).sqrt()
    rates = (fades.bits - stats.norm.isf(EXCESS) * deviation).clamp(min=0)
    return float((fades.weight * reverse_water_filling(spectrum, rates)).sum())


def _outage(spectrum: Spectrum, fades: _Fades, distortion: Float[Tensor, " fades"]) -> float:
    """The minimum over r of P(R(h) >= r) D(r) + P(R(h) < r) D(0), with r among the rates of the fades."""
    reach = fades.weight.flip(0).cumsum(0).flip(0)
    lost = spectrum.double().mean()
    return float((lost + reach * (distortion - lost)).min())


def _one_gain(condition: Condition, snr: Tensor, carried: Carried) -> _Fades:
    """All blocks share |h|^2 ~ Exp(1): trapezoid rule in log |h|^2, where the density is exp(t - exp(t))."""
    log_energy = torch.linspace(-40.0, 4.0, NODES, dtype=torch.float64)
    weight = (log_energy - log_energy.exp()).exp()
    bits, variance = (condition.payload * value for value in carried(snr * log_energy.exp()))
    return _Fades(bits=bits, weight=weight / weight.sum(), dispersion=variance)


def _drawn_gains(condition: Condition, snr: Tensor, carried: Carried, *, rng: torch.Generator) -> _Fades:
    blocks = int(num_blocks(condition))
    draws = max(GAINS // blocks, LEAST_DRAWS)
    white = complex_normal(draws, blocks, rng=rng, device=condition.uses.device, dtype=torch.complex64)
    gain = correlate(white, condition.expand(draws))
    lengths = block_index(condition, int(condition.payload))[0].bincount(minlength=blocks)
    energy = (gain.real.square() + gain.imag.square()).double()
    bits, variance = ((lengths * value).sum(dim=1) for value in carried(snr * energy))
    bits, order = bits.sort()
    return _Fades(bits=bits, weight=torch.full_like(bits, 1 / draws), dispersion=variance[order])


def reverse_water_filling(spectrum: Spectrum, bits: Shaped[Tensor, "*rates"]) -> Float[Tensor, "*rates"]:
    """Distortion-rate function D(R) of independent Gaussian components, mean over components, float64.

    bits: R for all components together, at least 0.
    Raises InputError if a variance or a rate is negative or not a number, or every variance is 0.
    """
    ordered, rate = _ordered(spectrum), bits.double()
    if bool((rate.isnan() | (rate < 0)).any()):
        raise InputError("a rate must be a number of bits of at least 0")
    positive = ordered[ordered > 0]
    log_sum = positive.log2().cumsum(0)
    count = torch.arange(1, len(positive) + 1)
    active = torch.searchsorted(_joins(positive), rate, right=True)
    # Cover and Thomas 2006, Theorem 10.3.3: D_i = min(level, variance_i), R = sum_i log2(variance_i / D_i) / 2.
    level = torch.exp2((log_sum[active] - 2 * rate) / count[active])
    below = (positive.sum() - positive.cumsum(0)).clamp(min=0)
    return (count[active] * level + below[active]) / len(ordered)


def components_sent(spectrum: Spectrum, bits: Shaped[Tensor, "*rates"]) -> Int64[Tensor, "*rates"]:
    """How many components reverse water-filling sends anything of at a rate."""
    ordered = _ordered(spectrum)
    return 1 + torch.searchsorted(_joins(ordered[ordered > 0]), bits.double(), right=True)


def _joins(positive: Spectrum) -> Float[Tensor, " joins"]:
    """Rates at which the second component is sent, the third and so on: the water level has sunk to its variance."""
    count = torch.arange(1, len(positive))
    logs = positive.log2()
    return 0.5 * (logs.cumsum(0)[:-1] - count * logs[1:])


def _ordered(spectrum: Spectrum) -> Float[Tensor, " components"]:
    ordered = spectrum.detach().cpu().double().sort(descending=True).values
    if not bool((ordered.isfinite() & (ordered >= 0)).all()) or not bool((ordered > 0).any()):
        raise InputError("a spectrum must be finite variances of at least 0, one of them above 0")
    return ordered


def awgn_capacity(snr: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Bits per complex use at that power ratio, log2(1 + SNR)."""
    return torch.log1p(snr) / torch.log(torch.tensor(2.0, dtype=snr.dtype))


def awgn_dispersion(snr: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Variance of the information of a complex use at that power ratio, bits^2: P (P + 2) / (P + 1)^2 nat^2.

    Polyanskiy, Poor and Verdu 2010, equation 293, twice that of a real use.
    """
    return snr * (snr + 2) / (snr + 1).square() * BITS_PER_NAT**2


def rayleigh_capacity(snr: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Ergodic bits per complex use, E log2(1 + SNR |h|^2) for |h|^2 ~ Exp(1), known to the receiver only.

    Lee 1990, IEEE Trans. Veh. Technol. 39(3): exp(1 / SNR) E1(1 / SNR) / ln 2.
    """
    inverse = 1 / snr.double()
    # exp(x) overflows long before the product does; from x = 500 its asymptotic series is right to 4e-10.
    series = (1 - (1 - (2 - 6 / inverse) / inverse) / inverse) / inverse
    near = inverse.clamp(max=500.0)
    exact = near.exp() * torch.as_tensor(exp1(near.numpy()))
    nats = torch.where(inverse < 500.0, exact, series)
    return (nats / torch.log(torch.tensor(2.0, dtype=torch.float64))).to(snr.dtype)


def latent_snr_db(mse: Float[Tensor, "*shape"], spectrum: Spectrum) -> Float[Tensor, "*shape"]:
    """Variance of a latent number over its mean square error, in dB: 0 for the mean latent, higher is better."""
    return linear_to_db(spectrum.double().mean() / mse.double())


def measured_spectrum(latents: Latent) -> Float[Tensor, " components"]:
    """Eigenvalues of the unbiased sample covariance of whole latents, descending, float64 [numbers].

    D(R) is concave in the covariance, so with few latents D of these is too low on average, never too high:
    it stays a bound, but a loose one. `held_out_spectrum` errs on the other side; where the two agree there are
    latents enough. Scale the latents by sqrt(importance) first to bound an error weighted by it.

    Raises InputError for fewer than two latents or values that are not finite.
    """
    centred = _centred(latents)
    samples, numbers = centred.shape
    wide = samples < numbers
    product = centred @ centred.T if wide else centred.T @ centred
    variances = torch.linalg.eigvalsh(product).flip(0).clamp(min=0) / (samples - 1)
    return torch.cat([variances, variances.new_zeros(numbers - len(variances))])


def held_out_spectrum(
    latents: Latent, *held_out: Float[Tensor, "_ _ _ _"]
) -> tuple[Float[Tensor, " components"], ...]:
    """Variances of each of other sets of latents, of any number, along the eigenvectors of these latents' covariance.

    A code that decorrelates with a basis learnt from `latents` meets these variances. The right basis would do
    better (the diagonal of a covariance is majorised by its eigenvalues), so D of these is above the Gaussian
    bound, but for the sampling error of single variances, 2 / samples of each: an estimate from above, no bound.

    Raises InputError for fewer than two latents, other shapes, or values that are not finite.
    """
    for other in held_out:
        if latents.shape[1:] != other.shape[1:]:
            raise InputError(
                f"latents must have one shape, got {list(latents.shape[1:])} and {list(other.shape[1:])}"
            )
    centred, others = _centred(latents), [_centred(other) for other in held_out]
    # of fewer latents than numbers this is far less work than the covariance
    basis = torch.linalg.svd(centred.T).U if len(centred) < len(centred.T) else _eigenvectors(centred)
    return tuple((other @ basis).square().sum(dim=0) / (len(other) - 1) for other in others)


def _eigenvectors(centred: Float[Tensor, "samples numbers"]) -> Float[Tensor, "numbers numbers"]:
    """Of the covariance, by falling variance."""
    vectors: Tensor = torch.linalg.eigh(centred.T @ centred).eigenvectors
    return vectors.flip(1)


def _centred(latents: Latent) -> Float[Tensor, "samples numbers"]:
    rows = latents.detach().cpu().flatten(1).double()
    if len(rows) < 2:
        raise InputError(f"a spectrum needs at least two latents, got {len(rows)}")
    if not bool(rows.isfinite().all()):
        raise InputError("latents must be finite")
    return rows - rows.mean(dim=0)
