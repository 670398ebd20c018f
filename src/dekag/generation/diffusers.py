"""Any diffusers text-to-image pipeline as a cloud-GAI or an edge-GAI: prompt -> latent -> image."""

import math
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dekag.generation.families import Conditioning, Family, family_of, known_family, make_adaptable
from dekag.generation.loading import PipelineSource, load_pipeline
from dekag.generation.metaword import PreparedMetaword
from dekag.generation.prompts import check_prompts, warn_truncated
from dekag.generation.samplers import check_sampler
from dekag.generation.sampling import Sampling as Sampling
from dekag.generation.schedule import Schedule, schedule_of
from dekag.types import Image, ImageRows, InputError, Latent

OPTIONS: dict[str, dict[str, Any]] = {
    # without one there is no guidance
    "QwenImagePipeline": {"negative_prompt": " "},
}
"""Arguments that every call of a cloud's pipeline needs, by the name of its class."""
GUIDANCE = {"QwenImagePipeline": "true_cfg_scale"}
"""Name of the guidance scale where it is not `guidance_scale`."""
MOST_NAMED = 10
"""Most prompts that one line names."""
OnStep = Callable[[int, int, Latent], None]
"""Told the first of the images that are drawn together, the step from 1 and what it left; may raise to stop."""


ENCODED_AT_ONCE = 4
"""Images that the autoencoder encodes at a time: its activations are the largest of all."""
READ_AT_ONCE = 32
"""Prompts that the text encoders read at a time."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DiffusersGenerator:
    """Implements `dekag.types.Generator` over a pipeline of diffusers.

    The initial noise of an image depends on its own seed only. Several generators may share one pipeline, each
    with its own update: an update is switched on while its generator draws and off again afterwards.
    """

    pipeline: Any
    """Of diffusers; its class says which components it has."""
    sampling: Sampling = field(default_factory=Sampling)
    metaword: PreparedMetaword | None = None
    adapters: tuple[str, ...] = ()
    """Names of the low-rank updates in denoiser and text encoders that this generator draws with."""
    noise_map: Float[Tensor, "channels channels"] | None = None
    """Orthogonal map of the initial noise, for an edge that starts from its cloud's noise."""
    pixels: int | None = None
    """Side of the pictures; `None` leaves the pipeline's own."""
    engine: str = "torch"
    """What computes denoiser and image decoder, as `dekag.engine` has it."""

    def __post_init__(self) -> None:
        make_adaptable(self.pipeline)

    @property
    def family(self) -> Family:
        """What is particular to this kind of pipeline."""
        return family_of(self.pipeline)

    @property
    def has_family(self) -> bool:
        """Whether its latents and text states are known; a cloud that is only asked for images need not have one."""
        return known_family(self.pipeline) is not None

    @property
    def denoiser(self) -> Any:
        """The noise predictor: the part that low-rank updates change."""
        return getattr(self.pipeline, self.family.denoiser)

    def part(self, name: str) -> Any:
        """A component of the pipeline, as the denoiser or a text encoder."""
        return getattr(self.pipeline, name)

    def parts_with(self, adapter: str) -> list[Any]:
        """The components that hold a low-rank update of this name."""
        return [part for part in self._parts() if adapter in _held(part)]

    def _parts(self) -> list[Any]:
        """Denoiser and text encoders."""
        return [self.part(name) for name in (self.family.denoiser, *self.family.encoders)]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of a latent."""
        return self.family.shape(self.pipeline, self.pixels)

    @property
    def side(self) -> int:
        """Side of the pictures in pixels: that of a decoded latent."""
        return int(self.decode(torch.zeros(1, *self.latent_shape)).shape[-1])

    @property
    def at_once(self) -> int:
        """Pictures that are drawn in one call of the pipeline."""
        family = known_family(self.pipeline)
        limit = None if family is None else family.at_once
        return self.sampling.batch if limit is None else min(limit, self.sampling.batch)

    def __call__(
        self, prompts: Sequence[str], *, seeds: Sequence[int], on_step: OnStep | None = None
    ) -> Latent:
        """Draw one latent for each prompt and seed; unit scale.

        Raises InputError for an empty or over-long prompt, or if there is not one seed for each prompt;
        warns with PromptTruncatedWarning if the text encoder does not read all of a prompt.
        """
        prompts = _paired(prompts, seeds)
        family = self.family
        with self.active():
            parts: list[Latent] = []
            for texts, numbers in self._chunks(self._texts(prompts), seeds):
                watched = self._watched(len(texts), sum(map(len, parts)), on_step)
                drawn = self._run(texts, numbers, output_type="latent", **self._noise(numbers), **watched)
                parts.append(family.from_pipeline(self.pipeline, drawn))
        return torch.cat(parts)

    def trajectory(
        self, prompts: Sequence[str], *, seeds: Sequence[int], every: int = 1
    ) -> Float[Tensor, "_ _ _ _ _"]:
        """As the call itself, but the sampler's states from its noise on: [images, steps + 1, c, rows, cols].

        Of the steps one in `every` is kept.
        """
        prompts = _paired(prompts, seeds)
        family, pipeline, parts = self.family, self.pipeline, []
        with self.active():
            for texts, numbers in self._chunks(self._texts(prompts), seeds):
                states = [self._mapped(numbers).to(self.denoiser.device)]

                def keep(_: int, step: int, left: Latent, states: list[Tensor] = states) -> None:
                    if step % every == 0:
                        states.append(left)

                start = family.to_pipeline(pipeline, states[0]).to(next(self.denoiser.parameters()))
                watched = self._watched(len(texts), 0, keep)
                self._run(texts, numbers, output_type="latent", latents=start, **watched)
                # samplers that count in standard deviations start from noise of as many
                states[0] = states[0] * float(getattr(pipeline.scheduler, "init_noise_sigma", 1.0))
                parts.append(torch.stack(states, dim=1))
        return torch.cat(parts)

    def schedule(self) -> Schedule:
        """How the pipeline sets its scheduler for one picture of this sampling and size."""

        def run(pipeline: Any) -> None:
            replace(self, pipeline=pipeline)._run(["a"], [0], output_type="latent")

        with self.active():
            return schedule_of(self.pipeline, run)

    def read(self, prompts: Sequence[str]) -> Conditioning:
        """What the denoiser is told of each prompt, exactly as given; rows in their order."""
        parts = list(self.read_parts(prompts))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def read_parts(self, prompts: Sequence[str]) -> Iterator[Conditioning]:
        """As `read`, READ_AT_ONCE prompts at a time."""
        for at in range(0, len(prompts), READ_AT_ONCE):
            with torch.no_grad():
                part = self.family.condition(self.pipeline, prompts[at : at + READ_AT_ONCE])
            yield part

    def images(self, prompts: Sequence[str], *, seeds: Sequence[int]) -> Image:
        """Draw one image for each prompt and seed with the pipeline's own decoder: all that a cloud must do.

        Raises InputError as the call itself does, and if the pipeline's safety checker blanked a picture.
        """
        images = self.checked_images(prompts, seeds=seeds)
        if blank := blanked(images):
            raise InputError(
                f"the safety checker of the pipeline blanked {named_prompts(prompts, blank)}; reword or leave out"
            )
        return images

    def checked_images(self, prompts: Sequence[str], *, seeds: Sequence[int]) -> Image:
        """As `images`, but a picture that the pipeline's safety checker blanked is NaN (`blanked`)."""
        prompts, parts = _paired(prompts, seeds), []
        with self.active():
            for texts, numbers in self._chunks(self._texts(prompts), seeds):
                made = self._call(texts, numbers, output_type="pt", **self._noise(numbers))
                part: Image = made.images.float().clamp(0, 1).cpu()
                flagged = getattr(made, "nsfw_content_detected", None)
                if flagged is not None:
                    part[torch.tensor([bool(each) for each in flagged])] = math.nan
                parts.append(part)
        return torch.cat(parts)

    @torch.no_grad()
    def decode(self, latent: Latent) -> Image:
        """Latents, unit scale, to images in [0, 1]."""
        parts = latent.split(self.sampling.batch)
        return torch.cat([self.family.decode(self.pipeline, part) for part in parts])

    def encode(self, image: ImageRows) -> Latent:
        """Images in [0, 1] to latents, unit scale."""
        return torch.cat(list(self.encode_parts(image)))

    def encode_parts(self, images: ImageRows) -> Iterator[Latent]:
        """As `encode`, a few images at a time; they need be no more than can be indexed by a slice."""
        size = min(ENCODED_AT_ONCE, self.sampling.batch)
        for at in range(0, len(images), size):
            with torch.no_grad():
                part = self.family.encode(self.pipeline, images[at : at + size])
            yield part

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within, the pipeline reads this generator's metaword and draws with its adapters, and no others."""
        with ExitStack() as stack:
            if self.metaword is not None:
                stack.enter_context(self.metaword.installed(self.pipeline))
            for part in self._parts() if self.adapters else []:
                if names := [name for name in self.adapters if name in _held(part)]:
                    stack.enter_context(_adapters(part, names))
            yield

    def _texts(self, prompts: Sequence[str]) -> Sequence[str]:
        """The prompts as the pipeline is to read them, with a warning if it does not read all."""
        if self.metaword is not None:
            return self.metaword.add_to(prompts)
        family = known_family(self.pipeline)
        if family is not None:
            tokenizers = [getattr(self.pipeline, name) for name in family.encoders.values()]
            limit = min(family.limit(each) for each in tokenizers)

            def over(prompt: str) -> int:
                return max(family.length(each, prompt) - family.limit(each) for each in tokenizers)

            warn_truncated(prompts, over, room=f"as {limit} are read")
        return prompts

    def _chunks(
        self, prompts: Sequence[str], seeds: Sequence[int]
    ) -> Iterator[tuple[list[str], Sequence[int]]]:
        size = self.at_once
        for at in range(0, len(prompts), size):
            yield list(prompts[at : at + size]), seeds[at : at + size]

    def _watched(self, images: int, first: int, on_step: OnStep | None) -> dict[str, Any]:
        """Arguments with which the pipeline tells of every step of some images; `first` is the first one's number."""
        if on_step is None:
            return {}
        family = self.family
        like = torch.empty(images, *family.shape(self.pipeline, self.pixels), device="meta")

        def told(step: int, latents: Tensor) -> None:
            on_step(first, step + 1, family.from_step(latents, like=like))

        return family.watched(told)

    def _noise(self, seeds: Sequence[int]) -> dict[str, Tensor]:
        """Mapped initial noise, or nothing: then the pipeline draws it from the seeds itself."""
        if self.noise_map is None:
            return {}
        weight = next(self.denoiser.parameters())
        return {"latents": self.family.to_pipeline(self.pipeline, self._mapped(seeds)).to(weight)}

    def _mapped(self, seeds: Sequence[int]) -> Latent:
        """The initial noise of each seed, on the CPU."""
        rngs = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = torch.cat([self.family.noise(self.pipeline, rng, pixels=self.pixels) for rng in rngs])
        return noise if self.noise_map is None else torch.einsum("dc,bcij->bdij", self.noise_map, noise)

    def _run(self, prompts: list[str], seeds: Sequence[int], **options: Any) -> Tensor:
        drawn: Tensor = self._call(prompts, seeds, **options).images
        return drawn

    @torch.no_grad()
    def _call(self, prompts: list[str], seeds: Sequence[int], **options: Any) -> Any:
        """What the pipeline itself returns."""
        name = type(self.pipeline).__name__
        settings = self._told(prompts)
        if self.pixels is not None:
            settings |= {"height": self.pixels, "width": self.pixels}
        if self.sampling.steps is not None:
            settings["num_inference_steps"] = self.sampling.steps
        if self.sampling.guidance is not None:
            settings[GUIDANCE.get(name, "guidance_scale")] = self.sampling.guidance
        # the noise is drawn on the CPU, so that one seed means one noise on every device
        noise = [torch.Generator().manual_seed(seed) for seed in seeds]
        return self.pipeline(generator=noise, **settings, **options)

    def _told(self, prompts: list[str]) -> dict[str, Any]:
        """Arguments of a call of the pipeline that say what to draw."""
        family = known_family(self.pipeline)
        if family is not None:
            return family.arguments(self.pipeline, prompts)
        arguments = {"prompt": prompts, **OPTIONS.get(type(self.pipeline).__name__, {})}
        if "negative_prompt" in arguments:
            arguments["negative_prompt"] = [arguments["negative_prompt"]] * len(prompts)
        return arguments


