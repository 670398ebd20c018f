"""Every channel that a user can name is one of the library's, and what does not belong to it is one clear line."""

import subprocess
import sys
from typing import Any

import pytest
import torch

from dekag.channel import CHANNELS, BlockFading, ChannelSettings, named_channel
from dekag.channel.ofdm import MODELS, OfdmChannel
from dekag.channel.sionna import seeded_sionna
from dekag.types import Condition, InputError


def test_the_names() -> None:
    profiles = [f"{kind}-{letter}" for kind in ("tdl", "cdl") for letter in "abcde"]
    assert list(CHANNELS) == ["awgn", "rayleigh", *profiles]
    built = [named_channel(ChannelSettings(name=name)).channel for name in CHANNELS]
    assert built[:2] == [BlockFading(), BlockFading()]
    assert built[2:] == [OfdmChannel(model=model) for model in MODELS]


def test_what_is_said_is_what_is_built() -> None:
    """Nanoseconds, and antennas as 3GPP writes them: two of "1x2" receive."""
    said = ChannelSettings(
        name="cdl-e", delay_spread_ns=300.0, speed_m_s=3.0, antennas="1x2", estimation="ls"
    )
    channel = named_channel(said).channel
    assert isinstance(channel, OfdmChannel)
    assert channel.delay_spread_s == pytest.approx(3e-7, rel=1e-12)
    assert (channel.model, channel.speed_m_s, channel.estimation) == ("CDL-E", 3.0, "ls")
    assert (channel.tx_antennas, channel.rx_antennas) == (1, 2)


def test_conditions_of_block_fading() -> None:
    faded = named_channel(ChannelSettings(name="rayleigh", blocks=4, correlation=0.5, pilots=2)).condition(
        64, 3.0
    )
    want = Condition(uses=64, snr_db=3.0, rayleigh=True, blocks=4, correlation=0.5, pilots=2)
    plain = named_channel(ChannelSettings()).condition(64, 3.0)
    for name in ("uses", "snr_db", "rayleigh", "blocks", "correlation", "pilots"):
        assert torch.equal(getattr(faded, name), getattr(want, name))
        assert torch.equal(getattr(plain, name), getattr(Condition(uses=64, snr_db=3.0), name))


@pytest.mark.parametrize("name", ["tdl-c", "cdl-a"])
@pytest.mark.parametrize("antennas", ["1x1", "1x2", "2x2"])
@pytest.mark.parametrize("estimation", ["perfect", "ls", "lmmse"])
def test_ofdm_conditions_pay_for_pilots_and_are_met(name: str, antennas: str, estimation: str) -> None:
    """The channel takes the condition that comes with it; pilots cost nothing only where the gain is known."""
    named = named_channel(ChannelSettings(name=name, antennas=antennas, estimation=estimation))
    condition = named.condition(200, 5.0)
    payload = int(condition.payload)
    assert payload <= int(condition.uses) <= 200
    assert (payload == int(condition.uses)) == (estimation == "perfect")
    symbols = torch.ones(1, payload, dtype=torch.complex64)
    received = named.channel(symbols, condition, rng=torch.Generator().manual_seed(1))
    assert bool(received.symbols.isfinite().all())


