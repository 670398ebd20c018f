"""Unit conversions against their definitions and their inverses."""

from collections.abc import Callable

import pytest
import torch

from dekag import units

Conversion = Callable[[torch.Tensor], torch.Tensor]


@pytest.mark.parametrize(
    ("ratio_db", "ratio"), [(0.0, 1.0), (10.0, 10.0), (-20.0, 0.01), (3.0, 1.9952623), (-3.0, 0.5011872)]
)
def test_decibels_of_known_ratios(ratio_db: float, ratio: float) -> None:
    assert units.db_to_linear(torch.tensor(ratio_db)).item() == pytest.approx(ratio, rel=1e-6)
    assert units.linear_to_db(torch.tensor(ratio)).item() == pytest.approx(ratio_db, abs=1e-5)


def test_noise_power_is_the_inverse_snr() -> None:
    """N0 = 10^(-SNR/10) at unit symbol energy: 10 dB is 0.1, not the 0.05 of one real dimension."""
    snr_db = torch.tensor([-10.0, 0.0, 10.0, 20.0])
    torch.testing.assert_close(units.snr_db_to_noise_power(snr_db), torch.tensor([10.0, 1.0, 0.1, 0.01]))


@pytest.mark.parametrize(
    ("forth", "back"),
    [
        (units.db_to_linear, units.linear_to_db),
        (units.snr_db_to_noise_power, units.noise_power_to_snr_db),
    ],
)
def test_round_trips(forth: Conversion, back: Conversion) -> None:
    value = torch.linspace(-60, 60, 25, dtype=torch.float64)
    torch.testing.assert_close(back(forth(value)), value)


@pytest.mark.parametrize(("bits", "gain_db"), [(1, 0.0), (2, 3.0103), (4, 6.0206), (8, 9.0309)])
def test_eb_over_n0_counts_the_bits_of_a_symbol(bits: int, gain_db: float) -> None:
    snr_db = units.ebno_db_to_snr_db(torch.tensor(5.0), bits)
    assert snr_db.item() == pytest.approx(5.0 + gain_db, abs=1e-4)


def test_psnr_of_known_errors() -> None:
    """Peak 1: a mean square error of 0.01 is 20 dB, of (1/255)^2 is 48.13 dB."""
    psnr = units.mse_to_psnr_db(torch.tensor([1.0, 0.01, 1 / 255**2]))
    torch.testing.assert_close(psnr, torch.tensor([0.0, 20.0, 48.1308]))


def test_bandwidth_ratio_counts_complex_uses_per_real_pixel_value() -> None:
    """A CBR of 1/16 on 768x512 is 73728 complex uses: not half, not double."""
    uses = units.cbr_to_uses(torch.tensor(1 / 16), 512, 768)
    assert uses.dtype == torch.int64
    assert uses.item() == 73728
    assert units.uses_to_cbr(uses, 512, 768).item() == pytest.approx(1 / 16)


def test_bandwidth_ratio_round_trip_for_every_number_of_uses() -> None:
    uses = torch.arange(1, 1025)
    torch.testing.assert_close(units.cbr_to_uses(units.uses_to_cbr(uses, 128, 128), 128, 128), uses)
