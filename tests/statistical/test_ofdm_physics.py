"""OFDM over 3GPP fading against TR 38.901, closed forms of fading and estimation, and Sionna's estimators.

Where a bound is 6 standard errors, the false alarm is 2e-9 for a normal mean.
"""

import math

import numpy as np
import pytest
import torch
from random_draws import seeded
from scipy import integrate, special, stats
from torch import Tensor

from dekag.channel import mmse_equalise
from dekag.channel.ofdm import MODELS, OfdmChannel, pass_through
from dekag.channel.ofdm_grid import PREFIX, Layout, OfdmGrid
from dekag.channel.ofdm_receiver import interpolate, shrink, wiener
from dekag.channel.sionna import seeded_sionna
from dekag.types import Condition
from dekag.units import db_to_linear

NARROW = OfdmGrid(subcarriers=12)
TDL_A = """0 -13.4 .3819 0 .4025 -2.2 .5868 -4 .461 -6 .5375 -8.2 .6708 -9.9 .575 -10.5 .7618 -7.5 1.5375 -15.9
1.8978 -6.6 2.2242 -16.7 2.1718 -12.4 2.4942 -15.2 2.5119 -10.8 3.0582 -11.3 4.081 -12.7 4.4579 -16.2
4.5695 -18.3 4.7966 -18.9 5.0066 -16.6 5.3043 -19.9 9.6586 -29.7"""
"""Normalised delay and power in dB of each tap: TR 38.901, Table 7.7.2-1."""


def qpsk(batch: int, width: int) -> Tensor:
    bits = torch.randint(0, 2, (batch, width, 2), generator=seeded(99)) * 2.0 - 1
    return torch.view_as_complex(bits) / math.sqrt(2)


def faded(channel: OfdmChannel, images: int, symbols: int = 1) -> tuple[Tensor, Tensor]:
    """Responses of the first pair of antennas and their changes, [images, symbols, tones]."""
    with seeded_sionna(seeded(1)) as phy:
        middle, change = channel.fading(phy, symbols, torch.ones(images, dtype=torch.bool))
    return middle[:, 0, 0], change[:, 0, 0]


def gains(channel: OfdmChannel, images: int, snr_db: float) -> Tensor:
    """Effective |h|^2 of the first use of each image, whose channel the receiver knows."""
    condition = Condition(uses=2, snr_db=snr_db, rayleigh=True)
    return channel(qpsk(images, 2), condition, rng=seeded(2)).state.gain[:, 0].abs().square()


def error_power(channel: OfdmChannel, images: int, snr_db: float) -> Tensor:
    """|y - g s|^2 over the stated N0, mean over the uses of each image."""
    condition = channel.condition(uses=128, snr_db=snr_db)
    s = qpsk(images, int(condition.payload))
    received = channel(s, condition, rng=seeded(3))
    state = received.state
    return ((received.symbols - state.gain * s).abs().square() / state.noise_power[:, None]).mean(dim=1)


def off_by(values: Tensor, expected: float) -> float:
    """Standard errors between a mean and its expectation."""
    return abs(values.mean().item() - expected) / (values.std().item() / math.sqrt(len(values)))


@pytest.mark.parametrize("model", MODELS)
def test_mean_power_is_one(model: str) -> None:
    """E|h|^2 = 1 at every antenna pair; 512 images of 2 x 2 antennas, 6 standard errors."""
    channel = OfdmChannel(model=model, rx_antennas=2, tx_antennas=2, grid=NARROW, estimation="perfect")
    with seeded_sionna(seeded(1)) as phy:
        middle, _ = channel.fading(phy, 1, torch.ones(512, dtype=torch.bool))
    power = middle.abs().square().mean(dim=(3, 4))
    for receiver in range(2):
        for sender in range(2):
            assert off_by(power[:, receiver, sender], 1) < 6


