"""Latents drawn once and kept by content, and what is fitted to them: source codes and spectra."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dekag.baseline import fit, fit_pictures, save_pictures, save_source
from dekag.bundle.canonical import digest_json
from dekag.bundle.digest import canonical_safetensors
from dekag.evaluation.bounds import Spectrum, held_out_spectrum, measured_spectrum
from dekag.generation.diffusers import DiffusersGenerator
from dekag.generation.sampling import Sampling
from dekag.tasks.sweep.engines import Engine, Inline, one_thread
from dekag.types import Image, InputError, Latent
from dekag.wire.files import replacing, write_bytes
from dekag.world import World

CHUNK = 256
"""Latents of one file, which is what an interrupted run draws again at most."""
LEARNT_SHARE = 0.75
"""Share of the latents that gives the basis of the held-out spectrum."""
SHOWN = 256
"""Pictures whose mean stands for one that is lost, and on some of which it is measured what a format is worth."""


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Prompts that are drawn into one file, with a seed each."""

    path: Path
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Draws a chunk with a world's aligned edge; this travels to the process that does it."""

    world: World
    device: str

    def __call__(self, chunk: Chunk) -> str:
        """Draw, write the latents, and return the name of the file."""
        with one_thread():
            latents = _edge(self)(chunk.prompts, seeds=chunk.seeds)
        write_tensors(chunk.path, {"latents": latents.float().cpu()})
        return chunk.path.name


@lru_cache(maxsize=1)
def _edge(draw: Draw) -> DiffusersGenerator:
    """The edge that draws; the last one stays in memory."""
    world = draw.world
    if "generation" in world.updates:
        return world.aligned_edge(device=draw.device)[0]
    return world.drawing_edge(device=draw.device)


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawer:
    """An aligned edge that draws into a folder.

    edge: without its update, model: its digest, bundle: id of the update that it draws with. sampling: what it draws
    with.
    """

    edge: DiffusersGenerator
    sampling: Sampling
    model: str
    bundle: str
    folder: Path
    draw: Draw

    def __call__(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        on_stage: Callable[[str], None],
        engine: Engine | None = None,
    ) -> Latent:
        """Latents of the prompts with one seed each, from the folder where they have been drawn before."""
        chunks = []
        for at in range(0, len(prompts), CHUNK):
            texts, numbers = tuple(prompts[at : at + CHUNK]), tuple(seeds[at : at + CHUNK])
            path = self.folder / f"{self._recipe(texts, numbers)}.safetensors"
            chunks.append(Chunk(path=path, prompts=texts, seeds=numbers))
        missing = [chunk for chunk in chunks if not chunk.path.exists()]
        if missing:
            on_stage(f"edge draws {sum(len(chunk.prompts) for chunk in missing)} latents of {len(prompts)}")
        for number, _ in enumerate((engine or Inline())(self.draw, missing), start=1):
            on_stage(f"{number} of {len(missing)} chunks of latents")
        return torch.cat([read_tensor(chunk.path, "latents") for chunk in chunks])

    def _recipe(self, prompts: Sequence[str], seeds: Sequence[int]) -> str:
        """Digest of all that the latents depend on, but for versions and machine."""
        return digest_json(
            {
                "edge": self.model,
                "bundle": self.bundle,
                "sampling": {k: v for k, v in asdict(self.sampling).items() if k != "batch"},
                "pixels": self.edge.pixels,
                "prompts": list(prompts),
                "seeds": list(seeds),
            }
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Spectra:
    """Of weighted latents: `measured` gives a bound that is too low with few draws, `held_out` one too high.

    halves: `held_out` of one half of the latents that are not in the basis, and of the other. draws: latents behind
    them.
    """

    measured: Spectrum
    held_out: Spectrum
    halves: tuple[Spectrum, Spectrum]
    draws: int


def spectra(latents: Latent, weight: Float[Tensor, " channels"]) -> Spectra:
    """Spectra of latents whose channels are weighted by the square root of their importance."""
    weighted = latents * weight.sqrt()[:, None, None]
    learnt = max(2, round(LEARNT_SHARE * len(weighted)))
    basis, other = weighted[:learnt], weighted[learnt:]
    whole, *halves = held_out_spectrum(basis, other, other[::2], other[1::2])
    return Spectra(
        measured=measured_spectrum(weighted),
        held_out=whole,
        halves=(halves[0], halves[1]),
        draws=len(latents),
    )


def fitted_source(latents: Latent, weight: Float[Tensor, " channels"], folder: Path) -> Path:
    """File of the digital baseline's source code for such latents."""
    path = folder / f"{_content(latents=latents, weight=weight)}.source.safetensors"
    if not path.exists():
        source = fit(latents, weight)
        with replacing(path) as part:
            save_source(source, part)
    return path


def fitted_pictures(form: str, latents: Latent, decode: Callable[[Latent], Image], folder: Path) -> Path:
    """File of a picture format's source, fitted to what such latents decode to."""
    path = folder / f"{_content(latents=latents[:SHOWN])}.{form}.safetensors"
    if not path.exists():
        source = fit_pictures(form, decode(latents[:SHOWN]).float().cpu().clamp(0, 1))
        with replacing(path) as part:
            save_pictures(source, part)
    return path


def keep_latents(latents: Latent, folder: Path) -> tuple[Path, str]:
    """File of the latents to send, named by their digest, and that digest."""
    digest = _content(latents=latents)
    path = folder / f"{digest}.sent.safetensors"
    write_tensors(path, {"latents": latents})
    return path, digest


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors whole or not at all."""
    write_bytes(path, canonical_safetensors(tensors, {}))


def read_tensor(path: Path, name: str) -> Tensor:
    """One tensor of a file. Raises InputError, naming the file, if it is not there."""
    try:
        return load_file(path)[name]
    except (OSError, KeyError, SafetensorError) as error:
        raise InputError(f"{path} does not hold {name}; delete it and start again: {error}") from error


def _content(**tensors: Tensor) -> str:
    return hashlib.sha256(canonical_safetensors(tensors, {})).hexdigest()
