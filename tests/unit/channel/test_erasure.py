"""Samples that are no numbers: counted, not received, and nobody else's business."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

import dekag
from dekag.alignment.transmission.cala import CalaCodec
from dekag.channel import BlockFading, ChannelSettings, erase_invalid, mmse_equalise, named_channel
from dekag.channel.erasure import MOST_POWER
from dekag.link import deliver, receive
from dekag.types import Channel, Codec, Condition, Received, Symbols

NAN, INF = float("nan"), float("inf")
BAD = {
    "nan": complex(NAN, 0.0),
    "imaginary nan": complex(1.0, NAN),
    "infinity": complex(INF, 0.0),
    "both infinite": complex(-INF, INF),
    "overflowing": complex(3e38, 3e38),
    "beyond all noise": complex(0.0, 1e6),
}
PROMPTS = [
    "a red apple on a blue background",
    "a cat face on a pink background",
    "a pizza on a white background",
]


@pytest.fixture(scope="module")
def system() -> dekag.System:
    return dekag.load("emoji")


def codecs(system: dekag.System) -> dict[str, Codec]:
    """The codec as it came, under its update, and merged for one condition."""
    adapted = system.link.codec
    assert isinstance(adapted, CalaCodec)
    plain = dekag.load("emoji", align=False).link.codec
    return {"jscc": plain, "cala": adapted, "merged": adapted.merge(Condition(uses=128, snr_db=8.0))}


def arrived(condition: Condition, spoil: Callable[[Received], None] | None = None) -> Received:
    """Three rows of noise over block fading, spoilt in place."""
    rng = torch.Generator().manual_seed(1)
    symbols = torch.randn(3, int(condition.payload.max()), dtype=torch.complex64, generator=rng)
    received = BlockFading()(symbols, condition.expand(3), rng=rng)
    if spoil is not None:
        spoil(received)
    return received


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_bad_symbol_is_a_use_without_gain(bad: complex) -> None:
    condition = Condition(uses=16, snr_db=torch.tensor([0.0, 8.0, -3.0]), rayleigh=True, blocks=4)

    def spoil(received: Received) -> None:
        received.symbols[1, 3] = bad
        received.symbols[1, 9] = bad

    given, clean = arrived(condition, spoil), arrived(condition)
    erased = erase_invalid(given, condition)
    assert erased.uses.tolist() == [0, 2, 0]
    for values in (erased.received.symbols, erased.received.state.gain, erased.received.state.reliability):
        assert values[1, [3, 9]].tolist() == [0, 0]
    untouched = torch.ones(3, 16, dtype=torch.bool)
    untouched[1, [3, 9]] = False
    assert torch.equal(erased.received.symbols[untouched], clean.symbols[untouched])
    assert torch.equal(erased.received.state.gain[untouched], clean.state.gain[untouched])


def test_a_gain_that_is_no_number_erases_the_use() -> None:
    def spoil(received: Received) -> None:
        received.state.gain[0, 2] = complex(NAN, 0)
        received.state.gain[2, 5] = complex(0, INF)

    condition = Condition(uses=16, snr_db=5.0)
    erased = erase_invalid(arrived(condition, spoil), condition)
    assert erased.uses.tolist() == [1, 0, 1]
    assert bool(mmse_equalise(erased.received).symbols.isfinite().all())


@pytest.mark.parametrize("noise", [NAN, INF])
def test_a_noise_power_that_is_no_number_erases_the_payload(noise: float) -> None:
    """16 payload uses of 20: what lies beyond them was never sent and is not counted."""
    condition = Condition(uses=20, snr_db=5.0, rayleigh=True, blocks=2, pilots=2)

    def spoil(received: Received) -> None:
        received.state.noise_power[1] = noise

    erased = erase_invalid(arrived(condition, spoil), condition)
    assert erased.uses.tolist() == [0, 16, 0]
    assert erased.received.state.reliability[1].tolist() == [0.0] * 16


def test_nothing_is_erased_without_need() -> None:
    """Four decades of SNR and deep fades: 3 x 2**16 uses, each beyond the limit with probability exp(-1e8)."""
    condition = Condition(uses=2**16, snr_db=torch.tensor([-200.0, 0.0, 200.0]), rayleigh=True, blocks=2**16)
    received = arrived(condition)
    erased = erase_invalid(received, condition)
    assert erased.uses.tolist() == [0, 0, 0]
    assert torch.equal(erased.received.symbols, received.symbols)
    assert mmse_equalise(received).symbols.abs().max() < MOST_POWER**0.5


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
@pytest.mark.parametrize("family", ["awgn", "rayleigh"])
def test_images_beside_a_bad_one_keep_every_bit(system: dekag.System, bad: complex, family: str) -> None:
    """Over every codec: one bad use, and a row of nothing else, leave the others as they were."""
    condition = Condition(uses=128, snr_db=8.0, rayleigh=family == "rayleigh", blocks=4)

    def some(received: Received) -> None:
        received.symbols[1, 7] = bad

    def whole(received: Received) -> None:
        received.symbols[1] = bad

    for codec in codecs(system).values():
        link = replace(system.link, codec=codec)
        clean = receive(link, arrived(condition), condition)
        for spoil, count in ((some, 1), (whole, 128)):
            spoilt = receive(link, arrived(condition, spoil), condition)
            assert spoilt.erased_uses.tolist() == [0, count, 0]
            assert torch.equal(spoilt.image[[0, 2]], clean.image[[0, 2]])
            assert bool(spoilt.image.isfinite().all())
            assert bool(((spoilt.image >= 0) & (spoilt.image <= 1)).all())


def test_an_erased_image_is_what_the_decoder_makes_of_nothing(system: dekag.System) -> None:
    """Whatever the bad samples were, it is the answer to symbols of 0 at gain 0."""
    condition = Condition(uses=128, snr_db=8.0).expand(3)

    def nothing(received: Received) -> None:
        received.symbols[1] = 0
        received.state.gain[1] = 0

    answer = receive(system.link, arrived(condition, nothing), condition).latent[1]
    for bad in BAD.values():

        def spoil(received: Received, bad: complex = bad) -> None:
            received.symbols[1] = bad

        assert torch.equal(receive(system.link, arrived(condition, spoil), condition).latent[1], answer)


class Saturated:
    """A receiver that lost some uses of the second image on another channel."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    def __call__(self, symbols: Symbols, condition: Condition, *, rng: torch.Generator) -> Received:
        received = self.channel(symbols, condition, rng=rng)
        received.symbols[1, 10:15] = complex(NAN, INF)
        return received


@pytest.mark.parametrize("name", ["awgn", "rayleigh", "tdl-c"])
def test_a_delivery_counts_what_was_erased(system: dekag.System, name: str) -> None:
    named = named_channel(ChannelSettings(name=name))
    condition = named.condition(128, 8.0)
    clean, spoilt = (
        deliver(
            replace(system.link, channel=channel),
            PROMPTS,
            condition,
            seeds=[0, 1, 2],
            rng=torch.Generator().manual_seed(4),
        )
        for channel in (named.channel, Saturated(named.channel))
    )
    assert clean.erased_uses.tolist() == [0, 0, 0]
    assert spoilt.erased_uses.tolist() == [0, 5, 0]
    assert torch.equal(spoilt.image[[0, 2]], clean.image[[0, 2]])
    assert not torch.equal(spoilt.image[1], clean.image[1])
    assert bool(spoilt.image.isfinite().all())