def test_the_longest_ofdm_transmission_has_a_condition() -> None:
    condition = named_channel(ChannelSettings(name="tdl-a")).condition(2**16, 0.0)
    assert 0.9 * 2**16 < int(condition.payload) < int(condition.uses) <= 2**16


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"name": "TDL-C"}, "unknown channel 'TDL-C'; known are awgn, rayleigh, tdl-a"),
        ({"name": "awgn", "blocks": 1}, "blocks is not for awgn: it describes rayleigh"),
        ({"name": "awgn", "speed_m_s": 0.0}, "speed_m_s is not for awgn: it describes the channels tdl-a to"),
        ({"name": "rayleigh", "delay_spread_ns": 9.0}, "delay_spread_ns is not for rayleigh"),
        ({"name": "rayleigh", "estimation": "ls"}, "estimation is not for rayleigh"),
        ({"name": "tdl-c", "blocks": 4}, "blocks is not for tdl-c: it describes rayleigh, and here delay"),
        ({"name": "cdl-a", "pilots": 4}, "pilots is not for cdl-a"),
        ({"name": "cdl-a", "correlation": 0.0}, "correlation is not for cdl-a"),
        (
            {"name": "tdl-c", "antennas": "2"},
            "antennas must be sending x receiving, each from 1 to 8, as 1x2",
        ),
        ({"name": "tdl-c", "antennas": "1x9"}, "got '1x9'"),
        ({"name": "tdl-c", "antennas": "0x1"}, "got '0x1'"),
        ({"name": "tdl-c", "antennas": "2x1"}, "2 that send and 1 that receive.* use 1x2 or 2x2"),
        ({"name": "tdl-c", "estimation": "mmse"}, "unknown estimation 'mmse'; known are perfect, ls, lmmse"),
        ({"name": "tdl-c", "speed_m_s": -1.0}, "speed_m_s must be a number of metres per second"),
        ({"name": "tdl-c", "speed_m_s": 1e5}, "lower the speed"),
        ({"name": "tdl-c", "delay_spread_ns": float("nan")}, "delay_spread_s must be a number of seconds"),
        ({"name": "tdl-c", "delay_spread_ns": 3e3}, "outlasts the cyclic prefix"),
        ({"name": "tdl-c", "uses": 12}, "12 uses do not pay for the pilots"),
        ({"name": "tdl-c", "uses": 0}, "uses over OFDM must be from 1 to 65536, got 0"),
        ({"name": "tdl-c", "uses": 2**40}, "uses over OFDM must be from 1 to 65536"),
        ({"name": "tdl-c", "snr_db": float("nan")}, "snr_db must be within"),
        ({"name": "rayleigh", "correlation": float("nan")}, "correlation must be in"),
        ({"name": "rayleigh", "blocks": 0}, "blocks must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_one_line(wrong: dict[str, Any], says: str) -> None:
    uses, snr_db = wrong.pop("uses", 256), wrong.pop("snr_db", 5.0)
    with pytest.raises(InputError, match=says) as error:
        named_channel(ChannelSettings(**wrong)).condition(uses, snr_db)
    assert "\n" not in str(error.value)


def test_a_caller_of_sionna_finds_its_draws_as_they_were() -> None:
    """Seed and all three kinds of generators: draws around a delivery are those of an uninterrupted caller."""
    with seeded_sionna(torch.Generator()) as phy:
        config = phy.config

    def draws() -> list[float]:
        torch_draw = torch.rand(1, generator=config.torch_rng("cpu")).item()
        return [torch_draw, config.np_rng.random(), config.py_rng.random()]

    named = named_channel(ChannelSettings(name="tdl-b"))
    kept = config.seed
    with torch.random.fork_rng():
        try:
            config.seed = 42
            uninterrupted = [draws(), draws()]
            config.seed = 42
            first = draws()
            condition = named.condition(64, 0.0)
            symbols = torch.ones(1, int(condition.payload), dtype=torch.complex64)
            named.channel(symbols, condition, rng=torch.Generator())
            with pytest.raises(ZeroDivisionError), seeded_sionna(torch.Generator()):
                raise ZeroDivisionError
            assert config.seed == 42
            assert [first, draws()] == uninterrupted
        finally:
            config.seed = kept


@pytest.mark.slow
def test_first_use_by_name_leaves_torch_and_sionna_unseeded() -> None:
    """In a process of its own: naming, importing and using the channel changes no generator of the caller."""
    program = """
import sys, torch
from dekag.channel import ChannelSettings, named_channel
assert "sionna" not in sys.modules
torch.manual_seed(3)
before = torch.random.get_rng_state()
named = named_channel(ChannelSettings(name="tdl-d"))
condition = named.condition(64, 5.0)
named.channel(torch.ones(1, int(condition.payload)) + 0j, condition, rng=torch.Generator())
assert torch.equal(torch.random.get_rng_state(), before)
assert sys.modules["sionna"].phy.config.seed is None
"""
    subprocess.run([sys.executable, "-c", program], check=True)
