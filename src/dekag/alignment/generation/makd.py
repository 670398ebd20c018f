"""MAKD: metaword-aided knowledge distillation (G-KA), and with other numbers each of its rivals.

A trainable metaword lines up how the edge's text encoder reads a prompt with what the cloud draws for it; then
metaword and low-rank matrices of the edge's denoiser train together; at last the low-rank matrices alone, while
what the metaword does to each prompt is computed once. The data are prompts and the images that the cloud drew for
them: nothing else crosses the border, so cloud and edge may differ in everything.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from dekag.alignment.config import MakdConfig
from dekag.alignment.generation import adapters
from dekag.alignment.generation.checks import check_config
from dekag.alignment.generation.devices import AUTOENCODERS, moved
from dekag.alignment.generation.method import (
    UNWATCHED,
    DistillationData,
    TrainingRun,
    frozen,
    trainable,
)
from dekag.alignment.generation.update import GenerationUpdate
from dekag.generation.diffusers import DiffusersGenerator
from dekag.generation.families import Conditioning
from dekag.generation.metaword import Metaword, PreparedMetaword, prepare_metaword, refuse_known
from dekag.training.diffusion import denoising_loss, noising
from dekag.training.loop import Loss, TrainConfig, Validation, checkpoint_gradients, train
from dekag.types import Latent, RepeatedRows
from dekag.wire.rows import columns_on_disk, rows_on_disk

__all__ = ["TRAINED", "Stage", "checkpointed", "distil", "stages"]

PRIOR_SEED = 200_000
TRAINED = "dekag_training"
"""Name of the adapter while it trains."""
CHECKPOINT_STEPS = 100
"""Steps between two states of a training."""
Reader = Callable[[Tensor, Tensor], Conditioning]
"""(index of each image's prompt, where the prompt is left out) -> conditioning of the denoiser."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Some steps in which the same parameters train; name: metaword, joint or frozen."""

    name: str
    steps: int
    rate: float


def stages(config: MakdConfig) -> tuple[Stage, ...]:
    """The stages of a training in their order, those without steps left out."""
    word = bool(config.vectors) and config.train_metaword
    adapted = config.adapter != "none"
    planned = (
        Stage(name="metaword", steps=config.metaword_steps * word, rate=config.metaword_rate),
        Stage(name="joint", steps=config.joint_steps * adapted, rate=config.joint_rate),
        Stage(name="frozen", steps=config.frozen_steps * adapted, rate=config.joint_rate),
    )
    return tuple(stage for stage in planned if stage.steps)


def distil(
    generator: DiffusersGenerator,
    data: DistillationData,
    config: MakdConfig,
    run: TrainingRun = UNWATCHED,
) -> GenerationUpdate:
    """Distil the cloud's images into an update of the generator, which is left as it was.

    The last stage is the one that `run.validate` scores.
    Raises InputError if the metaword is a word already, or if the edge is held in half precision and is not trained so.
    """
    check_config(generator, config)
    run = run.depending_on(
        generator, config, prompts=data.prompts, images=data.images, weights=data.weights, prior=data.prior
    )
    training = _Training(generator=generator, word=_fresh_word(generator, config), config=config, run=run)
    cloud = _encoded(training, data)
    planned = stages(config)
    with ExitStack() as stack:
        # 1. nothing of the edge trains but what a stage names
        stack.enter_context(frozen(generator))
        if training.word is not None:
            stack.enter_context(training.word.installed(generator.pipeline))
        # 2. the metaword alone
        for stage in (each for each in planned if each.name == "metaword"):
            _run_stage(training, (cloud,), stage, last=stage is planned[-1])
        if config.adapter == "none":
            return GenerationUpdate(metaword=_learned(training.word))
        # 3. metaword and low-rank matrices, then these alone, with the text states computed once
        parts = (cloud, *_prior_drawings(training, data.prior))
        stack.enter_context(_trainable(generator, config))
        if config.gradient_checkpointing:
            stack.enter_context(checkpointed(generator.denoiser))
        for stage in (each for each in planned if each.name != "metaword"):
            _run_stage(training, parts, stage, last=stage is planned[-1])
        return _collected(training)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Training:
    """An edge and its metaword as they train."""

    generator: DiffusersGenerator
    config: MakdConfig
    word: PreparedMetaword | None = None
    run: TrainingRun = UNWATCHED

    @property
    def rows(self) -> dict[str, Tensor]:
        """The metaword's vectors by text encoder."""
        return {} if self.word is None else dict(self.word.word.vectors)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Drawings:
    """Prompts and latents drawn for them; `with_word` says whether the prompts carry the metaword.

    rows: the latent of each prompt, in their order if None. weights: how often each is drawn, all alike if None.
    """

    prompts: Sequence[str]
    latents: Latent
    with_word: bool
    rows: Int64[Tensor, " prompts"] | None = None
    weights: Float[Tensor, " prompts"] | None = None

    def draw(self, count: int, rng: torch.Generator) -> Int64[Tensor, " count"]:
        """Places of some prompts."""
        if self.weights is None:
            return torch.randint(len(self.prompts), (count,), generator=rng)
        return torch.multinomial(self.weights, count, replacement=True, generator=rng)

    def latents_of(self, places: Int64[Tensor, " count"]) -> Latent:
        """The latents of the prompts at these places."""
        return self.latents[places if self.rows is None else self.rows[places]]

    def read_prompts(self, word: PreparedMetaword | None) -> list[str]:
        """The prompts as the edge reads them."""
        if word is None or not self.with_word:
            return list(self.prompts)
        return word.add_to(self.prompts)


def _encoded(training: _Training, data: DistillationData) -> _Drawings:
    """The cloud's images as latents, each picture encoded once."""
    images, rows = data.images, None
    if isinstance(images, RepeatedRows):
        images, rows = images.distinct()
    generator = training.generator
    latents = training.run.latents(len(images), lambda: generator.encode_parts(images))
    return _Drawings(prompts=data.prompts, latents=latents, with_word=True, rows=rows, weights=data.weights)


def _fresh_word(generator: DiffusersGenerator, config: MakdConfig) -> PreparedMetaword | None:
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
    return prepare_metaword(pipeline, word, generator.family.encoders)


def _prior_drawings(training: _Training, prior: Sequence[str]) -> tuple[_Drawings, ...]:
    """What the edge itself draws for other prompts, or nothing if no share of the batch is for it."""
    config = training.config
    if not prior or not config.prior_share:
        return ()
    edge = replace(training.generator, metaword=training.word if config.prior_word else None)
    seeds = [PRIOR_SEED + config.seed + i for i in range(len(prior))]

    def draw() -> Iterator[Latent]:
        for at in range(0, len(prior), edge.at_once):
            part = slice(at, at + edge.at_once)
            yield edge(prior[part], seeds=seeds[part])

    # never kept: it depends on what the metaword has learnt
    drawn = rows_on_disk(len(prior), draw())
    return (_Drawings(prompts=prior, latents=drawn, with_word=config.prior_word),)


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
    targets = config.targets or generator.family.targets
    peft = adapters.config_for(config.adapter, rank=config.rank, targets=targets)
    with ExitStack() as stack:
        stack.enter_context(adapters.fresh(denoiser, TRAINED, peft, seed=config.seed))
        if adapters.KINDS[config.adapter].merged:
            stack.enter_context(adapters.merged_forward(denoiser, TRAINED))
        yield


def trained_parameters(generator: DiffusersGenerator, config: MakdConfig) -> int:
    """How many numbers a training with this configuration trains, the metaword's included."""
    word = _fresh_word(generator, config)
    vectors: int = (
        0 if word is None else sum(v.numel() for v in word.word.vectors.values() if v.requires_grad)
    )
    if config.adapter == "none":
        return vectors
    with frozen(generator), _trainable(generator, config):
        trained = [p for p in generator.denoiser.parameters() if p.requires_grad]
    return vectors + sum(int(parameter.numel()) for parameter in trained)


@contextmanager
def checkpointed(denoiser: Any) -> Iterator[None]:
    """Within, the denoiser computes activations again instead of keeping them."""
    checkpoint_gradients(denoiser)
    try:
        yield
    finally:
        denoiser.disable_gradient_checkpointing()


def _run_stage(training: _Training, parts: Sequence[_Drawings], stage: Stage, *, last: bool) -> None:
    """One stage with its own state file; it ends holding the moving average of what it trained."""
    config, run, rows = training.config, training.run, training.rows
    trains_word = config.train_metaword and stage.name != "frozen"
    for row in rows.values():
        row.requires_grad_(trains_word)
    validation = _validation(training, stage) if last and run.validate is not None else None
    named = {f"metaword.{name}": row for name, row in rows.items()}
    cached = not (rows and trains_word)
    loss = _loss(training, parts, cached=cached)
    numbers = TrainConfig(
        steps=stage.steps,
        learning_rate=stage.rate,
        ema_decay=config.ema_decay,
        accumulation=config.accumulation,
        rate_factors=((r"lora_B", config.lora_plus),)
        if stage.name != "metaword" and config.lora_plus != 1
        else (),
        keep="last" if validation is None else "best",
        precision=config.precision,
        seed=config.seed,
        checkpoint_every=CHECKPOINT_STEPS,
    )
    resting = (*AUTOENCODERS, *(training.generator.family.encoders if cached else ()))
    with moved(training.generator.pipeline, resting, "cpu"):
        train(
            trainable(named | dict(training.generator.denoiser.named_parameters())),
            loss,
            numbers,
            checkpoint=run.state_file(stage.name),
            on_step=run.hook(stage.name),
            validation=validation,
            tracking=run.tracking_of(stage.name),
        )


def _validation(training: _Training, stage: Stage) -> Validation:
    """The user's score of the last stage, as often as the configuration says, and at its end."""
    return Validation(score=_score(training, stage.name), every=training.config.validate_every or stage.steps)


def _score(training: _Training, stage: str) -> Callable[[int], float]:
    """The user's score of the generator as it is now; training goes on with the adapter afterwards."""
    validate, denoiser = training.run.validate, training.generator.denoiser
    assert validate is not None
    adapted = TRAINED in getattr(denoiser, "peft_config", {})
    trained = replace(training.generator, metaword=training.word, adapters=(TRAINED,) if adapted else ())

    pipeline, family = training.generator.pipeline, training.generator.family

    def score(step: int) -> float:
        with moved(pipeline, (*AUTOENCODERS, *family.encoders), denoiser.device):  # whatever rests elsewhere
            value = validate(trained, stage, step)
        if adapted:
            denoiser.enable_adapters()
            denoiser.set_adapter(TRAINED)
        return value

    return score


@dataclass(frozen=True, kw_only=True, eq=False)
class _Pool:
    """What a batch is drawn from, part by part, and how many of each are in it."""

    parts: Sequence[_Drawings]
    sizes: tuple[int, ...]

    @property
    def starts(self) -> tuple[int, ...]:
        """Where each part begins in the prompts of all."""
        return (0, len(self.parts[0].prompts))[: len(self.parts)]

    def draw(self, rng: torch.Generator) -> tuple[Int64[Tensor, " batch"], Latent]:
        """Places in the prompts of all, and their latents."""
        places = [part.draw(size, rng) for part, size in zip(self.parts, self.sizes, strict=True)]
        latents = [part.latents_of(own) for part, own in zip(self.parts, places, strict=True)]
        index = torch.cat([start + own for start, own in zip(self.starts, places, strict=True)])
        return index, torch.cat(latents)


def _pool(parts: Sequence[_Drawings], config: MakdConfig) -> _Pool:
    """The drawings of the cloud and, if there are any, a share of each batch for the edge's own."""
    prior = round(config.prior_share * config.batch) if len(parts) == 2 else 0
    return _Pool(parts=parts, sizes=(config.batch - prior, prior)[: len(parts)])


def _loss(training: _Training, parts: Sequence[_Drawings], *, cached: bool) -> Loss:
    """Denoising loss on latents and their own prompts; `cached` reads each prompt once, not in each batch."""
    generator, config = training.generator, training.config
    family, pipeline = generator.family, generator.pipeline
    pool = _pool(parts, config)
    floors = zip(pool.sizes, (0.0, config.prior_least), strict=False)
    min_share = torch.cat([torch.full((size,), floor) for size, floor in floors])
    prompts = [prompt for part in parts for prompt in part.read_prompts(training.word)]
    noise_process = noising(pipeline.scheduler)
    read = (_cached_reader if cached else _reader)(generator, prompts)

    def loss(rng: torch.Generator) -> Tensor:
        index, latents = pool.draw(rng)
        conditioning = read(index, torch.rand(config.batch, generator=rng) < config.text_dropout)
        return denoising_loss(
            lambda noised, timesteps: family.predict(pipeline, noised, timesteps, conditioning),
            noise_process,
            latents.to(generator.denoiser.device),
            rng=rng,
            emphasis=config.emphasis,
            min_share=min_share,
            gamma=config.gamma,
        )

    return loss


def _reader(generator: DiffusersGenerator, prompts: Sequence[str]) -> Reader:
    """Reads the prompts of a batch anew each time, so that the metaword's gradient flows."""

    def read(index: Tensor, dropped: Tensor) -> Conditioning:
        pairs = zip(index.tolist(), dropped.tolist(), strict=True)
        batch = ["" if left_out else prompts[i] for i, left_out in pairs]
        return generator.family.condition(generator.pipeline, batch)

    return read


def _cached_reader(generator: DiffusersGenerator, prompts: Sequence[str]) -> Reader:
    """Reads every text once, onto the disk; the last is the empty prompt."""
    texts = [*dict.fromkeys(prompts), ""]
    numbers = {text: number for number, text in enumerate(texts)}
    rows = torch.tensor([numbers[prompt] for prompt in prompts])
    conditioning = columns_on_disk(len(texts), generator.read_parts(texts))
    device = generator.denoiser.device

    def read(index: Tensor, dropped: Tensor) -> Conditioning:
        chosen = rows[index].masked_fill(dropped, len(texts) - 1)
        return {name: values[chosen].to(device) for name, values in conditioning.items()}

    return read


def _collected(training: _Training) -> GenerationUpdate:
    """What was learned, as copies."""
    denoiser, word = training.generator.denoiser, _learned(training.word)
    if training.config.adapter == "full":
        weights = {name: tensor.clone() for name, tensor in denoiser.state_dict().items()}
        return GenerationUpdate(metaword=word, weights=weights)
    return GenerationUpdate(metaword=word, adapter=adapters.tensors(denoiser, TRAINED))


def _learned(word: PreparedMetaword | None) -> Metaword | None:
    """The metaword with copies of its vectors."""
    if word is None:
        return None
    return replace(word.word, vectors={k: v.detach().clone() for k, v in word.word.vectors.items()})
