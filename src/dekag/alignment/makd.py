"""MAKD: metaword-aided knowledge distillation (G-KA).

A trainable metaword lines up how the edge's text encoder reads a prompt with what the cloud draws for it; then
metaword and LoRA matrices of the edge's noise predictor train together. The data are prompts and the images
that the cloud drew for them: nothing else crosses the border, so cloud and edge may differ in everything.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from jaxtyping import Float
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from dekag.generation.diffusers import DiffusersGenerator, Metaword
from dekag.training.diffusion import denoising_loss
from dekag.training.loop import Loss, Progress, TrainConfig, train
from dekag.types import Image, InputError

ADAPTER = "dekag"
PRIOR_SEED = 200_000
OnStep = Callable[[str, Progress], None]
"""Called with the stage and its progress after each step."""
METAWORD = Metaword(token="<dekag>", position="suffix")
TARGETS = (
    r".*(conv|conv1|conv2|conv_shortcut|conv_in|conv_out|time_emb_proj"
    r"|to_[qkv]|to_out\.0|proj_in|proj_out|net\.0\.proj|net\.2)$"
)
"""Layers of a U-Net or transformer that get a low-rank update."""


@dataclass(frozen=True, kw_only=True)
class MakdConfig:
    """The method's numbers; lengths in optimiser steps of `batch` images."""

    metaword: Metaword = METAWORD
    vectors: int = 4
    words: str = "picture"
    """The metaword's vectors start as the embeddings of these words, repeated."""
    rank: int = 16
    targets: str = TARGETS
    """Regular expression of the layers that get a low-rank update."""
    metaword_steps: int = 60
    metaword_rate: float = 1e-2
    joint_steps: int = 1000
    joint_rate: float = 2e-3
    batch: int = 64
    prior_share: float = 0.35
    """Share of the batch that is the edge's own drawings of other prompts, if there are any."""
    prior_least: float = 0.5
    """Own drawings count only above this share of the noise schedule: there the text decides what is drawn,
    and a concept that was not distilled should stay; below it the cloud's hand may spread to everything."""
    text_dropout: float = 0.1
    emphasis: float = 2.0
    """Emphasis of the denoising loss on high noise, where the text decides what is drawn."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class GenerationUpdate:
    """What MAKD learned: LoRA tensors by their PEFT names, and the metaword's vectors [vectors, width]."""

    metaword: Metaword
    vectors: Float[Tensor, "vectors width"]
    lora: dict[str, Tensor]


