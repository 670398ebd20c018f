"""Distortion-rate functions and capacities against closed forms, and our own channel against the bounds."""

import math

import numpy as np
import pytest
import torch
from random_draws import seeded
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from scipy.special import hyperu

from dekag.channel import BlockFading, mmse_equalise
from dekag.codec.constellation import CONSTELLATIONS
from dekag.evaluation.bounds import (
    GAINS,
    Bounds,
    awgn_capacity,
    bound,
    components_sent,
    held_out_spectrum,
    latent_snr_db,
    measured_spectrum,
    rayleigh_capacity,
    reverse_water_filling,
)
from dekag.types import Condition, InputError
from dekag.units import db_to_linear, linear_to_db

NUMBERS = 256
SLOPING = torch.linspace(0, -5, NUMBERS, dtype=torch.float64).exp()
WHITE = torch.ones(NUMBERS, dtype=torch.float64)


def bounds_of(spectrum: torch.Tensor, seed: int = 0, **condition: object) -> Bounds:
    return bound(spectrum, Condition(**condition), rng=seeded(seed))  # type: ignore[arg-type]


def linear(snr_db: float) -> float:
    return db_to_linear(torch.tensor(snr_db, dtype=torch.float64)).item()


@pytest.mark.parametrize(("count", "bits"), [(1, 0.0), (1, 1.0), (1, 7.5), (10, 4.0), (10, 300.0)])
def test_a_white_source(count: int, bits: float) -> None:
    """Cover and Thomas 2006, Theorem 10.3.2: D = variance 2^(-2 R / N)."""
    distortion = reverse_water_filling(torch.full((count,), 3.0), torch.tensor(bits)).item()
    assert distortion == pytest.approx(3 * 2 ** (-2 * bits / count), rel=1e-12)


def test_two_components_by_hand() -> None:
    """Variances 4 and 1: below 1 bit only the first is described, 4 * 2^(-2R) + 1; above, 2 * 2 * 2^(-R)."""
    bits = torch.tensor([0.0, 0.5, 1.0, 2.0, 3.0])
    by_hand = torch.tensor([5.0, 3.0, 2.0, 1.0, 0.5], dtype=torch.float64) / 2
    torch.testing.assert_close(reverse_water_filling(torch.tensor([1.0, 4.0]), bits), by_hand)


def test_components_without_variance_cost_nothing() -> None:
    """Three of four components are constant: the mean distortion is a quarter of the scalar's."""
    spectrum = torch.tensor([0.0, 2.0, 0.0, 0.0])
    distortion = reverse_water_filling(spectrum, torch.tensor([0.0, 1.0, math.inf]))
    torch.testing.assert_close(distortion, torch.tensor([0.5, 0.125, 0.0], dtype=torch.float64))


def test_no_other_split_of_the_bits_does_better() -> None:
    """Each component with r_i of the R bits has D_i = variance_i 2^(-2 r_i); 20000 random splits, some sparse."""
    spectrum = torch.tensor([5.0, 2.0, 0.7, 0.1], dtype=torch.float64)
    split = np.random.default_rng(0).dirichlet([0.5, 0.4, 0.3, 0.2], size=20000)
    for bits in (0.3, 2.0, 8.0):
        others = (spectrum * torch.exp2(-2 * bits * torch.as_tensor(split))).mean(dim=1)
        best = reverse_water_filling(spectrum, torch.tensor(bits)).item()
        assert best <= others.min().item()
        assert others.min().item() < 1.05 * best


def test_distortion_falls_with_the_rate_and_is_convex() -> None:
    distortion = reverse_water_filling(SLOPING, torch.linspace(0, 2000, 4001, dtype=torch.float64))
    step = distortion.diff()
    assert distortion[0].item() == pytest.approx(SLOPING.mean().item(), rel=1e-12)
    assert bool((step < 0).all())
    assert bool((step.diff() > -1e-15).all())


@pytest.mark.parametrize(
    ("snr", "bits"), [(1.0, 1.0), (3.0, 2.0), (1023.0, 10.0), (1e-9, 1e-9 / math.log(2))]
)
def test_awgn_capacity(snr: float, bits: float) -> None:
    assert awgn_capacity(torch.tensor(snr, dtype=torch.float64)).item() == pytest.approx(bits, rel=1e-8)


