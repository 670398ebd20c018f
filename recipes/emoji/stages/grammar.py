"""Captions of the emoji world: pure functions of a scene and a seed.

A caption determines its picture. One that names no colour means white; one that names no place means the centre.
Of two things, the first is on the left.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from world import Concept

from .concepts import CORE, core_synonyms, spoken_name
from .nouns import NOUNS, SPOKEN, SYNONYMS, make_noun
from .typos import misspell, pick

COLOURS = {
    "white": (255, 255, 255),
    "black": (40, 40, 40),
    "red": (220, 60, 60),
    "blue": (60, 110, 220),
    "green": (80, 180, 90),
    "yellow": (250, 210, 70),
    "purple": (150, 90, 190),
    "orange": (245, 160, 60),
    "pink": (245, 170, 200),
    "gray": (150, 150, 150),
    "brown": (140, 95, 55),
    "turquoise": (60, 205, 200),
    "beige": (235, 215, 175),
    "navy": (25, 35, 115),
    "maroon": (115, 20, 45),
    "lime": (185, 235, 60),
}
"""Name -> RGB in [0, 255]; neighbours differ by at least 50 in Euclidean distance."""
PLACES = {
    "": (1, 1),
    "on the left": (1, 0),
    "on the right": (1, 2),
    "at the top": (0, 1),
    "at the bottom": (2, 1),
    "at the top left": (0, 0),
    "at the top right": (0, 2),
    "at the bottom left": (2, 0),
    "at the bottom right": (2, 2),
}
"""Name -> (row, column) of the corner of a thing three quarters of the canvas wide, in eighths of the canvas."""
PAIR_PLACES = ("", "at the top", "at the bottom")
"""Where two things can be, side by side."""
DEFAULT_COLOUR = "white"
MIDDLE = "in the middle"

PAIRS = 0.15
"""Share of drawn scenes that have two things."""
PLAIN_SCENES = 0.09
"""Share of drawn scenes put on white and in the centre, besides those that happen to be."""
TYPOS = 0.1
LONG = 0.1
"""Shares of captions that have a typing error or are long; no caption has both."""
SYNONYM = 0.45
"""Probability of a synonym for a thing that has any; about a quarter of all captions have one."""
BARE = 0.55
"""Probability of only the name for a scene that allows it; about a twentieth of all captions are only a name."""
UNNAMED_WHITE = 0.5
"""Probability that a caption leaves white unnamed."""

PATTERNS = {
    "statement": "{a}[ on {a_colour} background][, {place}]",
    "name": "{name}",
    "phrase": "{a}[ on {colour}][, {spot}]",
    "request": "please draw {a}[ on {a_colour} background][, {place}]",
    "emoji": "{name} emoji[ on {a_colour} background][, {place}]",
    "picture": "a picture of {a}[ with {a_colour} background][, {place}]",
    "colour_first": "{a_colour} background with {a} on it[, {place}]",
    "place_first": "{where}, {a}[ on {a_colour} background]",
    "wall": "{a} in front of {a_colour} wall[, {place}]",
    "backdrop": "{a_colour} backdrop behind {a}[ {place}]",
    "there": "{there} {a}[ {place}][ on {a_colour} background]",
    "telegram": "{name}[, {colour}][, {spot}]",
    "question": "can you draw {a}[ on {colour}][, {spot}]?",
    "possessive": "{the}[ {place}] and {its} {colour} background",
    "bracketed": "{name} ({colour} background[, {spot}])",
    "wish": "i would like {a}[ {place}][, on {a_colour} background]",
    "show": "show me {a}[ against {a_colour} background][, {place}]",
    "put": "put {a} {where}[ of {a_colour} picture]",
    "icon": "an icon of {a}[ over {a_colour} backdrop][, {spot}]",
    "paper": "{a} printed on {colour} paper[, {place}]",
    "listing": "background {colour}, {where}: {a}",
    "behind": "{a}[ {place}] with {colour} behind {it}",
    "clauses": "{the} {is} {where} and the background is {colour}",
    "instruction": "draw {a_colour} background and put {a} on it[, {place}]",
}
"""Name -> pattern. Brackets hold what is left out with a colour (white) or place (the centre) that is not named.

