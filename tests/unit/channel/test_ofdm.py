"""The OFDM channel keeps the contract of channels, pays for its pilots, and carries the shipped codec."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from random_draws import seeded

import dekag
from dekag.channel.ofdm import OfdmChannel
from dekag.channel.ofdm_grid import OfdmGrid
from dekag.codec import load_codec
from dekag.evaluation.metrics import psnr_db
from dekag.evaluation.transmission import transmit
from dekag.link import deliver
from dekag.types import Channel, Condition, InputError
from dekag.world import shipped

MIMO = OfdmChannel(rx_antennas=2, tx_antennas=2, speed_m_s=10.0)


def sent(batch: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, width, dtype=torch.complex64, generator=seeded(seed))


def test_it_is_a_channel() -> None:
    assert isinstance(MIMO, Channel)


@pytest.mark.parametrize("channel", [MIMO, OfdmChannel(model="CDL-A", rx_antennas=2)])
def test_draws_follow_the_generator_and_leave_global_ones_alone(channel: OfdmChannel) -> None:
    condition = channel.condition(uses=128, snr_db=5.0)
    s = sent(2, int(condition.payload))
    before = torch.random.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    first, again, other = (channel(s, condition, rng=seeded(seed)).symbols for seed in (5, 5, 6))
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.slow
def test_first_import_leaves_the_global_generator_alone() -> None:
    """In a process of its own, where Sionna has not been imported: its import reseeds torch."""
    program = """
import sys, torch
from dekag.channel.ofdm import OfdmChannel
assert "sionna" not in sys.modules
torch.manual_seed(3)
before = torch.random.get_rng_state()
OfdmChannel().condition(uses=128, snr_db=5.0)
assert "sionna" in sys.modules
assert torch.equal(torch.random.get_rng_state(), before)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_image_does_not_see_its_mates() -> None:
    """Neither content nor condition of the second image changes what the first receives."""
    mine = MIMO.condition(uses=128, snr_db=5.0)
    width = 300
    s = sent(2, width)
    others = (
        MIMO.condition(uses=300, snr_db=20.0),
        Condition(uses=60, snr_db=-5.0),
    )
    received = [
        MIMO(torch.stack([s[0], content]), Condition.cat([mine, other]), rng=seeded(7))
        for content, other in zip((s[1], s[1].flip(0)), others, strict=True)
    ]
    torch.testing.assert_close(received[0].symbols[0], received[1].symbols[0])
    torch.testing.assert_close(received[0].state.gain[0], received[1].state.gain[0])
    payload = int(mine.payload)
    assert torch.count_nonzero(received[0].symbols[0]).item() == payload
    assert torch.count_nonzero(received[0].state.gain[0]).item() == payload


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_differentiable_in_the_symbols(dtype: torch.dtype) -> None:
    """dy/ds is the gain where one antenna hears one stream and nothing moves."""
    channel = OfdmChannel()
    condition = channel.condition(uses=64, snr_db=20.0)
    s = sent(2, int(condition.payload)).to(dtype).requires_grad_()
    known = replace(channel, estimation="perfect")
    received = known(s, condition, rng=seeded(8))
    (gradient,) = torch.autograd.grad(received.symbols.real.sum(), s)
    assert received.symbols.dtype == received.state.gain.dtype == dtype
    torch.testing.assert_close(gradient, received.state.gain.conj(), rtol=1e-4, atol=1e-5)


def test_without_noise_the_payload_comes_back() -> None:
    """Two streams over two antennas at 80 dB, LMMSE estimation: each symbol over its own gain."""
    channel = OfdmChannel(rx_antennas=2, tx_antennas=2, delay_spread_s=30e-9)
    condition = channel.condition(uses=301, snr_db=80.0)
    s = sent(8, int(condition.payload))
    received = channel(s, condition, rng=seeded(9))
    torch.testing.assert_close(received.symbols / received.state.gain, s, rtol=0, atol=0.05)


def test_pilots_are_counted_in_elements() -> None:
    """72 tones of which 12 have a pilot in symbols 0 and 7: 60 + 6 x 72 + 60 + 72 = 624 elements in 9 symbols."""
    grid = OfdmGrid()
    elements = torch.tensor([1, 60, 61, 492, 493, 624])
    assert grid.symbols_for(elements, 1).tolist() == [1, 1, 2, 7, 8, 9]
    assert grid.pilots_for(elements, 1).tolist() == [12, 12, 12, 12, 24, 24]
    assert grid.pilots_for(elements, 2).tolist()[:2] == [24, 24]
    assert grid.pilots_for(elements, 0).tolist() == [0] * 6
    layout = grid.layout(624, 1, torch.device("cpu"))
    taken = {*zip(layout.data_time.tolist(), layout.data_tone.tolist(), strict=True)}
    pilots = {*zip(layout.pilot_time.tolist(), layout.pilot_tone.tolist(), strict=True)}
    assert len(taken | pilots) == 9 * 72
    prefix = grid.layout(100, 1, torch.device("cpu"))
    assert torch.equal(prefix.data_tone, layout.data_tone[:100])


