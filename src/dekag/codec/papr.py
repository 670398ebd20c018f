"""Peak-to-average power ratio of what is sent, its distribution, and clipping.

A power amplifier must be linear up to the peak, so the peak decides what it costs. Symbols sent one after
another have the peak of their constellation; OFDM adds many of them and comes near to complex Gaussian.
Ratios are linear power ratios inside, decibels where a user names a level.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int64
from torch import Tensor

from dekag.codec.power import normalise_power, truncate
from dekag.types import InputError, PerImage, Symbols
from dekag.units import db_to_linear, linear_to_db

SUBCARRIERS = 72
"""Six resource blocks, as in `channel.ofdm_grid`."""
BETWEEN = 2.8
"""Independent samples for each subcarrier that stand for what lies between them (van Nee and de Wild 1998)."""
LEVELS_DB = (4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0)
SHARES = (1e-1, 1e-2, 1e-3, 1e-4)
OVERSAMPLING = 4
"""Samples per symbol that miss little of a peak of OFDM: 0.7 dB, -20 log10 cos(pi / 8), where it is worst."""


def papr(symbols: Symbols, payload: Int64[Tensor, " batch"]) -> PerImage:
    """Largest over mean power of the first `payload[i]` symbols or samples of row i, linear, at least 1.

    NaN for a silent row. Raises InputError if a payload is not between 1 and the number of symbols.
    """
    used = truncate(symbols, payload)
    power = used.real.square() + used.imag.square()
    return power.amax(dim=1) * payload / power.sum(dim=1)


def ofdm_waveform(
    symbols: Complex[Tensor, "batch subcarriers"], *, oversampling: int = OVERSAMPLING
) -> Complex[Tensor, "batch samples"]:
    """One OFDM symbol a row, without cyclic prefix: symbol k on subcarrier k - subcarriers // 2.

    x[n] = sum_k s_k exp(i 2 pi (k - K // 2) n / (K L)) / sqrt(K) at `oversampling` L samples per symbol, by an
    inverse FFT over zero-padded subcarriers; the mean power is that of the symbols. At L = 1 the samples miss
    the peaks between them. Raises InputError for an oversampling below 1.
    """
    if oversampling < 1:
        raise InputError(f"oversampling must be at least 1, got {oversampling}")
    carriers = symbols.shape[1]
    samples = oversampling * carriers
    padded = torch.nn.functional.pad(symbols, (0, samples - carriers))
    # carrier 0 lies in the middle of the symbols; rolled to the head, the lower half wraps round to the end
    centred = padded.roll(-(carriers // 2), dims=1)
    waveform: Tensor = torch.fft.ifft(centred, dim=1, norm="forward") / math.sqrt(carriers)
    return waveform


def ofdm_symbols(
    waveform: Complex[Tensor, "batch samples"], *, oversampling: int = OVERSAMPLING
) -> Complex[Tensor, "batch subcarriers"]:
    """The symbols of `ofdm_waveform`, by an FFT; what lies outside their band is left out.

    White noise of power N0 a sample becomes N0 / `oversampling` a symbol.
    Raises InputError if the samples are no whole number of symbols.
    """
    samples = waveform.shape[1]
    if oversampling < 1 or samples % oversampling:
        raise InputError(f"{samples} samples are no whole number of symbols at oversampling {oversampling}")
    carriers = samples // oversampling
    spectrum = torch.fft.fft(waveform, dim=1, norm="forward") * math.sqrt(carriers)
    symbols: Tensor = spectrum.roll(carriers // 2, dims=1)[:, :carriers]
    return symbols


@dataclass(frozen=True, kw_only=True)
class Waveform:
    """How symbols become samples.

    subcarriers: 0 sends one symbol a sample, one after another. Else OFDM: each image's symbols in order on so
    many subcarriers an OFDM symbol, lowest frequency first, zeros in what the last one has left, no cyclic prefix.
    oversampling: samples for each subcarrier of OFDM; 1 without it.

    Raises InputError if a field is out of range.
    """

    subcarriers: int = 0
    oversampling: int = 1

    def __post_init__(self) -> None:
        if not (0 <= self.subcarriers <= 4096 and 1 <= self.oversampling <= 16):
            raise InputError(
                "a waveform has 0 to 4096 subcarriers and 1 to 16 samples for each, got"
                f" {self.subcarriers} and {self.oversampling}"
            )
        if self.oversampling > 1 and not self.subcarriers:
            raise InputError("only OFDM is oversampled; give it subcarriers")

    def samples(self, payload: Int64[Tensor, " batch"]) -> Int64[Tensor, " batch"]:
        """Samples of an image of so many symbols."""
        if not self.subcarriers:
            return payload
        whole = (payload + self.subcarriers - 1) // self.subcarriers
        return whole * self.subcarriers * self.oversampling

    def modulate(self, symbols: Complex[Tensor, " payload"]) -> Complex[Tensor, "blocks samples"]:
        """An image's payload as blocks of which each has a peak: an OFDM symbol a row, or all of it in one."""
        if not self.subcarriers:
            return symbols[None]
        missing = -len(symbols) % self.subcarriers
        rows = torch.nn.functional.pad(symbols, (0, missing)).unflatten(0, (-1, self.subcarriers))
        return ofdm_waveform(rows, oversampling=self.oversampling)

    def demodulate(
        self, blocks: Complex[Tensor, "blocks samples"], payload: int
    ) -> Complex[Tensor, " payload"]:
        """The payload of an image from its blocks."""
        rows = ofdm_symbols(blocks, oversampling=self.oversampling) if self.subcarriers else blocks
        return rows.flatten()[:payload]


SINGLE_CARRIER = Waveform()
OFDM = Waveform(subcarriers=SUBCARRIERS, oversampling=OVERSAMPLING)


def ccdf(ratios: PerImage, threshold_db: Float[Tensor, " levels"]) -> Float[Tensor, " levels"]:
    """Share of the blocks whose PAPR, linear, lies above each level in dB."""
    return (ratios > db_to_linear(threshold_db)[:, None]).to(ratios.dtype).mean(dim=1)


def gaussian_ccdf(threshold_db: Float[Tensor, " levels"], samples: int) -> Float[Tensor, " levels"]:
    """P(PAPR > level) of blocks of independent complex Gaussian samples of known mean power.

    van Nee and de Wild 1998: 1 - (1 - exp(-level))^samples; OFDM without oversampling comes near it.
    """
    below = -torch.expm1(-db_to_linear(threshold_db))
    return 1 - below.pow(samples)


def clip(symbols: Symbols, payload: Int64[Tensor, " batch"], *, ratio_db: float) -> Symbols:
    """Symbols or samples with their amplitudes limited and their phases kept, then of mean power 1 again.

    ratio_db: highest power over the row's mean power before clipping. The row's PAPR afterwards is that ratio
    over the share of power that clipping left, and so a little higher. Differentiable.

    Raises InputError if the ratio is below 0 dB or not finite, or a payload does not fit.
    """
    if not (math.isfinite(ratio_db) and ratio_db >= 0):
        raise InputError(f"a clipping ratio must be at least 0 dB and finite, got {ratio_db}")
    sent = normalise_power(symbols, payload)
    limit = db_to_linear(torch.tensor(ratio_db, dtype=sent.real.dtype, device=sent.device))
    power = sent.real.square() + sent.imag.square()
    # The inner `where` keeps the gradient finite where nothing is sent.
    scale = (limit / torch.where(power > limit, power, limit)).sqrt()
    return normalise_power(scale * sent, payload)


def clip_waveform(
    symbols: Symbols, payload: Int64[Tensor, " batch"], waveform: Waveform, *, ratio_db: float
) -> Symbols:
    """Symbols whose waveform has been clipped, of mean power 1 per image.

    Without OFDM that is `clip`. OFDM is clipped image by image between the symbols and filtered to its band, as a
    transmitter's spectral mask asks; peaks grow again a little above the ratio.
    Raises InputError as `clip` does.
    """
    if not waveform.subcarriers:
        return clip(symbols, payload, ratio_db=ratio_db)
    clipped = torch.zeros_like(symbols)
    for row, length in enumerate(payload.tolist()):
        blocks = waveform.modulate(symbols[row, :length])
        samples = torch.tensor([blocks.numel()], device=symbols.device)
        limited = clip(blocks.flatten()[None], samples, ratio_db=ratio_db).unflatten(1, blocks.shape)[0]
        clipped[row, :length] = waveform.demodulate(limited, length)
    return normalise_power(clipped, payload)


@dataclass(frozen=True, kw_only=True)
class PaprReport:
    """Peaks of what is sent, in dB over the mean power, beside those of complex Gaussian samples.

    blocks: pieces of which each has a peak, OFDM symbols or images; samples: of all of them.
    highest_db: largest PAPR of a block, over the mean power of its image.
    peaks: by level in dB the share of blocks with a higher PAPR, and `gaussian_ccdf` of it, averaged over blocks.
    power_db: by share of samples the instantaneous power that they exceed, and that of Gaussian samples,
        -ln(share); None where there are fewer than 10 such samples.
    """

    blocks: int
    samples: int
    highest_db: float
    peaks: dict[float, tuple[float, float]]
    power_db: dict[float, tuple[float | None, float]]


def papr_report(symbols: Symbols, payload: Int64[Tensor, " batch"], waveform: Waveform) -> PaprReport:
    """Distribution of the peaks of what is sent: PAPR block by block and instantaneous power sample by sample."""
    peaks, sizes, power = [], [], []
    for row, length in enumerate(payload.tolist()):
        blocks = waveform.modulate(symbols[row, :length])
        ratio = blocks.real.square() + blocks.imag.square()
        ratio = ratio / ratio.mean()
        peaks.append(ratio.amax(dim=1))
        between = BETWEEN if waveform.oversampling > 1 else 1
        sizes += [round(between * (waveform.subcarriers or length))] * len(blocks)
        power.append(ratio.flatten())
    highest, every = torch.cat(peaks), torch.cat(power).sort(descending=True).values
    levels = torch.tensor(LEVELS_DB, dtype=highest.dtype)
    gaussian = torch.stack([gaussian_ccdf(levels, size) for size in sizes]).mean(dim=0)
    measured = ccdf(highest, levels.to(highest.device))
    return PaprReport(
        blocks=len(highest),
        samples=len(every),
        highest_db=_db(highest.max()),
        peaks={
            level: (share.item(), expected.item())
            for level, share, expected in zip(LEVELS_DB, measured, gaussian, strict=True)
        },
        power_db={
            share: (
                _db(every[round(share * len(every))]) if share * len(every) >= 10 else None,
                _db(torch.tensor(-math.log(share))),
            )
            for share in SHARES
        },
    )


def _db(ratio: Tensor) -> float:
    return linear_to_db(ratio).item()