class MetawordRows(nn.Module):
    """The only trainable rows of a frozen token embedding."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(start.clone())


def distil(
    generator: DiffusersGenerator,
    prompts: Sequence[str],
    images: Image,
    config: MakdConfig,
    *,
    prior: Sequence[str] = (),
    checkpoint: Path | None = None,
    on_step: OnStep | None = None,
) -> GenerationUpdate:
    """Distil cloud images, [prompts, 3, height, width] in [0, 1], into an update of the generator.

    `prior` are prompts whose drawings by the edge itself are kept as they are (Ruiz et al. 2023), so that what
    was not distilled is not spoiled.

    The generator is left as it was. With `checkpoint`, a folder, an interrupted run goes on where it was.
    Raises InputError if there is not one image for each prompt or the metaword is a word already.
    """
    if len(prompts) != len(images):
        raise InputError(
            f"give one cloud image for each prompt: {len(prompts)} prompts, {len(images)} images"
        )
    latents = generator.encode(images)
    unet = generator.pipeline.unet.requires_grad_(False)
    with _new_tokens(generator, config) as (rows, encode):
        cloud = _loss(generator, prompts, latents, encode, config, share=1 - config.prior_share * bool(prior))
        loss = _with_prior(cloud, generator, prior, encode, config) if prior else cloud
        model = nn.ModuleDict({"metaword": rows, "unet": unet})
        _train_stage("metaword", model, loss, config, checkpoint, on_step)
        with _adapter(unet, config):
            _train_stage("joint", model, loss, config, checkpoint, on_step)
            lora = get_peft_model_state_dict(unet, adapter_name=ADAPTER)
            lora = {name: tensor.detach().clone() for name, tensor in lora.items()}
        return GenerationUpdate(metaword=config.metaword, vectors=rows.rows.detach().clone(), lora=lora)


def apply_update(generator: DiffusersGenerator, update: GenerationUpdate) -> DiffusersGenerator:
    """Load the update into the generator's pipeline; the returned generator says the metaword.

    Raises InputError if a layer of the update is not in the pipeline or the metaword is a word already.
    """
    pipeline = generator.pipeline
    _check_fit(pipeline, update)
    pipeline.load_textual_inversion({update.metaword.token: update.vectors})
    pipeline.load_lora_weights({f"unet.{k}": v for k, v in update.lora.items()}, adapter_name=ADAPTER)
    # loaders are known to leave out in silence what they do not understand
    assert get_peft_model_state_dict(pipeline.unet, adapter_name=ADAPTER).keys() == update.lora.keys()
    return replace(generator, metaword=update.metaword)


def remove_update(generator: DiffusersGenerator) -> DiffusersGenerator:
    """Take the update out of the generator's pipeline, which is then exactly as before."""
    if generator.metaword is None:
        return generator
    generator.pipeline.unload_lora_weights()
    token = generator.metaword.token
    # every vector is a token of its own: <dekag>, <dekag>_1, ...
    added = generator.pipeline.tokenizer.get_added_vocab()
    vectors = [name for name in added if name == token or name.startswith(f"{token}_")]
    generator.pipeline.unload_textual_inversion(vectors)
    return replace(generator, metaword=None)


def _train_stage(
    name: str,
    model: nn.Module,
    loss: Loss,
    config: MakdConfig,
    checkpoint: Path | None,
    on_step: OnStep | None,
) -> None:
    """One stage, `metaword` or `joint`, with its own state file."""
    stages = {
        "metaword": (config.metaword_steps, config.metaword_rate),
        "joint": (config.joint_steps, config.joint_rate),
    }
    steps, rate = stages[name]
    train(
        model,
        loss,
        TrainConfig(steps=steps, learning_rate=rate, ema_decay=0.99, seed=config.seed, checkpoint_every=100),
        checkpoint=None if checkpoint is None else checkpoint / f"{name}.pt",
        on_step=None if on_step is None else partial(on_step, name),
    )


@contextmanager
def _adapter(unet: Any, config: MakdConfig) -> Iterator[None]:
    """Give the noise predictor low-rank matrices to train, and take them off again."""
    lora = LoraConfig(
        r=config.rank, lora_alpha=config.rank, init_lora_weights="gaussian", target_modules=config.targets
    )
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        unet.add_adapter(lora, ADAPTER)
    try:
        yield
    finally:
        unet.unload_lora()


def _check_fit(pipeline: Any, update: GenerationUpdate) -> None:
    """Everything that can be wrong with an update, before any of it reaches the pipeline."""
    _refuse_known(pipeline.tokenizer, update.metaword.token)
    width = pipeline.text_encoder.get_input_embeddings().weight.shape[1]
    if update.vectors.shape[1] != width:
        raise InputError(f"the metaword has width {update.vectors.shape[1]}, the text encoder needs {width}")
    layers = dict(pipeline.unet.named_modules())
    for name, tensor in update.lora.items():
        layer, _, matrix = name.partition(".lora_")
        if layer not in layers:
            raise InputError(f"the update does not fit the pipeline: it has no layer {layer}")
        rows, cols = layers[layer].weight.shape[:2]
        size, expected = (tensor.shape[1], cols) if matrix.startswith("A") else (tensor.shape[0], rows)
        if size != expected:
            raise InputError(
                f"the update does not fit the pipeline: {name} is for {size} channels, not {expected}"
            )


def _refuse_known(tokenizer: PreTrainedTokenizerBase, token: str) -> None:
    if token in tokenizer.get_vocab():
        raise InputError(f"the metaword {token} is in the vocabulary already; choose another")


