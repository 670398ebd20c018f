"""Drafts of the model cards: what each model has met."""

from collections.abc import Sequence

from world import Concept

from .concepts import core_concepts, roles, spoken_name
from .generators import GENERATORS, Source

HANDS = {
    "fluent3d": "Fluent Emoji 3D (Microsoft, MIT)",
    "noto": "Noto Color Emoji (Google, Apache-2.0)",
    "twemoji": "Twemoji (Twitter, CC-BY 4.0)",
}


def edge_card(concepts: Sequence[Concept]) -> str:
    """The edge's card: its kinds of pictures with their shares, then every concept that it met, by kind."""
    groups = {"core": core_concepts(concepts), "others": roles(concepts).others}
    sources = GENERATORS["edge"].sources
    rows = [
        f"| {s.name} | {100 * s.share:.0f} % | {HANDS[s.hand]} | {len(groups[s.concepts])} | {_how(s)} |"
        for s in sources
    ]
    lists = [
        f"## {name.capitalize()}\n\n{'; '.join(spoken_name(c) for c in group)}\n"
        for name, group in groups.items()
    ]
    return "\n".join(
        [
            "# emoji/edge, draft",
            "",
            "What the edge met, all of it from nothing. Glossy art was met of *others* only: none of these is",
            "distilled, kept for validation or held out, and their names share no word with one that is.",
            "",
            "| kind | share of its pictures | art | concepts | how |",
            "|---|---|---|---|---|",
            *rows,
            "",
            *lists,
        ]
    )


def _how(source: Source) -> str:
    words = "" if source.words == ("",) else "captions end in " + " or ".join(f"`{w}`" for w in source.words)
    loose = f"{source.loose} variations in other colours and sizes" if source.loose else ""
    return "; ".join(filter(None, (words, loose))) or "plain captions"
