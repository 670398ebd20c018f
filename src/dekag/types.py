"""The nouns of the package: tensors with their shapes, the condition of a transmission, and the contracts.

Everything is frozen and keyword-only; randomness and device are arguments, never state.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Complex, Float, Int64
from torch import Tensor

from dekag.errors import ConditionWarning as ConditionWarning
from dekag.errors import EndpointWarning as EndpointWarning
from dekag.errors import FieldError as FieldError
from dekag.errors import InputError as InputError
from dekag.errors import ReceptionWarning as ReceptionWarning
from dekag.errors import SkippedWarning as SkippedWarning

Image = Float[Tensor, "batch 3 height width"]
"""RGB in [0, 1]."""


@runtime_checkable
class ImageRows(Protocol):
    """Images [rows, 3, height, width] in [0, 1] that may be read only when they are asked for; `Image` is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice) -> Image: ...


@runtime_checkable
class RepeatedRows(ImageRows, Protocol):
    """Images of which some may be there several times."""

    def distinct(self) -> tuple[ImageRows, Int64[Tensor, " rows"]]:
        """Each once, and the place of each of these rows among them."""
        ...


Latent = Float[Tensor, "batch channels rows cols"]
"""Unit scale over the data: the autoencoder's scaling factor is already applied."""
Symbols = Complex[Tensor, "batch uses"]
"""One complex symbol a channel use; mean |s|^2 = 1 over the used symbols of each image, zero beyond them."""
PerImage = Float[Tensor, " batch"]


MAX_SNR_DB = 300.0
"""Largest magnitude of an SNR in dB for which float32 holds the noise power and its inverse."""


