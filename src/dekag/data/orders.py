"""What an endpoint is asked for, and what it cost: orders that are the same wherever they stand in a list."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from dekag.types import FieldError, InputError

SEEDS = 2**31
"""Seeds are below it, as most servers hold them in 32 bits with a sign."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What an endpoint is asked for; two equal orders are the same image."""

    prompt: str
    seed: int
    model: str
    size: str

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that no other order has."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:12]

    @property
    def width_height(self) -> tuple[int, int]:
        """`size` in numbers."""
        width, height = self.size.split("x")
        return int(width), int(height)


@dataclass(kw_only=True)
class Account:
    """What a run buys of endpoints; copies of an endpoint share it.

    budget: the most pictures that may be bought; None is no bound. calls: requests for pictures, repeated ones
    included. pictures: that came back. size_bytes: of their files. left_out: address and name of the parameters that
    an endpoint refused to be given, which it is not given any more.
    """

    budget: int | None = None
    calls: int = 0
    pictures: int = 0
    size_bytes: int = 0
    left_out: set[tuple[str, str]] = field(default_factory=set)

    def require(self, pictures: int) -> None:
        """Refuse to buy so many, before the first of them, if the budget does not allow it."""
        if self.budget is None or self.pictures + pictures <= self.budget:
            return
        needed = self.pictures + pictures
        already = f", {self.pictures} were bought already" if self.pictures else ""
        raise FieldError(
            f"{pictures} pictures would have to be bought{already}, but budget is {self.budget}: "
            f"allow {needed} or ask for fewer",
            "budget",
        )


def draw_seeds(prompts: Sequence[str]) -> list[int]:
    """A seed for each prompt, of its text and the number of its draw alone.

    What else is in the list, and where, does not count, so that a list may be edited and no picture is bought twice.
    """
    draws: Counter[str] = Counter()
    seeds = []
    for prompt in prompts:
        digest = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()
        seeds.append((int.from_bytes(digest[:4], "big") + draws[prompt]) % SEEDS)
        draws[prompt] += 1
    return seeds


def orders_of(prompts: Sequence[str], seeds: Sequence[int], *, model: str, size: str) -> list[Order]:
    """An order for each prompt and its seed. Raises InputError unless they pair and can be drawn."""
    if not prompts or len(prompts) != len(seeds):
        raise InputError(f"each prompt needs one seed, got {len(prompts)} prompts, {len(seeds)} seeds")
    if empty := [number for number, prompt in enumerate(prompts, 1) if not prompt.strip()]:
        raise InputError(f"prompt {empty[0]} is empty; say what to draw")
    if min(seeds) < 0:
        raise InputError(f"seeds must not be negative, got {min(seeds)}")
    return [
        Order(prompt=prompt, seed=seed, model=model, size=size)
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]


def plain(text: str, length: int) -> str:
    """A stranger's text for an error message: one line, short, nothing that a terminal obeys."""
    line = "".join(letter for letter in " ".join(text.split()) if letter.isprintable()).strip(" -")
    return line if len(line) <= length else f"{line[: length - 3]}..."


def named(number: int, prompt: str) -> str:
    """A prompt as messages name it, counted from 1."""
    return f"prompt {number} ({plain(prompt, 60)!r})"
