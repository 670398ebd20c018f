"""Symbols to what is received: AWGN, block fading, pilots, equalisation, Sionna behind the same contract."""

from dekag.channel.block_fading import BlockFading
from dekag.channel.equaliser import mmse_equalise

FAMILIES = {"awgn": False, "rayleigh": True}
"""Fading families by the name that a user types; the value is `Condition.rayleigh`."""

__all__ = ["FAMILIES", "BlockFading", "mmse_equalise"]