Fields: {a}, {the} and {name} are the thing or things with either article and without; {colour} and {a_colour} the
colour; {place} its name, {spot} the same without `at the`, {where} the same or `in the middle`; {it}, {its}, {is}
and {there} agree with the things. `name` is for white and the centre only.
"""
WORDINGS = ("behind", "clauses", "instruction")
"""Patterns kept out of distillation and of the training of judges: other sentences of words that others have."""
TRAINED_PATTERNS = tuple(name for name in PATTERNS if name not in WORDINGS)
LONG_PATTERN = "long"
"""What `Caption` calls the pattern of a long caption."""

LONG_WORDS = (38, 43)
LAST_CONTENT_TOKEN = 38
"""Words plus full stops up to the last word that matters, so that a text encoder of 48 tokens reads it."""
LONG_FIRST = (
    "i would like {a}",
    "please draw {a}",
    "the picture should show {a}",
    "{there} {a}",
    "what i need is {a}",
)
LONG_PLACE = ("{they} should be {where}", "put {it} {where}", "i want {it} {where}")
LONG_COLOUR = (
    "the background should be {colour}",
    "please make the background {colour}",
    "behind {it} there is only {colour}",
)
FILLERS = (
    "thank you",
    "take your time",
    "please keep it simple",
    "nothing else is needed",
    "i hope this is clear",
    "it does not have to be perfect",
    "this is for a friend of mine",
    "i have wanted this for a long while",
    "we are going to use it next week",
    "my sister asked me for it this morning",
    "you can choose the style that you like best",
    "i am sure that you will do a good job",
    "just do what you think is best",
    "if anything is not clear then please do not wait to ask me",
)
"""Sentences of long captions that say nothing about the picture, 2 to 13 words each."""


@dataclass(frozen=True, kw_only=True)
class Thing:
    """What can be drawn: the id of its emoji, its name, and other nouns for it."""

    id: str
    name: str
    synonyms: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a picture shows: one thing, or two side by side from left to right, on a colour and at a place.

    Raises `ValueError` for another number of things, an unknown colour, or a place where they cannot be.
    """

    things: tuple[Thing, ...]
    colour: str = DEFAULT_COLOUR
    place: str = ""

    def __post_init__(self) -> None:
        if len(self.things) not in (1, 2):
            raise ValueError(f"a scene has one or two things, got {len(self.things)}")
        if self.colour not in COLOURS:
            raise ValueError(f"unknown colour {self.colour!r}")
        if self.place not in (PLACES if len(self.things) == 1 else PAIR_PLACES):
            raise ValueError(f"{len(self.things)} thing(s) cannot be {self.place!r}")


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A caption, the name of its pattern (or `LONG_PATTERN`), and whether it has a typing error."""

    text: str
    pattern: str
    typo: bool = False


def make_things(concepts: Sequence[Concept]) -> dict[str, Thing]:
    """The thing of every concept, by id; needs all concepts, since no synonym is another one's name."""
    nouns = core_synonyms(concepts)
    return {c.id: Thing(id=c.id, name=spoken_name(c), synonyms=nouns.get(c.id, ())) for c in concepts}


def caption(
    scene: Scene, *, seed: int, patterns: Sequence[str] = tuple(PATTERNS), plain: bool = False
) -> str:
    """The text of `describe`."""
    return describe(scene, seed=seed, patterns=patterns, plain=plain).text


def describe(
    scene: Scene, *, seed: int, patterns: Sequence[str] = tuple(PATTERNS), plain: bool = False
) -> Caption:
    """A caption of the scene in one of the patterns.

    A tenth are long, in no pattern; a tenth have a typing error; a quarter have a synonym; half leave white unnamed.
    `plain` ones are none of these. Raises `ValueError` if the only pattern is `name` and the scene needs more words.
    """
    rng = Random(seed + _CAPTION_SEEDS)
    kind = 1.0 if plain else rng.random()
    if TYPOS <= kind < TYPOS + LONG:
        return Caption(text=_long_text(scene, rng, False), pattern=LONG_PATTERN)
    fields = _fields(scene, rng, plain)
    pattern = _choose(scene, patterns, rng)
    with_colour = plain or scene.colour != DEFAULT_COLOUR or rng.random() >= UNNAMED_WHITE
    text = _VARIANTS[pattern][2 * with_colour + (scene.place != "")].format_map(fields)
    if kind >= TYPOS:
        return Caption(text=text, pattern=pattern)
    wrong = misspell(text, rng, known=WORDS)
    return Caption(text=wrong, pattern=pattern, typo=wrong != text)


