"""Train the autoencoder: `python recipes/emoji/autoencoder.py --data DATA --runs RUNS`.

The encoder is closed-form: the principal components of non-overlapping 8 x 8 patches, written exactly into
the strided convolutions of a diffusers `AutoencoderTiny`. So the latents exist before any training, and
every other model can train beside the decoder. The decoder is learned and sees over patch borders.
Only art of `distill` concepts is used; the held-out concepts measure it.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from progress import progress_bar
from torch import Tensor, nn
from world import ART, COLOURS, World, paste

from dekag.training.loop import TrainConfig, train
from dekag.units import mse_to_psnr_db

PATCH = 8
CHANNELS = 32
WIDTH = 48
PEAK_STD = 1.3
"""Standard deviation of the strongest channel; the decoder clamps softly at 3."""
DECODER_BLOCKS = (4, 4, 1, 0)


@dataclass(frozen=True, kw_only=True)
class PatchBasis:
    """Affine map of patches [n, 192] to channels: `(patch - mean) @ components`, and their spread."""

    mean: Tensor
    components: Tensor
    spread: Tensor


def sample(art: Tensor, batch: int, rng: torch.Generator) -> Tensor:
    """Random art of [concepts, sets, 4, w, w] on random backgrounds at random pixel offsets."""
    concept = torch.randint(art.shape[0], (batch,), generator=rng)
    source = torch.randint(art.shape[1], (batch,), generator=rng)
    palette = torch.tensor(list(COLOURS.values())) / 255
    colours = palette[torch.randint(len(palette), (batch,), generator=rng)]
    corners = torch.randint(art.shape[-1] // 3 + 1, (batch, 2), generator=rng).tolist()
    return paste(art[concept, source], colours, [(row, col) for row, col in corners])


def patches(images: Tensor) -> Tensor:
    """[batch, 3, h, w] to [batch * cells, 3 * 8 * 8]."""
    cells = images.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)
    return cells.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3 * PATCH * PATCH)


def fit_basis(images: Tensor) -> PatchBasis:
    """Principal components, each scaled by the inverse root of its spread.

    The half whitening keeps the order of importance and shrinks the range of spreads from 30:1 to 6:1.
    """
    rows = patches(images).double()
    mean = rows.mean(0)
    variance, vectors = torch.linalg.eigh(torch.cov((rows - mean).T))
    spread = variance[-CHANNELS:].flip(0).sqrt()
    scale = PEAK_STD / (spread * spread[0]).sqrt()
    components = vectors[:, -CHANNELS:].flip(1) * scale
    return PatchBasis(mean=mean.float(), components=components.float(), spread=(spread * scale).float())


@torch.no_grad()
def write_encoder(vae: AutoencoderTiny, basis: PatchBasis) -> None:
    """Write the patch basis into conv 3x3, three strided conv 3x3, conv 3x3, exactly.

    A strided convolution with taps at (1, 1), (1, 2), (2, 1), (2, 2) is a space-to-depth by two; two of them
    hold a 4 x 4 patch in 48 channels and the third applies the components to four of those.
    """
    first, down1, down2, down3, last = (m for m in vae.encoder.layers if isinstance(m, nn.Conv2d))
    for layer in (first, down1, down2, down3, last):
        layer.weight.zero_()
        if layer.bias is not None:
            layer.bias.zero_()
    for channel in range(3):
        first.weight[channel, channel, 1, 1] = 1
    for layer, inputs in ((down1, 3), (down2, 12)):
        for row in range(2):
            for col in range(2):
                for channel in range(inputs):
                    layer.weight[(row * 2 + col) * inputs + channel, channel, 1 + row, 1 + col] = 1
    # channel of down2 at (row2, col2, row1, col1, rgb) is pixel (2 row2 + row1, 2 col2 + col1) of its 4 x 4
    rows = basis.components.reshape(3, 2, 2, 2, 2, 2, 2, CHANNELS)  # rgb, r3 r2 r1, c3 c2 c1, out
    kernel = rows.permute(7, 2, 5, 3, 6, 0, 1, 4).reshape(CHANNELS, 48, 2, 2)  # out, r2 c2 r1 c1 rgb, r3, c3
    down3.weight[:CHANNELS, :48, 1:, 1:] = kernel
    for channel in range(CHANNELS):
        last.weight[channel, channel, 1, 1] = 1
    assert last.bias is not None
    last.bias.copy_(-basis.mean @ basis.components)


def build(basis: PatchBasis) -> AutoencoderTiny:
    """An `AutoencoderTiny` with the basis as encoder and a fresh decoder."""
    vae = AutoencoderTiny(
        latent_channels=CHANNELS,
        encoder_block_out_channels=(WIDTH,) * 4,
        decoder_block_out_channels=(WIDTH,) * 4,
        num_encoder_blocks=(0, 0, 0, 0),
        num_decoder_blocks=DECODER_BLOCKS,
        scaling_factor=round(1 / float(basis.spread.square().mean().sqrt()), 4),
    )
    write_encoder(vae, basis)
    for module in vae.decoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    for block in vae.decoder.modules():
        if type(block).__name__ == "AutoencoderTinyBlock":
            nn.init.zeros_(block.conv[4].weight)
    with torch.no_grad():
        vae.decoder.layers[-1].weight.mul_(0.1)
    vae.encoder.requires_grad_(False)
    return vae.to(memory_format=torch.channels_last)


def art_of(world: World, split: str) -> Tensor:
    """All three sets of one split's concepts, uint8 [concepts, 3, 4, w, w]."""
    return torch.stack([world.art(name)[world.indices(split)] for name in ART], dim=1)


@torch.no_grad()
def psnr_db(vae: AutoencoderTiny, images: Tensor) -> Tensor:
    """PSNR of the reconstruction of each image."""
    out = vae.decode(vae.encode(images * 2 - 1).latents).sample / 2 + 0.5
    return mse_to_psnr_db((out.clamp(0, 1) - images).square().mean((1, 2, 3)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    world = World(data=options.data, groups=None)
    art = art_of(world, "distill")
    vae = build(fit_basis(sample(art, 2000, torch.Generator().manual_seed(0))))
    folder = options.runs / "autoencoder"
    vae.save_pretrained(folder)
    held_out = sample(art_of(world, "heldout"), 256, torch.Generator().manual_seed(1))

    def loss(rng: torch.Generator) -> Tensor:
        images = sample(art, options.batch, rng)
        with torch.no_grad():
            latents = vae.encode(images * 2 - 1).latents
            # the decoder will see drawn and transmitted latents, which are never exact
            latents = latents + 0.03 * torch.randn(latents.shape, generator=rng)
        error: Tensor = vae.decode(latents).sample / 2 + 0.5 - images
        return error.square().mean()

    config = TrainConfig(steps=options.steps, learning_rate=3e-3, ema_decay=0.995, checkpoint_every=100)
    with progress_bar("autoencoder") as on_step:
        train(vae, loss, config, checkpoint=folder / "resume.pt", on_step=on_step)
    vae.save_pretrained(folder)
    values = psnr_db(vae, held_out)
    print(
        f"held-out PSNR {values.mean():.2f} dB, standard error {values.std() / len(values) ** 0.5:.2f}, n 256"
    )


if __name__ == "__main__":
    main()
