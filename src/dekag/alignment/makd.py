"""MAKD: metaword-aided knowledge distillation (G-KA), and with other numbers each of its rivals.

A trainable metaword lines up how the edge's text encoder reads a prompt with what the cloud draws for it; then
metaword and low-rank matrices of the edge's denoiser train together; at last the low-rank matrices alone, while
what the metaword does to each prompt is kept instead of computed again. The data are prompts and the images that
the cloud drew for them: nothing else crosses the border, so cloud and edge may differ in everything.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dekag.alignment import adapters
from dekag.alignment.update import GenerationUpdate
from dekag.generation.diffusers import DiffusersGenerator
from dekag.generation.families import Conditioning
from dekag.generation.metaword import Metaword, SpokenMetaword, refuse_known, teach
from dekag.training.diffusion import denoising_loss, noising
from dekag.training.loop import Loss, Progress, TrainConfig, checkpoint_gradients, train
from dekag.training.run import UNTRACKED, Tracking
from dekag.types import Image, InputError, Latent

PRIOR_SEED = 200_000
TRAINED = "dekag_training"
"""Name of the adapter while it trains."""
OnStep = Callable[[str, Progress], None]
"""Called with the stage and its progress after each step."""
Validate = Callable[[DiffusersGenerator, str, int], float]
"""Scores the generator as it is being trained, at a stage and its step; higher is better."""
Reader = Callable[[Tensor, Tensor], Conditioning]
"""(index of each image's prompt, where the prompt is left out) -> what the denoiser is told."""


@dataclass(frozen=True, kw_only=True)
class MakdConfig:
    """The method's numbers; lengths in optimiser steps of `batch` images.

    A rival is the same with something left out: see `dekag.alignment.rivals`.
    """

    token: str = "<dekag>"
    position: Literal["prefix", "suffix"] = "suffix"
    vectors: int = 4
    """Of the metaword; 0 for none."""
    words: str = "glossy 3d"
    """The metaword's vectors start as the embeddings of these words, repeated, and keep their mean length."""
    train_metaword: bool = True
    adapter: Literal["none", "lora", "lokr", "full"] = "lora"
    """What of the denoiser trains; `full` is all of it."""
    rank: int = 8
    targets: str | None = None
    """Regular expression of the layers that get a low-rank update; None: the family's."""
    metaword_steps: int = 100
    metaword_rate: float = 1e-2
    joint_steps: int = 200
    joint_rate: float = 2e-3
    lora_plus: float = 1.0
    """Factor on the learning rate of every B (LoRA+, Hayou et al. 2024)."""
    frozen_steps: int = 500
    """Last steps, with the metaword frozen and the text states kept."""
    batch: int = 32
    accumulation: int = 1
    prior_share: float = 0.25
    """Share of the batch that is the edge's own drawings of other prompts, if there are any."""
    prior_least: float = 0.5
    """Own drawings count only above this share of the noise schedule: there the text decides what is drawn,
    and a concept that was not distilled should stay; below it the cloud's hand may spread to everything."""
    prior_word: bool = True
    """Whether the prior is drawn and kept with the metaword, as its first stage left it."""
    text_dropout: float = 0.1
    emphasis: float = 2.0
    """Emphasis of the denoising loss on high noise, where the text decides what is drawn."""
    gamma: float | None = None
    """Min-SNR weighting of the loss, None for none."""
    ema_decay: float = 0.995
    validate_every: int = 250
    """Steps of the last stage between two validations."""
    precision: str = "no"
    gradient_checkpointing: bool = False
    seed: int = 0

    def settings(self) -> dict[str, int | float | str]:
        """The numbers as a bundle keeps them: what is None is left out, yes and no are 1 and 0."""
        values = {name: value for name, value in asdict(self).items() if value is not None}
        return {name: int(value) if isinstance(value, bool) else value for name, value in values.items()}


def distil(
    generator: DiffusersGenerator,
    prompts: Sequence[str],
    images: Image,
    config: MakdConfig,
    *,
    prior: Sequence[str] = (),
    checkpoint: Path | None = None,
    on_step: OnStep | None = None,
    validate: Validate | None = None,
    tracking: Tracking = UNTRACKED,
) -> GenerationUpdate:
    """Distil cloud images, [prompts, 3, height, width] in [0, 1], into an update of the generator.

    `prior` are prompts whose drawings by the edge itself are kept as they are (Ruiz et al. 2023), so that what
    was not distilled is not spoiled. With `validate`, the best moving average by its score is what comes back,
    else the last.

    The generator is left as it was. With `checkpoint`, a folder, an interrupted run goes on where it was.
    Raises InputError if there is not one image for each prompt or the metaword is a word already.
    """
    if len(prompts) != len(images):
        raise InputError(
            f"give one cloud image for each prompt: {len(prompts)} prompts, {len(images)} images"
        )
    word = _fresh_word(generator, config)
    cloud = _Drawings(prompts=prompts, latents=generator.encode(images), word=True)
    with ExitStack() as stack:
        # 1. nothing of the edge trains but what a stage names
        stack.enter_context(_frozen(generator))
        if word is not None:
            stack.enter_context(word.spoken(generator.pipeline))
        run = partial(_run_stage, generator, word, config, checkpoint, on_step, tracking)
        # 2. the metaword alone
        if config.train_metaword and config.metaword_steps:
            ends = config.adapter == "none"
            steps, rate = config.metaword_steps, config.metaword_rate
            run((cloud, None), "metaword", steps, rate, validate if ends else None)
        if config.adapter == "none":
            return GenerationUpdate(metaword=_learned(word))
        # 3. metaword and low-rank matrices
        drawings = cloud, _own_drawings(generator, word, prior, config)
        stack.enter_context(_trainable(generator, config))
        if config.gradient_checkpointing:
            stack.enter_context(checkpointed(generator.denoiser))
        rate, ends = config.joint_rate, not config.frozen_steps
        if config.joint_steps:
            run(drawings, "joint", config.joint_steps, rate, validate if ends else None)
        # 4. low-rank matrices, with the text states kept
        if config.frozen_steps:
            run(drawings, "frozen", config.frozen_steps, rate, validate)
        return _collected(generator, word, config)


@dataclass(frozen=True, kw_only=True)
class _Drawings:
    """Prompts and latents drawn for them; `word` says whether the prompts carry the metaword."""

    prompts: Sequence[str]
    latents: Latent
    word: bool

    def said(self, prompt: str, word: SpokenMetaword | None) -> str:
        """What the edge is asked for."""
        return word.word.add_to(prompt) if word is not None and self.word else prompt


def _fresh_word(generator: DiffusersGenerator, config: MakdConfig) -> SpokenMetaword | None:
    """The metaword as it starts: its vectors are the embeddings of `config.words`, repeated."""
    if not config.vectors:
        return None
    pipeline, rows = generator.pipeline, {}
    for encoder, tokenizer in generator.family.encoders.items():
        refuse_known(getattr(pipeline, tokenizer), config.token)
        ids = getattr(pipeline, tokenizer)(config.words, add_special_tokens=False).input_ids
        start = getattr(pipeline, encoder).get_input_embeddings().weight[torch.tensor(ids)].detach()
        repeated = start[torch.arange(config.vectors) % len(start)]
        rows[encoder] = nn.Parameter(repeated.float().clone(), requires_grad=config.train_metaword)
    word = Metaword(token=config.token, position=config.position, vectors=rows)
    return teach(pipeline, word, generator.family.encoders)


def _own_drawings(
    generator: DiffusersGenerator,
    word: SpokenMetaword | None,
    prior: Sequence[str],
    config: MakdConfig,
) -> _Drawings | None:
    """What the edge itself draws for other prompts, or nothing if no share of the batch is for it."""
    if not prior or not config.prior_share:
        return None
    own = replace(generator, metaword=word if config.prior_word else None)
    drawn = own(prior, seeds=[PRIOR_SEED + config.seed + i for i in range(len(prior))])
    return _Drawings(prompts=prior, latents=drawn, word=config.prior_word)


@contextmanager
def _frozen(generator: DiffusersGenerator) -> Iterator[None]:
    """Within, no weight of denoiser or text encoders asks for a gradient."""
    parts = [generator.denoiser, *(getattr(generator.pipeline, name) for name in generator.family.encoders)]
    asked = [parameter for part in parts for parameter in part.parameters() if parameter.requires_grad]
    for part in parts:
        part.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)


