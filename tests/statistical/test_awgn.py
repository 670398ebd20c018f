"""Noise: its power, its split between the real dimensions, its independence of everything else."""

import math

import pytest
import torch
from random_draws import seeded
from scipy import stats

from dekag.channel import BlockFading, mmse_equalise
from dekag.codec.constellation import CONSTELLATIONS, map_bits
from dekag.codec.power import normalise_power
from dekag.types import Condition, InputError
from dekag.units import linear_to_db, snr_db_to_noise_power

NUM_SYMBOLS = 2**20
FIVE_SIGMA = 5 / math.sqrt(NUM_SYMBOLS)  # relative, of the mean power of complex Gaussian samples


def qpsk(batch: int, width: int, seed: int) -> torch.Tensor:
    return map_bits(torch.rand(batch, width, 2, generator=seeded(seed)) < 0.5, CONSTELLATIONS["qpsk"])


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 10.0, 20.0])
def test_realised_snr(snr_db: float) -> None:
    """Realised SNR over 2**20 symbols; 5 sigma = 0.021 dB, false alarm 6e-7.

    Noise power per real element, taken for noise power per complex symbol, would be 3 dB off.
    """
    s = torch.randn(1, NUM_SYMBOLS, dtype=torch.complex64, generator=seeded(1))
    s = normalise_power(s, torch.tensor([NUM_SYMBOLS]))
    received = BlockFading()(s, Condition(uses=NUM_SYMBOLS, snr_db=snr_db), rng=seeded(2))
    ratio = s.abs().square().sum() / (received.symbols - s).abs().square().sum()
    assert linear_to_db(ratio).item() == pytest.approx(snr_db, abs=0.0213)


def test_each_real_dimension_has_half_the_noise() -> None:
    """N0/2 each and uncorrelated over 2**20 symbols; 5 sigma = 0.69 % of N0/2, 0.49 % for the product."""
    condition = Condition(uses=NUM_SYMBOLS, snr_db=3.0)
    noise = BlockFading()(torch.zeros(1, NUM_SYMBOLS) + 0j, condition, rng=seeded(3)).symbols
    half = snr_db_to_noise_power(condition.snr_db).item() / 2
    for part in (noise.real, noise.imag):
        assert part.square().mean().item() == pytest.approx(half, rel=math.sqrt(2) * FIVE_SIGMA)
    assert abs((noise.real * noise.imag).mean().item()) < FIVE_SIGMA * half


def test_noise_is_gaussian() -> None:
    """Kolmogorov-Smirnov on 2**17 real samples; false alarm 1e-6."""
    noise = BlockFading()(
        torch.zeros(1, 2**16) + 0j, Condition(uses=2**16, snr_db=0.0), rng=seeded(4)
    ).symbols
    samples = torch.view_as_real(noise).flatten().numpy()
    assert stats.kstest(samples, "norm", args=(0, math.sqrt(0.5))).pvalue > 1e-6


def test_every_image_of_a_batch_has_its_own_snr() -> None:
    """Bright and dark images, four SNRs, 2**18 symbols each; 5 sigma = 0.042 dB, false alarm 4 x 6e-7."""
    width = 2**18
    condition = Condition(uses=width, snr_db=torch.tensor([-10.0, 0.0, 7.5, 15.0]))
    s = torch.randn(4, width, dtype=torch.complex64, generator=seeded(5))
    s = normalise_power(s * torch.tensor([1e3, 1.0, 1e-3, 1e-6])[:, None], condition.payload)
    noise = BlockFading()(s, condition, rng=seeded(6)).symbols - s
    realised = -linear_to_db(noise.abs().square().mean(dim=1))
    torch.testing.assert_close(realised, condition.snr_db, rtol=0, atol=0.0424)


def test_noise_does_not_follow_the_signal() -> None:
    """Noise on silence and on an image is the same."""
    condition = Condition(uses=64, snr_db=0.0)
    sent = qpsk(1, 64, 6)
    noise = BlockFading()(0 * sent, condition, rng=seeded(7)).symbols
    torch.testing.assert_close(
        BlockFading()(sent, condition, rng=seeded(7)).symbols - sent, noise, atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("factor", [0.3, 2.0, 100.0])
def test_symbols_of_another_power_are_refused(factor: float) -> None:
    """64 QPSK symbols of power 1 have no deviation; 6 / sqrt(64) = 0.75 is left to those of random points."""
    sent = factor * qpsk(1, 64, 6)
    with pytest.raises(InputError, match="must have mean power 1"):
        BlockFading()(sent, Condition(uses=64, snr_db=0.0), rng=seeded(7))


def test_mmse_error_is_what_the_reliability_says() -> None:
    """E|s - s_hat|^2 = 1 - reliability for unit-energy symbols, 2**20 of them.

    Var |s - s_hat|^2 <= 2 E^2 here, hence 5 sigma <= sqrt(2) 5 / 2**10 = 0.69 %, false alarm 6e-7.
    """
    s = qpsk(1, NUM_SYMBOLS, 8)
    equalised = mmse_equalise(BlockFading()(s, Condition(uses=NUM_SYMBOLS, snr_db=2.0), rng=seeded(9)))
    error = (equalised.symbols - s).abs().square().mean().item()
    expected = 1 - equalised.state.reliability[0, 0].item()
    assert error == pytest.approx(expected, rel=math.sqrt(2) * FIVE_SIGMA)
