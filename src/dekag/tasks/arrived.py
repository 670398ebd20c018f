"""Whether the symbols of a recording can be what its sender sent: a receiver refuses what it did not receive."""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from dekag.channel import erase_invalid
from dekag.channel.arrival import FALSE_ALARM, power_window
from dekag.channel.fading import used
from dekag.codec.recognition import EnergyProfile, Evidence, energy_profile_of, evidence
from dekag.errors import NotReceivedError
from dekag.types import (
    ChannelState,
    Codec,
    Condition,
    PerImage,
    Received,
    ReceptionWarning,
    Symbols,
)
from dekag.units import db_to_linear, snr_db_to_noise_power

CERTAIN = 5.0
"""Standard deviations over noise from which on a recording is taken for a signal without a word."""
MOST_LOST = 0.5
"""Share of an image's symbols that may be missing; a picture of fewer is mostly the decoder's guess."""
FADE_DB = 10.0
"""What a recording of fading may be weaker by than its metadata before it is taken for noise."""
AS_SENT = 1e-3
"""Deviation of a mean power from 1 of symbols that nothing happened to, as in `codec.check`."""


@dataclass(frozen=True, kw_only=True)
class Arrived:
    """What was measured of each image: symbols as they can be used, how many were lost, mean power of the others."""

    symbols: Symbols
    lost: Int64[Tensor, " batch"]
    power: PerImage

    @property
    def as_sent(self) -> bool:
        """Whether neither noise nor fading shows."""
        return bool(((self.power - 1).abs() < AS_SENT).all()) and not bool(self.lost.any())


def measure(symbols: Symbols, condition: Condition) -> Arrived:
    """Measure the unequalised symbols of a recording, before any channel is simulated."""
    sent = used(condition, symbols.shape[1])
    noise_power = snr_db_to_noise_power(condition.snr_db)
    state = ChannelState(gain=sent.to(symbols.dtype), noise_power=noise_power)
    erased = erase_invalid(Received(symbols=symbols, state=state), condition)
    kept = erased.received.symbols * sent
    energy = (kept.real.double().square() + kept.imag.double().square()).sum(1)
    return Arrived(
        symbols=kept,
        lost=erased.uses,
        power=energy / (condition.payload - erased.uses).clamp(min=1),
    )


def require_arrived(path: Path, arrived: Arrived, condition: Condition, codec: Codec) -> None:
    """NotReceivedError, in one line that names the image, unless every image may be what its sender sent.

    Of an image that is right, less than 1e-6 are refused: power by `channel.arrival`, and by `codec.recognition` where
    the codec knows its components. Under fading a single image may be lost, so that only the whole recording is.
    """
    faults = _power_faults(arrived, condition)
    profile = energy_profile_of(codec, arrived.symbols, condition)
    if profile is not None:
        found = _evidence(profile, arrived, condition)
        if not bool(condition.rayleigh.any()):
            tones = _tone_faults(arrived, condition) if profile.alike else {}
            faults = _profile_faults(found) | tones | faults
        if not faults and (together := _profile_faults(found.together)):
            raise NotReceivedError(f"{path}: nothing was received: {together[0]}")
    if not faults:
        return
    image, fault = min(faults.items())
    others = len(faults) - 1
    if len(faults) == len(condition):
        raise NotReceivedError(
            f"{path}: nothing was received: {fault}{f' (image {image})' if others else ''}"
        )
    also = "" if not others else "; nor was 1 other" if others == 1 else f"; nor were {others} others"
    raise NotReceivedError(f"{path}: image {image} of {len(condition)} was not received: {fault}{also}")


