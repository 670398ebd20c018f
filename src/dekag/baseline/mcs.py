"""Modulation and coding schemes of 5G NR: how many bits a block of channel uses carries."""

import math
from dataclasses import dataclass

CRC_BITS = 16
"""Cyclic redundancy check of a transport block of up to 3824 bits (TS 38.212, clause 7.2.1)."""
MIN_INFO_BITS = 8


@dataclass(frozen=True, kw_only=True)
class Mcs:
    """A square QAM of `bits` a symbol, and the code rate in 1024ths."""

    bits: int
    rate: float | int

    @property
    def name(self) -> str:
        """As `16qam 490`."""
        return f"{2**self.bits}qam {self.rate:g}" if self.bits > 2 else f"qpsk {self.rate:g}"

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
        return self.block_bits(uses) - CRC_BITS


# TS 38.214: Table 5.1.3.1-1, indices 0 to 28, and from Table 5.1.3.1-2 the 256-QAM, indices 20 to 27.
_RATES = {
    2: (120, 157, 193, 251, 308, 379, 449, 526, 602, 679),
    4: (340, 378, 434, 490, 553, 616, 658),
    6: (438, 466, 517, 567, 616, 666, 719, 772, 822, 873, 910, 948),
    8: (682.5, 711, 754, 797, 841, 885, 916.5, 948),
}
TABLE = tuple(
    sorted(
        (Mcs(bits=bits, rate=rate) for bits, rates in _RATES.items() for rate in rates),
        key=lambda mcs: mcs.efficiency,
    )
)
"""Every scheme of both tables, by rising efficiency."""
BY_NAME = {mcs.name: mcs for mcs in TABLE}


def usable(uses: int) -> tuple[Mcs, ...]:
    """The schemes of which a block of `uses` channel uses carries information, by rising efficiency."""
    return tuple(mcs for mcs in TABLE if mcs.info_bits(uses) >= MIN_INFO_BITS)
