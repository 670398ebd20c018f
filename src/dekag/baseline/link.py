"""The digital baseline on one screen: source coding -> transport block -> the same channel -> and back."""

from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from dekag.baseline.choice import best_scheme
from dekag.baseline.code import block_code
from dekag.baseline.mcs import Mcs
from dekag.baseline.source import Bits, Source
from dekag.baseline.thresholds import Thresholds, shipped_thresholds
from dekag.channel import BlockFading
from dekag.types import Channel, ChannelState, Condition, InputError, Received

Counts = Int64[Tensor, " batch"]


@dataclass(frozen=True, kw_only=True)
class DigitalLedger:
    """Where every bit and channel use of each image went, all [batch].

    header_bits + source_bits + padding_bits + crc_bits + parity_bits = payload_uses * bits of a symbol, and
    payload_uses + pilot_uses + idle_uses = uses. Where nothing could be sent, all payload uses are idle: below
    the lowest usable MCS (`mcs` is None), or because not even the coarsest source code fits (`mcs` is not).
    arrived: whether the CRC held and the source code could be read; the others show the concealment.
    """

    source_bits: Counts
    header_bits: Counts
    padding_bits: Counts
    crc_bits: Counts
    parity_bits: Counts
    payload_uses: Counts
    pilot_uses: Counts
    idle_uses: Counts
    mcs: tuple[Mcs | None, ...]
    arrived: Bool[Tensor, " batch"]


@dataclass(frozen=True, kw_only=True)
class DigitalDelivery:
    """What reached the user, latents or images as the source has them, and what it cost."""

    received: Float[Tensor, "batch channels rows cols"]
    condition: Condition
    ledger: DigitalLedger


@dataclass(frozen=True, kw_only=True)
class DigitalLink:
    """A source code, how often each scheme fails, and the channel.

    Both ends know the condition, as they do for the joint codec, so that the MCS costs nothing.
    scheme: what is sent with; "best" chooses by the condition (`baseline.choice`), None sends nothing.
    """

    source: Source
    thresholds: Thresholds = field(default_factory=shipped_thresholds)
    scheme: Mcs | Literal["best"] | None = "best"
    channel: Channel = field(default_factory=BlockFading)


@dataclass(frozen=True, kw_only=True)
class _Block:
    """What one image sends: the scheme, the payload with its padding, and how much of it is source."""

    mcs: Mcs | None
    payload: Bits | None
    source_bits: int


@torch.no_grad()
def send(
    link: DigitalLink,
    items: Float[Tensor, "batch channels rows cols"],
    condition: Condition,
    *,
    rng: torch.Generator,
) -> DigitalDelivery:
    """Send each latent or image in one transport block.

    The channel meets a [batch, largest payload] rectangle of symbols, as from the joint codec: with an equal
    `rng` both see the same gains and noise. Raises InputError for items that are not finite and for
    a table of error rates without any over AWGN.
    """
    if not bool(items.isfinite().all()):
        raise InputError("the items to send must be finite, got NaN or infinity")
    shape = list(link.source.concealment.shape)
    if list(items.shape[1:]) != shape:
        raise InputError(f"the source takes items of shape {shape}, got {list(items.shape[1:])}")
    condition = condition.expand(len(items))
    schemes = _schemes(link, condition)
    blocks = [
        _pack(link.source, item, mcs, uses)
        for item, mcs, uses in zip(items, schemes, condition.payload.tolist(), strict=True)
    ]
    received = link.channel(_modulate(blocks, condition), condition, rng=rng)
    payloads = _demodulate(blocks, received, condition)
    shown = [None if payload is None else link.source.decode(payload) for payload in payloads]
    arrived = torch.tensor([item is not None for item in shown], dtype=torch.bool)
    images = [link.source.concealment if item is None else item for item in shown]
    ledger = _ledger(link, blocks, condition, arrived)
    return DigitalDelivery(received=torch.stack(images), condition=condition, ledger=ledger)


