"""Grids of conditions: numbers of uses, SNRs and named channels, and every combination of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Protocol, TypeVar, runtime_checkable

from dekag.channel import CHANNELS as NAMED
from dekag.channel import BlockFading, ChannelSettings, named_channel
from dekag.codec.constellation import constellation_named
from dekag.types import Channel, Condition, InputError

T = TypeVar("T")


@runtime_checkable
class GridChannel(Protocol):
    """A channel with its statistics, of which only uses and SNR are still open.

    family: what gains are summed up by. channel: a dataclass, whose `repr` says everything about it.
    """

    @property
    def name(self) -> str:
        """What tables and files call the channel."""
        ...

    @property
    def family(self) -> str:
        """What figures sum the channel up by."""
        ...

    @property
    def channel(self) -> Channel:
        """The channel itself."""
        ...

    def condition(self, *, uses: int, snr_db: float) -> Condition:
        """The condition of one image at so many uses and an SNR in dB."""
        ...


@dataclass(frozen=True, kw_only=True)
class FlatChannel:
    """Implements `GridChannel` with `BlockFading`; `blocks` is None for fast fading, one block a use."""

    name: str
    family: str
    rayleigh: bool = True
    blocks: int | None = 1
    correlation: float = 0.0
    pilots: int = 0
    channel: Channel = field(default_factory=BlockFading)

    def condition(self, *, uses: int, snr_db: float) -> Condition:
        """The condition of one image."""
        return Condition(
            uses=uses,
            snr_db=snr_db,
            rayleigh=self.rayleigh,
            blocks=uses if self.blocks is None else self.blocks,
            correlation=self.correlation,
            pilots=self.pilots,
        )


@dataclass(frozen=True, kw_only=True)
class NamedGridChannel:
    """Implements `GridChannel` with a channel of `channel.CHANNELS` and its defaults."""

    name: str

    @property
    def family(self) -> str:
        """The family that the table of channels gives."""
        return NAMED[self.name].family or self.name

    @property
    def channel(self) -> Channel:
        """The channel with its defaults."""
        return named_channel(ChannelSettings(name=self.name)).channel

    def condition(self, *, uses: int, snr_db: float) -> Condition:
        """The condition of one image; pilots are paid for out of the uses."""
        return named_channel(ChannelSettings(name=self.name)).condition(uses, snr_db)


CHANNELS: dict[str, GridChannel] = {
    channel.name: channel
    for channel in (
        FlatChannel(name="awgn", family="awgn", rayleigh=False),
        FlatChannel(name="rayleigh-1", family="rayleigh", blocks=1),
        FlatChannel(name="rayleigh-4", family="rayleigh", blocks=4),
        FlatChannel(name="rayleigh-8", family="rayleigh", blocks=8),
        FlatChannel(name="rayleigh-uses", family="rayleigh", blocks=None),
        FlatChannel(name="correlated", family="correlated", blocks=8, correlation=0.9),
        FlatChannel(name="estimated", family="estimated", blocks=4, pilots=2),
    )
}
"""Channels of the full grid by the name that a user types; those of `channel.CHANNELS` are known besides."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Point:
    """One condition of a grid: that of one image, over which channel, and what the grid calls them.

    uses: as the grid has them; a channel with pilots on a grid of its own may use fewer.
    """

    channel: str
    family: str
    uses: int
    snr_db: float
    condition: Condition
    medium: Channel

    @property
    def name(self) -> str:
        """As `rayleigh-4 256 uses 5 dB`."""
        return f"{self.channel} {self.uses} uses {self.snr_db:g} dB"

    def physics(self) -> dict[str, float | int | bool | str]:
        """What the transmission depends on, as JSON values; what it is called does not matter."""
        numbers = {f.name: getattr(self.condition, f.name)[0].item() for f in fields(self.condition)}
        return {**numbers, "medium": repr(self.medium)}


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Every combination of uses, SNRs and channels.

    constellations: with which every codec is measured; none is that of the codec.
    Raises InputError if a list is empty or repeats itself, or a channel cannot be described.
    """

    uses: tuple[int, ...]
    snrs_db: tuple[float, ...]
    channels: tuple[GridChannel, ...]
    constellations: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = tuple(channel.name for channel in self.channels)
        for what, values in (("uses", self.uses), ("SNRs", self.snrs_db), ("channels", names)):
            _check_distinct(what, values)
        if self.constellations:
            _check_distinct("constellations", self.constellations)
        for name in self.constellations:
            constellation_named(name)
        for named in self.channels:
            if not is_dataclass(named.channel):
                raise InputError(
                    f"channel {named.name!r} must be a dataclass, whose repr tells it from others"
                )

    def scaled(self, max_uses: int) -> "Grid":
        """The grid with its highest rate at that of a codec, and the others in proportion."""
        share = max_uses / max(self.uses)
        return replace(self, uses=tuple(sorted({max(1, round(share * uses)) for uses in self.uses})))

    def points(self) -> list[Point]:
        """Every condition, channel by channel, then by uses and SNR."""
        return [
            Point(
                channel=named.name,
                family=named.family,
                uses=uses,
                snr_db=snr_db,
                condition=named.condition(uses=uses, snr_db=snr_db),
                medium=named.channel,
            )
            for named in self.channels
            for uses in self.uses
            for snr_db in self.snrs_db
        ]


def _check_distinct(what: str, values: Sequence[object]) -> None:
    if not values or len(set(values)) != len(values):
        raise InputError(f"a grid needs distinct {what}, at least one, got {', '.join(map(str, values))}")


def _channels(*names: str) -> tuple[GridChannel, ...]:
    return tuple(CHANNELS[name] for name in names)


SMALL = Grid(uses=(128, 256, 512), snrs_db=(0.0, 5.0, 10.0, 15.0), channels=_channels("awgn", "rayleigh-4"))
HELD_OUT = Grid(
    uses=(64, 128, 192, 256, 512),
    snrs_db=(-5.0, 0.0, 3.7, 8.7, 14.3, 20.0),
    channels=_channels("awgn", "rayleigh-1", "rayleigh-4", "rayleigh-uses"),
)
GRIDS = {
    "held-out": HELD_OUT,
    "full": replace(HELD_OUT, channels=tuple(CHANNELS.values())),
    "small": SMALL,
}
"""Grids by the name that a user types; `small` is that of the demonstration."""


def read_grid(
    name: str,
    *,
    uses: str | None = None,
    snrs: str | None = None,
    channels: str | None = None,
    constellations: str | None = None,
) -> Grid:
    """A named grid, with what is given, lists separated by commas, in place of its own.

    Raises InputError for an unknown name or a list that cannot be read.
    """
    if name not in GRIDS:
        raise InputError(f"unknown grid {name!r}; known are {', '.join(GRIDS)}")
    grid = GRIDS[name]
    return Grid(
        uses=grid.uses if uses is None else _parsed(uses, int, "uses must be whole numbers", "64,128"),
        snrs_db=grid.snrs_db if snrs is None else _parsed(snrs, float, "SNRs must be numbers of dB", "0,8.7"),
        channels=grid.channels if channels is None else tuple(_channel(n) for n in channels.split(",")),
        constellations=() if constellations is None else tuple(constellations.split(",")),
    )


def _channel(name: str) -> GridChannel:
    if name in CHANNELS:
        return CHANNELS[name]
    if name not in NAMED:
        raise InputError(f"unknown channel {name!r}; known are {', '.join({**CHANNELS, **NAMED})}")
    return NamedGridChannel(name=name)


def _parsed(text: str, kind: Callable[[str], T], rule: str, example: str) -> tuple[T, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"{rule} separated by commas, as {example}, got {text!r}") from error
