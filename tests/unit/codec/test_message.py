"""The scale of an image as the phase of one component."""

import math

import pytest
import torch

from dekag.codec import message

MEAN, DEVIATION = torch.tensor(-0.1), torch.tensor(0.4)


def component(t: torch.Tensor) -> torch.Tensor:
    angle = message.phase(t, MEAN, DEVIATION)
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def test_without_noise_it_comes_back() -> None:
    t = torch.linspace(-1.6, 1.4, 50)
    found = message.log_energy(component(t), torch.full((50,), 1e9), MEAN, DEVIATION)
    torch.testing.assert_close(found, t, rtol=1e-5, atol=1e-5)


def test_what_lies_beyond_is_at_the_end_and_never_wraps_around() -> None:
    t = torch.tensor([-50.0, 50.0])
    found = message.log_energy(component(t), torch.full((2,), 1e9), MEAN, DEVIATION)
    torch.testing.assert_close(found, MEAN + torch.tensor([-1.0, 1.0]) * message.SPAN * DEVIATION)


def test_without_any_signal_it_is_the_mean() -> None:
    found = message.log_energy(torch.randn(5, 2), torch.zeros(5), MEAN, DEVIATION)
    torch.testing.assert_close(found, MEAN.expand(5), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("snr", [30.0, 300.0])
def test_its_error_is_what_the_formula_says(snr: float) -> None:
    """Of Gaussian log energies: 1 / (1 / deviation^2 + 2 SNR / step^2) for small noise.

    20,000 draws: the variance is known to 1 % (one standard error), and 15 dB is not quite small noise.
    """
    rng = torch.Generator().manual_seed(0)
    t = MEAN + DEVIATION * torch.randn(20000, generator=rng)
    noisy = component(t) + torch.randn(20000, 2, generator=rng) * (0.5 / snr) ** 0.5
    found = message.log_energy(noisy, torch.full((20000,), snr), MEAN, DEVIATION)
    step = message.SPAN * DEVIATION.item() / (0.9 * math.pi)
    expected = 1 / (1 / DEVIATION.item() ** 2 + 2 * snr / step**2)
    assert (found - t).square().mean().item() == pytest.approx(expected, rel=0.06)


def test_the_share_is_the_best_one() -> None:
    """Neither half nor twice the share leaves less error."""
    captured, slope, snr = torch.tensor([0.8]), torch.tensor([0.2]), torch.tensor([500.0])
    best = message.share(captured, slope, snr, DEVIATION)
    step = message.SPAN * DEVIATION / (0.9 * math.pi)

    def error(rho: torch.Tensor) -> float:
        return (captured * step.square() / (8 * rho * snr) + slope * rho).item()

    assert error(best) < min(error(best / 2), error(2 * best))
