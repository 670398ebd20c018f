"""Train the codec at one nominal condition: `python recipes/emoji/codec.py --data DATA --runs RUNS`.

AWGN at 10 dB and the highest rate. It learns on pictures of the edge's art with `distill` concepts.
"""

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from latents import cached_latents
from progress import progress_bar
from torch import Tensor
from world import World

from dekag.channel import BlockFading
from dekag.codec import JsccCodec, JsccConfig, save_codec
from dekag.training.loop import TrainConfig, train
from dekag.training.transmission import channel_importance, transmission_loss
from dekag.types import Condition, Image, Latent

NOMINAL_SNR_DB = 10.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    world = World(data=options.data)
    vae = AutoencoderTiny.from_pretrained(options.runs / "autoencoder")
    sets = [cached_latents(world, name, vae, options.runs) for name in ("noto", "twemoji")]
    latents = torch.cat(sets)[torch.cat([world.indices("distill") + i * len(sets[0]) for i in range(2)])]

    def decode(latent: Latent) -> Image:
        return vae.decode(latent / vae.config.scaling_factor).sample / 2 + 0.5

    torch.manual_seed(5)
    codec = JsccCodec(JsccConfig())
    some = latents[::37, 0].float()
    codec.importance.copy_(channel_importance(decode, some, rng=torch.Generator().manual_seed(0)))
    nominal = Condition(uses=codec.config.max_uses, snr_db=NOMINAL_SNR_DB).expand(options.batch)
    channel = BlockFading()

    def loss(rng: torch.Generator) -> Tensor:
        concept, composition = (
            torch.randint(count, (options.batch,), generator=rng) for count in latents.shape[:2]
        )
        batch = latents[concept, composition].float()
        return transmission_loss(codec, channel, batch, nominal, codec.importance, rng=rng)

    folder = options.runs / "codec"
    config = TrainConfig(
        steps=options.steps, learning_rate=1e-3, ema_decay=0.995, seed=5, checkpoint_every=100
    )
    with progress_bar("codec") as on_step:
        train(codec, loss, config, checkpoint=folder / "resume.pt", on_step=on_step)
    save_codec(codec, folder / "model")


if __name__ == "__main__":
    main()
