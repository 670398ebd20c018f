"""The sizes of a `JsccCodec`."""

from dataclasses import dataclass

from dekag.codec.klt import usual_block
from dekag.types import InputError

SIDE_USES = 1
"""Channel uses of an image's scale."""


@dataclass(frozen=True, kw_only=True)
class JsccConfig:
    """Sizes of the codec.

    Raises InputError if the latent has fewer numbers than the highest rate has amplitudes.
    """

    channels: int = 32
    rows: int = 8
    cols: int = 8
    width: int = 128
    encoder_depth: int = 1
    decoder_depth: int = 3
    heads: int = 4
    patch: int = 1
    """Side of the squares of cells that the corrections see as one, their numbers being its channels; more is faster
    on large grids. Attention is over (rows / patch) (cols / patch) cells."""
    block: int = 0
    """Side of the squares of cells that one transform decorrelates, all squares alike; its matrix has
    channels block^2 rows. 0 is the usual one (`codec.klt.usual_block`)."""
    max_uses: int = 512
    """Symbols at the highest rate, that of the scale included."""
    constellation: str = "256qam"

    def __post_init__(self) -> None:
        if not self.block:
            object.__setattr__(self, "block", usual_block(self.channels, self.rows, self.cols))
        numbers = self.channels * self.rows * self.cols
        if self.amplitudes > numbers:
            uses = numbers // 2 + SIDE_USES
            raise InputError(f"latents of {numbers} numbers fill {uses} uses, got {self.max_uses}")
        if self.max_uses <= SIDE_USES:
            raise InputError(
                f"one use is for the image's scale, so max_uses is at least 2, got {self.max_uses}"
            )
        for name in ("patch", "block"):
            side = getattr(self, name)
            if side < 1 or self.rows % side or self.cols % side:
                raise InputError(
                    f"the {name} must divide rows and columns, got {side} for {self.rows} x {self.cols}"
                )

    @property
    def amplitudes(self) -> int:
        """Numbers of the transform that the highest rate carries."""
        return 2 * (self.max_uses - SIDE_USES)

    @property
    def blocks(self) -> int:
        """Squares that are transformed."""
        return self.rows * self.cols // self.block**2

    @property
    def components(self) -> int:
        """Components of each square that are kept."""
        return -(-self.amplitudes // self.blocks)
