"""A cloud of which pictures are left and no model: every picture of a folder by its prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dekag.data.folder import folder_rows, read_pictures
from dekag.types import Image, InputError


@dataclass(frozen=True, kw_only=True, eq=False)
class PictureSet:
    """Pictures and their prompts in any layout of `data.folder`, read when they are asked for.

    pixels: side to which the central square of each is resized.
    """

    folder: Path
    pixels: int

    @cached_property
    def by_prompt(self) -> dict[str, list[Path]]:
        """The files of each prompt, in the folder's order. Raises InputError as `read_folder` does."""
        found: dict[str, list[Path]] = {}
        for path, prompt in folder_rows(self.folder):
            found.setdefault(prompt, []).append(path)
        return found

    def images(self, prompts: Sequence[str], *, seeds: Sequence[int]) -> Image:
        """A picture of each prompt, float [prompts, 3, pixels, pixels]; of several, the one that the seed counts to.

        Raises InputError if a prompt has no picture or a file cannot be read.
        """
        files = self._files(prompts)
        return read_pictures(
            [own[seed % len(own)] for own, seed in zip(files, seeds, strict=True)], self.pixels
        )

    def counts(self, prompts: Sequence[str]) -> list[int]:
        """How many pictures there are of each prompt. Raises InputError if a prompt has none."""
        return [len(own) for own in self._files(prompts)]

    def _files(self, prompts: Sequence[str]) -> list[list[Path]]:
        if missing := [prompt for prompt in prompts if prompt not in self.by_prompt]:
            raise InputError(
                f"{self.folder} has no picture of {missing[0]!r}, nor of {len(missing) - 1} others"
            )
        return [self.by_prompt[prompt] for prompt in prompts]
