"""Whether a generator can be trained with some numbers, known before anything is drawn, bought or trained."""

import re

import torch

from dekag.alignment.config import MakdConfig
from dekag.alignment.generation import adapters
from dekag.errors import FieldError, InputError
from dekag.generation.diffusers import DiffusersGenerator
from dekag.generation.metaword import refuse_known


def check_config(generator: DiffusersGenerator, config: MakdConfig) -> None:
    """Raise InputError for what an edge cannot be trained with.

    That is a metaword that the tokenizers know or cannot start, targets that no layer has, a factor on the rate of
    matrices that are not there, or a precision that the edge's weights cannot be trained in.
    """
    _check_rates(config)
    _check_precision(generator, config)
    if config.vectors:
        _check_word(generator, config)
    if config.adapter not in ("none", "full"):
        check_targets(generator, config.targets)


def check_targets(generator: DiffusersGenerator, targets: str | None) -> None:
    """Raise FieldError unless the regular expression matches the whole path of a layer of the denoiser."""
    if targets is not None and not any(
        re.fullmatch(targets, name) for name, _ in generator.denoiser.named_modules()
    ):
        raise FieldError(
            f"targets {targets!r} matches no layer; the family's own are {generator.family.targets!r}",
            "targets",
        )


def _check_word(generator: DiffusersGenerator, config: MakdConfig) -> None:
    pipeline = generator.pipeline
    for name in generator.family.encoders.values():
        tokenizer = getattr(pipeline, name)
        refuse_known(tokenizer, config.token)
        if not tokenizer(config.words, add_special_tokens=False).input_ids:
            raise FieldError(f"words {config.words!r} are no token of the edge; give others", "words")


def _check_rates(config: MakdConfig) -> None:
    kind = adapters.KINDS.get(config.adapter)
    if config.lora_plus != 1 and (kind is None or "lora_B.weight" not in kind.tensors):
        text = f"lora_plus is a factor on the rate of the matrices B, which {config.adapter} does not have"
        raise FieldError(text, "lora_plus")


def _check_precision(generator: DiffusersGenerator, config: MakdConfig) -> None:
    held = next(generator.denoiser.parameters()).dtype
    if held == torch.float16:
        raise InputError("the edge is held in float16, in which nothing is trained: hold it in bf16 or fp32")
    if held == torch.bfloat16 and config.precision != "bf16":
        text = "the edge is held in bfloat16: train it with precision bf16, what is trained stays fp32"
        raise FieldError(text, "precision")
