"""Checks of prompts before anything is drawn."""

import warnings
from collections.abc import Callable, Sequence

from dekag.errors import InputError, PromptTruncatedWarning

LONGEST_PROMPT = 4000
"""Characters; every text encoder in use reads far fewer."""


def check_prompts(prompts: Sequence[str]) -> tuple[str, ...]:
    """The prompts, stripped.

    Raises InputError if there is none, or one is empty, longer than LONGEST_PROMPT characters or no Unicode text.
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
        if any("\ud800" <= letter <= "\udfff" for letter in prompt):
            raise InputError(
                f"prompt {number} is no Unicode text; give it in UTF-8, in a locale such as LC_ALL=C.UTF-8"
            )
    return stripped


Count = Callable[[str], int]
"""How many tokens over its limit a text is for whoever reads it; 0 or less if all of it is read."""


def fitted(prompt: str, over: Count) -> str:
    """The longest beginning of a prompt that is read as a whole; empty if there is none."""
    if over(prompt) <= 0:
        return prompt
    low, high = 0, len(prompt)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if over(prompt[:middle]) <= 0 else (low, middle)
    return prompt[:low].rstrip()


def warn_truncated(prompts: Sequence[str], over: Count, *, room: str) -> list[str]:
    """The beginnings of the prompts that are read, with one warning that says what is not.

    room: what there is room for, as "the text encoder reads 77 tokens".
    """
    read = [fitted(prompt, over) for prompt in prompts]
    cut = [number for number, prompt in enumerate(prompts) if read[number] != prompt]
    if cut:
        first = cut[0]
        lost = prompts[first][len(read[first]) :].strip()
        more = f", and {len(cut) - 1} more prompts are too long" if len(cut) > 1 else ""
        warnings.warn(
            f"prompt {first} is {over(prompts[first])} tokens too long, {room}; not read: {lost!r}{more}",
            PromptTruncatedWarning,
            stacklevel=3,
        )
    return read
