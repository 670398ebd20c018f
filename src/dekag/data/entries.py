"""What a set of pictures lists: where each is, its captions, and how often it counts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dekag.errors import InputError

TABLE_SUFFIXES = (".parquet", ".tar")
"""Of files that are tables of pictures."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A picture of a set.

    place: where the set has it, as its name in a folder. captions: at least one. repeats: how often it counts.
    """

    place: str
    captions: tuple[str, ...]
    repeats: int = 1


@dataclass(kw_only=True)
class Faults:
    """What of a set cannot be used: the first is an error, or with `skip` all are left out and counted."""

    skip: bool = False
    lines: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, line: str, count: int = 1) -> None:
        """A fault in words, and how many entries it leaves out. Raises InputError unless they are to be skipped."""
        if not self.skip:
            raise InputError(line)
        self.lines.append(line)
        self.count += count


def merged(entries: Iterable[tuple[str, Sequence[str]]]) -> list[Entry]:
    """An entry for each place, in the order in which they come first; a place that comes again brings more captions."""
    found: dict[str, tuple[str, ...]] = {}
    for place, captions in entries:
        known = found.get(place, ())
        found[place] = (*known, *(each for each in dict.fromkeys(captions) if each not in known))
    return [Entry(place, captions) for place, captions in found.items()]
