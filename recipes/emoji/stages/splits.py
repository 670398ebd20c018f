"""Which prompts are distilled, which settings are chosen on, and which are reported."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from .concepts import Roles
from .grammar import (
    COLOURS,
    LONG_PATTERN,
    PAIR_PLACES,
    PLACES,
    TRAINED_PATTERNS,
    WORDINGS,
    Scene,
    Thing,
    describe,
    long_caption,
)

Composition = tuple[str, str]
"""A colour and a place, by name."""
Row = dict[str, Any]
"""A prompt: `text`, `concepts` (ids, from left to right), `colour`, `place` and `pattern`."""

_PLACES = tuple(PLACES)
# the colours' places step through all nine, so that each is held out with three or four of the colours
HELD_OUT_COMPOSITIONS: tuple[Composition, ...] = tuple(
    (colour, _PLACES[(2 * i + offset) % len(_PLACES)])
    for i, colour in enumerate(COLOURS)
    for offset in (1, 5)
)
"""Two places of each colour that distillation never sees; white in the centre is none of them."""
VALIDATION_COMPOSITIONS: tuple[Composition, ...] = tuple(
    (colour, _PLACES[(2 * i + 7) % len(_PLACES)]) for i, colour in enumerate(COLOURS)
)
"""One other place of each colour, on which settings are chosen."""
SEEN_COMPOSITIONS: tuple[Composition, ...] = tuple(
    (colour, place)
    for colour in COLOURS
    for place in PLACES
    if (colour, place) not in HELD_OUT_COMPOSITIONS + VALIDATION_COMPOSITIONS
)

DISTILLED_COMPOSITIONS = 12
"""Compositions that distillation sees of each concept."""
DISTILLED_PAIRS = 1 / 10
"""Share of the distilled prompts that have two things."""
STATEMENTS = ("statement", "picture", "request", "show", "there")
"""Patterns of the prompts that ask only whether a composition is new."""
UNKNOWN = (
    *("sofa", "harbour", "lighthouse", "typewriter", "wheelbarrow", "hammock", "igloo", "cello", "harp"),
    *("xylophone", "tuba", "walrus", "platypus", "ostrich", "armadillo", "pomegranate", "artichoke"),
    *("cauliflower", "lasagna", "quilt", "carpet", "chandelier", "doorknob", "snorkel", "stapler"),
    *("corkscrew", "saucepan", "blender", "dishwasher", "armchair", "bookshelf", "wardrobe", "pillow"),
    *("lawnmower", "chainsaw", "excavator", "submarine", "zeppelin", "pyramid", "greenhouse", "scarecrow"),
    *("meerkat", "hummingbird", "toucan", "pelican", "seahorse", "centipede", "salamander"),
)
"""Things that no emoji shows and no caption names otherwise."""

RULE = (
    "Concepts. The core are named single things; those whose split in the data is heldout are held out, every "
    "ninth of the others in the order of their ids is for validation, and the rest are distilled. "
    "Compositions. A composition is a colour and a place. With the colours and places counted from 0, colour i is "
    "held out at places 2i+1 and 2i+5 and is for validation at place 2i+7, all modulo 9; the other 96 "
    "compositions are seen. "
    f"Wordings. The patterns {', '.join(WORDINGS)} are held out; the others are trained. "
    "Splits. distill: every distilled concept in 12 seen compositions, once as a plain statement and otherwise in "
    "the mixture of trained patterns with synonyms, typing errors and long captions; and pairs of distilled "
    "concepts in seen compositions, a tenth of the prompts. validation: every validation concept in 4 validation "
    "compositions, and 60 distilled concepts in one each. The reported splits: compositions has every distilled "
    "concept once in a held-out composition and a trained statement; concepts has every held-out concept in 4 "
    "held-out compositions; wordings has 120 distilled concepts in held-out patterns and held-out compositions; "
    "pairs has 120 pairs of distilled concepts that are not distilled together, in seen compositions; long has "
    "120 distilled concepts in long captions and held-out compositions; unknown has 48 things that have no emoji "
    "and whose names occur nowhere else. prior has every other concept once in a seen composition. accuracy "
    "has every core concept as a statement on white in the centre. No text occurs twice, within a split or in two."
)


@dataclass(frozen=True, kw_only=True)
class _Prompts:
    """Writes prompts that differ from all before."""

    rng: Random
    texts: set[str] = field(default_factory=set)

    def row(
        self,
        things: Sequence[Thing],
        composition: Composition,
        patterns: Sequence[str] = TRAINED_PATTERNS,
        *,
        plain: bool = True,
    ) -> Row:
        """A new prompt in one of the patterns, or a long one for `LONG_PATTERN`.

        Raises `RuntimeError` if the patterns have no new text for the scene.
        """
        colour, place = composition
        scene = Scene(things=tuple(things), colour=colour, place=place)
        for _ in range(100):
            text, pattern = self._text(scene, patterns, plain)
            if text not in self.texts:
                self.texts.add(text)
                ids = [thing.id for thing in things if thing.id]
                return {"text": text, "concepts": ids, "colour": colour, "place": place, "pattern": pattern}
        raise RuntimeError(f"no new prompt for {[thing.name for thing in things]} in {colour}, {place!r}")

    def _text(self, scene: Scene, patterns: Sequence[str], plain: bool) -> tuple[str, str]:
        seed = self.rng.randrange(2**32)
        if patterns == (LONG_PATTERN,):
            return long_caption(scene, seed, plain=plain), LONG_PATTERN
        found = describe(scene, seed=seed, patterns=patterns, plain=plain)
        return found.text, found.pattern

    def sample(self, options: Sequence[Any], count: int) -> list[Any]:
        """Different options, at random."""
        return self.rng.sample(options, count)

    def one(self, options: Sequence[Any]) -> Any:
        """An option, at random."""
        return self.rng.choice(options)


def splits(roles: Roles, things: Mapping[str, Thing], *, seed: int = 0) -> dict[str, list[Row]]:
    """Prompts by split, as `RULE` says; `things` by the id of their concept."""
    prompts = _Prompts(rng=Random(seed))
    known = [things[c.id] for c in roles.distill]
    kept = [things[c.id] for c in roles.validation]
    new = [things[c.id] for c in roles.heldout]
    # first, so that the others avoid its texts
    accuracy = [prompts.row([t], ("white", ""), ("statement",)) for t in (*known, *kept, *new)]
    pairs = _pairs(prompts, known)
    joint = [next(pairs) for _ in range(120)]
    return {
        "distill": _distill(prompts, known, pairs),
        "validation": _in_new(prompts, kept, 4, VALIDATION_COMPOSITIONS)
        + _in_new(prompts, prompts.sample(known, 60), 1, VALIDATION_COMPOSITIONS),
        "compositions": _in_new(prompts, known, 1, HELD_OUT_COMPOSITIONS, STATEMENTS),
        "concepts": _in_new(prompts, new, 4, HELD_OUT_COMPOSITIONS),
        "wordings": _in_new(prompts, prompts.sample(known, 120), 1, HELD_OUT_COMPOSITIONS, WORDINGS),
        "pairs": [prompts.row(pair, _pair_composition(prompts)) for pair in joint],
        "long": _in_new(prompts, prompts.sample(known, 120), 1, HELD_OUT_COMPOSITIONS, (LONG_PATTERN,)),
        "unknown": _in_new(
            prompts, [Thing(id="", name=name) for name in UNKNOWN], 1, HELD_OUT_COMPOSITIONS, STATEMENTS
        ),
        "prior": _in_new(prompts, [things[c.id] for c in roles.others], 1, SEEN_COMPOSITIONS),
        "accuracy": accuracy,
    }


def write_splits(path: Path, roles: Roles, things: Mapping[str, Thing], *, seed: int = 0) -> dict[str, Any]:
    """Write the splits with their rule to a JSON file, which is there whole or not at all; its content."""
    content = {
        "rule": RULE,
        "roles": {
            role: [c.id for c in getattr(roles, role)]
            for role in ("distill", "validation", "heldout", "others")
        },
        "compositions": {
            "seen": [list(c) for c in SEEN_COMPOSITIONS],
            "validation": [list(c) for c in VALIDATION_COMPOSITIONS],
            "heldout": [list(c) for c in HELD_OUT_COMPOSITIONS],
        },
        "splits": splits(roles, things, seed=seed),
    }
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(unfinished, path)
    return content


def overlaps(content: Mapping[str, Any], training: Mapping[str, Mapping[str, Sequence[str]]]) -> list[str]:
    """A sentence for each overlap between what was trained and what is measured; none if the splits hold.

    content: as `write_splits` gives it. training: the ids that each model met, by model and style of the art
    (`flat`, `glossy`); `KEPT_FROM` says which models must not have met which concepts.
    """
    return [*_repeated(content["splits"]), *_distilled_too_much(content), *_met(content["roles"], training)]


KEPT_FROM = {
    ("edge", "glossy"): ("distill", "validation", "heldout"),
    ("autoencoder", "glossy"): ("heldout",),
    ("autoencoder", "flat"): ("heldout",),
}
"""(Model, style) -> roles of the concepts that the model must not have met in that style."""


def _repeated(rows: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    """Prompts that occur twice."""
    found: dict[str, list[str]] = {}
    for split, prompts in rows.items():
        for row in prompts:
            found.setdefault(row["text"], []).append(split)
    for text, names in found.items():
        for split, times in Counter(names).items():
            if times > 1:
                yield f"the prompt {text!r} is {times} times in {split}"
        if len(set(names)) > 1:
            yield f"the prompt {text!r} is in {' and '.join(dict.fromkeys(names))}"


def _distilled_too_much(content: Mapping[str, Any]) -> Iterator[str]:
    """What distillation must not see: concepts, compositions, wordings and pairs."""
    kinds = {i: role for role, ids in content["roles"].items() for i in ids}
    places = {tuple(c): kind for kind, group in content["compositions"].items() for c in group}
    joint = {frozenset(row["concepts"]) for row in content["splits"]["pairs"]}
    for row in content["splits"]["distill"]:
        said = f"the distilled prompt {row['text']!r}"
        for concept in row["concepts"]:
            if kinds.get(concept) != "distill":
                yield f"{said} has the concept {concept}, which is {kinds.get(concept, 'of no role')}"
        kind = places.get((row["colour"], row["place"]))
        if kind != "seen":
            yield f"{said} has a composition that is {kind or 'unknown'}"
        if row["pattern"] in WORDINGS:
            yield f"{said} has the held-out pattern {row['pattern']}"
        if frozenset(row["concepts"]) in joint:
            yield f"{said} has a pair of the split pairs"


def _met(
    roles: Mapping[str, Sequence[str]], training: Mapping[str, Mapping[str, Sequence[str]]]
) -> Iterator[str]:
    """Concepts that a model met and must not have."""
    for (model, style), kept in KEPT_FROM.items():
        ids = frozenset(training.get(model, {}).get(style, ()))
        for role in kept:
            both = sorted(ids & frozenset(roles[role]))
            if both:
                yield f"the {model} met {len(both)} {style} concept(s) of {role}: {', '.join(both)}"


def _distill(prompts: _Prompts, known: Sequence[Thing], pairs: Iterator[tuple[Thing, Thing]]) -> list[Row]:
    rows = []
    for thing in known:
        # an accuracy prompt is the statement on white in the centre
        options = [c for c in SEEN_COMPOSITIONS if c != ("white", "")]
        first = prompts.one(options)
        others = prompts.sample([c for c in SEEN_COMPOSITIONS if c != first], DISTILLED_COMPOSITIONS - 1)
        rows.append(prompts.row([thing], first, ("statement",)))
        rows += [prompts.row([thing], composition, plain=False) for composition in others]
    count = round(len(rows) * DISTILLED_PAIRS / (1 - DISTILLED_PAIRS))
    rows += [prompts.row(next(pairs), _pair_composition(prompts), plain=False) for _ in range(count)]
    return rows


def _in_new(
    prompts: _Prompts,
    things: Sequence[Thing],
    count: int,
    compositions: Sequence[Composition],
    patterns: Sequence[str] = TRAINED_PATTERNS,
) -> list[Row]:
    """Plain prompts of every thing in `count` different compositions."""
    return [
        prompts.row([thing], composition, patterns)
        for thing in things
        for composition in prompts.sample(compositions, count)
    ]


def _pairs(prompts: _Prompts, known: Sequence[Thing]) -> Iterator[tuple[Thing, Thing]]:
    """Pairs of things, in either order, none of them twice."""
    before: set[frozenset[str]] = set()
    while True:
        first, second = prompts.sample(known, 2)
        ids = frozenset((first.id, second.id))
        if ids not in before:
            before.add(ids)
            yield first, second


def _pair_composition(prompts: _Prompts) -> Composition:
    found: Composition = prompts.one([c for c in SEEN_COMPOSITIONS if c[1] in PAIR_PLACES])
    return found