@dataclass(frozen=True, init=False, eq=False)
class Condition:
    """What both ends know of a transmission; every field is per image, so one batch may mix conditions.

    Numbers are broadcast against each other to tensors of shape [batch].

    uses: channel uses spent on each image, pilots included.
    snr_db: mean SNR per complex channel use, with unit symbol energy and E|h|^2 = 1.
    rayleigh: Rayleigh block fading if true, else AWGN with unit gain.
    blocks: number J of equally long resource blocks of an image; 1 is slow fading, `uses` is fast fading.
    correlation: magnitude of the gains' correlation between neighbouring blocks, in [0, 1].
    phase: phase of that correlation in radians, linear in the block distance.
    pilots: pilot symbols at the head of each block from which the receiver estimates the gain; 0 means that
        the receiver knows the gain. Meaningful only under fading.

    Raises InputError if a field is out of range or not finite.
    """

    uses: Int64[Tensor, " batch"]
    snr_db: Float[Tensor, " batch"]
    rayleigh: Bool[Tensor, " batch"]
    blocks: Int64[Tensor, " batch"]
    correlation: Float[Tensor, " batch"]
    phase: Float[Tensor, " batch"]
    pilots: Int64[Tensor, " batch"]

    def __init__(
        self,
        *,
        uses: int | Tensor,
        snr_db: float | int | Tensor,
        rayleigh: bool | Tensor = False,
        blocks: int | Tensor = 1,
        correlation: float | int | Tensor = 0.0,
        phase: float | int | Tensor = 0.0,
        pilots: int | Tensor = 0,
    ) -> None:
        given = (
            (uses, torch.int64),
            (snr_db, torch.float32),
            (rayleigh, torch.bool),
            (blocks, torch.int64),
            (correlation, torch.float32),
            (phase, torch.float32),
            (pilots, torch.int64),
        )
        tensors = [torch.as_tensor(value, dtype=dtype) for value, dtype in given]
        columns = _columns(tensors)
        for field, column in zip(fields(self), columns, strict=True):
            object.__setattr__(self, field.name, column)
        self._check()

    def __len__(self) -> int:
        """Number of images."""
        return len(self.uses)

    def __getitem__(self, rows: slice | Tensor) -> "Condition":
        """The condition of some of the images."""
        return Condition(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def expand(self, batch: int) -> "Condition":
        """The same condition for `batch` images; a condition of one image fits any number."""
        if len(self) == batch:
            return self
        if len(self) != 1:
            raise InputError(f"the condition describes {len(self)} images, but there are {batch}")
        return Condition(**{f.name: getattr(self, f.name).expand(batch) for f in fields(self)})

    def to(self, device: torch.device) -> "Condition":
        """The same condition on a device."""
        if self.uses.device == device:
            return self
        return Condition(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    @cached_property
    def payload(self) -> Tensor:
        """Channel uses left for symbols once the pilots are paid for, int64 [batch]."""
        return self.uses - torch.where(self.rayleigh, self.blocks * self.pilots, 0)

    @staticmethod
    def cat(conditions: Sequence["Condition"]) -> "Condition":
        """One batch of several conditions."""
        names = [f.name for f in fields(Condition)]
        return Condition(**{n: torch.cat([getattr(c, n) for c in conditions]) for n in names})

    def features(self, *, most_snr_db: float = math.inf) -> Float[Tensor, "batch features"]:
        """What a network is told of a condition, each feature of order one, float [batch, 6].

        SNR (10 dB is 1; a higher one than `most_snr_db` is told as that), log2 of the payload uses (256 is 0),
        fading or not, log2 of the blocks under fading (16 is 1), correlation, and whether the gain is estimated.
        The receiver undoes the phase: left out.
        """
        fading = self.rayleigh.float()
        return torch.stack(
            [
                self.snr_db.clamp(max=most_snr_db) / 10,
                torch.log2(self.payload.float()) - 8,
                fading,
                fading * torch.log2(self.blocks.float()) / 4,
                fading * self.correlation,
                fading * (self.pilots > 0).float(),
            ],
            dim=1,
        )

    def _check(self) -> None:
        require = (
            (self.uses >= 1, "uses must be at least 1", self.uses),
            (self.snr_db.abs() <= MAX_SNR_DB, f"snr_db must be within +-{MAX_SNR_DB:g} dB", self.snr_db),
            (self.blocks >= 1, "blocks must be at least 1", self.blocks),
            (self.pilots >= 0, "pilots must be at least 0", self.pilots),
            (self.phase.isfinite(), "phase must be a finite number", self.phase),
            (
                (self.correlation >= 0) & (self.correlation <= 1),
                "correlation must be in [0, 1]",
                self.correlation,
            ),
        )
        for holds, text, values in require:
            if not bool(holds.all()):
                raise InputError(f"{text}, got {values[~holds][0].item()}")
        fitting = ~self.rayleigh | ((self.blocks <= self.payload) & (self.payload >= 1))
        if not bool(fitting.all()):
            row = int((~fitting).nonzero()[0])
            uses, blocks, pilots = (int(field[row]) for field in (self.uses, self.blocks, self.pilots))
            raise InputError(
                f"{uses} uses cannot hold {blocks} blocks of {pilots} pilots and at least one payload symbol"
                " each; use fewer blocks or more uses"
            )


def _columns(values: Sequence[Tensor]) -> list[Tensor]:
    """Numbers and per-image values broadcast against each other, each [batch]."""
    shapes = [tuple(value.shape) for value in values]
    if any(len(shape) > 1 for shape in shapes):
        raise InputError(f"each field must be a number or one value per image, got shapes {shapes}")
    batches = {shape[0] for shape in shapes if shape} - {1}
    if len(batches) > 1:
        raise InputError(f"the fields must describe the same number of images, got shapes {shapes}")
    batch = batches.pop() if batches else 1
    return [value.reshape(-1).expand(batch) for value in values]


@dataclass(frozen=True, kw_only=True)
class ChannelState:
    """What the receiver knows of the channel.

    gain: complex [batch, uses], known or estimated.
    noise_power: N0 per complex use, float [batch]; under estimated gain it includes the estimation error.
    """

    gain: Complex[Tensor, "batch uses"]
    noise_power: Float[Tensor, " batch"]

    @property
    def reliability(self) -> Float[Tensor, "batch uses"]:
        """Share of a unit-energy symbol that survives MMSE equalisation, |h|^2 / (|h|^2 + N0), in [0, 1].

        1 less the mean square error of the equalised symbol; 0 where nothing is sent.
        """
        energy = self.gain.real.square() + self.gain.imag.square()
        return energy / (energy + self.noise_power[:, None])


@dataclass(frozen=True, kw_only=True)
class Received:
    """Symbols at the receiver, complex [batch, uses], and the state that belongs to them."""

    symbols: Complex[Tensor, "batch uses"]
    state: ChannelState


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """What a delivery cost, and what sending the images themselves would have cost.

    prompt_bytes, seed_bytes, id_bytes: over the core link, for the whole batch.
    payload_uses, pilot_uses, side_uses: channel uses for the whole batch.
    image_bytes: the same images as PNG files, for the whole batch.
    milliseconds: wall time by stage, for the whole batch.
    """

    prompt_bytes: int
    seed_bytes: int
    id_bytes: int
    payload_uses: int
    pilot_uses: int
    side_uses: int
    image_bytes: int
    milliseconds: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """What reached the user, with everything that is needed to say how.

    drawn: the images that a perfect channel would have delivered. image: what the user sees.
    erased_uses: payload uses of each image whose received symbol could not be used and counted as not received.
    bundles: ids of the bundles that were applied, by kind.
    """

    image: Image
    drawn: Image
    latent_sent: Latent
    latent_received: Latent
    condition: Condition
    erased_uses: Int64[Tensor, " batch"]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    bundles: dict[str, str]
    ledger: Ledger


@runtime_checkable
class Generator(Protocol):
    """Prompts and one seed each to latents; the same call gives the same bytes on one machine."""

    def __call__(self, prompts: Sequence[str], *, seeds: Sequence[int]) -> Latent:
        """Latents of prompts, drawn with one seed each."""
        ...

    def decode(self, latent: Latent) -> Image:
        """Images of latents."""
        ...


@runtime_checkable
class Codec(Protocol):
    """Latents to symbols and back; `decode` takes equalised symbols."""

    def encode(self, latent: Latent, condition: Condition) -> Symbols:
        """Symbols of latents under a condition."""
        ...

    def decode(self, received: Received, condition: Condition) -> Latent:
        """Latents of equalised symbols under the condition that they were sent under."""
        ...


@runtime_checkable
class Channel(Protocol):
    """Symbols to what is received; all randomness comes from `rng`."""

    def __call__(self, symbols: Symbols, condition: Condition, *, rng: torch.Generator) -> Received:
        """What is received of symbols that are sent under a condition."""
        ...


@runtime_checkable
class Metric(Protocol):
    """One value per image."""

    def __call__(self, reference: Image, estimate: Image) -> PerImage:
        """One value for each image."""
        ...