@pytest.mark.parametrize("snr_db", [-60.0, -27.1, -26.9, -10.0, 0.0, 10.0, 20.0])
def test_ergodic_capacity_of_rayleigh_fading(snr_db: float) -> None:
    """The closed form against the integral over |h|^2 ~ Exp(1); both sides of where its series takes over."""
    snr = linear(snr_db)
    integral, _ = quad(lambda energy: math.log2(1 + snr * energy) * math.exp(-energy), 0, 60, epsrel=1e-10)
    closed = rayleigh_capacity(torch.tensor(snr, dtype=torch.float64)).item()
    assert closed == pytest.approx(integral, rel=1e-8)
    assert closed < awgn_capacity(torch.tensor(snr, dtype=torch.float64)).item()


def test_ergodic_capacity_loses_two_and_a_half_decibels_at_high_snr() -> None:
    """E ln |h|^2 is minus Euler's constant, so log2(SNR) - 0.8327 bits are left: 2.507 dB."""
    snr = torch.tensor(1e8, dtype=torch.float64)
    assert (snr.log2() - rayleigh_capacity(snr)).item() == pytest.approx(0.57721566 / math.log(2), rel=1e-5)


@pytest.mark.parametrize("uses", [32, 128, 256])
def test_slope_over_awgn(uses: int) -> None:
    """White source of N numbers over K uses: D = (1 + SNR)^(-2 K / N), that is 2 K / N dB per dB."""
    bounds = bounds_of(WHITE, uses=uses, snr_db=torch.tensor([40.0, 50.0]))
    exponent = 2 * uses / NUMBERS
    assert bounds.ergodic[0].item() == pytest.approx((1 + linear(40.0)) ** -exponent, rel=1e-6)
    gain = linear_to_db(bounds.ergodic[0] / bounds.ergodic[1]).item()
    assert gain == pytest.approx(10 * exponent, abs=1e-3)


def test_without_fading_all_lines_are_one() -> None:
    bounds = bounds_of(SLOPING, uses=64, snr_db=5.0, pilots=4)
    expected = reverse_water_filling(SLOPING, torch.tensor(64 * math.log2(1 + linear(5.0))))
    for line in (bounds.ergodic, bounds.informed, bounds.outage):
        assert line.item() == pytest.approx(expected.item(), rel=1e-6)
    assert bounds.informed_error.item() == 0


def faded_white(exponent: float, snr: float) -> float:
    """E (1 + SNR |h|^2)^(-exponent) for |h|^2 ~ Exp(1): Abramowitz and Stegun 13.2.5."""
    return float(hyperu(1, 2 - exponent, 1 / snr)) / snr


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 20.0])
@pytest.mark.parametrize("uses", [32, 128, 256])
def test_slow_fading_of_a_white_source(snr_db: float, uses: int) -> None:
    bounds = bounds_of(WHITE, uses=uses, snr_db=snr_db, rayleigh=True)
    expected = faded_white(2 * uses / NUMBERS, linear(snr_db))
    assert bounds.informed.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("blocks", [2, 8])
def test_independent_blocks_of_a_white_source(blocks: int) -> None:
    """The mean of a product of J independent factors, (E (1 + SNR |h|^2)^(-2K / (N J)))^J.

    Within 5 standard errors, false alarm 6e-7 each; the standard error is below 0.02 dB.
    """
    bounds = bounds_of(WHITE, uses=128, snr_db=10.0, rayleigh=True, blocks=blocks)
    expected = faded_white(1 / blocks, linear(10.0)) ** blocks
    error = bounds.informed_error.item()
    assert bounds.informed.item() == pytest.approx(expected, abs=5 * error)
    assert 0 < error < 0.005 * expected


