"""Checks of prompts before anything is drawn."""

import warnings
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from dekag.types import InputError

LONGEST_PROMPT = 4000
"""Characters; every text encoder in use reads far fewer."""


class PromptTruncatedWarning(UserWarning):
    """The text encoder does not read the whole prompt."""


def check_prompts(prompts: Sequence[str]) -> tuple[str, ...]:
    """The prompts, stripped.

    Raises InputError if there is none, or one is empty or longer than LONGEST_PROMPT characters.
    """
    if isinstance(prompts, str):
        raise InputError("prompts must be a list of texts, got one text; put it in a list")
    if not prompts:
        raise InputError("there is no prompt; give at least one")
    stripped = tuple(prompt.strip() for prompt in prompts)
    for number, prompt in enumerate(stripped):
        if not prompt:
            raise InputError(f"prompt {number} is empty; say what to draw")
        if len(prompt) > LONGEST_PROMPT:
            raise InputError(
                f"prompt {number} has {len(prompt)} characters; at most {LONGEST_PROMPT} are accepted"
            )
    return stripped


def warn_truncated(prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> None:
    """Warn for each prompt of which the tokenizer's model reads only the beginning, and say what is cut."""
    limit = tokenizer.model_max_length
    for number, prompt in enumerate(prompts):
        ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
        if len(ids) > limit:
            # the end-of-text token keeps its place, so one more token is lost
            cut = str(tokenizer.decode(ids[limit - 1 : -1], skip_special_tokens=True)).strip()
            warnings.warn(
                f"prompt {number} has {len(ids)} tokens and the text encoder reads {limit}; cut: {cut!r}",
                PromptTruncatedWarning,
                stacklevel=3,
            )
