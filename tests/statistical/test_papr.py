"""Peak-to-average power ratios against closed forms, and what clipping does to complex Gaussian samples."""

import math
from itertools import pairwise

import pytest
import torch
from scipy.special import erfc

from dekag.codec.constellation import CONSTELLATIONS
from dekag.codec.papr import (
    OFDM,
    SINGLE_CARRIER,
    Waveform,
    ccdf,
    clip,
    clip_waveform,
    gaussian_ccdf,
    ofdm_symbols,
    ofdm_waveform,
    papr,
    papr_report,
)
from dekag.types import InputError
from dekag.units import db_to_linear


def complex_normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def whole(symbols: torch.Tensor) -> torch.Tensor:
    """A payload of every column."""
    return torch.full((len(symbols),), symbols.shape[1])


@pytest.mark.parametrize(
    ("name", "ratio"), [("qpsk", 1.0), ("16qam", 9 / 5), ("64qam", 21 / 9), ("256qam", 45 / 17)]
)
def test_square_constellations(name: str, ratio: float) -> None:
    """Each of M points once: 3 (sqrt(M) - 1) / (sqrt(M) + 1)."""
    points = CONSTELLATIONS[name].points[None]
    assert papr(points, whole(points)).item() == pytest.approx(ratio, rel=1e-5)


def test_each_row_has_its_own_payload_and_scale() -> None:
    """Powers 1, 4, 1 of mean 2, then 1, 1 of a row of which only two are sent; 3 times as loud is no other ratio."""
    symbols = torch.tensor([[1, 2j, -1], [1, 1j, 50]], dtype=torch.complex64)
    ratios = papr(symbols, torch.tensor([3, 2]))
    torch.testing.assert_close(ratios, torch.tensor([2.0, 1.0]))
    torch.testing.assert_close(papr(3 * symbols, torch.tensor([3, 2])), ratios)


@pytest.mark.parametrize("oversampling", [1, 4])
def test_ofdm_of_one_carrier_and_of_all_in_phase(oversampling: int) -> None:
    """One carrier has constant power; 16 in phase add up to 16 times the mean power at n = 0."""
    symbols = torch.zeros(2, 16, dtype=torch.complex64)
    symbols[0, 5] = 1j
    symbols[1] = 1
    waveform = ofdm_waveform(symbols, oversampling=oversampling)
    ratios = papr(waveform, whole(waveform))
    torch.testing.assert_close(ratios, torch.tensor([1.0, 16.0]))


def test_ofdm_is_the_sum_of_its_carriers() -> None:
    """Against x(t) = sum_k s_k exp(i 2 pi (k - 6) t) / sqrt(12), summed one carrier after another."""
    symbols = complex_normal(3, 12).to(torch.complex128)
    time = torch.arange(36, dtype=torch.float64) / 36
    carrier = torch.arange(12, dtype=torch.float64) - 6
    tones = torch.exp(2j * math.pi * carrier[:, None] * time)
    torch.testing.assert_close(ofdm_waveform(symbols, oversampling=3), symbols @ tones / math.sqrt(12))


def test_ofdm_keeps_the_power_and_oversampling_finds_the_peaks() -> None:
    """Parseval, per row; the samples of a rate are among those of twice the rate, so peaks can only grow.

    Wunder and Boche 2003: at 4 samples a symbol no peak is more than 1 / cos(pi / 8)^2 above the samples.
    """
    symbols = complex_normal(200, 64)
    power = symbols.abs().square().mean(dim=1)
    ratios = []
    for oversampling in (1, 2, 4, 8):
        waveform = ofdm_waveform(symbols, oversampling=oversampling)
        torch.testing.assert_close(waveform.abs().square().mean(dim=1), power, rtol=1e-4, atol=0)
        ratios.append(papr(waveform, whole(waveform)))
    for coarse, fine in pairwise(ratios):
        assert bool((fine >= coarse * (1 - 1e-5)).all())
    assert (ratios[1] / ratios[0]).mean().item() > 1.05
    assert (ratios[3] / ratios[2]).max().item() < math.cos(math.pi / 8) ** -2
    assert (ratios[3] / ratios[2]).mean().item() < 1.02


