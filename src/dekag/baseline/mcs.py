"""Modulation and coding schemes of 5G NR: how many bits a block of channel uses carries."""

import math
from dataclasses import dataclass
from typing import Literal

Code = Literal["ldpc", "polar"]
CRC_BITS: dict[Code, int] = {"ldpc": 16, "polar": 11}
"""Cyclic redundancy check: of a transport block of up to 3824 bits, and of 20 bits of control information and more
(TS 38.212, clauses 7.2.1 and 6.3.1.2.1)."""
MIN_INFO_BITS: dict[Code, int] = {"ldpc": 8, "polar": 20}
POLAR_USES = 192
"""Up to so many channel uses a block may be of a polar code; longer ones gain nothing from it."""
POLAR_BITS = 349
"""Information bits of the longest polar block that the standard splits in no case."""
POLAR_CODED = 1024
"""Coded bits that need no repetition."""


@dataclass(frozen=True, kw_only=True)
class Mcs:
    """A square QAM of `bits` a symbol, the code rate in 1024ths, and the code."""

    bits: int
    rate: float | int
    code: Code = "ldpc"

    @property
    def name(self) -> str:
        """As `16qam 490`, or `16qam 490 polar`."""
        name = f"{2**self.bits}qam {self.rate:g}" if self.bits > 2 else f"qpsk {self.rate:g}"
        return name if self.code == "ldpc" else f"{name} {self.code}"

    @property
    def crc_bits(self) -> int:
        """Bits of the cyclic redundancy check."""
        return CRC_BITS[self.code]

    @property
    def efficiency(self) -> float:
        """Information bits, CRC included, of a channel use."""
        return self.bits * self.rate / 1024

    def block_bits(self, uses: int) -> int:
        """Information bits of a block of `uses` channel uses, CRC included.

        Not rounded to the block sizes of TS 38.214, Table 5.1.3.2-1: that would cost up to 7 bits.
        """
        return math.floor(uses * self.efficiency)

    def info_bits(self, uses: int) -> int:
        """What is left of `block_bits` for the source; too small to be used below MIN_INFO_BITS."""
        return self.block_bits(uses) - self.crc_bits

    def usable(self, uses: int) -> bool:
        """Whether the code has a block of `uses` channel uses that carries information."""
        info_bits = self.info_bits(uses)
        fits = uses <= POLAR_USES and info_bits <= POLAR_BITS and self.bits * uses <= POLAR_CODED
        return info_bits >= MIN_INFO_BITS[self.code] and (self.code == "ldpc" or fits)


# TS 38.214: Table 5.1.3.1-1, indices 0 to 28, and from Table 5.1.3.1-2 the 256-QAM, indices 20 to 27.
_RATES = {
    2: (120, 157, 193, 251, 308, 379, 449, 526, 602, 679),
    4: (340, 378, 434, 490, 553, 616, 658),
    6: (438, 466, 517, 567, 616, 666, 719, 772, 822, 873, 910, 948),
    8: (682.5, 711, 754, 797, 841, 885, 916.5, 948),
}
TABLE = tuple(
    sorted(
        (
            Mcs(bits=bits, rate=rate, code=code)
            for code in CRC_BITS
            for bits, rates in _RATES.items()
            for rate in rates
        ),
        key=lambda mcs: mcs.efficiency,
    )
)
"""Every scheme of both tables, with either code, by rising efficiency."""
BY_NAME = {mcs.name: mcs for mcs in TABLE}


def usable(uses: int) -> tuple[Mcs, ...]:
    """The schemes of which a block of `uses` channel uses carries information, by rising efficiency."""
    return tuple(mcs for mcs in TABLE if mcs.usable(uses))
