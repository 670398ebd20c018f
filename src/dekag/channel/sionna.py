"""Sionna's channels behind our contract: imported on the first transmission, seeded only here."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import torch

from dekag.channel.fading import fit, spread, used
from dekag.types import ChannelState, Condition, InputError, Received, Symbols
from dekag.units import snr_db_to_noise_power


@contextmanager
def seeded_sionna(rng: torch.Generator) -> Iterator[ModuleType]:
    """`sionna.phy` with its generators seeded from `rng`.

    Sionna reseeds torch's global generators when it is imported and when it is seeded; they are restored.
    """
    seed = int(torch.randint(2**62, (1,), generator=rng, device=rng.device))
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        phy = importlib.import_module("sionna.phy")
        phy.config.seed = seed
        yield phy


@dataclass(frozen=True)
class SionnaFlatFading:
    """Sionna's AWGN and RayleighBlockFading: one independent gain per block, known to the receiver.

    An independent reference for `BlockFading`: the same contract and conventions, but gains and noise are not
    ours. Differentiable in the symbols.

    Raises InputError for correlated blocks or pilots under fading, which these Sionna models do not have.
    """

    def __call__(self, symbols: Symbols, condition: Condition, *, rng: torch.Generator) -> Received:
        batch, width = symbols.shape
        fitted = fit(condition, symbols)
        correlated = (fitted.correlation > 0) & (fitted.blocks > 1)
        if bool((fitted.rayleigh & (correlated | (fitted.pilots > 0))).any()):
            raise InputError(
                "Sionna's flat fading has independent blocks and known gains: set correlation and pilots to 0"
            )
        noise_power = snr_db_to_noise_power(fitted.snr_db)
        precision = "double" if symbols.dtype == torch.complex128 else "single"
        device = str(symbols.device)
        with seeded_sionna(rng) as phy:
            awgn = phy.channel.AWGN(precision=precision, device=device)
            fading = phy.channel.RayleighBlockFading(1, 1, 1, 1, precision=precision, device=device)
            paths, _ = fading(batch_size=batch * width, num_time_steps=1)
            gain = spread(paths.reshape(batch, width), fitted)
            noisy = awgn(gain * symbols, noise_power)
        state = ChannelState(gain=gain, noise_power=noise_power)
        return Received(symbols=noisy * used(fitted, width), state=state)
