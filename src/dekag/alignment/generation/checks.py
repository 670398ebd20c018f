"""Whether a generator can be trained with some numbers, known before anything is drawn, bought or trained."""

import re

from dekag.alignment.config import MakdConfig
from dekag.errors import FieldError
from dekag.generation.diffusers import DiffusersGenerator
from dekag.generation.metaword import refuse_known


def check_config(generator: DiffusersGenerator, config: MakdConfig) -> None:
    """Raise InputError for a metaword that the tokenizers know or cannot start, or targets that no layer has."""
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
