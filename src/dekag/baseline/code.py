"""One transport block of 5G NR: bits -> CRC -> LDPC -> scrambling -> QAM, and back. Sionna's parts."""

import importlib
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from dekag.baseline.mcs import Mcs
from dekag.types import Received, Symbols

ITERATIONS = 32
ROUND = 4
"""Iterations between two looks at the CRC; a block that passes is done."""

Bits = Bool[Tensor, "batch bits"]


class BlockCode:
    """A block of `uses` channel uses under one MCS; bits to symbols of unit mean energy, received to bits.

    CRC, LDPC, rate matching and interleaving follow TS 38.212, scrambling and mapping TS 38.211. The standard
    repeats its circular buffer below the mother rate; here that starts at rate 1/5, the lowest of Sionna's.
    Decoding is sum-product on exact log-likelihood ratios.
    """

    def __init__(self, uses: int, mcs: Mcs, device: str) -> None:
        phy = _sionna()
        size = mcs.block_bits(uses)
        self.uses, self.mcs, self.info_bits = uses, mcs, mcs.info_bits(uses)
        self.coded_bits = uses * mcs.bits
        # the part that is not a repetition, a whole number of symbols
        self._kept = min(self.coded_bits, 5 * size // mcs.bits * mcs.bits)
        self._crc = phy.crc.CRCEncoder("CRC16", device=device)
        self._check = phy.crc.CRCDecoder(self._crc, device=device)
        self._ldpc = phy.ldpc.LDPC5GEncoder(size, self._kept, num_bits_per_symbol=mcs.bits, device=device)
        self._decoder = phy.ldpc.LDPC5GDecoder(self._ldpc, num_iter=ROUND, return_state=True, device=device)
        self._scrambler = phy.scrambling.TB5GScrambler(device=device)
        self._mapper = phy.mapping.Mapper("qam", mcs.bits, device=device)
        self._demapper = phy.mapping.Demapper("app", "qam", mcs.bits, device=device)

    def modulate(self, bits: Bits) -> Symbols:
        """Information bits, [batch, info_bits], to [batch, uses]; E|s|^2 = 1 over blocks, not of each."""
        coded = self._ldpc(self._crc(bits.float()))
        repeats = -(-self.coded_bits // self._kept)
        whole = coded.repeat(1, repeats)[:, : self.coded_bits]
        symbols: Symbols = self._mapper(self._scrambler(whole))
        return symbols

    def demodulate(self, received: Received) -> tuple[Bits, Bool[Tensor, " batch"]]:
        """Unequalised symbols, [batch, uses], to the information bits and whether the CRC holds."""
        ratios = self._collect(self._soft(received))
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
            scrambling=importlib.import_module(f"{phy}.fec.scrambling"),
            mapping=importlib.import_module(f"{phy}.mapping"),
        )
