"""A joint source-channel codec on latents: latent -> symbols -> latent, one for all rates.

```
latent -> less mean, times weight -> + correction -> KLT -> energies, over the scale -> spread -> power -> QAM -> s
                                                                |
                                                    the scale, one component more
                                                                |
latent <- over weight, plus mean <- + correction <- KLT <- LMMSE estimate, times the scale <- equaliser <- y
```
Without its two corrections, which are what is trained, it is a linear code that knows all that can be known: the
Karhunen-Loeve transform of the latents (`codec.klt`), the energies of Lee and Petersen for the uses and the SNR
(`codec.allocation`), the scale of the image (`codec.message`), and the estimate that no other linear one beats, in
whatever fading (`codec.lmmse`). What fewer uses carry are the first components of what more do.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dekag.codec import message
from dekag.codec.allocation import allocate
from dekag.codec.constellation import commitment_loss, constellation_named, quantise
from dekag.codec.contract import Encoded, Pairs, check_latent, check_payload
from dekag.codec.jscc_config import SIDE_USES, JsccConfig
from dekag.codec.klt import Klt, from_blocks, to_blocks
from dekag.codec.lmmse import MOST_STEPS, TOLERANCE, lmmse
from dekag.codec.networks import Block, Correction
from dekag.codec.power import normalise_power, truncate
from dekag.codec.recognition import EnergyProfile
from dekag.codec.spreading import PairSpreading, Spreading, rudin_shapiro
from dekag.types import Condition, InputError, Latent, PerImage, Received, Symbols
from dekag.units import snr_db_to_noise_power

KNOWN_OF_RECEPTION = 2
TRAINING_TOLERANCE = 1e-4
"""Of the estimate in training: the loss changes by 3e-6 of itself."""
TRACED_STEPS = 30
"""Of the estimate in a graph of fixed length."""
MOST_SNR_DB = 20.0
"""Above it the corrections are told this one."""
MOST_QUALITY = 2 * 10 ** (MOST_SNR_DB / 10)
MOST_CALIBRATED = 1024
CALIBRATION = ((64, 0.0), (256, 8.0), (512, 15.0))
"""Uses and SNRs at which the spread of the scale is measured; shares of the highest rate in place of 512."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """How the energy of each image, its number of uses, is shared out.

    energy: of each amplitude. scale: of the component that is the scale.
    """

    energy: Float[Tensor, "batch amplitudes"]
    scale: PerImage

    @property
    def pairs(self) -> Pairs:
        """Of the real and imaginary parts of every component: the scale first, which may have any phase."""
        half = (self.scale / 2)[:, None]
        pairs: Pairs = torch.cat([half, half, self.energy], dim=1).unflatten(1, (-1, 2))
        return pairs


class JsccCodec(nn.Module):
    """Implements `codec.AdaptableCodec`, `PairDecoder` and `QamCodec`; CALA gates its linear layers and norms."""

    importance: Float[Tensor, " channels"]
    """How much an error in each latent channel shows in the image, mean 1."""
    mean: Float[Tensor, "channels rows cols"]
    weight: Float[Tensor, " channels"]
    basis: Float[Tensor, "numbers components"]
    log_variance: Float[Tensor, " components"]
    """Of the weighted latents, natural logarithm, falling."""
    rest: Float[Tensor, " numbers"]
    """Variance of each number of a square that no component carries."""
    scale_law: Float[Tensor, " 2"]
    """Mean and standard deviation of an image's log energy."""
    signs: Float[Tensor, " uses"]
    """Of the spreading."""

    def __init__(self, config: JsccConfig) -> None:
        super().__init__()
        self.constellation = constellation_named(config.constellation)
        self.config = config
        numbers = config.channels * config.block**2
        seen = config.channels * config.patch**2
        known = Condition(uses=1, snr_db=0.0).features().shape[1]
        sizes = {
            "outputs": seen,
            "cells": config.rows * config.cols // config.patch**2,
            "width": config.width,
            "heads": config.heads,
        }
        self.encoder = Correction(inputs=seen, known=known, depth=config.encoder_depth, **sizes)
        self.decoder = Correction(
            inputs=2 * seen, known=known + KNOWN_OF_RECEPTION, depth=config.decoder_depth, **sizes
        )
        self.register_buffer("importance", torch.ones(config.channels))
        self.register_buffer("mean", torch.zeros(config.channels, config.rows, config.cols))
        self.register_buffer("weight", torch.ones(config.channels))
        self.register_buffer("basis", torch.eye(numbers, config.components))
        self.register_buffer("log_variance", torch.zeros(config.components))
        self.register_buffer("rest", 1 - torch.eye(numbers, config.components).sum(1))
        self.register_buffer("signs", rudin_shapiro(config.max_uses), persistent=False)
        self.register_buffer("scale_law", torch.tensor([0.0, 0.5]))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of the latents."""
        return self.config.channels, self.config.rows, self.config.cols

    @property
    def max_uses(self) -> int:
        """Symbols of an image at the highest rate."""
        return self.config.max_uses

    @property
    def side_uses(self) -> int:
        """Symbols of an image that tell how the others are to be read."""
        return SIDE_USES

    @property
    def attention_modules(self) -> dict[str, int]:
        """The blocks of both corrections, all of the same width."""
        blocks = [name for name, module in self.named_modules() if isinstance(module, Block)]
        return dict.fromkeys(blocks, self.config.width)

    @property
    def condition_modules(self) -> tuple[str, ...]:
        """The layers that are told the condition."""
        return "encoder.known", "decoder.known"

    def settings(self) -> dict[str, Any]:
        """The fields of its config."""
        return asdict(self.config)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "JsccCodec":
        """A codec of new weights; raises InputError for other settings than the fields of a config."""
        if "spread" in settings:
            raise InputError(
                "it is a codec of dekag 0.x before the scale was sent; train it again (dekag codec train)"
            )
        known = {field.name for field in fields(JsccConfig)}
        if settings.keys() != known:
            raise InputError(f"it must have exactly the keys {', '.join(sorted(known))}")
        return cls(JsccConfig(**settings))

    def with_constellation(self, name: str) -> "JsccCodec":
        """The same codec with another constellation; raises InputError, listing the known ones."""
        other = copy.deepcopy(self)
        other.constellation = constellation_named(name)
        other.config = replace(self.config, constellation=name)
        return other

    @torch.no_grad()
    def start_from(self, klt: Klt, latents: Latent) -> None:
        """Take mean, weight, basis and variances of a transform, and the spread of the scale in some latents."""
        if klt.block != self.config.block:
            raise InputError(
                f"the transform is of blocks of {klt.block}, the codec's are of {self.config.block}"
            )
        kept = self.config.components
        self.importance.copy_(klt.importance)
        self.mean.copy_(klt.mean)
        self.weight.copy_(klt.weight)
        self.basis.copy_(klt.basis[:, :kept])
        variance = klt.variance[:kept].clamp(min=1e-6 * float(klt.variance[0]))
        self.log_variance.copy_(variance.log())
        self.rest.copy_(klt.basis[:, kept:].square() @ klt.variance[kept:])
        self.scale_law.copy_(self._scale_law(latents))

    @torch.no_grad()
    def _scale_law(self, latents: Latent) -> Tensor:
        some = latents[:: max(1, len(latents) // MOST_CALIBRATED)].float()
        amplitudes = self._analyse(self._weighted(some))
        found = []
        for uses, snr_db in CALIBRATION:
            condition = Condition(uses=max(2, uses * self.max_uses // 512), snr_db=snr_db)
            plan = self._plan(condition, condition.payload)
            found.append(self._log_energy(amplitudes, plan))
        return torch.stack([torch.cat(found).mean(), torch.stack([each.std() for each in found]).max()])

    def encode(self, latent: Latent, condition: Condition) -> Symbols:
        """Latents, unit scale, to unit-power symbols; columns beyond an image's payload are zero."""
        return self.transmit(latent, condition).symbols

    def transmit(self, latent: Latent, condition: Condition) -> Encoded:
        """As `encode`, with the commitment loss of the quantiser (per image)."""
        check_latent(self, latent, condition)
        _check_least(condition)
        condition = condition.to(latent.device)
        payload = condition.payload
        weighted = self._weighted(latent.float())
        correction = self.encoder(self._cells(weighted), condition.features(most_snr_db=MOST_SNR_DB))
        with _exact(latent.device):
            amplitudes = self._analyse(weighted + self._grid(correction))
            analogue = Spreading(payload).spread_rows(self._components(amplitudes, condition))
            sent = self.constellation.load * analogue
            points = truncate(quantise(sent, self.constellation), payload)
        # the grid as a whole has unit energy, an image's own points have not
        return Encoded(
            symbols=normalise_power(points, payload), commitment=commitment_loss(sent, points, payload)
        )

    def decode(self, received: Received, condition: Condition) -> Latent:
        """Equalised symbols, complex [batch, uses], to latents, unit scale."""
        check_payload(self, condition)
        _check_least(condition)
        condition = condition.to(received.symbols.device)
        payload, uses = condition.payload, int(condition.payload.max())
        symbols = truncate(received.symbols[:, :uses], payload)
        sent = torch.arange(uses, device=payload.device) < payload[:, None]
        reliability = received.state.reliability[:, :uses].float() * sent
        turns = Spreading(payload)
        tolerance = TRAINING_TOLERANCE if self.training else TOLERANCE
        return self._estimate(
            torch.view_as_real(symbols), reliability, condition, turns, MOST_STEPS, tolerance
        )

    def decode_pairs(
        self, symbols: Pairs, reliability: Float[Tensor, "batch uses"], condition: Condition
    ) -> Latent:
        """As `decode`, of images of which every symbol is payload, in real numbers and a fixed number of steps."""
        return self._estimate(
            symbols, reliability, condition, PairSpreading(symbols, self.signs), TRACED_STEPS, 0.0
        )

    def energy_profile(self, symbols: Symbols, condition: Condition) -> EnergyProfile:
        """Energy of the components of received symbols, and what it is on average in what is sent."""
        payload, uses = condition.payload.to(symbols.device), int(condition.payload.max())
        components = Spreading(payload).despread_rows(truncate(symbols[:, :uses], payload))
        share = self._plan(condition.to(symbols.device), payload).pairs.sum(2)[:, :uses]
        return EnergyProfile(
            energy=components.real.square() + components.imag.square(), share=share, alike=True
        )

    def _estimate(
        self,
        symbols: Pairs,
        reliability: Float[Tensor, "batch uses"],
        condition: Condition,
        turns: Spreading | PairSpreading,
        steps: int,
        tolerance: float,
    ) -> Latent:
        """Latents of equalised symbols."""
        uses = symbols.shape[1]
        with _exact(symbols.device):
            payload = condition.payload
            plan = self._plan(condition, payload)
            # |h|^2 / N0, from which one-tap equalisation made both; a use that was not received has 0 of all
            snr = reliability / (1 - reliability).clamp(min=1e-9)
            distortion = self.constellation.distortion
            quality = 2 * (1 - distortion) * snr / (1 + distortion * snr)
            factor = 2 * (1 - distortion) ** 0.5 * (1 + snr) / (1 + distortion * snr)
            estimate = lmmse(
                factor[..., None] * symbols,
                quality,
                plan.pairs[:, :uses],
                spread=turns.spread,
                despread=turns.despread,
                tolerance=tolerance,
                steps=steps,
            )
            mean_quality = quality.sum(1) / payload
            level = message.log_energy(estimate[:, 0], plan.scale * mean_quality / 2, *self.scale_law)
            scale = (level / 2).exp()[:, None]
            found = F.pad(estimate.flatten(1), (0, 2 * (self.max_uses - uses)))[:, 2:]
            variance = self._variance
            reached = plan.energy > 0
            amplitude = (variance / torch.where(reached, plan.energy, 1.0)).sqrt() * reached * found
            left = variance / (1 + plan.energy * mean_quality[:, None])
            grid = self._synthesise(scale * amplitude)
            deviation = scale[:, :, None, None] * self._spread_of(left)
            known = torch.stack(
                [
                    (level - self.scale_law[0]) / self.scale_law[1],
                    (mean_quality.clamp(max=MOST_QUALITY) + 1e-3).log() / 4,
                ],
                dim=1,
            )
        seen = torch.cat([self._cells(grid), self._cells(deviation)], dim=2)
        known = torch.cat([condition.features(most_snr_db=MOST_SNR_DB), known], dim=1)
        corrected = grid + self._grid(self.decoder(seen, known))
        return corrected / self.weight[:, None, None] + self.mean

    def _plan(self, condition: Condition, payload: Tensor) -> Plan:
        """Energies for the mean SNR; in fading no better ones are known that hold for every draw of it."""
        uses = payload.float()
        noise = snr_db_to_noise_power(condition.snr_db) + self.constellation.distortion
        variance, count = self._variance, 2 * (payload - SIDE_USES)
        whole = allocate(variance, count, uses, noise / 2)
        ratio = 2 * whole / noise[:, None]
        captured = variance * ratio / (1 + ratio)
        share = message.share(
            captured.sum(1), (captured / (1 + ratio)).sum(1), uses / noise, self.scale_law[1]
        )
        return Plan(energy=allocate(variance, count, uses * (1 - share), noise / 2), scale=uses * share)

    def _components(self, amplitudes: Tensor, condition: Condition) -> Symbols:
        """The components that are spread, complex, of each image's number of uses in energy."""
        payload = condition.payload
        plan = self._plan(condition, payload)
        level = self._log_energy(amplitudes, plan)
        turn = message.phase(level, *self.scale_law)
        scale = plan.scale.sqrt()[:, None] * torch.stack([turn.cos(), turn.sin()], dim=1)
        numbers = (plan.energy / self._variance).sqrt() * amplitudes * (-level / 2).exp()[:, None]
        pairs = torch.cat([scale, numbers], dim=1).unflatten(1, (-1, 2))
        return torch.view_as_complex(pairs.contiguous())[:, : int(payload.max())]

    def _log_energy(self, amplitudes: Tensor, plan: Plan) -> PerImage:
        """Logarithm of an image's energy over what its components have on average, as the plan weighs them."""
        own = (plan.energy / self._variance * amplitudes.square()).sum(1)
        return (own / plan.energy.sum(1)).clamp(min=1e-12).log()

    @property
    def _variance(self) -> Float[Tensor, " amplitudes"]:
        """Of each amplitude: every component of all squares, then the next."""
        variance = self.log_variance.exp().repeat_interleave(self.config.blocks)
        return variance[: self.config.amplitudes]

    def _weighted(self, latent: Latent) -> Latent:
        return (latent - self.mean) * self.weight[:, None, None]

    def _analyse(self, grid: Latent) -> Float[Tensor, "batch amplitudes"]:
        components = to_blocks(grid, self.config.block) @ self.basis
        return components.transpose(1, 2).flatten(1)[:, : self.config.amplitudes]

    def _synthesise(self, amplitudes: Float[Tensor, "batch amplitudes"]) -> Latent:
        return self._of_blocks(self._by_block(amplitudes) @ self.basis.T)

    def _spread_of(self, variances: Float[Tensor, "batch amplitudes"]) -> Latent:
        """Standard deviation of each number of a latent whose amplitudes have those variances."""
        return self._of_blocks(self._by_block(variances) @ self.basis.square().T + self.rest).sqrt()

    def _by_block(self, amplitudes: Float[Tensor, "batch amplitudes"]) -> Tensor:
        """[batch, blocks, components]; what no amplitude carries is 0."""
        config = self.config
        whole = F.pad(amplitudes, (0, config.blocks * config.components - config.amplitudes))
        rows: Tensor = whole.unflatten(1, (config.components, config.blocks)).transpose(1, 2)
        return rows

    def _of_blocks(self, rows: Tensor) -> Latent:
        return from_blocks(rows, self.config.block, (self.config.rows, self.config.cols))

    def _cells(self, grid: Latent) -> Float[Tensor, "batch cells numbers"]:
        return to_blocks(grid, self.config.patch)

    def _grid(self, cells: Float[Tensor, "batch cells numbers"]) -> Latent:
        return from_blocks(cells, self.config.patch, (self.config.rows, self.config.cols))


def _check_least(condition: Condition) -> None:
    least = int(condition.payload.min())
    if least <= SIDE_USES:
        raise InputError(f"one use is for the image's scale, so an image needs at least 2, got {least}")


@contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """In float32, whatever the precision of what is trained."""
    with torch.autocast(device.type, enabled=False):
        yield