@contextmanager
def _trainable(generator: DiffusersGenerator, config: MakdConfig) -> Iterator[None]:
    """Within, the denoiser has what the config trains of it; afterwards it is as before."""
    denoiser = generator.denoiser
    if config.adapter == "full":
        before = copy.deepcopy(denoiser.state_dict())
        denoiser.requires_grad_(True)
        try:
            yield
        finally:
            denoiser.load_state_dict(before)
            denoiser.requires_grad_(False)
        return
    assert config.adapter != "none"
    targets = config.targets or generator.family.targets
    peft = adapters.config_for(config.adapter, rank=config.rank, targets=targets)
    with adapters.fresh(denoiser, TRAINED, peft, seed=config.seed):
        if config.adapter == "lokr":
            yield
        else:
            with adapters.lean(denoiser, TRAINED):
                yield


@contextmanager
def checkpointed(denoiser: Any) -> Iterator[None]:
    """Within, the denoiser computes activations again instead of keeping them."""
    checkpoint_gradients(denoiser)
    try:
        yield
    finally:
        denoiser.disable_gradient_checkpointing()


def _run_stage(
    generator: DiffusersGenerator,
    word: SpokenMetaword | None,
    config: MakdConfig,
    checkpoint: Path | None,
    on_step: OnStep | None,
    tracking: Tracking,
    drawings: tuple[_Drawings, _Drawings | None],
    name: str,
    steps: int,
    rate: float,
    validate: Validate | None,
) -> None:
    """One stage with its own state file; it ends holding the moving average of what it trained."""
    rows = {} if word is None else dict(word.word.vectors)
    trains_word = config.train_metaword and name != "frozen"
    for row in rows.values():
        row.requires_grad_(trains_word)
    train(
        _trained_parameters(rows, generator.denoiser),
        _loss(generator, word, drawings, config, kept=not (rows and trains_word)),
        TrainConfig(
            steps=steps,
            learning_rate=rate,
            ema_decay=config.ema_decay,
            accumulation=config.accumulation,
            rate_factors=((r"lora_B", config.lora_plus),) if config.lora_plus != 1 else (),
            keep="last" if validate is None else "best",
            precision=config.precision,
            seed=config.seed,
            checkpoint_every=100,
        ),
        checkpoint=None if checkpoint is None else checkpoint / f"{name}.pt",
        on_step=None if on_step is None else partial(on_step, name),
        validate=None if validate is None else _scored(generator, word, config, validate, name),
        trackers=tracking.trackers,
        logging_dir=None if tracking.folder is None else tracking.folder / name,
        validate_every=0 if validate is None else config.validate_every,
    )


