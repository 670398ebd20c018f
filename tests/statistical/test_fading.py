"""Gains: mean energy, distribution, the whole covariance profile, outage, and what pilots reveal of them."""

import math

import pytest
import torch
from random_draws import seeded
from scipy import stats

from dekag.channel import BlockFading
from dekag.channel.fading import block_gains
from dekag.channel.pilots import receiver_state
from dekag.types import Condition
from dekag.units import snr_db_to_noise_power

NUM_IMAGES = 2**16


def covariance_of_blocks(gain: torch.Tensor) -> torch.Tensor:
    """Sample E[h_j' conj(h_j)] over images, complex [blocks, blocks], row j'."""
    return gain.T @ gain.conj() / len(gain)


def profile(blocks: int, correlation: float, phase: float) -> torch.Tensor:
    lag = torch.arange(blocks)[:, None] - torch.arange(blocks)[None, :]
    return correlation ** lag.abs() * torch.exp(1j * phase * lag)


@pytest.mark.parametrize(
    ("correlation", "phase"), [(0.0, 0.0), (0.5, 0.0), (0.9, 0.7), (0.99, -2.5), (1.0, 1.0)]
)
def test_covariance_profile_in_magnitude_and_phase(correlation: float, phase: float) -> None:
    """All 64 entries for J = 8 over 2**16 images; 6 sigma = 0.0235, false alarm below 64 x 2e-9 = 1.3e-7.

    Each entry of the sample covariance has total variance R_j'j' R_jj / images = 1 / images.
    """
    condition = Condition(uses=8, snr_db=0.0, rayleigh=True, blocks=8, correlation=correlation, phase=phase)
    measured = covariance_of_blocks(block_gains(condition.expand(NUM_IMAGES), 8, rng=seeded(1)))
    assert (measured - profile(8, correlation, phase)).abs().max().item() < 6 / math.sqrt(NUM_IMAGES)


def test_two_profiles_in_one_batch() -> None:
    """Interleaved images keep their own J and profile: 6 sigma over 2**15 images each, false alarm 1.6e-7."""
    mixed = Condition(
        uses=torch.tensor([16, 12]),
        snr_db=0.0,
        rayleigh=True,
        blocks=torch.tensor([4, 8]),
        correlation=torch.tensor([0.8, 0.4]),
        phase=torch.tensor([0.3, -1.1]),
    )
    condition = Condition.cat([mixed] * 2**15)
    gain = block_gains(condition, 16, rng=seeded(2))
    bound = 6 / math.sqrt(2**15)
    assert (covariance_of_blocks(gain[0::2, ::4]) - profile(4, 0.8, 0.3)).abs().max().item() < bound
    heads = [0, 2, 3, 5, 6, 8, 9, 11]  # first use of each of 8 blocks in 12 uses
    assert (covariance_of_blocks(gain[1::2, heads]) - profile(8, 0.4, -1.1)).abs().max().item() < bound


def test_slow_fading_has_one_gain_of_unit_mean_energy_per_image() -> None:
    """J = 1: all uses alike; E|h|^2 = 1 over 2**16 images, 5 sigma = 0.0195, false alarm 6e-7."""
    condition = Condition(uses=4, snr_db=0.0, rayleigh=True, blocks=1, correlation=0.5).expand(NUM_IMAGES)
    gain = block_gains(condition, 4, rng=seeded(3))
    assert torch.equal(gain, gain[:, :1].expand_as(gain))
    assert gain[:, 0].abs().square().mean().item() == pytest.approx(1, abs=5 / math.sqrt(NUM_IMAGES))


def test_fast_fading_has_a_gain_for_every_use() -> None:
    """J = payload = 64, all 4096 entries over 2**14 images; 6 sigma = 0.047, false alarm 8e-6."""
    condition = Condition(uses=64, snr_db=0.0, rayleigh=True, blocks=64, correlation=0.9, phase=0.2)
    measured = covariance_of_blocks(block_gains(condition.expand(2**14), 64, rng=seeded(4)))
    assert (measured - profile(64, 0.9, 0.2)).abs().max().item() < 6 / math.sqrt(2**14)


def test_many_blocks_keep_unit_energy_at_the_far_end() -> None:
    """J = 1024, last block, over 2**11 images; 5 sigma = 0.11, false alarm 6e-7."""
    condition = Condition(uses=1024, snr_db=0.0, rayleigh=True, blocks=1024, correlation=0.999, phase=3.0)
    gain = block_gains(condition.expand(2**11), 1024, rng=seeded(5))
    assert gain[:, -1].abs().square().mean().item() == pytest.approx(1, abs=5 / math.sqrt(2**11))