def blanked(images: Image) -> list[int]:
    """Places of the pictures that a safety checker blanked, in what `DiffusersGenerator.checked_images` drew."""
    return [place for place, image in enumerate(images) if image.isnan().any()]


def named_prompts(prompts: Sequence[str], places: Sequence[int]) -> str:
    """Some of the prompts in one line: how many, and the first few."""
    names = "; ".join(f"prompt {place} ({prompts[place]!r})" for place in places[:MOST_NAMED])
    more = f" and {len(places) - MOST_NAMED} others" if len(places) > MOST_NAMED else ""
    return f"{len(places)} of {len(prompts)} pictures: {names}{more}"


def load_generator(
    source: str | Path | PipelineSource,
    *,
    revision: str | None = None,
    sampling: Sampling | None = None,
    pixels: int | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> DiffusersGenerator:
    """A generator from a pipeline directory, a hub id or a single file; `revision` pins a hub id to a commit.

    `pixels` is the side of the pictures, the pipeline's own if None.
    Raises InputError in one line if there is none that can be read, or its sampler cannot draw as it is configured.
    """
    origin = (
        source if isinstance(source, PipelineSource) else PipelineSource(source=source, revision=revision)
    )
    pipeline = load_pipeline(origin, dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    used = sampling or Sampling()
    check_sampler(pipeline, used.steps)
    return DiffusersGenerator(pipeline=_fast_decoding(pipeline.to(device)), sampling=used, pixels=pixels)


def _fast_decoding(pipeline: Any) -> Any:
    """The pipeline with its autoencoder's weights in the order in which convolutions of pictures are fastest."""
    vae = getattr(pipeline, "vae", None)
    if vae is not None and all(parameter.ndim <= 4 for parameter in vae.parameters()):
        vae.to(memory_format=torch.channels_last)
    return pipeline


def _paired(prompts: Sequence[str], seeds: Sequence[int]) -> tuple[str, ...]:
    checked = check_prompts(prompts)
    if len(seeds) != len(checked):
        raise InputError(f"give one seed for each prompt: {len(checked)} prompts, {len(seeds)} seeds")
    return checked


def _held(part: Any) -> Container[str]:
    """Names of the low-rank updates that a component holds."""
    names: Container[str] = getattr(part, "peft_config", {})
    return names


@contextmanager
def _adapters(part: Any, names: list[str]) -> Iterator[None]:
    part.enable_adapters()
    part.set_adapter(names)
    try:
        yield
    finally:
        part.disable_adapters()