def test_delay_profile_is_the_standards() -> None:
    """Covariance over frequency against sum P exp(-2 pi i f tau) of the table; 2048 images, 6 / sqrt(2048)."""
    table = torch.tensor([float(x) for x in TDL_A.split()], dtype=torch.float64).view(-1, 2)
    delay, power = table[:, 0] * 300e-9, db_to_linear(table[:, 1])
    power = power / power.sum()
    mean = (power * delay).sum()
    assert float((power * (delay - mean).square()).sum().sqrt()) == pytest.approx(300e-9, rel=0.01)
    response, _ = faded(OfdmChannel(model="TDL-A", delay_spread_s=300e-9), 2048)
    measured = (response[:, 0] * response[:, 0, :1].conj()).mean(dim=0)
    turn = -2 * math.pi * 30e3 * torch.arange(72)[:, None] * delay
    expected = (power * torch.polar(torch.ones_like(turn), turn)).sum(dim=1)
    assert (measured - expected).abs().max().item() < 6 / math.sqrt(2048)
    # the band is wide enough to tell the profile from others: a flat channel is off by more than 1
    assert (1 - expected).abs().max().item() > 1


@pytest.mark.parametrize("model", ["TDL-A", "TDL-B", "TDL-C", "CDL-C"])
def test_delay_spread_scales(model: str) -> None:
    """|R(f)| = 1 - (2 pi f tau)^2 / 2 near 0 gives the rms delay spread tau.

    The standard error of 1024 x 6 images and tones is at most 0.5 sqrt(2 / 1024) = 2.2 %, 6 of it 13 %.
    """
    for spread in (30e-9, 300e-9):
        response, _ = faded(OfdmChannel(model=model, delay_spread_s=spread, grid=NARROW), 1024)
        low, high = response[:, 0, :-1:2], response[:, 0, 1::2]
        energy = (low.abs().square().sum() * high.abs().square().sum()).sqrt()
        correlation = (high * low.conj()).sum().abs() / energy
        measured = math.sqrt(2 * (1 - float(correlation))) / (2 * math.pi * 30e3)
        assert measured == pytest.approx(spread, rel=0.13)


def test_speed_is_clarkes_spectrum() -> None:
    """Covariance over time is J0(2 pi f_d t); 1024 images, 6 / sqrt(1024). 120 m/s at 3.5 GHz are 1.4 kHz."""
    channel = OfdmChannel(model="TDL-B", speed_m_s=120.0, grid=NARROW)
    response, _ = faded(channel, 1024, symbols=12)
    measured = (response[:, :, 0] * response[:, :1, 0].conj()).mean(dim=0)
    time = np.arange(12) * (1 + PREFIX) / 30e3
    expected = torch.as_tensor(special.j0(2 * math.pi * 120 / 299792458 * 3.5e9 * time))
    assert expected.min() < -0.3
    assert (measured - expected).abs().max().item() < 6 / math.sqrt(1024)


def test_interference_between_subcarriers() -> None:
    """1 - int (1 - |x|) J0(2 pi f_d T x) dx (Russell and Stueber, 1995) at f_d T = 0.05, within 6 errors + 2 %.

    2 % is what the linear path leaves out: terms of (f_d T)^4.
    """
    speed = 0.05 * 30e3 * 299792458 / 3.5e9
    channel = OfdmChannel(delay_spread_s=300e-9, speed_m_s=speed)
    middle, change = faded(channel, 1024)
    sent = qpsk(1024, 72).to(torch.complex128).view(1024, 1, 1, 72)
    leaked = pass_through(sent, 0 * middle[:, None, None], change[:, None, None])
    power = leaked.abs().square().mean(dim=(1, 2, 3))
    useful, _ = integrate.quad(lambda x: 2 * (1 - x) * special.j0(2 * math.pi * 0.05 * x), 0, 1)
    assert off_by(power / (1 - useful), 1) < 6 + 0.02 / (float(power.std()) / (1 - useful) / math.sqrt(1024))
    assert channel.interference == pytest.approx(1 - useful, rel=0.02)


def test_without_fading_it_is_awgn() -> None:
    """Gain 1 and N0 of the condition; 2**16 symbols, 5 sigma = 2 %. More receivers give the array gain."""
    condition = Condition(uses=256, snr_db=10.0)
    s = qpsk(256, 256)
    for receivers, senders in ((1, 1), (2, 2), (4, 1)):
        channel = OfdmChannel(rx_antennas=receivers, tx_antennas=senders)
        received = channel(s, condition, rng=seeded(4))
        gain = torch.full_like(s, math.sqrt(receivers / senders))
        torch.testing.assert_close(received.state.gain, gain)
        noise = (received.symbols - gain * s).abs().square().mean().item()
        assert noise == pytest.approx(0.1, rel=5 / math.sqrt(2**16))


