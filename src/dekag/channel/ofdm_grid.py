"""Where payload and pilots lie on the resource elements of OFDM symbols.

```
subcarrier  5 | . . . . . . . .      p pilot of stream 1     symbols run to the right; data fill the grid
            4 | . . . . . . . .      q pilot of stream 2     symbol by symbol, from the lowest subcarrier,
            3 | q . . . . . . q      . data, every stream    and the last symbol only as far as needed
            2 | p . . . . . . p
            1 | . . . . . . . .
            0 | . . . . . . . .
```
On a pilot's element only that stream sends, with all the power.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from dekag.types import InputError

PREFIX = 144 / 2048
"""Normal cyclic prefix as a share of the useful symbol (TS 38.211, 5.3.1)."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Elements of data, in the order in which they are filled, and of the pilots of the first stream.

    Times count OFDM symbols, tones count subcarriers; pilots of stream j lie j tones higher.
    symbols: OFDM symbols that these elements need.
    """

    data_time: Int64[Tensor, " elements"]
    data_tone: Int64[Tensor, " elements"]
    pilot_time: Int64[Tensor, " pilots"]
    pilot_tone: Int64[Tensor, " pilots"]
    symbols: int


@dataclass(frozen=True, kw_only=True)
class OfdmGrid:
    """Numerology (TS 38.211) and a comb of pilots.

    subcarriers: of the band that an image is sent in; 72 are six resource blocks.
    spacing_hz, carrier_hz: subcarrier spacing and carrier frequency.
    pilot_tones, pilot_symbols: spacing of a stream's pilots, in subcarriers and in symbols.

    Raises InputError if a field is out of range.
    """

    subcarriers: int = 72
    spacing_hz: float = 30e3
    carrier_hz: float = 3.5e9
    pilot_tones: int = 6
    pilot_symbols: int = 7

    def __post_init__(self) -> None:
        for name in ("subcarriers", "spacing_hz", "carrier_hz", "pilot_tones", "pilot_symbols"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} must be a positive number, got {value}")
        if self.pilot_tones > self.subcarriers:
            raise InputError(
                f"{self.subcarriers} subcarriers hold no comb of one pilot in {self.pilot_tones};"
                " use more subcarriers or a denser comb"
            )

    @property
    def useful_s(self) -> float:
        """Duration of an OFDM symbol without its cyclic prefix, in seconds."""
        return 1 / self.spacing_hz

    @property
    def symbol_s(self) -> float:
        """Duration of an OFDM symbol with its cyclic prefix, in seconds."""
        return (1 + PREFIX) * self.useful_s

    def pilots_per_symbol(self, streams: int) -> int:
        """Elements that pilots of all streams take in an OFDM symbol that has any."""
        return streams * len(self._comb(streams))

    def symbols_for(self, elements: Int64[Tensor, " batch"], streams: int) -> Int64[Tensor, " batch"]:
        """OFDM symbols that hold so many elements of data beside the pilots of `streams` streams."""
        pilots = self.pilots_per_symbol(streams)
        num_symbols = math.ceil(int(elements.max()) / (self.subcarriers - pilots))
        time = torch.arange(num_symbols, device=elements.device)
        room = torch.where(time % self.pilot_symbols == 0, self.subcarriers - pilots, self.subcarriers)
        return torch.searchsorted(room.cumsum(0), elements) + 1

    def pilots_for(self, elements: Int64[Tensor, " batch"], streams: int) -> Int64[Tensor, " batch"]:
        """Elements spent on pilots beside so many elements of data."""
        bursts = (self.symbols_for(elements, streams) - 1) // self.pilot_symbols + 1
        return bursts * self.pilots_per_symbol(streams)

    def layout(self, elements: int, streams: int, device: torch.device) -> Layout:
        """The first `elements` elements of data beside the pilots of `streams` streams, 0 for none."""
        symbols = int(self.symbols_for(torch.tensor([elements]), streams))
        comb = self._comb(streams)
        bursts = torch.arange(0, symbols, self.pilot_symbols)
        time, tone = (~self._taken(symbols, streams)).nonzero(as_tuple=True)
        return Layout(
            data_time=time[:elements].to(device),
            data_tone=tone[:elements].to(device),
            pilot_time=bursts.repeat_interleave(len(comb)).to(device),
            pilot_tone=comb.repeat(len(bursts)).to(device),
            symbols=symbols,
        )

    def _comb(self, streams: int) -> Int64[Tensor, " tones"]:
        """Tones of the first stream's pilots, each in the middle of its period; none without streams."""
        if not streams:
            return torch.empty(0, dtype=torch.int64)
        first = (self.pilot_tones - streams) // 2
        return torch.arange(first, self.subcarriers - streams + 1, self.pilot_tones)

    def _taken(self, symbols: int, streams: int) -> Bool[Tensor, "symbols tones"]:
        taken = torch.zeros(symbols, self.subcarriers, dtype=torch.bool)
        for stream in range(streams):
            taken[:: self.pilot_symbols, self._comb(streams) + stream] = True
        return taken
