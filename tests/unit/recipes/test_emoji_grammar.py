"""Captions of the emoji world."""

import re
from itertools import combinations
from math import dist, sqrt

import pytest
from stages.grammar import (
    COLOURS,
    FRAME_WORDS,
    LAST_CONTENT_TOKEN,
    LONG,
    LONG_PATTERN,
    LONG_WORDS,
    PAIR_PLACES,
    PAIRS,
    PATTERNS,
    PLACES,
    TRAINED_PATTERNS,
    TYPOS,
    WORDINGS,
    WORDS,
    Scene,
    Thing,
    caption,
    corpus,
    describe,
    draw_scene,
    long_caption,
)

NAMES = {
    "red apple": (),
    "elephant": (),
    "cherries": (),
    "french fries": ("fries", "chips"),
    "bread": ("loaf of bread",),
    "unicorn": (),
    "bow and arrow": (),
    "automobile": ("car",),
    "smiling face with sunglasses": ("cool face",),
    "jack-o-lantern": ("pumpkin",),
    "blue heart": (),
    "airplane": ("plane",),
    "flying saucer": ("ufo",),
}
THINGS = tuple(Thing(id=str(i), name=name, synonyms=nouns) for i, (name, nouns) in enumerate(NAMES.items()))
SAMPLE = 20_000


def thing(name: str) -> Thing:
    """A thing without synonyms."""
    return Thing(id=name, name=name)


def scene(*names: str, colour: str = "blue", place: str = "") -> Scene:
    """A scene of things without synonyms."""
    return Scene(things=tuple(thing(n) for n in names), colour=colour, place=place)


def words(text: str) -> set[str]:
    """The words of a text."""
    return set(re.findall("[a-z]+", text))


def share_is(count: int, share: float) -> bool:
    """Whether a count of `SAMPLE` is within 5 sigma of a binomial with that share: false alarm 6e-7."""
    return abs(count - SAMPLE * share) <= 5 * sqrt(SAMPLE * share * (1 - share))


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """Drawn scenes."""
    return [draw_scene(THINGS, seed=seed) for seed in range(SAMPLE)]


def test_counts() -> None:
    assert len(COLOURS) == 16
    assert len(PLACES) == 9
    assert len(set(PLACES.values())) == 9
    assert len(PATTERNS) >= 17
    assert len(TRAINED_PATTERNS) >= 14
    assert len(WORDINGS) == 3


def test_colours_differ() -> None:
    """The closest, yellow and orange, are 51 apart; the canvas is 255 wide."""
    assert min(dist(a, b) for a, b in combinations(COLOURS.values(), 2)) >= 50


def test_wordings_are_kept_apart_and_made_of_known_words() -> None:
    assert not set(WORDINGS) & set(TRAINED_PATTERNS)
    seen = {
        word
        for place in PLACES
        for seed in range(100)
        for names in (("frog",), ("grapes",))
        for text in (
            caption(scene(*names, place=place), seed=seed, patterns=TRAINED_PATTERNS, plain=True),
            long_caption(scene(*names, place=place), seed),
        )
        for word in words(text)
    }
    for pattern in WORDINGS:
        for place in PLACES:
            for name in ("frog", "grapes"):
                text = caption(scene(name, place=place), seed=0, patterns=(pattern,), plain=True)
                assert words(text) <= seen


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (scene("red apple", place="at the top"), "a red apple on a blue background, at the top"),
        (scene("owl", colour="orange"), "an owl on an orange background"),
        (scene("grapes", place="on the left"), "grapes on a blue background, on the left"),
        (scene("bread"), "bread on a blue background"),
        (scene("unicorn"), "a unicorn on a blue background"),
        (scene("ufo"), "a ufo on a blue background"),
        (scene("umbrella"), "an umbrella on a blue background"),
        (scene("glasses"), "glasses on a blue background"),
        (scene("wine glass"), "a wine glass on a blue background"),
        (scene("octopus"), "an octopus on a blue background"),
        (scene("dress"), "a dress on a blue background"),
        (scene("cat", "dog", place="at the bottom"), "a cat and a dog on a blue background, at the bottom"),
        (scene("cat", colour="white"), "a cat on a white background"),
    ],
)
def test_statement(shown: Scene, text: str) -> None:
    assert caption(shown, seed=0, patterns=("statement",), plain=True) == text


@pytest.mark.parametrize(
    ("names", "pattern", "text"),
    [
        (("cat",), "there", "there is a cat on a blue background"),
        (("grapes",), "there", "there are grapes on a blue background"),
        (("bread",), "there", "there is bread on a blue background"),
        (("cat", "grapes"), "there", "there is a cat and grapes on a blue background"),
        (("cat",), "behind", "a cat with blue behind it"),
        (("grapes",), "behind", "grapes with blue behind them"),
        (("cat", "dog"), "behind", "a cat and a dog with blue behind them"),
        (("cat",), "clauses", "the cat is in the middle and the background is blue"),
        (("grapes",), "clauses", "the grapes are in the middle and the background is blue"),
        (("grapes",), "possessive", "the grapes and their blue background"),
        (("cat",), "possessive", "the cat and its blue background"),
        (("bow and arrow",), "emoji", "bow and arrow emoji on a blue background"),
    ],
)
def test_agreement(names: tuple[str, ...], pattern: str, text: str) -> None:
    assert caption(scene(*names), seed=0, patterns=(pattern,), plain=True) == text


