"""The test that an update has to pass before it becomes active: its canary's pictures, drawn here."""

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image as PillowImage

from dekag.channel import BlockFading, recover
from dekag.codec import TrainableCodec
from dekag.evaluation.metrics import psnr_db
from dekag.generation.diffusers import DiffusersGenerator
from dekag.registry import Canary
from dekag.types import Codec, Condition, Image, InputError
from dekag.wire.png import png_bytes

USES, SNR_DB = 256, 10.0
"""At which a codec is tested, if it sends as much."""
FLOOR_DB = 30.0
"""What the same update exceeds by far on any machine; another one of the same cloud comes to 24 dB."""
DEFAULT = ("a red apple on a blue background",)


def make_canary(
    generator: DiffusersGenerator,
    codec: Codec | None,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    floor_db: float = FLOOR_DB,
) -> Canary:
    """A canary of what this generator draws, or of what is received through this codec."""
    pictures = _pictures(generator, codec, prompts, seeds)
    return Canary(
        prompts=tuple(prompts), seeds=tuple(seeds), floor_db=floor_db, references=tuple(png_bytes(pictures))
    )


def self_test(generator: DiffusersGenerator, codec: Codec | None, canary: Canary | None) -> None:
    """Raise InputError unless the pictures of the canary are what they should be.

    Without a codec the generator's update is tested, with one the codec's. Without a canary they have to be
    pictures at all.
    """
    prompts = DEFAULT if canary is None else canary.prompts
    seeds = range(len(prompts)) if canary is None else canary.seeds
    pictures = _pictures(generator, codec, prompts, seeds)
    if not bool(pictures.isfinite().all()):
        raise InputError("the self-test drew values that are no numbers")
    if float(pictures.flatten(1).std(1).min()) < 1e-3:
        raise InputError("the self-test drew an empty picture")
    if canary is None:
        return
    size = (pictures.shape[3], pictures.shape[2])
    references = torch.cat([_read(raw, size) for raw in canary.references])
    found = float(psnr_db(references, pictures).mean())
    if found < canary.floor_db:
        raise InputError(
            f"the self-test came to {found:.1f} dB of its references, and the floor is {canary.floor_db:g} dB"
        )


@torch.no_grad()
def _pictures(
    generator: DiffusersGenerator, codec: Codec | None, prompts: Sequence[str], seeds: Sequence[int]
) -> Image:
    """What is drawn, or with a codec what of it is received over a fixed noisy channel."""
    latent = generator(prompts, seeds=seeds)
    if codec is not None:
        max_uses = codec.max_uses if isinstance(codec, TrainableCodec) else USES
        condition = Condition(uses=min(USES, max_uses), snr_db=SNR_DB).expand(len(latent))
        symbols = codec.encode(latent, condition)
        received = BlockFading()(symbols, condition, rng=torch.Generator().manual_seed(0))
        latent = recover(codec, received, condition).latent
    return generator.decode(latent).cpu()


def _read(raw: bytes, size: tuple[int, int]) -> Image:
    """A reference, if it has the width and height of what is drawn here."""
    try:
        with PillowImage.open(io.BytesIO(raw), formats=["PNG"]) as picture:
            if picture.size != size:  # known before anything is unpacked
                raise InputError(
                    f"a reference of the canary has {picture.size} pixels, it should have {size}"
                )
            pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    except (OSError, SyntaxError) as error:
        raise InputError(f"a reference of the canary is no readable picture: {error}") from error
    return torch.from_numpy(pixels / 255).permute(2, 0, 1)[None]