BLOCKS = 20000


def five_sigma(share: torch.Tensor) -> torch.Tensor:
    """Of a share of the blocks; false alarm below 6e-7."""
    return 5 * (share * (1 - share) / BLOCKS).sqrt()


def test_papr_of_complex_gaussian_blocks() -> None:
    """Exact, with the mean power of the block itself: the largest of 16 shares of a whole (Fisher 1929).

    P(PAPR > g) = sum over k from 1 of (-1)^(k + 1) C(16, k) (1 - k g / 16)^15, as long as k g < 16.
    """
    blocks = complex_normal(BLOCKS, 16)
    levels = torch.tensor([4.0, 5.0, 6.0, 7.0, 8.0])
    expected = torch.tensor(
        [
            sum((-1) ** (k + 1) * math.comb(16, k) * max(0.0, 1 - k * level / 16) ** 15 for k in range(1, 17))
            for level in db_to_linear(levels.double()).tolist()
        ]
    )
    measured = ccdf(papr(blocks, whole(blocks)), levels)
    assert bool(((measured - expected).abs() < five_sigma(expected)).all())


def test_peaks_of_complex_gaussian_samples_of_known_power() -> None:
    """1 - (1 - exp(-level))^64 over the nominal mean power 1."""
    peaks = complex_normal(BLOCKS, 64, seed=1).abs().square().amax(dim=1)
    levels = torch.tensor([5.0, 6.0, 7.0, 8.0, 9.0])
    expected = gaussian_ccdf(levels, 64)
    assert bool(((ccdf(peaks, levels) - expected).abs() < five_sigma(expected)).all())
    torch.testing.assert_close(expected[0].item(), 1 - (1 - math.exp(-(10**0.5))) ** 64)


def test_peaks_of_the_ofdm_waveform() -> None:
    """Ochiai and Imai 2001: 1 - exp(-64 sqrt(pi level / 3) exp(-level)) between the samples, to 0.2 dB.

    Carriers of 16-QAM over their nominal power; samples at symbol rate see less than half of it at 9 dB.
    """
    points = CONSTELLATIONS["16qam"].points
    symbols = points[torch.randint(16, (BLOCKS, 64), generator=torch.Generator().manual_seed(2))]
    levels = torch.tensor([7.0, 8.0, 9.0])

    def expected(levels: torch.Tensor) -> torch.Tensor:
        level = db_to_linear(levels)
        return -torch.expm1(-64 * (math.pi / 3 * level).sqrt() * torch.exp(-level))

    fine, coarse = (
        ccdf(ofdm_waveform(symbols, oversampling=rate).abs().square().amax(dim=1), levels) for rate in (4, 1)
    )
    assert bool((fine < expected(levels - 0.2)).all())
    assert bool((fine > expected(levels + 0.2)).all())
    assert coarse[2].item() < 0.5 * expected(levels)[2].item()


@pytest.mark.parametrize("ratio_db", [0.0, 3.0, 6.0])
def test_clipped_gaussian_samples(ratio_db: float) -> None:
    """Ochiai and Imai 2002: a soft limiter at g^2 leaves the power 1 - exp(-g^2), of which the part in line with
    the input is that of the gain 1 - exp(-g^2) + sqrt(pi) g erfc(g) / 2. 2^20 samples, 5 sigma below 0.005.
    """
    samples = complex_normal(1, 2**20, seed=3)
    clipped = clip(samples, whole(samples), ratio_db=ratio_db)
    level = db_to_linear(torch.tensor(ratio_db)).item()
    left, gain = (
        1 - math.exp(-level),
        1 - math.exp(-level) + math.sqrt(math.pi * level) / 2 * erfc(math.sqrt(level)),
    )
    assert clipped.abs().square().mean().item() == pytest.approx(1, abs=1e-4)
    assert papr(clipped, whole(clipped)).item() == pytest.approx(level / left, rel=0.005)
    alike = (clipped * samples.conj()).mean()
    assert alike.real.item() == pytest.approx(gain / math.sqrt(left), abs=0.005)
    assert alike.imag.item() == pytest.approx(0, abs=1e-4)


