"""A wrong estimate of the SNR: the physics of it, and how gently the shipped update bears it."""

import pytest
import torch

from dekag.alignment.transmission.bundles import apply_transmission
from dekag.channel import BlockFading
from dekag.channel.misjudged import MisjudgedSnr
from dekag.evaluation.metrics import psnr_db
from dekag.evaluation.transmission import transmit
from dekag.types import Condition
from dekag.world import load_world


def test_the_true_noise_is_that_of_the_lower_snr() -> None:
    """2^18 uses of silence at 10 dB, overrated by 3: mean noise power 10^(-7/10) within 5 standard errors, which
    are 1 / sqrt(2^18) of it (false alarm 6e-7), and the receiver's is 10^(-10/10)."""
    condition = Condition(uses=2**18, snr_db=10.0)
    symbols = torch.zeros(1, 2**18, dtype=torch.complex64)
    rng = torch.Generator().manual_seed(0)
    received = MisjudgedSnr(overrated_db=3)(symbols, condition, rng=rng)
    power = received.symbols.abs().square().mean().item()
    assert power == pytest.approx(10**-0.7, rel=5 / 2**9)
    assert received.state.noise_power.item() == pytest.approx(0.1, rel=1e-5)


def test_no_error_is_the_channel_itself() -> None:
    condition = Condition(uses=16, snr_db=3.0, rayleigh=True, blocks=4).expand(2)
    symbols = torch.ones(2, 16, dtype=torch.complex64)
    one = MisjudgedSnr(overrated_db=0)(symbols, condition, rng=torch.Generator().manual_seed(1))
    other = BlockFading()(symbols, condition, rng=torch.Generator().manual_seed(1))
    assert torch.equal(one.symbols, other.symbols)
    assert torch.equal(one.state.noise_power, other.state.noise_power)


@pytest.mark.slow
@torch.no_grad()
def test_three_decibels_of_error_cost_little() -> None:
    """24 held-out pictures at a true SNR of 0, 5, 10 and 15 dB, 128 and 256 uses, AWGN and 8 blocks: with both ends
    3 dB too low or too high the mean PSNR falls by less than 1 dB, and by less than 2 dB in any cell."""
    chosen = load_world("emoji")
    edge, _ = chosen.aligned_edge()
    prompts = chosen.prompts("compositions")[:24]
    latents = edge(prompts, seeds=list(range(24)))
    codec, _ = apply_transmission(chosen.codec(), chosen.update("transmission"))
    reference, losses = edge.decode(latents), []
    for uses in (128, 256):
        for snr_db in (0.0, 5.0, 10.0, 15.0):
            for rayleigh, blocks in ((False, 1), (True, 8)):
                psnr = {}
                for error in (-3, 0, 3):
                    believed = Condition(uses=uses, snr_db=snr_db + error, rayleigh=rayleigh, blocks=blocks)
                    rng = torch.Generator().manual_seed(5)
                    arrived = transmit(codec, MisjudgedSnr(overrated_db=error), latents, believed, rng=rng)
                    psnr[error] = psnr_db(reference, edge.decode(arrived)).mean().item()
                losses += [psnr[0] - psnr[-3], psnr[0] - psnr[3]]
    assert sum(losses) / len(losses) < 1.0
    assert max(losses) < 2.0
