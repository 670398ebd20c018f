"""Channels by the name that a user types, with the options that each of them has."""

import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial

from dekag.channel.block_fading import BlockFading
from dekag.channel.ofdm import MODELS, OfdmChannel
from dekag.types import Channel, Condition, InputError

FAMILIES = {"awgn": False, "rayleigh": True}
"""Fading families by name; the value is `Condition.rayleigh`."""
PROFILES = {model.lower(): model for model in MODELS}
"""OFDM over 3GPP: the name that a user types -> `OfdmChannel.model`."""
NAMES = (*FAMILIES, *PROFILES)
BLOCK_OPTIONS = frozenset({"blocks", "correlation", "pilots"})
OFDM_OPTIONS = frozenset({"delay_spread_ns", "speed_m_s", "antennas", "estimation"})
OPTIONS = {
    "blocks": "--blocks",
    "correlation": "--correlation",
    "pilots": "--pilots",
    "delay_spread_ns": "--delay-spread",
    "speed_m_s": "--speed",
    "antennas": "--antennas",
    "estimation": "--estimation",
}
"""What the command line calls each field."""
MOST_ANTENNAS = 8
MOST_USES = 2**16
"""Of an image over OFDM: the statistics of longer transmissions would take gigabytes."""


@dataclass(frozen=True, kw_only=True)
class ChannelSettings:
    """A channel as a user names it; what is None is the channel's default.

    name: one of `NAMES`.
    blocks, correlation, pilots: of `rayleigh`, as in `Condition`; 1, 0 and 0 if left out.
    delay_spread_ns: rms delay spread of a TDL or CDL in nanoseconds; 100 if left out.
    speed_m_s: of the receiver, in metres per second; 0 if left out.
    antennas: "SxR", S that send and R that receive, as 3GPP writes it: "1x2"; 1x1 if left out.
    estimation: "perfect", "ls" or "lmmse", which is what it is if left out.
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


def named_channel(settings: ChannelSettings) -> NamedChannel:
    """The channel of that name.

    Raises InputError for a name that is not known, an option that the channel does not have, or a wrong value.
    """
    name = settings.name
    if name not in NAMES:
        raise InputError(f"unknown channel {name!r}; known are {', '.join(NAMES)}")
    allowed = OFDM_OPTIONS if name in PROFILES else BLOCK_OPTIONS if FAMILIES[name] else frozenset[str]()
    wrong = [option for option in settings.given() if option not in {"name", *allowed}]
    if wrong:
        raise InputError(f"{OPTIONS[wrong[0]]} is not for {name}: {_instead(wrong[0], name)}")
    if name in PROFILES:
        channel = _ofdm(settings)
        return NamedChannel(channel=channel, condition=partial(_ofdm_condition, channel))
    return NamedChannel(channel=BlockFading(), condition=partial(_block_condition, settings))


def _instead(option: str, name: str) -> str:
    """Where an option belongs that a channel does not have."""
    if option in OFDM_OPTIONS:
        return "it describes the channels tdl-a to tdl-e and cdl-a to cdl-e"
    if name in PROFILES:
        return "it describes rayleigh, and here delay spread, speed and --estimation say what fades and costs"
    return "it describes rayleigh"


def _block_condition(settings: ChannelSettings, uses: int, snr_db: float) -> Condition:
    return Condition(
        uses=uses,
        snr_db=snr_db,
        rayleigh=FAMILIES[settings.name],
        blocks=1 if settings.blocks is None else settings.blocks,
        correlation=settings.correlation or 0.0,
        pilots=settings.pilots or 0,
    )


def _ofdm(settings: ChannelSettings) -> OfdmChannel:
    sending, receiving = _antennas("1x1" if settings.antennas is None else settings.antennas)
    channel = OfdmChannel(
        model=PROFILES[settings.name],
        rx_antennas=receiving,
        tx_antennas=sending,
        speed_m_s=settings.speed_m_s or 0.0,
    )
    if settings.delay_spread_ns is not None:
        channel = replace(channel, delay_spread_s=settings.delay_spread_ns * 1e-9)
    if settings.estimation is not None:
        channel = replace(channel, estimation=settings.estimation)
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


def _ofdm_condition(channel: OfdmChannel, uses: int, snr_db: float) -> Condition:
    if not 1 <= uses <= MOST_USES:
        raise InputError(f"uses over OFDM must be from 1 to {MOST_USES}, got {uses}")
    # an SNR that no condition may have is refused before Sionna is asked for the statistics
    Condition(uses=uses, snr_db=snr_db)
    return channel.condition(uses=uses, snr_db=snr_db)
