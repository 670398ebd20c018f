"""The shared autoencoder: a diffusers `AutoencoderTiny` between pictures and latents of 8 x 8 x 32.

Training starts from closed-form principal components: the encoder's strided convolutions hold the components of
patches exactly, so latents are orderly from the first step; encoder and decoder are then trained together on L1
and LPIPS with noise on the latents, since drawn and transmitted latents are never exact.
"""

from dataclasses import dataclass

import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn

from dekag.units import mse_to_psnr_db

from .grammar import COLOURS
from .lpips import Lpips
from .pictures import Art, backgrounds, paste

CHANNELS, CELLS = 32, 8
PEAK_STD = 1.3
"""Standard deviation of the strongest channel at the start; the decoder clamps softly at 3."""
LATENT_NOISE = 0.02
"""Largest standard deviation of the noise on latents, of which the strongest channel has about PEAK_STD."""
LPIPS_WEIGHT, SQUARE_WEIGHT = 0.05, 15.0
"""Weights of LPIPS and of the square error beside L1; the square keeps edges in place while the error is large."""


@dataclass(frozen=True, kw_only=True)
class AutoencoderSize:
    """Widths and blocks, from the largest maps to the 8 x 8 ones."""

    encoder_width: int = 64
    decoder_width: int = 48
    encoder_blocks: tuple[int, ...] = (0, 0, 2, 0)
    decoder_blocks: tuple[int, ...] = (3, 4, 2, 1)


SIZES = {
    64: AutoencoderSize(),
    128: AutoencoderSize(encoder_blocks=(0, 0, 1, 1, 0), decoder_blocks=(3, 3, 2, 1, 1)),
}
"""By side of the picture."""


def sample(art: Art, batch: int, rng: torch.Generator, *, pairs: float = 0.3, plain: float = 0.5) -> Tensor:
    """Random drawings on random backgrounds at random pixel offsets, [batch, 3, size, size].

    pairs: share of pictures whose drawing is small; plain: share whose background is one of the palette.
    """
    device, size = art.large.device, art.size
    palette = torch.tensor(list(COLOURS.values()), device=device) / 255
    named = palette[torch.randint(len(palette), (batch,), generator=rng, device=device)]
    other = torch.rand(batch, 3, generator=rng, device=device)
    share = torch.rand(batch, 1, generator=rng, device=device)
    canvas = backgrounds(torch.where(share < plain, named, other), size)
    which = torch.randint(len(art.large), (batch,), generator=rng, device=device)
    few = int(batch * pairs)
    for part, drawings in ((slice(few), art.small), (slice(few, batch), art.large)):
        if drawings[which[part]].shape[0]:
            room = size - drawings.shape[-1] + 1
            corners = torch.randint(room, (len(which[part]), 2), generator=rng, device=device)
            canvas[part] = paste(canvas[part], drawings[which[part]], corners)
    return canvas


def build(pictures: Tensor, size: int) -> AutoencoderTiny:
    """An autoencoder whose encoder holds the principal components of these pictures, with a fresh decoder."""
    shape = SIZES[size]
    vae = AutoencoderTiny(
        latent_channels=CHANNELS,
        encoder_block_out_channels=(shape.encoder_width,) * len(shape.encoder_blocks),
        decoder_block_out_channels=(shape.decoder_width,) * len(shape.decoder_blocks),
        num_encoder_blocks=shape.encoder_blocks,
        num_decoder_blocks=shape.decoder_blocks,
    )
    for module in vae.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    for module in vae.modules():
        if type(module).__name__ == "AutoencoderTinyBlock":
            # a block that adds nothing: it begins as the identity on what is not negative
            nn.init.zeros_(module.conv[4].weight)
            nn.init.zeros_(module.conv[4].bias)
    with torch.no_grad():
        vae.decoder.layers[-1].weight.mul_(0.1)
    write_components(vae, pictures)
    return vae.to(memory_format=torch.channels_last)


@torch.no_grad()
def write_components(vae: AutoencoderTiny, pictures: Tensor) -> None:
    """Write a pyramid of principal components into the encoder's strided convolutions.

    The first two levels only rearrange 2 x 2 pixels into channels (exact, and never negative, so that the blocks
    between them pass them on); each later one keeps the leading components of 2 x 2 cells of the level before.
    """
    convolutions = [m for m in vae.encoder.layers if isinstance(m, nn.Conv2d)]
    first, *strided, last = convolutions
    for layer in (first, last):
        layer.weight.zero_()
        assert layer.bias is not None
        layer.bias.zero_()
    for channel in range(3):
        first.weight[channel, channel, 1, 1] = 1
    width, maps = first.out_channels, pictures
    for level, layer in enumerate(strided):
        groups = space_to_depth(maps)
        top = level == len(strided) - 1
        identity = torch.eye(groups.shape[1])
        matrix = identity if level < 2 else components(groups, CHANNELS if top else width, whiten=top)
        # what the strided convolution does not need for the components stays random: features to be learned
        layer.weight[: matrix.shape[0]].zero_()
        layer.weight[: matrix.shape[0], : maps.shape[1], 1:, 1:] = matrix.view(
            len(matrix), 2, 2, maps.shape[1]
        ).permute(0, 3, 1, 2)
        maps = torch.einsum("oc,bchw->bohw", matrix, groups)
    for channel in range(CHANNELS):
        last.weight[channel, channel, 1, 1] = 1
    assert last.bias is not None
    last.bias.copy_(-maps.mean((0, 2, 3)))