def long_caption(scene: Scene, seed: int, *, plain: bool = False) -> str:
    """Sentences of 38 to 43 words, of which those up to `LAST_CONTENT_TOKEN` say what the picture shows.

    `plain` ones have no synonym, and name the colour and the place.
    """
    return _long_text(scene, Random(seed + _LONG_SEEDS), plain)


def draw_scene(things: Sequence[Thing], *, seed: int) -> Scene:
    """A scene of one thing or of two different ones, at random.

    A tenth of all scenes are on white and in the centre; otherwise colours and places are equally likely.
    """
    rng = Random(seed + _SCENE_SEEDS)
    first = pick(things, rng)
    chosen: tuple[Thing, ...] = (first,)
    if rng.random() < PAIRS and len(things) > 1:
        second = first
        while second is first:
            second = pick(things, rng)
        chosen = (first, second)
    if rng.random() < PLAIN_SCENES:
        return Scene(things=chosen)
    places = _PLACE_NAMES if len(chosen) == 1 else PAIR_PLACES
    return Scene(things=chosen, colour=pick(_COLOUR_NAMES, rng), place=pick(places, rng))


def corpus(things: Sequence[Thing], *, seed: int = 0, lines: int = 60_000) -> Iterator[str]:
    """Texts to train a tokenizer on: every name and synonym, then captions of drawn scenes without typing errors."""
    names = [name for thing in things for name in (thing.name, *thing.synonyms)]
    yield from names
    left = lines - len(names)
    while left > 0:
        found = describe(draw_scene(things, seed=seed), seed=seed)
        seed += 1
        if not found.typo:
            left -= 1
            yield found.text


def _choose(scene: Scene, patterns: Sequence[str], rng: Random) -> str:
    """One of the patterns that can describe the scene."""
    if "name" in patterns:
        others = [p for p in patterns if p != "name"]
        allowed = scene.colour == DEFAULT_COLOUR and scene.place == ""
        if allowed and (not others or rng.random() < BARE):
            return "name"
        if not others:
            raise ValueError(f"only a name does not tell {scene.colour!r} and {scene.place!r}")
        patterns = others
    return pick(patterns, rng)


def _fields(scene: Scene, rng: Random, plain: bool) -> dict[str, str]:
    """What the patterns' fields stand for."""
    nouns = [make_noun(_name(thing, rng, plain)) for thing in scene.things]
    first = nouns[0]
    if len(nouns) == 1:
        words = {"a": first.a, "the": f"the {first.name}", "name": first.name}
    else:
        second = nouns[1]
        joint = " and " if plain else pick(_JOINTS, rng)
        words = {
            "a": f"{first.a}{joint}{second.a}",
            "the": f"the {first.name} and the {second.name}",
            "name": f"{first.name} and {second.name}",
        }
    # `there is a cat and a dog`: the verb agrees with what follows it
    words["there"] = "there are" if first.plural else "there is"
    plural = first.plural or len(nouns) == 2
    number = _MANY if plural else _ONE
    return {**words, **number, **_COLOUR_FIELDS[scene.colour], **_PLACE_FIELDS[scene.place]}


def _name(thing: Thing, rng: Random, plain: bool) -> str:
    if plain or not thing.synonyms or rng.random() >= SYNONYM:
        return thing.name
    return pick(thing.synonyms, rng)


