"""Prompts for a pair at paper scale: `python recipes/paper/prompts.py --count 1500 --out prompts.txt`.

Scenes of one or two things, what they do, where, in which light and how they are made: pure functions of a number, so
that the same count gives the same file. dekag splits them by a digest of their text.
"""

import argparse
import random
import sys
from pathlib import Path

THINGS = (
    "a lighthouse", "a tabby cat", "an old tram", "a violinist", "a bowl of ramen", "a red fox", "a glass teapot",
    "a sailing boat", "a stack of books", "a hot-air balloon", "a robot gardener", "a bicycle", "a street market",
    "a snowy owl", "a chess board", "a cactus in a pot", "a lion", "a typewriter", "a mountain hut", "a goldfish",
    "a grand piano", "a windmill", "a surfer", "a cup of coffee", "a stone bridge", "a hedgehog", "a fire engine",
    "a vase of tulips", "an astronaut", "a wooden chair", "a school of fish", "a sourdough loaf", "a carousel",
    "a camper van", "a barn owl", "a suspension bridge", "a bunch of grapes", "a dancer", "a tortoise", "a telescope",
)  # fmt: skip
PLACES = (
    "on a pier at the sea", "in a pine forest", "in a narrow street", "on a kitchen table", "in a library",
    "beside a river", "on a roof over the city", "in a desert", "in a greenhouse", "at a railway station",
    "in front of a brick wall", "under a large tree", "on a frozen lake", "in a workshop", "on a meadow in spring",
    "in an empty white room",
)  # fmt: skip
LIGHTS = (
    "at sunrise", "in fog", "at night under neon signs", "in soft window light", "in hard midday sun", "after rain",
    "by candlelight", "under an overcast sky", "in the last light of the day", "lit from behind",
)  # fmt: skip
MANNERS = (
    "a photograph", "an oil painting", "a watercolour", "a children's book illustration", "a 3d render",
    "a pencil drawing", "a poster in flat colours", "a close-up photograph", "a photograph from above", "an etching",
)  # fmt: skip


def prompt(number: int) -> str:
    """The prompt of a number."""
    rng = random.Random(f"dekag {number}")
    first, second = rng.sample(THINGS, 2)
    what = f"{first} and {second}" if rng.random() < 0.25 else first
    words = [f"{rng.choice(MANNERS)} of {what}", rng.choice(PLACES)]
    if rng.random() < 0.6:
        words.append(rng.choice(LIGHTS))
    return " ".join(words)


def prompts(count: int) -> list[str]:
    """The first so many different prompts."""
    found: dict[str, None] = {}
    number = 0
    while len(found) < count:
        found[prompt(number)] = None
        number += 1
    return list(found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1500)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if not 1 <= options.count <= 20_000:
        sys.exit(f"prompts: --count must be 1 to 20000, got {options.count}")
    options.out.write_text("".join(f"{text}\n" for text in prompts(options.count)), encoding="utf-8")


if __name__ == "__main__":
    main()
