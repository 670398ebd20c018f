"""Channels by the name that a user types: one table, to which a channel of one's own is added in Python."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial

from dekag.channel.block_fading import BlockFading
from dekag.channel.ofdm import MODELS, OfdmChannel, estimation_named
from dekag.types import Channel, Condition, FieldError, InputError

BLOCK_OPTIONS = {
    "blocks": "fading blocks of an image, as in `Condition`; 1",
    "correlation": "of neighbouring blocks, from 0 to 1; 0",
    "pilots": "symbols a block from which the receiver estimates the gain; 0, where it knows it",
}
OFDM_OPTIONS = {
    "delay_spread_ns": "rms delay spread in nanoseconds; 100",
    "speed_m_s": "speed of the receiver in metres per second; 0",
    "antennas": '"SxR", S that send and R that receive, as 3GPP writes it: "1x2"; 1x1',
    "estimation": '"lmmse" or "ls" from pilots, or "perfect" without; lmmse',
}
MOST_ANTENNAS = 8
MOST_USES = 2**16
"""Of an image over OFDM: the statistics of longer transmissions would take gigabytes."""


@dataclass(frozen=True, kw_only=True)
class ChannelSettings:
    """A channel as a user names it; what is None is the channel's default.

    name: one of `CHANNELS`, whose `options` say which of the other fields belong to it, and what they mean.
    """

    name: str = "awgn"
    blocks: int | None = None
    correlation: float | None = None
    pilots: int | None = None
    delay_spread_ns: float | None = None
    speed_m_s: float | None = None
    antennas: str | None = None
    estimation: str | None = None

    def given(self) -> dict[str, int | float | str]:
        """The fields that are not left out."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class NamedChannel:
    """A channel, and what makes the condition of one image for it from channel uses and SNR in dB.

    The condition may have fewer uses than were asked for: OFDM pays for whole pilots.
    """

    channel: Channel
    condition: Callable[[int, float], Condition]


def plain_condition(settings: ChannelSettings, uses: int, snr_db: float) -> Condition:
    """The condition of one image without fading."""
    return Condition(uses=uses, snr_db=snr_db)


@dataclass(frozen=True, kw_only=True)
class ChannelKind:
    """What stands behind a name.

    channel: makes the channel of settings. condition: makes the condition of one image of settings, channel uses
    and SNR in dB. options: fields of `ChannelSettings` that both may read, and what they mean.
    family: what a sweep sums its figures up by, the name itself if empty. group: how messages call the channels of
    these options, the name itself if empty. instead: what describes such a channel in place of other options.
    """

    channel: Callable[[ChannelSettings], Channel]
    condition: Callable[[ChannelSettings, int, float], Condition] = plain_condition
    options: Mapping[str, str] = field(default_factory=dict)
    family: str = ""
    group: str = ""
    instead: str = ""


def named_channel(settings: ChannelSettings) -> NamedChannel:
    """The channel of that name.

    Raises InputError for a name that is not known or a wrong value, and FieldError for an option that the channel
    does not have.
    """
    name = settings.name
    if name not in CHANNELS:
        raise InputError(f"unknown channel {name!r}; known are {', '.join(CHANNELS)}")
    kind = CHANNELS[name]
    wrong = [option for option in settings.given() if option not in {"name", *kind.options}]
    if wrong:
        raise _misplaced(wrong[0], name)
    return NamedChannel(channel=kind.channel(settings), condition=partial(kind.condition, settings))


def _misplaced(option: str, name: str) -> FieldError:
    """What to say of an option that a channel does not have."""
    groups = {kind.group or other: None for other, kind in CHANNELS.items() if option in kind.options}
    where = f"it describes {' and '.join(groups)}"
    kind = CHANNELS[name]
    instead = f", and here {kind.instead}" if kind.instead else ""
    return FieldError(f"{option} is not for {name}: {where}{instead}", option, *kind.options)


def _block_fading(settings: ChannelSettings) -> BlockFading:
    return BlockFading()


def _block_condition(settings: ChannelSettings, uses: int, snr_db: float) -> Condition:
    return Condition(
        uses=uses,
        snr_db=snr_db,
        rayleigh=True,
        blocks=1 if settings.blocks is None else settings.blocks,
        correlation=settings.correlation or 0.0,
        pilots=settings.pilots or 0,
    )


def _ofdm(settings: ChannelSettings) -> OfdmChannel:
    sending, receiving = _antennas("1x1" if settings.antennas is None else settings.antennas)
    channel = OfdmChannel(
        model=settings.name.upper(),
        rx_antennas=receiving,
        tx_antennas=sending,
        speed_m_s=settings.speed_m_s or 0.0,
    )
    if settings.delay_spread_ns is not None:
        channel = replace(channel, delay_spread_s=settings.delay_spread_ns * 1e-9)
    if settings.estimation is not None:
        channel = replace(channel, estimation=estimation_named(settings.estimation))
    return channel


def _antennas(text: str) -> tuple[int, int]:
    """Sending and receiving antennas of "SxR"."""
    match = re.fullmatch(r"(\d)x(\d)", text, flags=re.ASCII)
    sending, receiving = (int(part) for part in match.groups()) if match else (0, 0)
    if not (1 <= sending <= MOST_ANTENNAS and 1 <= receiving <= MOST_ANTENNAS):
        raise InputError(
            f"antennas must be sending x receiving, each from 1 to {MOST_ANTENNAS}, as 1x2, got {text!r}"
        )
    if sending > receiving:
        raise InputError(
            f"antennas {text} have {sending} that send and {receiving} that receive, but each sends a stream of"
            f" its own and needs one that receives it: use {receiving}x{sending} or {sending}x{sending}"
        )
    return sending, receiving


def _ofdm_condition(settings: ChannelSettings, uses: int, snr_db: float) -> Condition:
    if not 1 <= uses <= MOST_USES:
        raise InputError(f"uses over OFDM must be from 1 to {MOST_USES}, got {uses}")
    # an SNR that no condition may have is refused before Sionna is asked for the statistics
    Condition(uses=uses, snr_db=snr_db)
    return _ofdm(settings).condition(uses=uses, snr_db=snr_db)


_OFDM = ChannelKind(
    channel=_ofdm,
    condition=_ofdm_condition,
    options=OFDM_OPTIONS,
    family="ofdm",
    group="the channels tdl-a to tdl-e and cdl-a to cdl-e",
    instead="delay spread, speed and estimation say what fades and costs",
)
CHANNELS: dict[str, ChannelKind] = {
    "awgn": ChannelKind(channel=_block_fading),
    "rayleigh": ChannelKind(channel=_block_fading, condition=_block_condition, options=BLOCK_OPTIONS),
    **{model.lower(): _OFDM for model in MODELS},
}
"""Every channel that can be named; add your own. What is named is known to a link, a sweep and the command line."""