@contextmanager
def _new_tokens(
    generator: DiffusersGenerator, config: MakdConfig
) -> Iterator[tuple[MetawordRows, Callable[[Tensor], Tensor]]]:
    """Lend the text encoder new tokens: yields their trainable rows and ids -> text states.

    The ids of the new tokens are those after the vocabulary; the embedding layer looks them up as token 0 and
    a hook puts the rows in their place, so that nothing else of the encoder trains or changes.
    """
    tokenizer, encoder = generator.pipeline.tokenizer, generator.pipeline.text_encoder.requires_grad_(False)
    _refuse_known(tokenizer, config.metaword.token)
    embedding = encoder.get_input_embeddings()
    words = tokenizer(config.words, add_special_tokens=False).input_ids
    start = embedding.weight[torch.tensor(words).repeat(config.vectors)[: config.vectors]]
    rows = MetawordRows(start.detach())
    first = embedding.num_embeddings

    def encode(ids: Tensor) -> Tensor:
        new = ids >= first

        def put(_: nn.Module, __: object, out: Tensor) -> Tensor:
            return torch.where(new[..., None], rows.rows[(ids - first).clamp(min=0)], out)

        hook = embedding.register_forward_hook(put)
        try:
            states: Tensor = encoder(ids.masked_fill(new, 0)).last_hidden_state
        finally:
            hook.remove()
        return states

    yield rows, encode


def _token_ids(generator: DiffusersGenerator, prompts: Sequence[str], config: MakdConfig) -> Tensor:
    """Ids of the prompts with the metaword, [prompts, tokens], padded as the pipeline pads."""
    tokenizer = generator.pipeline.tokenizer
    first = generator.pipeline.text_encoder.get_input_embeddings().num_embeddings
    new = list(range(first, first + config.vectors))
    room = tokenizer.model_max_length - 2
    rows = []
    for prompt in prompts:
        words = tokenizer(prompt, add_special_tokens=False).input_ids
        prefix = config.metaword.position == "prefix"
        joined = (new + words if prefix else words + new)[:room]
        full = [tokenizer.bos_token_id, *joined, tokenizer.eos_token_id]
        rows.append(full + [tokenizer.pad_token_id] * (room + 2 - len(full)))
    return torch.tensor(rows)


def _loss(
    generator: DiffusersGenerator,
    prompts: Sequence[str],
    latents: Tensor,
    encode: Callable[[Tensor], Tensor],
    config: MakdConfig,
    *,
    share: float,
    least: float = 0.0,
) -> Loss:
    """Denoising loss on latents and their own prompts, for a share of the batch."""
    tokenizer = generator.pipeline.tokenizer
    noise: DDPMScheduler = DDPMScheduler.from_config(generator.pipeline.scheduler.config)
    tokens = _token_ids(generator, prompts, config)
    batch = round(share * config.batch)
    empty = tokenizer("", padding="max_length", max_length=tokens.shape[1], return_tensors="pt").input_ids

    def loss(rng: torch.Generator) -> Tensor:
        # one index picks the latent and its own caption
        index = torch.randint(len(latents), (batch,), generator=rng)
        dropped = torch.rand(batch, 1, generator=rng) < config.text_dropout
        text = encode(torch.where(dropped, empty, tokens[index]))
        return denoising_loss(
            generator.pipeline.unet,
            noise,
            latents[index],
            text,
            rng=rng,
            emphasis=config.emphasis,
            least=least,
        )

    return loss


def _with_prior(
    cloud: Loss,
    generator: DiffusersGenerator,
    prior: Sequence[str],
    encode: Callable[[Tensor], Tensor],
    config: MakdConfig,
) -> Loss:
    """The loss on the cloud's images and that on the edge's own, weighted by their shares of the batch."""
    own = generator(prior, seeds=[PRIOR_SEED + config.seed + i for i in range(len(prior))])
    share = config.prior_share
    keep = _loss(generator, prior, own, encode, config, share=share, least=config.prior_least)

    def loss(rng: torch.Generator) -> Tensor:
        return (1 - share) * cloud(rng) + share * keep(rng)

    return loss