@pytest.mark.parametrize("channel", [OfdmChannel(), MIMO, OfdmChannel(estimation="perfect")])
@pytest.mark.parametrize("uses", [100, 256, 511])
def test_a_condition_pays_for_all_pilots(channel: OfdmChannel, uses: int) -> None:
    """At most the uses asked for, and payload and pilots fill whole elements of the grid."""
    condition = channel.condition(uses=uses, snr_db=5.0)
    payload, streams = int(condition.payload), channel.tx_antennas
    assert payload < int(condition.uses) <= uses or channel.estimation == "perfect"
    channel(sent(1, payload), condition, rng=seeded(1))
    if channel.estimation != "perfect":
        elements = torch.tensor([-(-payload // streams)])
        assert int(condition.uses) - payload == streams * int(channel.grid.pilots_for(elements, streams))


def test_more_delay_spread_is_more_diversity() -> None:
    blocks = [
        int(OfdmChannel(delay_spread_s=spread, estimation="perfect").condition(uses=512, snr_db=0.0).blocks)
        for spread in (0.0, 100e-9, 300e-9)
    ]
    assert blocks[0] == 1
    assert blocks == sorted(blocks)
    assert blocks[2] > 1


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"model": "TDL-Z"}, "unknown channel model 'TDL-Z'; known are TDL-A"),
        ({"delay_spread_s": -1e-9}, "delay_spread_s must be a number of seconds of at least 0"),
        ({"delay_spread_s": float("nan")}, "delay_spread_s must be"),
        ({"speed_m_s": -3.0}, "speed_m_s must be"),
        ({"speed_m_s": 500.0}, "Doppler shift is 0.19 subcarrier spacings"),
        ({"tx_antennas": 2}, "each stream needs a receive antenna"),
        ({"rx_antennas": 0, "tx_antennas": 0}, "each stream needs a receive antenna"),
        ({"rx_antennas": 6, "tx_antennas": 6}, "leave no data on a comb"),
    ],
)
def test_impossible_channels_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        OfdmChannel(**wrong)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"subcarriers": 0}, "subcarriers must be a positive number, got 0"),
        ({"spacing_hz": float("inf")}, "spacing_hz must be a positive number"),
        ({"subcarriers": 4}, "4 subcarriers hold no comb of one pilot in 6"),
    ],
)
def test_impossible_grids_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        OfdmGrid(**wrong)


def test_what_cannot_be_sent_is_refused() -> None:
    with pytest.raises(
        InputError, match="244 payload uses need 12 uses of pilots, but the condition pays for 0"
    ):
        OfdmChannel()(sent(1, 244), Condition(uses=244, snr_db=0.0, rayleigh=True), rng=seeded(0))
    with pytest.raises(InputError, match="12 uses do not pay for the pilots"):
        OfdmChannel().condition(uses=12, snr_db=0.0)
    with pytest.raises(InputError, match=r"outlasts the cyclic prefix of 2\.3e-06 s"):
        OfdmChannel(delay_spread_s=3e-6).condition(uses=128, snr_db=0.0)


def test_codec_and_cala_run_unchanged_and_gain() -> None:
    """The shipped codec over TDL-C: CALA lifts the mean PSNR over no KA, and the ledger counts the pilots.

    The gain is more than 3 standard errors over 24 pictures.
    """
    channel = OfdmChannel(delay_spread_s=300e-9, speed_m_s=3.0)
    condition = channel.condition(uses=128, snr_db=5.0)
    system = dekag.load("emoji")
    link = replace(system.link, channel=channel)
    things = ("red apple", "dog", "pizza", "car", "rose", "cat")
    prompts = [
        f"a {thing} on a {colour} background"
        for thing in things
        for colour in ("blue", "white", "red", "green")
    ]
    delivery = deliver(link, prompts, condition, seeds=range(24), rng=seeded(1))
    assert delivery.ledger.pilot_uses == 24 * (int(condition.uses) - int(condition.payload))
    assert delivery.ledger.payload_uses + delivery.ledger.pilot_uses <= 24 * 128
    base = load_codec(shipped("emoji/codec"))
    arrived = transmit(base, channel, delivery.latent_sent, condition, rng=seeded(1))
    gain = psnr_db(delivery.drawn, delivery.image) - psnr_db(
        delivery.drawn, link.generator.decode(arrived).detach()
    )
    assert gain.mean() > 3 * gain.std() / 24**0.5
