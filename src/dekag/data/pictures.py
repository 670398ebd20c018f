"""A cloud of which pictures are left and no model: every picture of a folder or a table by its prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dekag.data.entries import Entry, Faults
from dekag.data.images import CloudImages, Files, checked, find_pictures, pairs
from dekag.types import Image, InputError


@dataclass(frozen=True, kw_only=True, eq=False)
class PictureSet:
    """Pictures and their prompts in any layout of `dekag.data.images.read_dataset`, read when they are asked for.

    pixels: side to which the central square of each is resized.
    """

    folder: Path
    pixels: int

    @cached_property
    def _found(self) -> tuple[Files, Sequence[Entry]]:
        return find_pictures(self.folder, Faults())

    @cached_property
    def by_prompt(self) -> dict[str, list[int]]:
        """The pictures of each prompt, in the folder's order. Raises InputError as `read_dataset` does."""
        found: dict[str, list[int]] = {}
        for number, entry in enumerate(self._found[1]):
            for caption in entry.captions:
                found.setdefault(caption, []).append(number)
        return found

    def images(self, prompts: Sequence[str], *, seeds: Sequence[int]) -> Image:
        """A picture of each prompt, float [prompts, 3, pixels, pixels]; of several, the one that the seed counts to.

        Raises InputError if a prompt has no picture or a file cannot be read.
        """
        numbers = [own[seed % len(own)] for own, seed in zip(self._numbers(prompts), seeds, strict=True)]
        return self._pairs(prompts, numbers).images[:]

    def all_of(self, prompts: Sequence[str]) -> CloudImages:
        """Every picture of some prompts, still unread. Raises InputError as `images`."""
        texts = list(dict.fromkeys(prompts))
        rows = [
            (text, number) for text, own in zip(texts, self._numbers(texts), strict=True) for number in own
        ]
        return self._pairs([text for text, _ in rows], [number for _, number in rows])

    def _numbers(self, prompts: Sequence[str]) -> list[list[int]]:
        if missing := [prompt for prompt in prompts if prompt not in self.by_prompt]:
            raise InputError(
                f"{self.folder} has no picture of {missing[0]!r}, nor of {len(missing) - 1} others"
            )
        return [self.by_prompt[prompt] for prompt in prompts]

    def _pairs(self, prompts: Sequence[str], numbers: Sequence[int]) -> CloudImages:
        files, entries = self._found
        source, _ = checked(files, self.pixels, Faults(), numbers=numbers)
        chosen = [Entry(entries[n].place, (text,)) for text, n in zip(prompts, numbers, strict=True)]
        return pairs(source, zip(numbers, chosen, strict=True))