def test_gains_are_rayleigh_with_uniform_phase() -> None:
    """|h|^2 ~ Exp(1) and arg h uniform: Kolmogorov-Smirnov on 2**16 gains, false alarm 2 x 1e-6."""
    condition = Condition(uses=1, snr_db=0.0, rayleigh=True).expand(NUM_IMAGES)
    gain = block_gains(condition, 1, rng=seeded(6))[:, 0]
    assert stats.kstest(gain.abs().square().numpy(), "expon").pvalue > 1e-6
    turns = gain.angle().numpy() / (2 * math.pi) + 0.5
    assert stats.kstest(turns, "uniform").pvalue > 1e-6


def test_images_fade_independently() -> None:
    """E[h_i conj(h_{i+1})] = 0 over 2**16 neighbours in the batch; 5 sigma of each part = 0.0138."""
    gain = block_gains(Condition(uses=1, snr_db=0.0, rayleigh=True).expand(NUM_IMAGES), 1, rng=seeded(7))[
        :, 0
    ]
    product = (gain[1:] * gain[:-1].conj()).mean()
    assert max(abs(product.real.item()), abs(product.imag.item())) < 5 / math.sqrt(2 * NUM_IMAGES)


def test_outage_exists_and_noise_does_not_shrink_with_it() -> None:
    """Slow fading: P(|h|^2 < 0.1) = 1 - e^-0.1 = 9.5 %, and the noise of the faded images is still N0.

    2**16 images of 4 uses; 5 sigma of the share = 0.0057, of the noise power over the deep fades 3.2 %.
    """
    condition = Condition(uses=4, snr_db=10.0, rayleigh=True).expand(NUM_IMAGES)
    s = torch.ones(NUM_IMAGES, 4) + 0j
    received = BlockFading()(s, condition, rng=seeded(8))
    deep = received.state.gain[:, 0].abs().square() < 0.1
    share = 1 - math.exp(-0.1)
    assert deep.float().mean().item() == pytest.approx(
        share, abs=5 * math.sqrt(share * (1 - share) / NUM_IMAGES)
    )
    noise = (received.symbols - received.state.gain * s)[deep]
    assert noise.abs().square().mean().item() == pytest.approx(0.1, rel=5 / math.sqrt(noise.numel()))


def test_mean_snr_under_fading() -> None:
    """E|h s|^2 / N0 over 2**20 independent gains; 5 sigma = 0.03 dB (signal and noise), false alarm 6e-7."""
    condition = Condition(uses=1024, snr_db=5.0, rayleigh=True, blocks=1024).expand(1024)
    s = torch.ones(1024, 1024) + 0j
    received = BlockFading()(s, condition, rng=seeded(9))
    noise = received.symbols - received.state.gain * s
    ratio = received.state.gain.abs().square().mean() / noise.abs().square().mean()
    expected = 1 / snr_db_to_noise_power(condition.snr_db[0])
    assert ratio.item() == pytest.approx(expected.item(), rel=5 * math.sqrt(2 / 2**20))


@pytest.mark.parametrize(("pilots", "snr_db"), [(1, 0.0), (1, 10.0), (4, 0.0), (4, -5.0)])
def test_estimated_gain_against_closed_form(pilots: int, snr_db: float) -> None:
    """LMMSE: E|h - h_hat|^2 = N0/(p + N0), E|h_hat|^2 = p/(p + N0), and the two are uncorrelated.

    2**16 images; 5 sigma = 2 % of each power, of each part of the cross moment 1/sqrt(2) of that.
    """
    condition = Condition(uses=8, snr_db=snr_db, rayleigh=True, pilots=pilots).expand(NUM_IMAGES)
    gain = block_gains(condition, 8 - pilots, rng=seeded(10))
    state = receiver_state(gain, condition, rng=seeded(11))
    noise_power = snr_db_to_noise_power(torch.tensor(snr_db)).item()
    expected = noise_power / (pilots + noise_power)
    estimate, error = state.gain[:, 0], (gain - state.gain)[:, 0]
    five_sigma = 5 / math.sqrt(NUM_IMAGES)
    assert error.abs().square().mean().item() == pytest.approx(expected, rel=five_sigma)
    assert estimate.abs().square().mean().item() == pytest.approx(1 - expected, rel=five_sigma)
    cross = (estimate * error.conj()).mean()
    bound = five_sigma * math.sqrt(expected * (1 - expected) / 2)
    assert max(abs(cross.real.item()), abs(cross.imag.item())) < bound
    torch.testing.assert_close(state.noise_power, torch.full((NUM_IMAGES,), noise_power + expected))


def test_the_state_tells_the_noise_that_symbols_see_under_an_estimate() -> None:
    """E|y - h_hat s|^2 is the state's noise power: 2**20 fast-fading uses, 5 sigma = 0.49 %."""
    condition = Condition(uses=2048, snr_db=3.0, rayleigh=True, blocks=1024, pilots=1).expand(1024)
    s = torch.ones(1024, 1024) + 0j
    received = BlockFading()(s, condition, rng=seeded(12))
    residual = (received.symbols - received.state.gain * s).abs().square().mean().item()
    assert residual == pytest.approx(received.state.noise_power[0].item(), rel=5 / 2**10)