def warn_of_doubt(path: Path, arrived: Arrived, condition: Condition, codec: Codec) -> None:
    """One ReceptionWarning if what a radio brought is not told from noise, though noise was not shown either.

    That is so of few symbols and at low SNR; of noise alone less than 3e-7 are called a signal (5 standard deviations).
    """
    profile = energy_profile_of(codec, arrived.symbols, condition)
    if profile is None:
        return
    excess = float(_evidence(profile, arrived, condition).together.excess)
    if excess < CERTAIN:
        warnings.warn(
            f"{path} cannot be told from noise: its energy is {excess:.1f} standard deviations from it, and {CERTAIN:g}"
            " would be sure; more images or more symbols an image would tell",
            ReceptionWarning,
            stacklevel=2,
        )


def warn_of_fading(path: Path, arrived: Arrived, condition: Condition) -> None:
    """One ReceptionWarning if faded symbols are to be decoded as if nothing had faded them."""
    if bool(condition.rayleigh.any()) and not arrived.as_sent:
        warnings.warn(
            f"{path} was sent for Rayleigh fading, and its samples are decoded at unit gain: what a radio has not"
            " equalised gives wrong pictures",
            ReceptionWarning,
            stacklevel=2,
        )


def _power_faults(arrived: Arrived, condition: Condition) -> dict[int, str]:
    """What is wrong with the samples of images by their numbers: too few, silent, too weak or too strong."""
    payload = condition.payload
    low, high = power_window(condition, payload - arrived.lost)
    faults = {}
    for image, power in enumerate(arrived.power.tolist()):
        lost, length = int(arrived.lost[image]), int(payload[image])
        if lost > MOST_LOST * length:
            faults[image] = (
                f"{lost} of its {length} symbols are NaN, infinite or absurdly strong, and at most half may be"
            )
        elif power == 0:
            faults[image] = "its samples are all 0"
        elif not low[image] <= power <= high[image]:
            right = f"{float(low[image]):.3g} to {float(high[image]):.3g} would be right at"
            faults[image] = (
                f"its mean symbol power is {power:.3g}, and {right} {float(condition.snr_db[image]):g} dB"
            )
    return faults


def _tone_faults(arrived: Arrived, condition: Condition) -> dict[int, str]:
    """Images by their numbers of which a few symbols have nearly all energy, where those of a codec are alike.

    The mean square of the power of Gaussian symbols over the squared mean is 2, with deviation 2 / sqrt(n) (5 here); a
    single power of ln(n) + x times the mean, which a recording has with probability exp(-x), adds its square over n.
    """
    power = arrived.symbols.real.double().square() + arrived.symbols.imag.double().square()
    count = (condition.payload - arrived.lost).clamp(min=1).double()
    found = count * power.square().sum(1) / power.sum(1).square().clamp(min=1e-30)
    most = 2 + 10 / count.sqrt() + (count.log() - math.log(FALSE_ALARM)).square() / count
    return {
        image: f"a few of its symbols have its energy, as of a tone (their kurtosis is {found[image]:.3g}, and at"
        f" most {most[image]:.2g} would be right)"
        for image in (found > most).nonzero().flatten().tolist()
    }


def _evidence(profile: EnergyProfile, arrived: Arrived, condition: Condition) -> Evidence:
    """The evidence of each image; of fading with room for a weak recording."""
    fade = db_to_linear(torch.where(condition.rayleigh, FADE_DB, 0.0))
    noise_power = snr_db_to_noise_power(condition.snr_db) * fade
    return evidence(profile, condition, noise_power, 1 - arrived.lost / condition.payload)


def _profile_faults(found: Evidence) -> dict[int, str]:
    """What the evidence says against images by their numbers."""
    faults = {}
    numbers = zip(
        found.is_noise.tolist(), found.is_displaced.tolist(), found.excess, found.expected, strict=True
    )
    for image, (noise, displaced, excess, expected) in enumerate(numbers):
        measured = (
            f"{float(excess):.1f} standard deviations from noise, and {float(expected):.0f} would be usual"
        )
        if displaced:
            faults[image] = (
                "the energy of its components is in the wrong ones, as if I and Q were swapped"
                f" (it is {measured})"
            )
        elif noise:
            faults[image] = f"its samples are like noise alone (their energy is {measured})"
    return faults