def _trained_parameters(rows: Mapping[str, Tensor], denoiser: nn.Module) -> nn.ParameterDict:
    """All that trains, and nothing that a checkpoint need not hold; a parameter's name has no dots."""
    named = {f"metaword.{name}": row for name, row in rows.items()} | dict(denoiser.named_parameters())
    return nn.ParameterDict({k.replace(".", "/"): p for k, p in named.items() if p.requires_grad})


def _scored(
    generator: DiffusersGenerator,
    word: SpokenMetaword | None,
    config: MakdConfig,
    validate: Validate,
    stage: str,
) -> Callable[[int], float]:
    """The user's score of the generator as it is now; training goes on with the adapter afterwards."""
    adapted = config.adapter in ("lora", "lokr") and TRAINED in getattr(generator.denoiser, "peft_config", {})
    trained = replace(generator, metaword=word, adapters=(TRAINED,) if adapted else ())

    def score(step: int) -> float:
        value = validate(trained, stage, step)
        if adapted:
            generator.denoiser.enable_adapters()
            generator.denoiser.set_adapter(TRAINED)
        return value

    return score


def _loss(
    generator: DiffusersGenerator,
    word: SpokenMetaword | None,
    drawings: tuple[_Drawings, _Drawings | None],
    config: MakdConfig,
    *,
    kept: bool,
) -> Loss:
    """Denoising loss on latents and their own prompts: a share of each batch is the edge's own drawings."""
    family, pipeline = generator.family, generator.pipeline
    parts = [part for part in drawings if part is not None]
    own = round(config.prior_share * config.batch) if len(parts) == 2 else 0
    sizes = [config.batch - own, own][: len(parts)]
    first = [0, len(parts[0].prompts)][: len(parts)]
    least = torch.cat([torch.full((n,), v) for n, v in zip(sizes, (0.0, config.prior_least), strict=False)])
    said = [part.said(prompt, word) for part in parts for prompt in part.prompts]
    latents = torch.cat([part.latents for part in parts])
    how = noising(pipeline.scheduler)
    read = (_kept_reader if kept else _reader)(generator, said)

    def loss(rng: torch.Generator) -> Tensor:
        # one index picks the latent and its own prompt
        index = torch.cat(
            [
                start + torch.randint(len(part.prompts), (size,), generator=rng)
                for start, part, size in zip(first, parts, sizes, strict=True)
            ]
        )
        told = read(index, torch.rand(config.batch, generator=rng) < config.text_dropout)
        return denoising_loss(
            lambda noised, timesteps: family.predict(pipeline, noised, timesteps, told),
            how,
            latents[index],
            rng=rng,
            emphasis=config.emphasis,
            least=least,
            gamma=config.gamma,
        )

    return loss


def _reader(generator: DiffusersGenerator, prompts: Sequence[str]) -> Reader:
    """Reads the prompts of a batch anew each time, so that the metaword's gradient flows."""

    def read(index: Tensor, dropped: Tensor) -> Conditioning:
        pairs = zip(index.tolist(), dropped.tolist(), strict=True)
        said = ["" if left_out else prompts[i] for i, left_out in pairs]
        return generator.family.condition(generator.pipeline, said)

    return read


def _kept_reader(generator: DiffusersGenerator, prompts: Sequence[str]) -> Reader:
    """Reads every prompt once and keeps what the denoiser is told; the last row is the empty prompt's."""
    told = generator.read([*prompts, ""])

    def read(index: Tensor, dropped: Tensor) -> Conditioning:
        rows = index.masked_fill(dropped, len(prompts))
        return {name: values[rows.to(values.device)] for name, values in told.items()}

    return read


def _collected(
    generator: DiffusersGenerator, word: SpokenMetaword | None, config: MakdConfig
) -> GenerationUpdate:
    if config.adapter == "full":
        weights = {name: tensor.clone() for name, tensor in generator.denoiser.state_dict().items()}
        return GenerationUpdate(metaword=_learned(word), weights=weights)
    return GenerationUpdate(metaword=_learned(word), adapter=adapters.tensors(generator.denoiser, TRAINED))


def _learned(word: SpokenMetaword | None) -> Metaword | None:
    """The metaword with copies of its vectors."""
    if word is None:
        return None
    return replace(word.word, vectors={k: v.detach().clone() for k, v in word.word.vectors.items()})