def _schemes(link: DigitalLink, condition: Condition) -> list[Mcs | None]:
    """The scheme of each image; that of one condition is looked for once."""
    if link.scheme != "best":
        return [link.scheme] * len(condition)
    fields = torch.stack([getattr(condition, f.name).double() for f in dataclass_fields(condition)], dim=1)
    rows, places = fields.unique(dim=0, return_inverse=True)
    first = [int((places == place).nonzero()[0]) for place in range(len(rows))]
    best = [best_scheme(link.thresholds, link.source.quality, condition[row : row + 1]) for row in first]
    return [best[place] for place in places.tolist()]


def _pack(source: Source, item: Tensor, mcs: Mcs | None, uses: int) -> _Block:
    if mcs is None:
        return _Block(mcs=None, payload=None, source_bits=0)
    budget = mcs.info_bits(uses)
    bits = source.encode(item.cpu(), budget)
    if bits is None:
        return _Block(mcs=mcs, payload=None, source_bits=0)
    assert len(bits) <= budget
    padded = np.concatenate([bits, np.zeros(budget - len(bits), dtype=bool)])
    return _Block(mcs=mcs, payload=padded, source_bits=len(bits) - source.header_bits)


def _modulate(blocks: list[_Block], condition: Condition) -> Tensor:
    symbols = torch.zeros(len(blocks), int(condition.payload.max()), dtype=torch.complex64)
    for (uses, mcs), payloads in _alike(blocks, condition).items():
        bits = torch.from_numpy(np.stack(list(payloads.values())))
        symbols[list(payloads), :uses] = block_code(uses, mcs, "cpu").modulate(bits)
    return symbols


def _demodulate(blocks: list[_Block], received: Received, condition: Condition) -> list[Bits | None]:
    """The payload of each image, or None if it is lost."""
    payloads: list[Bits | None] = [None] * len(blocks)
    for (uses, mcs), sent in _alike(blocks, condition).items():
        rows = list(sent)
        state = ChannelState(
            gain=received.state.gain[rows, :uses], noise_power=received.state.noise_power[rows]
        )
        of_length = Received(symbols=received.symbols[rows, :uses], state=state)
        decoded, valid = block_code(uses, mcs, "cpu").demodulate(of_length)
        for row, bits, arrived in zip(rows, decoded.numpy(), valid.tolist(), strict=True):
            payloads[row] = bits if arrived else None
    return payloads


def _alike(blocks: list[_Block], condition: Condition) -> dict[tuple[int, Mcs], dict[int, Bits]]:
    """Payloads by row, under the code that they share: one call for many is faster."""
    alike: dict[tuple[int, Mcs], dict[int, Bits]] = {}
    for row, (block, uses) in enumerate(zip(blocks, condition.payload.tolist(), strict=True)):
        if block.mcs is not None and block.payload is not None:
            alike.setdefault((uses, block.mcs), {})[row] = block.payload
    return alike


def _ledger(
    link: DigitalLink, blocks: list[_Block], condition: Condition, arrived: Bool[Tensor, " batch"]
) -> DigitalLedger:
    rows = []
    for block, uses in zip(blocks, condition.payload.tolist(), strict=True):
        if block.mcs is None or block.payload is None:
            rows.append((0, 0, 0, 0, 0, 0, uses))
            continue
        header = link.source.header_bits
        padding = len(block.payload) - header - block.source_bits
        parity = uses * block.mcs.bits - len(block.payload) - block.mcs.crc_bits
        rows.append((block.source_bits, header, padding, block.mcs.crc_bits, parity, uses, 0))
    source, header_bits, padding_bits, crc, parity_bits, payload, idle = torch.tensor(rows).T
    return DigitalLedger(
        source_bits=source,
        header_bits=header_bits,
        padding_bits=padding_bits,
        crc_bits=crc,
        parity_bits=parity_bits,
        payload_uses=payload,
        pilot_uses=condition.uses - condition.payload,
        idle_uses=idle,
        mcs=tuple(block.mcs for block in blocks),
        arrived=arrived,
    )
