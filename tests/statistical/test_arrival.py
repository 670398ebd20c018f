"""Power and components of what is received follow the laws that a receiver judges them by."""

import pytest
import torch

from dekag.channel.arrival import power_window
from dekag.codec import energy_profile_of, load_codec
from dekag.codec.recognition import evidence
from dekag.types import Condition
from dekag.units import snr_db_to_noise_power
from dekag.world import shipped


def white(count: int, power: float, seed: int = 1) -> torch.Tensor:
    """Complex Gaussian samples of a mean power."""
    rng = torch.Generator().manual_seed(seed)
    return power**0.5 * torch.randn(count, dtype=torch.complex64, generator=rng)


def test_white_noise_has_the_statistics_that_it_is_judged_by() -> None:
    """Excess 0 with deviation 1, unevenness as chi-square, of 4000 drawings: five deviations of their means."""
    condition = Condition(uses=512, snr_db=5.0).expand(4000)
    noise_power = snr_db_to_noise_power(condition.snr_db)
    profile = energy_profile_of(
        load_codec(shipped("emoji/codec")), white(4000 * 512, 2.0).view(4000, 512), condition
    )
    assert profile is not None
    found = evidence(profile, condition, noise_power, torch.ones(4000))
    assert abs(float(found.excess.mean())) < 5 / 4000**0.5
    assert float(found.excess.std()) == pytest.approx(1, abs=5 / 8000**0.5)
    dof = float(found.bands[0])
    # Bartlett: the mean is a little above that of chi-square where bands are small
    assert dof < float(found.unevenness.mean()) < 1.06 * dof + 5 * (2 * dof / 4000) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [None, 1, 4, 64])
def test_power_of_what_is_right_stays_within_its_window(blocks: int | None) -> None:
    """Faded Gaussian symbols in noise, 20,000 images at each of nine conditions, against the window without its margin.

    Each end is passed with a probability of 1e-9, so that one of 1.4 million fails by chance once in 700 times.
    """
    rng = torch.Generator().manual_seed(5)
    for uses in (32, 128, 512):
        for snr in (-5.0, 5.0, 20.0):
            fading = {} if blocks is None else {"rayleigh": True, "blocks": min(blocks, uses)}
            condition = Condition(uses=uses, snr_db=snr, **fading)
            low, high = (float(end) for end in power_window(condition, condition.payload))
            noise = white(20_000 * uses, 10 ** (-snr / 10), 1).view(-1, uses)
            sent = torch.randn(20_000, uses, dtype=torch.complex64, generator=rng)
            sent /= sent.abs().square().mean(1, keepdim=True).sqrt()
            if blocks is not None:
                gain = torch.randn(20_000, condition.blocks[0], dtype=torch.complex64, generator=rng)
                sent = sent * gain.repeat_interleave(uses // int(condition.blocks[0]), 1)
            power = (sent + noise).abs().square().mean(1)
            assert low < float(power.min())
            assert float(power.max()) < high
