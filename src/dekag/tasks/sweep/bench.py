"""What measures every cell: the latents to send, the decoder, the judges; loaded once in each process."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from dekag.bundle.canonical import digest_folder, digest_json
from dekag.bundle.digest import digest_tensors
from dekag.codec import importance_of
from dekag.evaluation.judges import Judge
from dekag.evaluation.metrics import psnr_db, ssim
from dekag.training.keys import digest_of
from dekag.types import Image, InputError, Latent, PerImage
from dekag.units import linear_to_db
from dekag.world import World, locate

PROBE_SIDE = 32
"""Side of the picture that tells judges apart."""
CAP_DB = 100.0
"""Latent SNR that a perfect latent is given instead of infinity, so that means stay finite."""


@dataclass(frozen=True, kw_only=True)
class BenchSpec:
    """How a process on any machine that sees the same files makes the bench.

    latents: file of the latents to send, under the name `latents`. device: of the decoder and the judges.
    """

    world: World
    latents: Path
    device: str = "cpu"
    lpips: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """The latents to send, and what their received copies are compared with.

    weight: importance of the latent channels. images: what the latents decode to.
    """

    latents: Latent
    images: Image
    weight: Float[Tensor, " channels"]
    decode: Callable[[Latent], Image]
    judges: dict[str, Judge]
    embeddings: dict[str, Float[Tensor, "_ _"]]
    lpips: Callable[[Image, Image], PerImage] | None

    def measure(self, latents: Latent | None, images: Image) -> dict[str, PerImage]:
        """Every metric of what was received; those of latents only if latents were sent."""
        values = {"psnr_db": psnr_db(self.images, images), "ssim": ssim(self.images, images)}
        for name, judge in self.judges.items():
            values[name] = (self.embeddings[name] * judge(images)).sum(1)
        if self.lpips is not None:
            values["lpips"] = self.lpips(self.images, images)
        if latents is not None:
            error = (latents - self.latents).square().flatten(1).sum(1)
            values["latent_nmse"] = error / self.latents.square().flatten(1).sum(1)
            values["weighted_snr_db"] = self.weighted_snr_db(latents)
        return values

    def weighted_snr_db(self, latents: Latent) -> PerImage:
        """Power of the weighted latents over the weighted square error of each, in dB, at most CAP_DB.

        The power is that of all latents about their mean, so that one level belongs to one error.
        """
        error = weighted_mse(self.latents, latents, self.weight)
        return linear_to_db(weighted_power(self.latents, self.weight) / error).clamp(max=CAP_DB)


def weighted_mse(sent: Latent, received: Latent, weight: Float[Tensor, " channels"]) -> PerImage:
    """Mean square error of each latent, every channel weighted by its importance."""
    return ((sent - received).square() * weight[:, None, None]).flatten(1).mean(1)


def weighted_power(latents: Latent, weight: Float[Tensor, " channels"]) -> Float[Tensor, ""]:
    """Mean variance of a weighted latent number, without bias; of one latent, its mean square."""
    if len(latents) == 1:
        return weighted_mse(latents, torch.zeros_like(latents), weight)[0]
    return (latents.var(dim=0) * weight[:, None, None]).mean()


@lru_cache(maxsize=1)
def load_bench(spec: BenchSpec) -> Bench:
    """Load everything; the last bench stays in memory.

    Raises InputError if something that was asked for is not there.
    """
    latents = load_file(spec.latents)["latents"]
    edge = spec.world.edge(device=spec.device)

    def decode(sent: Latent) -> Image:
        return edge.decode(sent.to(spec.device)).float().clamp(0, 1).cpu()

    images = decode(latents)
    judges = spec.world.judges(device=spec.device) if spec.world.judge_models else {}
    return Bench(
        latents=latents,
        images=images,
        weight=importance(spec.world),
        decode=decode,
        judges=judges,
        embeddings={name: judge(images) for name, judge in judges.items()},
        lpips=load_lpips(spec.device) if spec.lpips else None,
    )


def bench_digest(spec: BenchSpec, decoder: torch.nn.Module) -> str:
    """Digest of all that turns what is received into numbers, but for the latents."""
    world = spec.world
    return digest_json(
        {
            "decoder": digest_tensors(decoder.state_dict()),
            "weight": digest_tensors({"weight": importance(world)}),
            "judges": [_judge_digest(source) for source in world.judge_models.values()],
            "device": torch.device(spec.device).type,
            "lpips": spec.lpips,
        }
    )


def _judge_digest(source: str | Path | Judge) -> str:
    """Digest of a judge's files where they are here, else of its name; in memory, of what it makes of a picture."""
    if isinstance(source, Judge):
        probe = torch.rand(1, 3, PROBE_SIDE, PROBE_SIDE, generator=torch.Generator().manual_seed(0))
        return digest_of([source.name, source(probe)])
    path = Path(locate(source, "judge"))
    return digest_folder(path) if path.exists() else digest_json(str(source))


def importance(world: World) -> Float[Tensor, " channels"]:
    """How much an error in each latent channel shows, from the world's codec."""
    return importance_of(world.codec()).float()


def load_lpips(device: str) -> Callable[[Image, Image], PerImage]:
    """Learned perceptual distance of Zhang et al. 2018 on AlexNet, 0 for equal images.

    Raises InputError if the package or its weights are not there.
    """
    try:
        model: Any = importlib.import_module("lpips").LPIPS(net="alex", verbose=False)
    except ImportError as error:
        raise InputError("LPIPS comes with one more package: pip install 'dekag[lpips]'") from error
    except (OSError, RuntimeError) as error:
        raise InputError(f"LPIPS found no weights of AlexNet: {error}") from error
    model = model.to(device).eval().requires_grad_(False)

    def distance(reference: Image, estimate: Image) -> PerImage:
        # the network takes values in [-1, 1]
        found: Tensor = model(reference.to(device) * 2 - 1, estimate.to(device) * 2 - 1)
        return found.flatten().cpu()

    return distance
