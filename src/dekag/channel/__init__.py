"""Symbols to what is received: AWGN, block fading, pilots, equalisation, Sionna behind the same contract."""

from dekag.channel.block_fading import BlockFading
from dekag.channel.equaliser import mmse_equalise
from dekag.channel.erasure import Erased, erase_invalid
from dekag.channel.named import CHANNELS, ChannelKind, ChannelSettings, NamedChannel, named_channel
from dekag.channel.receiver import Recovered, recover

__all__ = [
    "CHANNELS",
    "BlockFading",
    "ChannelKind",
    "ChannelSettings",
    "Erased",
    "NamedChannel",
    "Recovered",
    "erase_invalid",
    "mmse_equalise",
    "named_channel",
    "recover",
]