@pytest.mark.parametrize("receivers", [1, 2, 4])
def test_more_receivers_are_maximum_ratio_combining(receivers: int) -> None:
    """sum |h|^2 is Gamma(N, 1): its mean is the array gain N; Kolmogorov-Smirnov, 2048 images, 1e-6."""
    channel = OfdmChannel(rx_antennas=receivers, estimation="perfect", grid=NARROW)
    energy = gains(channel, 2048, -10.0)
    assert stats.kstest(energy.numpy(), stats.gamma(receivers).cdf).pvalue > 1e-6
    assert off_by(energy, receivers) < 6


def test_two_streams_at_high_snr_are_zero_forced() -> None:
    """A stream's SNR over 2 x 2 Rayleigh paths is exponential with mean SNR / 2 (Winters et al. 1994).

    Kolmogorov-Smirnov, 2048 images, 1e-6, at 70 dB.
    """
    channel = OfdmChannel(rx_antennas=2, tx_antennas=2, estimation="perfect", grid=NARROW)
    energy = gains(channel, 2048, 70.0)
    assert stats.kstest(energy.numpy(), stats.expon(scale=0.5).cdf).pvalue > 1e-6


@pytest.mark.parametrize(
    "channel",
    [
        OfdmChannel(estimation="perfect", speed_m_s=200.0),
        OfdmChannel(),
        OfdmChannel(estimation="ls", delay_spread_s=30e-9),
        OfdmChannel(rx_antennas=4),
        OfdmChannel(rx_antennas=2, tx_antennas=2),
        OfdmChannel(model="CDL-B", rx_antennas=2, tx_antennas=2, speed_m_s=20.0),
        OfdmChannel(model="TDL-E", speed_m_s=20.0),
    ],
    ids=lambda c: f"{c.model}-{c.estimation}-{c.rx_antennas}x{c.tx_antennas}",
)
def test_stated_noise_is_the_noise(channel: OfdmChannel) -> None:
    """y - g s has the stated N0, with estimation error and interference in it; 512 images, 6 errors."""
    for snr_db in (0.0, 15.0):
        assert off_by(error_power(channel, 512, snr_db), 1) < 6


def _pilots(heard: Tensor, noise: float) -> Tensor:
    white = torch.randn(heard.shape, dtype=torch.complex128, generator=seeded(5))
    return heard + math.sqrt(noise) * white


def test_least_squares_error_is_closed_form() -> None:
    """N0 over the pilot's energy at a pilot, N0 (a^2 + b^2) between two; a flat channel, 2**14 images.

    |e|^2 is exponential, so 6 standard errors are 6 / 2**7 = 4.7 %.
    """
    grid = OfdmGrid(subcarriers=13, pilot_tones=6)
    tones, pilots = torch.arange(13), torch.tensor([2, 8])
    layout = Layout(
        data_time=torch.zeros(13, dtype=torch.int64),
        data_tone=tones,
        pilot_time=torch.zeros(2, dtype=torch.int64),
        pilot_tone=pilots,
        symbols=1,
    )
    assert torch.equal(grid.layout(11, 1, torch.device("cpu")).pilot_tone, pilots)
    noise = 0.2
    plain = interpolate(layout, torch.ones(1, 2, dtype=torch.bool), torch.tensor([noise]).double())
    gain = torch.randn(2**14, 1, dtype=torch.complex128, generator=seeded(6))
    heard = _pilots(gain.expand(-1, 2), noise)
    share = ((tones - 2) / 6).clamp(0, 1).double()
    expected = noise * (share.square() + (1 - share).square())
    torch.testing.assert_close(plain.error[0], expected, rtol=1e-6, atol=0)
    error = (heard @ plain.weights[0].T - gain).abs().square().mean(dim=0)
    torch.testing.assert_close(error, expected, rtol=6 / 2**7, atol=0)
    # shrunk as E|h|^2 = 1 allows: v / (1 + v), uncorrelated with the estimate
    scaled = shrink(plain)
    estimate = heard @ scaled.weights[0].T
    rest = gain - estimate
    torch.testing.assert_close(
        rest.abs().square().mean(dim=0), expected / (1 + expected), rtol=6 / 2**7, atol=0
    )
    assert (rest * estimate.conj()).mean(dim=0).abs().max().item() < 6 / 2**7