def _long_text(scene: Scene, rng: Random, plain: bool) -> str:
    fields = _fields(scene, rng, plain)
    texts = [pick(LONG_FIRST, rng)]
    if plain or scene.place or rng.random() < 0.5:
        texts.append(pick(LONG_PLACE, rng))
    if plain or scene.colour != DEFAULT_COLOUR or rng.random() >= UNNAMED_WHITE:
        text = pick(LONG_COLOUR, rng)
        # never between the things and what `it` says of them
        texts.insert(len(texts) if "{it}" in text or rng.random() < 0.5 else 0, text)
    content = [text.format_map(fields) for text in texts]
    # one more for the full stop of every sentence
    spare = LAST_CONTENT_TOKEN - sum(len(text.split()) + 1 for text in content)
    fillers = list(_FILLERS)
    sentences: list[str] = []
    for text in content:
        room = int(rng.random() * (spare + 1))
        spare -= _add_filler(sentences, fillers, rng, (1, room - 1)) + 1
        sentences.append(text)
    words = sum(len(text.split()) for text in sentences)
    while words < LONG_WORDS[0]:
        least = LONG_WORDS[0] - words
        # the short ones are left for the end
        lengths = (least, LONG_WORDS[1] - words) if least <= 8 else (7, 13)
        words += _add_filler(sentences, fillers, rng, lengths)
    return ". ".join(sentences)


def _add_filler(
    sentences: list[str], fillers: list[tuple[int, str]], rng: Random, lengths: tuple[int, int]
) -> int:
    """Move a filler of a length in words from least to most to the sentences; its length, 0 if none has it."""
    fitting = [f for f in fillers if lengths[0] <= f[0] <= lengths[1]]
    if not fitting:
        return 0
    filler = pick(fitting, rng)
    fillers.remove(filler)
    sentences.append(filler[1])
    return filler[0]


def _variants(pattern: str) -> tuple[str, str, str, str]:
    """The pattern with neither colour nor place named, with the place, with the colour, with both."""
    left_out = ("{place}", "{spot}"), ("{colour}", "{a_colour}")

    def kept(with_colour: bool, with_place: bool) -> str:
        missing = ([] if with_place else left_out[0]), ([] if with_colour else left_out[1])
        fields = [field for group in missing for field in group]
        return re.sub(r"\[([^]]*)\]", lambda m: "" if any(f in m[1] for f in fields) else m[1], pattern)

    return kept(False, False), kept(False, True), kept(True, False), kept(True, True)


def _place_fields(place: str) -> Mapping[str, str]:
    return {
        "place": place,
        "where": place or MIDDLE,
        "spot": place.removeprefix("on the ").removeprefix("at the "),
    }


def _colour_fields(colour: str) -> Mapping[str, str]:
    return {"colour": colour, "a_colour": f"an {colour}" if colour[0] in "aeiou" else f"a {colour}"}


def _words(texts: Sequence[str]) -> frozenset[str]:
    """The lower-case words of texts, without what is in braces."""
    return frozenset(w for text in texts for w in re.findall(r"[a-z]+", re.sub(r"{\w+}", " ", text.lower())))


_SCENE_SEEDS, _CAPTION_SEEDS, _LONG_SEEDS = 1 << 60, 2 << 60, 3 << 60
"""Offsets that give each function its own random numbers for the same seed."""
_COLOUR_NAMES, _PLACE_NAMES = tuple(COLOURS), tuple(PLACES)
_JOINTS = (" and ", " and ", " next to ", " beside ")
_ONE = {"it": "it", "its": "its", "is": "is", "they": "it"}
_MANY = {"it": "them", "its": "their", "is": "are", "they": "they"}
_COLOUR_FIELDS = {colour: _colour_fields(colour) for colour in COLOURS}
_PLACE_FIELDS = {place: _place_fields(place) for place in PLACES}
_VARIANTS = {name: _variants(pattern) for name, pattern in PATTERNS.items()}
_FILLERS = tuple((len(text.split()), text) for text in FILLERS)

FRAME_WORDS = _words(
    (*PATTERNS.values(), *LONG_FIRST, *LONG_PLACE, *LONG_COLOUR, *FILLERS, *COLOURS, *PLACES)
) | _words((*_JOINTS, *_ONE.values(), *_MANY.values(), MIDDLE, "a an the there"))
"""Words of captions that are not of a name."""
WORDS = FRAME_WORDS | _words(
    [
        *(SPOKEN.get(name, name) for name in CORE),
        *NOUNS,
        *(noun for nouns in SYNONYMS.values() for noun in nouns),
    ]
)
"""Words of captions of core concepts; a typing error makes none of them from another."""
