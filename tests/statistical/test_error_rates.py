"""Bit error rates of uncoded QAM against closed forms: constellation, channel and equaliser in one number."""

import math

import pytest
import torch
from scipy.stats import norm

from dekag.channel import BlockFading, mmse_equalise
from dekag.codec.constellation import CONSTELLATIONS, demap_bits, map_bits
from dekag.types import Condition
from dekag.units import db_to_linear, ebno_db_to_snr_db, snr_db_to_noise_power

NUM_SYMBOLS = 2**20


def measure(name: str, ebno_db: float, *, rayleigh: bool, pilots: int = 0) -> float:
    """Bit error rate over 2**20 symbols; under fading each has its own gain, and is equalised coherently."""
    constellation = CONSTELLATIONS[name]
    generator = torch.Generator().manual_seed(1)
    bits = torch.rand(1024, 1024, constellation.bits, generator=generator) < 0.5
    snr_db = ebno_db_to_snr_db(torch.tensor(ebno_db), constellation.bits)
    uses = 1024 * (1 + pilots)
    condition = Condition(uses=uses, snr_db=snr_db, rayleigh=rayleigh, blocks=1024, pilots=pilots)
    if not rayleigh:
        condition = Condition(uses=1024, snr_db=snr_db)
    equalised = mmse_equalise(BlockFading()(map_bits(bits, constellation), condition, rng=generator))
    unbiased = equalised.symbols / equalised.state.reliability
    return (demap_bits(unbiased, constellation) != bits).float().mean().item()


def five_sigma(rate: float) -> float:
    """Of the rate over 2**20 symbols, if the errors of a symbol's bits coincided; false alarm below 6e-7."""
    return 5 * math.sqrt(rate * (1 - rate) / NUM_SYMBOLS)


def q(x: float) -> float:
    return float(norm.sf(x))


def rayleigh_rate(ebno: float) -> float:
    """Proakis, Digital Communications: coherent antipodal signalling over flat Rayleigh fading."""
    return 0.5 * (1 - math.sqrt(ebno / (1 + ebno)))


@pytest.mark.parametrize("ebno_db", [0.0, 4.0, 7.0])
def test_qpsk_over_awgn(ebno_db: float) -> None:
    """Q(sqrt(2 Eb/N0)); at 4 dB 0.0125 +- 0.00055. An SNR that is 3 dB wrong would give 0.0563 or 0.0008."""
    expected = q(math.sqrt(2 * db_to_linear(torch.tensor(ebno_db)).item()))
    assert measure("qpsk", ebno_db, rayleigh=False) == pytest.approx(expected, abs=five_sigma(expected))


@pytest.mark.parametrize("ebno_db", [4.0, 8.0])
def test_16qam_over_awgn(ebno_db: float) -> None:
    """Cho and Yoon 2002: (3 Q(a) + 2 Q(3a) - Q(5a)) / 4 with a = sqrt(4 Eb / (5 N0))."""
    a = math.sqrt(0.8 * db_to_linear(torch.tensor(ebno_db)).item())
    expected = (3 * q(a) + 2 * q(3 * a) - q(5 * a)) / 4
    assert measure("16qam", ebno_db, rayleigh=False) == pytest.approx(expected, abs=five_sigma(expected))


@pytest.mark.parametrize("ebno_db", [0.0, 10.0, 20.0])
def test_qpsk_over_flat_rayleigh_fading(ebno_db: float) -> None:
    """(1 - sqrt(g / (1 + g))) / 2 at mean Eb/N0 g; a real positive "Rayleigh" gain has the same marginal."""
    expected = rayleigh_rate(db_to_linear(torch.tensor(ebno_db)).item())
    assert measure("qpsk", ebno_db, rayleigh=True) == pytest.approx(expected, abs=five_sigma(expected))


@pytest.mark.parametrize("pilots", [1, 3])
def test_qpsk_over_an_estimated_gain(pilots: int) -> None:
    """The same form at the Eb/N0 that the estimate leaves: (1 - v) / (2 (N0 + v)), v = N0 / (p + N0).

    QPSK has constant energy, so what an LMMSE estimate leaves is Gaussian noise independent of the estimate.
    """
    snr_db = ebno_db_to_snr_db(torch.tensor(8.0), 2)
    noise_power = snr_db_to_noise_power(snr_db).item()
    variance = noise_power / (pilots + noise_power)
    expected = rayleigh_rate((1 - variance) / (2 * (noise_power + variance)))
    measured = measure("qpsk", 8.0, rayleigh=True, pilots=pilots)
    assert measured == pytest.approx(expected, abs=five_sigma(expected))
