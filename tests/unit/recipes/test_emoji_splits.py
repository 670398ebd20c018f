"""Concepts of the emoji world, what they are used for, and the prompts by split."""

import copy
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from places import EMOJI_DATA
from stages.concepts import (
    CORE,
    Roles,
    content_words,
    core_concepts,
    core_synonyms,
    roles,
    spoken_name,
    synonyms,
)
from stages.grammar import COLOURS, LONG_PATTERN, PLACES, WORDINGS, WORDS, Thing, make_things
from stages.splits import (
    HELD_OUT_COMPOSITIONS,
    SEEN_COMPOSITIONS,
    UNKNOWN,
    VALIDATION_COMPOSITIONS,
    overlaps,
    write_splits,
)
from world import CORE as SHIPPED_CORE
from world import Concept

pytestmark = pytest.mark.skipif(not EMOJI_DATA.exists(), reason="the emoji data are not in the repository")
REPORTED = ("compositions", "concepts", "wordings", "pairs", "long", "unknown", "prior")


@pytest.fixture(scope="module")
def concepts() -> tuple[Concept, ...]:
    """All concepts of the data."""
    rows = json.loads((EMOJI_DATA / "concepts.json").read_text())
    return tuple(Concept(**{**row, "keywords": tuple(row["keywords"])}) for row in rows)


@pytest.fixture(scope="module")
def used(concepts: tuple[Concept, ...]) -> Roles:
    """What each concept is used for."""
    return roles(concepts)


@pytest.fixture(scope="module")
def things(concepts: tuple[Concept, ...]) -> dict[str, Thing]:
    """The thing of each concept."""
    return make_things(concepts)