@pytest.mark.parametrize("pattern", [p for p in PATTERNS if p != "name"])
@pytest.mark.parametrize("place", PLACES)
def test_patterns_have_no_gaps(pattern: str, place: str) -> None:
    for colour in ("white", "navy"):
        for seed in range(8):
            text = describe(scene("cat", colour=colour, place=place), seed=seed, patterns=(pattern,)).text
            assert not re.search(r"  | ,|,,|[][{}]|^[ ,]|[ ,]$", text)


@pytest.mark.parametrize("plain", [False, True])
def test_same_seed_same_caption(plain: bool) -> None:
    for seed in range(200):
        first, second = draw_scene(THINGS, seed=seed), draw_scene(THINGS, seed=seed)
        assert first == second
        assert caption(first, seed=seed, plain=plain) == caption(second, seed=seed, plain=plain)
        assert long_caption(first, seed) == long_caption(second, seed)


def test_shares_of_scenes(scenes: list[Scene]) -> None:
    """20000 scenes, two shares and the least of 25 others, each within 5 sigma."""
    assert share_is(sum(len(s.things) == 2 for s in scenes), PAIRS)
    plain = 0.09 + 0.91 * ((1 - PAIRS) / (16 * 9) + PAIRS / (16 * 3))
    assert share_is(sum((s.colour, s.place) == ("white", "") for s in scenes), plain)
    assert {s.colour for s in scenes} == set(COLOURS)
    assert {s.place for s in scenes if len(s.things) == 1} == set(PLACES)
    assert {s.place for s in scenes if len(s.things) == 2} == set(PAIR_PLACES)
    assert all(s.things[0] != s.things[-1] for s in scenes if len(s.things) == 2)


def test_shares_of_captions(scenes: list[Scene]) -> None:
    """20000 captions; a typing error and length each within 5 sigma, a name alone between 4 and 6 percent."""
    found = [describe(s, seed=seed) for seed, s in enumerate(scenes)]
    assert share_is(sum(c.typo for c in found), TYPOS)
    assert share_is(sum(c.pattern == LONG_PATTERN for c in found), LONG)
    assert 0.04 < sum(c.pattern == "name" for c in found) / SAMPLE < 0.06
    assert not any(c.typo and c.pattern == LONG_PATTERN for c in found)


def test_plain_captions_have_no_typing_error_no_synonym_and_are_short(scenes: list[Scene]) -> None:
    nouns = {word for t in THINGS for noun in t.synonyms for word in words(noun)}
    nouns -= {word for t in THINGS for word in words(t.name)} | FRAME_WORDS
    for seed, s in enumerate(scenes[:4000]):
        found = describe(s, seed=seed, plain=True)
        assert not found.typo
        assert found.pattern != LONG_PATTERN
        assert not words(found.text) & nouns
        assert all(t.name in found.text for t in s.things)


@pytest.mark.parametrize("plain", [False, True])
def test_a_caption_determines_its_scene(scenes: list[Scene], plain: bool) -> None:
    """20000 captions, 5000 or more of them different; those with a typing error are left out."""
    shown: dict[str, Scene] = {}
    for seed, s in enumerate(scenes):
        found = describe(s, seed=seed, plain=plain)
        if not found.typo:
            assert shown.setdefault(found.text, s) == s, found.text
    assert len(shown) > 5000


def test_a_name_alone_is_on_white_in_the_centre(scenes: list[Scene]) -> None:
    for seed, s in enumerate(scenes):
        found = describe(s, seed=seed)
        assert found.pattern != "name" or (s.colour, s.place) == ("white", "")
    with pytest.raises(ValueError, match="only a name"):
        caption(scene("cat"), seed=0, patterns=("name",))
    assert caption(scene("cat", colour="white"), seed=0, patterns=("name",), plain=True) == "cat"


def test_a_typing_error_makes_one_unknown_word(scenes: list[Scene]) -> None:
    known = WORDS | {word for t in THINGS for noun in (t.name, *t.synonyms) for word in words(noun)}
    for seed, s in enumerate(scenes):
        found = describe(s, seed=seed)
        assert len(words(found.text) - known) == found.typo, found.text


def test_long_captions() -> None:
    """What matters is among the first 38 words and full stops, of which a text encoder reads 46."""
    for seed in range(3000):
        drawn = draw_scene(THINGS, seed=seed)
        text = long_caption(drawn, seed, plain=True)
        assert LONG_WORDS[0] <= len(text.split()) <= LONG_WORDS[1]
        parts = [*(t.name for t in drawn.things), drawn.colour, drawn.place or "in the middle"]
        end = max(text.rindex(part) + len(part) for part in parts)
        assert len(re.findall(r"[\w-]+|\.", text[:end])) <= LAST_CONTENT_TOKEN, text


@pytest.mark.parametrize(
    ("names", "colour", "place", "message"),
    [
        ((), "blue", "", "one or two things, got 0"),
        (("cat", "dog", "owl"), "blue", "", "one or two things, got 3"),
        (("cat",), "teal", "", "unknown colour 'teal'"),
        (("cat",), "blue", "at the back", "cannot be 'at the back'"),
        (("cat", "dog"), "blue", "on the left", "cannot be 'on the left'"),
    ],
)
def test_scene_refuses(names: tuple[str, ...], colour: str, place: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scene(*names, colour=colour, place=place)


def test_corpus_has_all_words_and_no_typing_errors() -> None:
    texts = list(corpus(THINGS, lines=5000))
    assert len(texts) == 5000
    assert texts == list(corpus(THINGS, lines=5000))
    seen = {word for text in texts for word in words(text)}
    names = {word for t in THINGS for noun in (t.name, *t.synonyms) for word in words(noun)}
    assert FRAME_WORDS | names == seen