def test_lmmse_has_its_stated_error_and_beats_least_squares() -> None:
    """Over TDL-C, 300 ns, 60 m/s: 1024 images; relative error of an error's mean at most 6 / sqrt(1024)."""
    channel = OfdmChannel(delay_spread_s=300e-9, speed_m_s=60.0)
    layout = channel.grid.layout(600, 1, torch.device("cpu"))
    response, _ = faded(channel, 1024, layout.symbols)
    true = response[:, layout.data_time, layout.data_tone]
    sent = torch.ones(1, len(layout.pilot_time), dtype=torch.bool)
    with seeded_sionna(seeded(0)) as phy:
        known = channel._statistics(phy, layout.symbols, torch.device("cpu"))
    for noise in (1.0, 0.01):
        level = torch.tensor([noise]).double()
        heard = _pilots(response[:, layout.pilot_time, layout.pilot_tone], noise)
        plain, best = interpolate(layout, sent, level), wiener(layout, sent, level, known, 0)
        rough, scaled, fine = (
            (heard @ chosen.weights[0].T - true).abs().square().mean(dim=0)
            for chosen in (plain, shrink(plain), best)
        )
        torch.testing.assert_close(fine, best.error[0], rtol=6 / math.sqrt(1024), atol=0)
        assert bool((fine < rough).all())
        assert float(fine.mean()) < float(scaled.mean())


def test_estimators_agree_with_sionnas() -> None:
    """Equal to Sionna's linear interpolation between pilots, and to its LMMSE on one OFDM symbol."""
    channel = OfdmChannel(grid=OfdmGrid(subcarriers=24))
    layout = channel.grid.layout(20, 1, torch.device("cpu"))
    sent, noise = torch.ones(3, 4, dtype=torch.bool), torch.tensor([0.1, 0.01, 1.0]).double()
    arrived = torch.randn(3, 1, 1, 1, 24, dtype=torch.complex128, generator=seeded(7))
    mask = torch.zeros(1, 1, 1, 24, dtype=torch.bool)
    mask[..., layout.pilot_tone] = True
    exact = {"precision": "double", "device": "cpu"}
    with seeded_sionna(seeded(8)) as phy:
        known = channel._statistics(phy, 1, torch.device("cpu"))
        pattern = phy.ofdm.PilotPattern(
            mask.numpy(), np.ones((1, 1, 4), dtype=np.complex128), normalize=False, **exact
        )
        grid = phy.ofdm.ResourceGrid(
            num_ofdm_symbols=1, fft_size=24, subcarrier_spacing=30e3, pilot_pattern=pattern, **exact
        )
        plain, _ = phy.ofdm.LSChannelEstimator(grid, interpolation_type="lin", **exact)(arrived, noise)
        best, error = phy.ofdm.LMMSEChannelEstimator(grid, known.time, known.tone, **exact)(arrived, noise)
    heard = arrived[:, 0, 0, 0, layout.pilot_tone, None]
    between = (layout.data_tone > 2) & (layout.data_tone < 20)
    ours = (interpolate(layout, sent, noise).weights @ heard)[..., 0]
    torch.testing.assert_close(ours[:, between], plain[:, 0, 0, 0, 0, 0, layout.data_tone][:, between])
    filtered = wiener(layout, sent, noise, known, 0)
    theirs = best[:, 0, 0, 0, 0, 0, layout.data_tone]
    torch.testing.assert_close((filtered.weights @ heard)[..., 0], theirs, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        filtered.error, error[:, 0, 0, 0, 0, 0, layout.data_tone], rtol=1e-4, atol=1e-6
    )


def test_better_estimation_receives_better() -> None:
    """Mean square error of the symbols, same fading and noise: perfect < LMMSE < LS, paired over 256 images."""
    errors = {}
    for estimation in ("perfect", "lmmse", "ls"):
        channel = OfdmChannel(estimation=estimation, delay_spread_s=300e-9)
        condition = OfdmChannel(estimation="lmmse").condition(uses=160, snr_db=5.0)
        s = qpsk(256, int(condition.payload))
        estimate = mmse_equalise(channel(s, condition, rng=seeded(9))).symbols
        errors[estimation] = (estimate - s).abs().square().mean(dim=1)
    assert off_by(errors["lmmse"] - errors["perfect"], 0) > 6
    assert off_by(errors["ls"] - errors["lmmse"], 0) > 6
    assert errors["perfect"].mean() < errors["lmmse"].mean() < errors["ls"].mean()