def test_clipping_keeps_phases_power_and_what_lies_below() -> None:
    """Powers 1, 1, 1, 9 of mean 3 at 0 dB: the peak falls to 3, so mean power 1.5 and ratios of 1 to 3 are left."""
    symbols = torch.tensor([[1, 1j, -1, -3j, 0], [0, 0, 0, 0, 0]], dtype=torch.complex64)
    payload = torch.tensor([4, 5])
    clipped = clip(symbols, payload, ratio_db=0.0)
    small, large = math.sqrt(1 / 1.5), math.sqrt(3 / 1.5)
    by_hand = torch.tensor([[small, small * 1j, -small, -large * 1j, 0], [0] * 5], dtype=torch.complex64)
    torch.testing.assert_close(clipped, by_hand)
    peaks_kept = clip(symbols, payload, ratio_db=20.0)
    torch.testing.assert_close(peaks_kept, symbols / math.sqrt(3))


def test_clipping_has_finite_gradients() -> None:
    symbols = complex_normal(3, 8)
    symbols[1] = 0
    symbols.requires_grad_()
    clip(symbols, whole(symbols), ratio_db=1.0).real.sum().backward()
    assert symbols.grad is not None
    assert bool(symbols.grad.isfinite().all())


def test_wrong_input_is_one_clear_line() -> None:
    symbols = complex_normal(2, 8)
    for ratio_db in (-0.1, math.inf, math.nan):
        with pytest.raises(
            InputError, match=rf"^a clipping ratio must be at least 0 dB and finite, got {ratio_db}$"
        ):
            clip(symbols, whole(symbols), ratio_db=ratio_db)
    with pytest.raises(InputError, match=r"^oversampling must be at least 1, got 0$"):
        ofdm_waveform(symbols, oversampling=0)
    with pytest.raises(InputError, match=r"^a payload must be between 1 and the 8 symbols, got 9$"):
        papr(symbols, torch.tensor([8, 9]))


@pytest.mark.parametrize("carriers", [1, 11, 12])
@pytest.mark.parametrize("oversampling", [1, 3, 4])
def test_symbols_come_back_from_the_waveform(carriers: int, oversampling: int) -> None:
    symbols = complex_normal(3, carriers).to(torch.complex128)
    waveform = ofdm_waveform(symbols, oversampling=oversampling)
    torch.testing.assert_close(ofdm_symbols(waveform, oversampling=oversampling), symbols)


def test_noise_of_samples_and_of_symbols() -> None:
    """White noise of power 1 a sample is 1 / 4 a symbol at four samples each; 2^16 symbols, 5 sigma = 0.005."""
    noise = complex_normal(2**10, 4 * 64)
    assert ofdm_symbols(noise, oversampling=4).abs().square().mean().item() == pytest.approx(0.25, abs=0.005)


@pytest.mark.parametrize("waveform", [SINGLE_CARRIER, OFDM, Waveform(subcarriers=5, oversampling=2)])
@pytest.mark.parametrize("payload", [1, 71, 72, 73, 300])
def test_a_payload_comes_back_from_its_blocks(waveform: Waveform, payload: int) -> None:
    symbols = complex_normal(1, payload)[0].to(torch.complex128)
    blocks = waveform.modulate(symbols)
    assert blocks.numel() == int(waveform.samples(torch.tensor([payload])))
    torch.testing.assert_close(waveform.demodulate(blocks, payload), symbols)


