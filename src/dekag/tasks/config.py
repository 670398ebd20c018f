"""Configurations of tasks; without torch, so that bad options are refused at once."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt
from typing_extensions import Doc

from dekag.choices import CONSTELLATIONS
from dekag.config import check_bounds
from dekag.errors import InputError


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """Size and training of a nominal codec. Raises InputError if a field is out of bounds."""

    steps: Annotated[int, Ge(0), Doc("Optimiser steps; 0 leaves the linear transform.")] = 4000
    batch: Annotated[int, Ge(1), Doc("Latents of a step.")] = 32
    learning_rate: Annotated[float, Gt(0), Doc("Highest learning rate.")] = 1e-3
    max_uses: Annotated[
        int | None,
        Ge(1),
        Doc("Payload symbols at the highest rate; default: a quarter of the latent's numbers."),
    ] = None
    constellation: Annotated[str, Doc("analogue, qpsk, 16qam, 64qam, 256qam or 1024qam.")] = "256qam"
    patch: Annotated[
        int | None,
        Ge(1),
        Doc("Side of the squares of latent cells seen as one; default: for 256 squares at most."),
    ] = None
    width: Annotated[int, Ge(1), Doc("Width of the layers; a multiple of 4.")] = 128
    encoder_depth: Annotated[int, Ge(0), Doc("Blocks of the encoder.")] = 1
    decoder_depth: Annotated[int, Ge(0), Doc("Blocks of the decoder.")] = 3
    precision: Annotated[
        Literal["no", "bf16", "auto"],
        Doc("Of the computation; no is fp32, auto is bf16 if that is faster here."),
    ] = "no"
    seed: Annotated[int, Ge(0), Doc("Seed of everything random.")] = 0

    def __post_init__(self) -> None:
        check_bounds(self)
        CONSTELLATIONS.require(self.constellation)
        if self.width % 4:
            raise InputError(f"width must be a multiple of 4, as the attention has 4 heads, got {self.width}")