def test_standard_error_of_drawn_gains() -> None:
    """Closed form as well: a product of independent factors has the second moment of the doubled exponent.

    5 % is 5 standard deviations and more of a standard error over 2^14 fades.
    """
    fades = GAINS // 8
    told = bounds_of(WHITE, uses=128, snr_db=10.0, rayleigh=True, blocks=8).informed_error.item()
    mean, square = (faded_white(exponent, linear(10.0)) ** 8 for exponent in (1 / 8, 2 / 8))
    assert told == pytest.approx(math.sqrt((square - mean**2) / fades), rel=0.05)


def test_correlation_leads_from_independent_blocks_to_one() -> None:
    """The more alike the blocks, the worse the worst case; full correlation is J = 1 exactly."""
    one, *rest = (
        bounds_of(
            SLOPING, uses=64, snr_db=10.0, rayleigh=True, blocks=blocks, correlation=rho
        ).informed.item()
        for blocks, rho in ((1, 0.0), (8, 1.0), (8, 0.9), (8, 0.5), (8, 0.0))
    )
    assert rest[0] == one
    assert rest == sorted(rest, reverse=True)


def test_fast_fading_comes_near_the_ergodic_bound() -> None:
    bounds = bounds_of(SLOPING, uses=256, snr_db=10.0, rayleigh=True, blocks=256)
    gap_db = linear_to_db(bounds.informed / bounds.ergodic).item()
    assert 0 < gap_db < 0.05


def test_outage_of_a_white_source_over_slow_fading() -> None:
    """min over g of (1 - exp(-g)) + exp(-g) (1 + SNR g)^(-2K/N): the rate is what a gain of g carries."""
    snr = linear(10.0)

    def distortion(log_energy: float) -> float:
        energy = math.exp(log_energy)
        return 1 - math.exp(-energy) * (1 - (1 + snr * energy) ** -1)

    best = minimize_scalar(distortion, bounds=(-10, 2), method="bounded", options={"xatol": 1e-10}).fun
    measured = bounds_of(WHITE, uses=128, snr_db=10.0, rayleigh=True).outage.item()
    assert measured == pytest.approx(best, rel=1e-3)


@pytest.mark.parametrize(("blocks", "correlation"), [(1, 0.0), (4, 0.0), (4, 0.9)])
def test_lines_keep_their_order_and_fall_with_snr(blocks: int, correlation: float) -> None:
    bounds = bounds_of(
        SLOPING,
        uses=64,
        snr_db=torch.tensor([-5.0, 0.0, 3.7, 10.0, 20.0]),
        rayleigh=True,
        blocks=blocks,
        correlation=correlation,
    )
    assert bool((bounds.ergodic < bounds.informed).all())
    assert bool((bounds.informed < bounds.outage).all())
    for line in (bounds.ergodic, bounds.informed, bounds.outage):
        assert bool((line.diff() < 0).all())
        assert bool((line < SLOPING.mean()).all())


def test_more_uses_lower_every_line() -> None:
    bounds = bounds_of(SLOPING, uses=torch.tensor([64, 128, 192, 512]), snr_db=3.7, rayleigh=True, blocks=4)
    for line in (bounds.ergodic, bounds.informed, bounds.outage):
        assert bool((line.diff() < 0).all())


def test_pilots_are_paid_for() -> None:
    """8 blocks of 2 pilots in 80 uses leave 64 uses, with the same gains."""
    shared = {"snr_db": 5.0, "rayleigh": True, "blocks": 8}
    paid, short = bounds_of(SLOPING, uses=80, pilots=2, **shared), bounds_of(SLOPING, uses=64, **shared)
    assert (paid.ergodic.item(), paid.informed.item()) == (short.ergodic.item(), short.informed.item())


def test_a_row_does_not_depend_on_its_batch_mates() -> None:
    mixed = Condition.cat(
        [
            Condition(uses=64, snr_db=0.0),
            Condition(uses=99, snr_db=7.0, rayleigh=True, blocks=5, correlation=0.3),
        ]
    )
    together, alone = (bound(SLOPING, c, rng=seeded(3)) for c in (mixed, mixed[1:]))
    assert together.informed[1].item() == alone.informed[0].item()
    assert together.outage[1].item() == alone.outage[0].item()