def space_to_depth(maps: Tensor) -> Tensor:
    """[batch, channels, h, w] to [batch, 4 channels, h / 2, w / 2], ordered by row, column, channel."""
    batch, channels, rows, columns = maps.shape
    cells = maps.view(batch, channels, rows // 2, 2, columns // 2, 2)
    return cells.permute(0, 3, 5, 1, 2, 4).reshape(batch, 4 * channels, rows // 2, columns // 2)


def components(maps: Tensor, count: int, *, whiten: bool) -> Tensor:
    """The leading principal components of a map's cells as a matrix [count, channels].

    whiten: each divided by the root of its spread, which keeps the order of importance and shrinks the range of
    spreads from 30:1 to 6:1; the strongest then has PEAK_STD.
    """
    rows = maps.permute(0, 2, 3, 1).flatten(0, 2).double()
    count = min(count, rows.shape[1])
    variance, vectors = torch.linalg.eigh(torch.cov(rows.T))
    matrix: Tensor = vectors[:, -count:].flip(1).T
    if whiten:
        spread = variance[-count:].flip(0).clamp(min=1e-8).sqrt()
        matrix = matrix * (PEAK_STD / (spread * spread[0]).sqrt())[:, None]
    return matrix.float()


def loss(vae: AutoencoderTiny, art: Art, lpips: Lpips, batch: int, rng: torch.Generator) -> Tensor:
    """L1 and LPIPS (AlexNet) of pictures that were decoded from noised latents."""
    pictures = sample(art, batch, rng)
    latents: Tensor = vae.encode(
        (pictures * 2 - 1).contiguous(memory_format=torch.channels_last)
    ).latents.float()
    level = LATENT_NOISE * torch.rand(batch, 1, 1, 1, generator=rng, device=latents.device)
    noise = torch.randn(latents.shape, generator=rng, device=latents.device)
    out: Tensor = vae.decode(latents + level * noise).sample.float() / 2 + 0.5
    # the decoder clamps softly at 3; what the encoder sends there is lost
    beyond = (latents.abs() - 2.5).clamp(min=0).square().mean()
    error: Tensor = out - pictures
    pixels = error.abs().mean() + SQUARE_WEIGHT * error.square().mean()
    return pixels + LPIPS_WEIGHT * lpips(out, pictures).mean() + 0.1 * beyond


@torch.no_grad()
def set_scale(vae: AutoencoderTiny, pictures: Tensor) -> None:
    """Let scaled latents have unit variance on these pictures."""
    latents = torch.cat([vae.encode(part * 2 - 1).latents for part in pictures.split(64)])
    vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 4))


@torch.no_grad()
def reconstruct(vae: AutoencoderTiny, pictures: Tensor) -> Tensor:
    """Pictures [batch, 3, h, w] in [0, 1] through encoder and decoder."""
    parts = [vae.decode(vae.encode(part * 2 - 1).latents).sample / 2 + 0.5 for part in pictures.split(64)]
    return torch.cat(parts).clamp(0, 1)


def psnr_db(first: Tensor, second: Tensor) -> Tensor:
    """PSNR of each picture of a batch against the other's, for a peak of 1."""
    return mse_to_psnr_db((first - second).square().mean((1, 2, 3)))


def quilting(pictures: Tensor, truth: Tensor, period: int) -> Tensor:
    """How much of the error's gradient sits on the borders of cells of `period` pixels, against elsewhere.

    1 is no quilting; one value for the batch and both directions together.
    """
    error = pictures - truth
    ratios = []
    for steps in (error.diff(dim=2).square().mean((0, 1, 3)), error.diff(dim=3).square().mean((0, 1, 2))):
        border = (torch.arange(len(steps)) + 1) % period == 0
        # the rim of the picture holds no drawing; borders are compared with their own neighbourhood
        near = (torch.arange(len(steps)) >= period // 2) & (
            torch.arange(len(steps)) < len(steps) - period // 2
        )
        ratios.append(steps[border].mean() / steps[near & ~border].mean())
    return torch.stack(ratios).mean()
