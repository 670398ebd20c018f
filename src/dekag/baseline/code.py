"""One transport block of 5G NR: bits -> CRC -> LDPC or polar code -> scrambling -> QAM, and back. Sionna's parts."""

import importlib
from collections.abc import Callable
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from dekag.baseline.mcs import Code, Mcs
from dekag.types import Received, Symbols

ITERATIONS = 32
ROUND = 4
"""Iterations between two looks at the CRC; a block that passes is done."""
PATHS = 8
"""Of the list that a polar code is decoded with."""

Bits = Bool[Tensor, "batch bits"]


class ChannelCode(Protocol):
    """What makes coded bits of information bits, and finds them again; the check is part of it."""

    coded_bits: int

    def encode(self, bits: Float[Tensor, "batch bits"]) -> Float[Tensor, "batch coded"]:
        """Coded bits, check included."""
        ...

    def decode(
        self, ratios: Float[Tensor, "batch coded"]
    ) -> tuple[Float[Tensor, "batch bits"], Bool[Tensor, " batch"]]:
        """Information bits of log-likelihood ratios log P(1) / P(0), and whether the check holds."""
        ...


class Ldpc:
    """Implements `ChannelCode` with the LDPC code of TS 38.212, clause 5.3.2, and CRC16; sum-product decoding."""

    def __init__(self, info_bits: int, coded_bits: int, mcs: Mcs, device: str) -> None:
        phy, size = _sionna(), info_bits + mcs.crc_bits
        self.info_bits, self.coded_bits = info_bits, coded_bits
        self._crc = phy.crc.CRCEncoder("CRC16", device=device)
        self._check = phy.crc.CRCDecoder(self._crc, device=device)
        self._ldpc = phy.ldpc.LDPC5GEncoder(size, coded_bits, num_bits_per_symbol=mcs.bits, device=device)
        self._decoder = phy.ldpc.LDPC5GDecoder(self._ldpc, num_iter=ROUND, return_state=True, device=device)

    def encode(self, bits: Tensor) -> Tensor:
        """Coded bits, check included."""
        coded: Tensor = self._ldpc(self._crc(bits))
        return coded

    def decode(self, ratios: Tensor) -> tuple[Tensor, Tensor]:
        """Information bits, and whether the check holds; a block that holds is done."""
        decoded = torch.zeros(len(ratios), self.info_bits, device=ratios.device)
        valid = torch.zeros(len(ratios), dtype=torch.bool, device=ratios.device)
        left = torch.arange(len(ratios), device=ratios.device)
        state = None
        for _ in range(ITERATIONS // ROUND):
            blocks, state = self._decoder(ratios[left], msg_v2c=state)
            decoded[left], passed = self._check(blocks)
            valid[left] = passed[:, 0]
            state, left = state[~passed[:, 0]], left[~passed[:, 0]]
            if not len(left):
                break
        return decoded, valid


class Polar:
    """Implements `ChannelCode` with the polar code of TS 38.212, clause 5.3.1, and CRC11, as uplink control has them.

    Successive cancellation with a list of PATHS, of which the check chooses (Tal and Vardy 2015).
    """

    def __init__(self, info_bits: int, coded_bits: int, mcs: Mcs, device: str) -> None:
        polar = _sionna().polar
        self.coded_bits = coded_bits
        self._encoder = polar.Polar5GEncoder(info_bits, coded_bits, channel_type="uplink", device=device)
        self._decoder = polar.Polar5GDecoder(
            self._encoder, dec_type="SCL", list_size=PATHS, return_crc_status=True, device=device
        )

    def encode(self, bits: Tensor) -> Tensor:
        """Coded bits, check included."""
        coded: Tensor = self._encoder(bits)
        return coded

    def decode(self, ratios: Tensor) -> tuple[Tensor, Tensor]:
        """Information bits, and whether the check holds."""
        decoded, valid = self._decoder(ratios)
        return decoded, valid.bool()


CODES: dict[Code, Callable[[int, int, Mcs, str], ChannelCode]] = {"ldpc": Ldpc, "polar": Polar}


class BlockCode:
    """A block of `uses` channel uses under one MCS; bits to symbols of unit mean energy, received to bits.

    CRC, code, rate matching and interleaving follow TS 38.212, scrambling and mapping TS 38.211. The standard
    repeats its circular buffer below the mother rate; here that starts at rate 1/5, the lowest of Sionna's LDPC.
    Decoding is on exact log-likelihood ratios.
    """

    def __init__(self, uses: int, mcs: Mcs, device: str) -> None:
        phy = _sionna()
        self.uses, self.mcs, self.info_bits = uses, mcs, mcs.info_bits(uses)
        self.coded_bits = uses * mcs.bits
        # the part that is not a repetition, a whole number of symbols
        self._kept = min(self.coded_bits, 5 * mcs.block_bits(uses) // mcs.bits * mcs.bits)
        if mcs.code == "polar":
            self._kept = self.coded_bits
        self._code = CODES[mcs.code](self.info_bits, self._kept, mcs, device)
        self._scrambler = phy.scrambling.TB5GScrambler(device=device)
        self._mapper = phy.mapping.Mapper("qam", mcs.bits, device=device)
        self._demapper = phy.mapping.Demapper("app", "qam", mcs.bits, device=device)

    def modulate(self, bits: Bits) -> Symbols:
        """Information bits, [batch, info_bits], to [batch, uses]; E|s|^2 = 1 over blocks, not of each."""
        coded = self._code.encode(bits.float())
        repeats = -(-self.coded_bits // self._kept)
        whole = coded.repeat(1, repeats)[:, : self.coded_bits]
        symbols: Symbols = self._mapper(self._scrambler(whole))
        return symbols

    def demodulate(self, received: Received) -> tuple[Bits, Bool[Tensor, " batch"]]:
        """Unequalised symbols, [batch, uses], to the information bits and whether the CRC holds."""
        decoded, valid = self._code.decode(self._collect(self._soft(received)))
        return decoded > 0.5, valid

    def _soft(self, received: Received) -> Float[Tensor, "batch bits"]:
        """Log-likelihood ratios log P(1) / P(0) of the scrambled bits."""
        gain, noise_power = received.state.gain, received.state.noise_power[:, None]
        energy = gain.real.square() + gain.imag.square()
        ratios: Tensor = self._demapper(received.symbols * gain.conj() / energy, noise_power / energy)
        return ratios

    def _collect(self, ratios: Float[Tensor, "batch bits"]) -> Float[Tensor, "batch kept"]:
        """Descrambled, with the ratios of a repeated bit added up."""
        plain: Tensor = self._scrambler(ratios, binary=False)
        missing = -plain.shape[1] % self._kept
        repeats: Tensor = F.pad(plain, (0, missing)).unflatten(1, (-1, self._kept))
        return repeats.sum(1)


@lru_cache(maxsize=256)
def block_code(uses: int, mcs: Mcs, device: str) -> BlockCode:
    """The code, built once for each size."""
    return BlockCode(uses, mcs, device)


@lru_cache(maxsize=1)
def _sionna() -> Any:
    """The parts of Sionna; importing it reseeds torch's global generators, which are restored."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        phy = "sionna.phy"
        return SimpleNamespace(
            crc=importlib.import_module(f"{phy}.fec.crc"),
            ldpc=importlib.import_module(f"{phy}.fec.ldpc"),
            polar=importlib.import_module(f"{phy}.fec.polar"),
            scrambling=importlib.import_module(f"{phy}.fec.scrambling"),
            mapping=importlib.import_module(f"{phy}.mapping"),
        )