@pytest.mark.parametrize("rayleigh", [False, True])
def test_uncoded_gaussian_symbols_reach_the_bound(rayleigh: bool) -> None:
    """Goblick 1965: white Gaussian numbers sent as they are, two a use, are optimal over AWGN and slow fading.

    Our channel and equaliser over 2^20 uses; 5 standard errors over 2^14 images, false alarm 6e-7 each. Over
    AWGN that is 0.02 dB: a channel 0.04 dB too good would be below the bound.
    """
    images, uses = 2**14, 64
    rng = seeded(4)
    sent = torch.randn(images, uses, dtype=torch.complex64, generator=rng)
    condition = Condition(uses=uses, snr_db=5.0, rayleigh=rayleigh).expand(images)
    arrived = mmse_equalise(BlockFading()(sent, condition, rng=rng)).symbols
    error = (arrived - sent).abs().square().mean(dim=1).double()
    least = bound(torch.full((2 * uses,), 1.0), condition[:1], rng=rng).informed.item()
    assert error.mean().item() == pytest.approx(least, abs=5 * error.std().item() / math.sqrt(images))


def test_uncoded_symbols_stay_above_the_bound_over_several_blocks() -> None:
    """Uncoded, each number meets one gain: E 1 / (1 + SNR |h|^2); a code over 8 blocks could gain 1 dB and more."""
    bounds = bounds_of(WHITE, uses=128, snr_db=10.0, rayleigh=True, blocks=8)
    assert linear_to_db(torch.tensor(faded_white(1, linear(10.0))) / bounds.informed).item() > 1


def latents_of(covariance: torch.Tensor, count: int, rng: torch.Generator) -> torch.Tensor:
    root = torch.linalg.cholesky(covariance)
    return (torch.randn(count, len(root), dtype=torch.float64, generator=rng) @ root.T + 3).unflatten(
        1, (2, 4, 4)
    )


def correlated_covariance() -> torch.Tensor:
    """32 numbers in random directions, variances from 10 to 0.07."""
    turn, _ = torch.linalg.qr(torch.randn(32, 32, dtype=torch.float64, generator=seeded(5)))
    return turn @ torch.diag(10 * torch.linspace(0, -5, 32, dtype=torch.float64).exp()) @ turn.T


def test_spectrum_of_many_latents() -> None:
    """Every eigenvalue of 20000 latents within 7 %; its relative standard deviation is 1 %, and repulsion adds."""
    covariance = correlated_covariance()
    measured = measured_spectrum(latents_of(covariance, 20000, seeded(6)))
    truth = torch.linalg.eigvalsh(covariance).flip(0)
    torch.testing.assert_close(measured, truth, rtol=0.07, atol=0)


@pytest.mark.parametrize("count", [24, 64, 1000])
def test_few_latents_bracket_the_bound(count: int) -> None:
    """Measured below, held out above: 60 sets of latents, mean 5 standard errors apart from the wrong side.

    The variances of 24 samples err by 30 % each, which the concave D shows less of than the wrong basis.
    """
    covariance, bits = correlated_covariance(), torch.tensor(40.0)
    truth = reverse_water_filling(torch.linalg.eigvalsh(covariance).clamp(min=0), bits).item()
    rng = seeded(7)
    sets = [latents_of(covariance, 2 * count, rng) for _ in range(60)]
    below = torch.stack([reverse_water_filling(measured_spectrum(some[:count]), bits) for some in sets])
    above = torch.stack(
        [reverse_water_filling(held_out_spectrum(some[:count], some[count:])[0], bits) for some in sets]
    )
    margin = 5 / math.sqrt(len(sets))
    assert below.mean().item() + margin * below.std().item() < truth
    assert above.mean().item() - margin * above.std().item() > truth


def test_fewer_latents_than_numbers_leave_the_rest_without_variance() -> None:
    latents = latents_of(correlated_covariance(), 10, seeded(8))
    measured = measured_spectrum(latents)
    assert measured.shape == (32,)
    assert bool((measured[9:] < 1e-12).all())
    assert measured.sum().item() == pytest.approx(latents.flatten(1).var(dim=0).sum().item(), rel=1e-9)


