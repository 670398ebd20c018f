"""Typing errors in captions."""

from collections.abc import Sequence
from random import Random
from typing import TypeVar

_T = TypeVar("_T")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
MARKS = ",?().:"
LEAST_LETTERS = 4


def pick(options: Sequence[_T], rng: Random) -> _T:
    """One of the options, all equally likely."""
    # random.choice takes three times as long
    return options[int(rng.random() * len(options))]


def misspell(text: str, rng: Random, *, known: frozenset[str]) -> str:
    """The text with one letter of one word swapped with the next, left out, doubled or replaced.

    The word has at least four letters and becomes none of `known`. A text without such a word stays as it is.
    """
    words = text.split(" ")
    options = [i for i, w in enumerate(words) if len(w) >= LEAST_LETTERS and _is_plain(w.strip(MARKS))]
    # an edit can change nothing or make another word, rarely several times on end
    for _ in range(8 if options else 0):
        at = pick(options, rng)
        old = words[at].strip(MARKS)
        new = _edited(old, rng)
        if new != old and new not in known:
            words[at] = words[at].replace(old, new)
            return " ".join(words)
    return text


def _is_plain(word: str) -> bool:
    return len(word) >= LEAST_LETTERS and word.isalpha()


def _edited(word: str, rng: Random) -> str:
    """The word after one edit."""
    at, edit = int(rng.random() * (len(word) - 1)), int(rng.random() * 4)
    before, letter, following, after = word[:at], word[at], word[at + 1], word[at + 2 :]
    if edit == 0:
        return before + following + letter + after
    if edit == 1:
        return before + following + after
    if edit == 2:
        return before + letter + letter + following + after
    return before + pick(LETTERS, rng) + following + after