@pytest.fixture(scope="module")
def written(used: Roles, things: dict[str, Thing], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file with the splits."""
    path = tmp_path_factory.mktemp("splits") / "splits.json"
    write_splits(path, used, things)
    return path


@pytest.fixture
def content(written: Path) -> dict[str, Any]:
    """What the file has."""
    return json.loads(written.read_text())


def texts(rows: list[dict[str, Any]]) -> list[str]:
    """The texts of prompts."""
    return [row["text"] for row in rows]


def test_core(concepts: tuple[Concept, ...]) -> None:
    assert 340 <= len(CORE) <= 360
    assert len(set(CORE)) == len(CORE) == len(core_concepts(concepts))
    assert len(set(CORE) & SHIPPED_CORE) >= 140
    assert 66 <= sum(c.split == "heldout" for c in core_concepts(concepts)) <= 85


def test_spoken_names(concepts: tuple[Concept, ...], used: Roles) -> None:
    names = [spoken_name(c) for c in (*core_concepts(concepts), *used.others)]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9' .-]+", name) for name in names)
    assert all(len(spoken_name(c).split()) <= 4 for c in core_concepts(concepts))


def test_synonyms_are_nobody_elses(concepts: tuple[Concept, ...]) -> None:
    found = core_synonyms(concepts)
    assert sum(bool(nouns) for nouns in found.values()) >= 150
    uses = Counter(noun for nouns in found.values() for noun in nouns)
    assert set(uses.values()) == {1}
    names = {spoken_name(c) for c in concepts} | {c.name.lower() for c in concepts}
    assert not names & set(uses)
    assert not set(uses) & (set(COLOURS) | set(PLACES))
    by_name = {c.name: c for c in concepts}
    assert "puppy" in synonyms(by_name["dog face"], concepts)
    assert synonyms(by_name["goat"], concepts) == ()


def test_roles(concepts: tuple[Concept, ...], used: Roles) -> None:
    core = core_concepts(concepts)
    assert {*used.distill, *used.validation, *used.heldout} == set(core)
    assert len(used.distill) + len(used.validation) + len(used.heldout) == len(core)
    known = [c for c in core if c.split == "distill"]
    assert list(used.validation) == known[::9]
    assert all(c.split == "heldout" for c in used.heldout)
    assert roles(tuple(reversed(concepts))) == used


def test_others_share_no_word_with_the_core(concepts: tuple[Concept, ...], used: Roles) -> None:
    assert 320 <= len(used.others) <= 400
    taken = {word for c in core_concepts(concepts) for word in content_words(spoken_name(c))}
    assert not any(content_words(spoken_name(c)) & taken for c in used.others)
    assert all(c.split == "distill" and c.group != "symbols" for c in used.others)


def test_compositions() -> None:
    assert len(set(HELD_OUT_COMPOSITIONS)) == 32
    assert len(set(VALIDATION_COMPOSITIONS)) == 16
    assert len(set(SEEN_COMPOSITIONS)) == 96
    assert len({*HELD_OUT_COMPOSITIONS, *VALIDATION_COMPOSITIONS, *SEEN_COMPOSITIONS}) == 144
    assert Counter(colour for colour, _ in HELD_OUT_COMPOSITIONS) == dict.fromkeys(COLOURS, 2)
    assert Counter(colour for colour, _ in VALIDATION_COMPOSITIONS) == dict.fromkeys(COLOURS, 1)
    assert {place for _, place in HELD_OUT_COMPOSITIONS} == set(PLACES)
    assert ("white", "") in SEEN_COMPOSITIONS


def test_counts_of_prompts(content: dict[str, Any], used: Roles) -> None:
    counts = {split: len(rows) for split, rows in content["splits"].items()}
    single = 12 * len(used.distill)
    assert counts == {
        "distill": single + round(single / 9),
        "validation": 4 * len(used.validation) + 60,
        "compositions": len(used.distill),
        "concepts": 4 * len(used.heldout),
        "wordings": 120,
        "pairs": 120,
        "long": 120,
        "unknown": 48,
        "prior": len(used.others),
        "accuracy": len(CORE),
    }


def test_every_prompt_once(content: dict[str, Any]) -> None:
    every = [text for rows in content["splits"].values() for text in texts(rows)]
    assert len(set(every)) == len(every)
    assert overlaps(content, {}) == []


def test_distilled_prompts(content: dict[str, Any], used: Roles) -> None:
    rows = content["splits"]["distill"]
    statements = {i for row in rows if row["pattern"] == "statement" for i in row["concepts"]}
    assert statements == {c.id for c in used.distill}
    assert any(row["pattern"] == LONG_PATTERN for row in rows)
    single = [row for row in rows if len(row["concepts"]) == 1]
    seen = Counter((row["concepts"][0], row["colour"], row["place"]) for row in single)
    assert set(seen.values()) == {1}


def test_reported_prompts(content: dict[str, Any]) -> None:
    found = content["splits"]
    held_out = set(HELD_OUT_COMPOSITIONS)
    for split in ("compositions", "concepts", "wordings", "long", "unknown"):
        assert {(row["colour"], row["place"]) for row in found[split]} <= held_out
    assert {row["pattern"] for row in found["wordings"]} == set(WORDINGS)
    for split in set(REPORTED) - {"wordings"}:
        assert not {row["pattern"] for row in found[split]} & set(WORDINGS)
    assert {row["pattern"] for row in found["long"]} == {LONG_PATTERN}
    assert {len(row["concepts"]) for row in found["pairs"]} == {2}
    assert all(row["concepts"] == [] for row in found["unknown"])
    assert {row["pattern"] for row in found["accuracy"]} == {"statement"}
    assert not set(texts(found["accuracy"])) & {text for split in REPORTED for text in texts(found[split])}


def test_unknown_things_are_in_no_name_or_keyword(concepts: tuple[Concept, ...]) -> None:
    known = WORDS | {
        word
        for concept in concepts
        for text in (spoken_name(concept), *concept.keywords)
        for word in re.findall("[a-z]+", text.lower())
    }
    assert len(set(UNKNOWN)) == len(UNKNOWN)
    assert all(set(name.split()) - known for name in UNKNOWN)


def test_writing_again_gives_the_same_file(
    written: Path, used: Roles, things: dict[str, Thing], tmp_path: Path
) -> None:
    again = tmp_path / "again.json"
    write_splits(again, used, things)
    assert again.read_bytes() == written.read_bytes()
    assert list(tmp_path.iterdir()) == [again]


def repeat_in_another_split(content: dict[str, Any]) -> None:
    content["splits"]["distill"].append(content["splits"]["prior"][0])


def repeat_in_its_split(content: dict[str, Any]) -> None:
    content["splits"]["long"].append(content["splits"]["long"][0])


def change(content: dict[str, Any], **values: Any) -> None:
    """Other values for the first distilled prompt."""
    content["splits"]["distill"][0] = {**content["splits"]["distill"][0], **values}


def distill_heldout(content: dict[str, Any]) -> None:
    change(content, concepts=[content["roles"]["heldout"][0]])


def distill_validation_beside_distilled(content: dict[str, Any]) -> None:
    change(content, concepts=[content["roles"]["distill"][0], content["roles"]["validation"][0]])


def distill_held_out_composition(content: dict[str, Any]) -> None:
    colour, place = HELD_OUT_COMPOSITIONS[3]
    change(content, colour=colour, place=place)


def distill_validation_composition(content: dict[str, Any]) -> None:
    colour, place = VALIDATION_COMPOSITIONS[3]
    change(content, colour=colour, place=place)


def distill_wording(content: dict[str, Any]) -> None:
    change(content, pattern=WORDINGS[0])


def distill_reported_pair(content: dict[str, Any]) -> None:
    change(content, concepts=content["splits"]["pairs"][0]["concepts"][::-1])


@pytest.mark.parametrize(
    ("plant", "sentence"),
    [
        (repeat_in_another_split, "is in distill and prior"),
        (repeat_in_its_split, "is 2 times in long"),
        (distill_heldout, "which is heldout"),
        (distill_validation_beside_distilled, "which is validation"),
        (distill_held_out_composition, "a composition that is heldout"),
        (distill_validation_composition, "a composition that is validation"),
        (distill_wording, f"the held-out pattern {WORDINGS[0]}"),
        (distill_reported_pair, "a pair of the split pairs"),
    ],
)
def test_overlaps_in_prompts(
    content: dict[str, Any], plant: Callable[[dict[str, Any]], None], sentence: str
) -> None:
    planted = copy.deepcopy(content)
    plant(planted)
    assert any(sentence in found for found in overlaps(planted, {}))


@pytest.mark.parametrize(
    ("model", "style", "role"),
    [
        ("edge", "glossy", "distill"),
        ("edge", "glossy", "validation"),
        ("edge", "glossy", "heldout"),
        ("autoencoder", "glossy", "heldout"),
        ("autoencoder", "flat", "heldout"),
    ],
)
def test_overlaps_in_training(content: dict[str, Any], model: str, style: str, role: str) -> None:
    concept = content["roles"][role][0]
    others = content["roles"]["others"]
    found = overlaps(content, {model: {style: [*others, concept]}})
    assert found == [f"the {model} met 1 {style} concept(s) of {role}: {concept}"]


def test_allowed_training_overlaps_nothing(content: dict[str, Any]) -> None:
    ids = content["roles"]
    core = [*ids["distill"], *ids["validation"], *ids["heldout"]]
    without_heldout = [*ids["distill"], *ids["validation"], *ids["others"]]
    training = {
        "edge": {"flat": [*core, *ids["others"]], "glossy": ids["others"]},
        "cloud": {"glossy": [*core, *ids["others"]]},
        "autoencoder": {"glossy": without_heldout, "flat": without_heldout},
    }
    assert overlaps(content, training) == []
