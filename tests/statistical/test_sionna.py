"""Agreement with Sionna: two independent implementations of one physics, and the traps of the wrapper."""

import math
from typing import Any

import pytest
import torch
from random_draws import seeded
from scipy import stats

from dekag.channel import BlockFading
from dekag.channel.sionna import SionnaFlatFading, seeded_sionna
from dekag.codec.constellation import CONSTELLATIONS, Constellation
from dekag.types import Channel, Condition, InputError

BOTH: tuple[Channel, Channel] = (BlockFading(), SionnaFlatFading())


@pytest.mark.parametrize("snr_db", [0.0, 12.0])
def test_noise_power_agrees(snr_db: float) -> None:
    """Ratio of the two realised noise powers over 2**20 symbols each; 5 sigma = 0.69 %, false alarm 6e-7."""
    condition = Condition(uses=2**20, snr_db=snr_db)
    silence = torch.zeros(1, 2**20) + 0j
    ours, theirs = (
        channel(silence, condition, rng=seeded(1)).symbols.abs().square().mean() for channel in BOTH
    )
    assert (ours / theirs).item() == pytest.approx(1, abs=5 * math.sqrt(2 / 2**20))


def test_gain_distribution_agrees() -> None:
    """Two-sample Kolmogorov-Smirnov on |h|^2 and arg h of 2**16 slow-fading images; false alarm 2 x 1e-6."""
    condition = Condition(uses=1, snr_db=0.0, rayleigh=True)
    s = torch.ones(2**16, 1) + 0j
    ours, theirs = (channel(s, condition, rng=seeded(2)).state.gain[:, 0] for channel in BOTH)
    assert stats.ks_2samp(ours.abs().square().numpy(), theirs.abs().square().numpy()).pvalue > 1e-6
    assert stats.ks_2samp(ours.angle().numpy(), theirs.angle().numpy()).pvalue > 1e-6


def test_received_energy_and_block_structure_agree() -> None:
    """E[y_k' conj(y_k)] = [same block] + N0 [same use], 4 blocks of 2 uses, 2**16 images.

    Each entry of either estimate has a total variance (1 + N0)^2 / images; of the difference 6 sigma = 0.066.
    """
    condition = Condition(uses=8, snr_db=0.0, rayleigh=True, blocks=4)
    s = torch.ones(2**16, 8) + 0j
    received = [channel(s, condition, rng=seeded(3)).symbols for channel in BOTH]
    ours, theirs = (y.T @ y.conj() / len(y) for y in received)
    block = torch.arange(8) // 2
    expected = (block[:, None] == block[None, :]).float() + torch.eye(8)
    bound = 6 * 2 / math.sqrt(2**16)
    assert (ours - theirs).abs().max().item() < math.sqrt(2) * bound
    assert (theirs - expected).abs().max().item() < bound


def test_a_mixed_batch_keeps_the_contract() -> None:
    condition = Condition(
        uses=torch.tensor([8, 6]),
        snr_db=300.0,
        rayleigh=torch.tensor([False, True]),
        blocks=torch.tensor([1, 2]),
    )
    s = torch.ones(2, 8) + 0j
    received = SionnaFlatFading()(s, condition, rng=seeded(4))
    assert torch.count_nonzero(received.symbols, dim=1).tolist() == [8, 6]
    torch.testing.assert_close(received.symbols, received.state.gain * s)
    assert torch.equal(received.state.gain[0], s[0])
    assert len(torch.unique(received.state.gain[1, :6].abs())) == 2


def test_draws_follow_the_generator_and_leave_the_global_one_alone() -> None:
    """Sionna reseeds torch when imported and when seeded; a caller must not notice."""
    s, condition = torch.ones(2, 8) + 0j, Condition(uses=8, snr_db=0.0, rayleigh=True)
    before = torch.random.get_rng_state()
    first, again, other = (SionnaFlatFading()(s, condition, rng=seeded(seed)).symbols for seed in (5, 5, 6))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_differentiable_in_the_symbols(dtype: torch.dtype) -> None:
    """dy/ds is the gain."""
    s = torch.ones(2, 8, dtype=dtype, requires_grad=True)
    received = SionnaFlatFading()(s, Condition(uses=8, snr_db=0.0, rayleigh=True), rng=seeded(7))
    (gradient,) = torch.autograd.grad(received.symbols.real.sum(), s)
    assert received.symbols.dtype == dtype
    torch.testing.assert_close(gradient, received.state.gain.conj().to(dtype))


@pytest.mark.parametrize("wrong", [{"blocks": 2, "correlation": 0.5}, {"pilots": 1}])
def test_what_these_models_lack_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="independent blocks and known gains"):
        SionnaFlatFading()(
            torch.ones(1, 8) + 0j, Condition(uses=8, snr_db=0.0, rayleigh=True, **wrong), rng=seeded(8)
        )


@pytest.mark.parametrize(
    "constellation", [c for c in CONSTELLATIONS.values() if c.bits], ids=lambda c: c.name
)
def test_points_are_those_of_sionna(constellation: Constellation) -> None:
    """The same set of points; labels may be another Gray code."""
    with seeded_sionna(seeded(9)) as phy:
        theirs = torch.as_tensor(phy.mapping.qam(constellation.bits), dtype=torch.complex64)
    distance = (constellation.points[:, None] - theirs[None, :]).abs()
    assert distance.min(dim=0).values.max().item() < 1e-5
    assert distance.min(dim=1).values.max().item() < 1e-5
