"""Sionna's channels behind our contract: imported on the first transmission, seeded only here."""

import importlib
from collections.abc import Callable, Iterator
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

    Sionna reseeds torch's global generators when it is imported and when it is seeded; they are restored, and
    so are Sionna's own seed and generators: a caller's Sionna draws go on where they were.
    """
    seed = int(torch.randint(2**62, (1,), generator=rng, device=rng.device))
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        phy = importlib.import_module("sionna.phy")
        restore = _remember(phy)
        try:
            phy.config.seed = seed
            yield phy
        finally:
            restore()


def _remember(phy: ModuleType) -> Callable[[], None]:
    """What brings Sionna's seed and generators back to where they are now."""
    config = phy.config
    seed, python, numpy = config.seed, config.py_rng.getstate(), config.np_rng.bit_generator.state
    states = {device: config.torch_rng(device).get_state() for device in config.available_devices}

    def restore() -> None:
        # setting the seed starts every generator anew, so their states come after it
        config.seed = seed
        config.py_rng.setstate(python)
        config.np_rng.bit_generator.state = numpy
        for device, state in states.items():
            config.torch_rng(device).set_state(state)

    return restore


@dataclass(frozen=True)
class SionnaFlatFading:
    """Sionna's AWGN and RayleighBlockFading: one independent gain per block, known to the receiver.

    An independent reference for `BlockFading`: the same contract and conventions, but gains and noise are not
    ours. Differentiable in the symbols.

    Raises InputError for correlated blocks or pilots under fading, which these Sionna models do not have.
    """

    def __call__(self, symbols: Symbols, condition: Condition, *, rng: torch.Generator) -> Received:
        """Fade and add noise to symbols [batch, uses]; gain and noise power are what the receiver knows."""
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