def test_latent_snr() -> None:
    """The mean latent is 0 dB; a tenth of the variance as error is 10 dB."""
    spectrum = torch.tensor([3.0, 1.0])
    torch.testing.assert_close(
        latent_snr_db(torch.tensor([2.0, 0.2]), spectrum), torch.tensor([0.0, 10.0], dtype=torch.float64)
    )


def test_wrong_input_is_one_clear_line() -> None:
    with pytest.raises(
        InputError, match=r"^a spectrum must be finite variances of at least 0, one .* above 0$"
    ):
        reverse_water_filling(torch.tensor([1.0, -0.1]), torch.tensor(1.0))
    with pytest.raises(InputError, match="one of them above 0"):
        bounds_of(torch.zeros(4), uses=4, snr_db=0.0)
    with pytest.raises(InputError, match=r"^a rate must be a number of bits of at least 0$"):
        reverse_water_filling(torch.ones(2), torch.tensor([1.0, -1.0]))
    with pytest.raises(InputError, match=r"^a spectrum needs at least two latents, got 1$"):
        measured_spectrum(torch.zeros(1, 2, 2, 2))
    with pytest.raises(InputError, match=r"^latents must be finite$"):
        measured_spectrum(torch.full((3, 2, 2, 2), math.nan))
    with pytest.raises(InputError, match=r"^latents must have one shape, got \[2, 2, 2\] and \[2, 2, 1\]$"):
        held_out_spectrum(torch.zeros(3, 2, 2, 2), torch.zeros(3, 2, 2, 1))


@pytest.mark.parametrize("name", ["qpsk", "16qam", "64qam", "256qam", "1024qam"])
def test_a_constellation_carries_capacity_at_low_snr_and_its_bits_at_high(name: str) -> None:
    """Never more than either; Ungerboeck 1982: at 0 dB QPSK carries 0.972 bits."""
    constellation = CONSTELLATIONS[name]
    snr = db_to_linear(torch.linspace(-20, 60, 33, dtype=torch.float64))
    mean, variance = constellation.information(snr)
    assert (mean <= awgn_capacity(snr) + 1e-4).all()
    assert (mean <= constellation.bits + 1e-6).all()
    assert (mean.diff() > -1e-6).all()
    assert mean[0].item() == pytest.approx(awgn_capacity(snr[0]).item(), rel=0.01)
    assert mean[-1].item() == pytest.approx(constellation.bits, rel=1e-3)
    assert variance[-1].item() < 1e-3
    at_0_db = CONSTELLATIONS["qpsk"].information(torch.tensor(1.0))[0].item()
    assert at_0_db == pytest.approx(0.972, abs=0.001)


@pytest.mark.parametrize("channel", [{}, {"rayleigh": True, "blocks": 1}, {"rayleigh": True, "blocks": 4}])
def test_short_blocks_and_points_cost_something(channel: dict[str, object]) -> None:
    """Dispersion by the formula over AWGN; less of it the longer a block is; a finite alphabet is never better."""
    found = {uses: bounds_of(SLOPING, uses=uses, snr_db=15.0, **channel) for uses in (64, 512)}
    loss_db = {
        uses: (linear_to_db(b.dispersed) - linear_to_db(b.informed)).item() for uses, b in found.items()
    }
    assert loss_db[64] > 0
    if not channel:
        rate, snr = 64 * math.log2(1 + linear(15.0)), linear(15.0)
        active = components_sent(SLOPING, torch.tensor(rate)).item()
        variance = (64 * snr * (snr + 2) / (snr + 1) ** 2 + active / 2) / math.log(2) ** 2
        expected = reverse_water_filling(SLOPING, torch.tensor(rate - 1.2815515655 * variance**0.5))
        assert found[64].dispersed.item() == pytest.approx(expected.item(), rel=1e-6)
        assert loss_db[512] / 10 < loss_db[64]
    condition = Condition(uses=256, snr_db=15.0, **channel)  # type: ignore[arg-type]
    free, qam = (
        bound(SLOPING, condition, rng=seeded(0), constellation=c) for c in (None, CONSTELLATIONS["16qam"])
    )
    assert qam.informed > free.informed
    assert qam.ergodic > free.ergodic