def test_report_of_complex_gaussian_samples() -> None:
    """Blocks and samples both follow what stands beside them, within 5 sigma; 4096 images of 256 samples."""
    report = papr_report(complex_normal(BLOCKS, 256), torch.full((BLOCKS,), 256), SINGLE_CARRIER)
    assert (report.blocks, report.samples) == (BLOCKS, 256 * BLOCKS)
    for share, gaussian in report.peaks.values():
        # the mean power of an image is measured, not known: a relative error of 1 / sqrt(256) at most blurs the level
        assert share == pytest.approx(gaussian, abs=0.03)
    for share, (level_db, gaussian_db) in report.power_db.items():
        assert gaussian_db == pytest.approx(10 * math.log10(-math.log(share)))
        # the level moves by the relative error of the share over ln(1 / share), times 10 / ln(10) dB
        room = 5 * 4.35 / math.sqrt(share * report.samples) / -math.log(share) + 0.02
        assert level_db == pytest.approx(gaussian_db, abs=room)


def test_report_of_ofdm_comes_near_gaussian_samples() -> None:
    """2.8 independent samples a subcarrier: within 0.25 dB of level at every share, on 256-QAM and 72 carriers."""
    points = CONSTELLATIONS["256qam"].points
    symbols = points[torch.randint(256, (50, 72 * 50), generator=torch.Generator().manual_seed(3))]
    report = papr_report(symbols, whole(symbols), OFDM)
    assert report.blocks == 2500
    levels = torch.tensor(list(report.peaks))
    for moved, sign in ((-0.35, 1), (0.35, -1)):
        bound = gaussian_ccdf(levels + moved, round(2.8 * 72))
        room = 5 * (bound * (1 - bound) / report.blocks).sqrt()
        measured = torch.tensor([share for share, _ in report.peaks.values()])
        assert bool((sign * (bound - measured) + room >= 0).all())


def test_few_samples_tell_nothing_of_rare_peaks() -> None:
    report = papr_report(complex_normal(1, 500), torch.tensor([500]), SINGLE_CARRIER)
    assert [level is None for level, _ in report.power_db.values()] == [False, True, True, True]


def test_clipped_and_filtered_ofdm() -> None:
    """Peaks fall below those of the same symbols, power 1 per image is kept, and so is silence beyond a payload."""
    symbols = complex_normal(6, 720)
    payload = torch.tensor([720, 720, 360, 100, 72, 720])
    clipped = clip_waveform(symbols, payload, OFDM, ratio_db=4.0)
    before, after = (papr_report(s, payload, OFDM) for s in (symbols, clipped))
    assert 4 < after.highest_db < 7.5 < before.highest_db
    for row, length in enumerate(payload.tolist()):
        assert clipped[row, :length].abs().square().mean().item() == pytest.approx(1, abs=1e-5)
        assert torch.count_nonzero(clipped[row, length:]) == 0
        alone = clip_waveform(symbols[row : row + 1], payload[row : row + 1], OFDM, ratio_db=4.0)
        assert torch.equal(alone[0], clipped[row])
    plain = clip_waveform(symbols, payload, SINGLE_CARRIER, ratio_db=4.0)
    assert torch.equal(plain, clip(symbols, payload, ratio_db=4.0))


def test_waveforms_that_cannot_be() -> None:
    with pytest.raises(InputError, match="0 to 4096 subcarriers and 1 to 16 samples for each, got -1 and 1"):
        Waveform(subcarriers=-1)
    with pytest.raises(InputError, match="1 to 16 samples for each, got 8 and 0"):
        Waveform(subcarriers=8, oversampling=0)
    with pytest.raises(InputError, match="only OFDM is oversampled"):
        Waveform(oversampling=2)
    with pytest.raises(InputError, match="10 samples are no whole number of symbols at oversampling 4"):
        ofdm_symbols(torch.zeros(1, 10, dtype=torch.complex64), oversampling=4)
