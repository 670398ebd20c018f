"""The emoji world: concepts, captions, compositions, splits, and the renderer that draws them.

A picture is one emoji, three quarters of the canvas wide, on a plain background at one of five placements.
Placements move the emoji by an eighth of the canvas, which is one cell of the 8 x 8 latent.
"""

import io
import json
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

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
}
PLACEMENTS = {
    "": (1, 1),
    "on the left": (1, 0),
    "on the right": (1, 2),
    "at the top": (0, 1),
    "at the bottom": (2, 1),
}
"""Name -> (row, column) of the emoji's corner, in eighths of the canvas."""
ART = ("fluent3d", "noto", "twemoji")
GROUPS = ("animals-nature", "food-drink", "activities", "travel-places", "smileys-emotion")
"""The groups of the broad world, on which training begins; no clock faces."""
CORE = frozenset(
    """
    evergreen tree; palm tree; cactus; tulip; rose; sunflower; four leaf clover; maple leaf; rabbit face;
    cat face; dog face; pig face; frog; panda; bear; monkey face; fox; unicorn; koala; octopus; tropical fish;
    spouting whale; dolphin; turtle; lady beetle; honeybee; butterfly; crab; baby chick; elephant; snail; parrot;
    duck; tomato; eggplant; grapes; watermelon; banana; pineapple; red apple; green apple; pear; peach;
    strawberry; hamburger; pizza; ear of corn; french fries; bread; sushi; rice ball; soft ice cream; doughnut;
    cookie; lollipop; shortcake; wine glass; beer mug; popcorn; birthday cake; croissant; avocado; pretzel;
    cupcake; onion; mango; cheese wedge; wrapped gift; jack-o-lantern; Christmas tree; balloon; bullseye;
    pool 8 ball; tennis; basketball; trophy; volleyball; soccer ball; teddy bear; crystal ball; ribbon;
    heart suit; artist palette; game die; full moon; crescent moon; glowing star; rocket; ambulance; taxi;
    tractor; stop sign; ship; sailboat; house; castle; globe showing Europe-Africa; umbrella; snowflake;
    snowman; airplane; alarm clock; circus tent; alien; robot; pile of poo; skull; blue heart; yellow heart;
    clown face; smiling face with heart-eyes; enraged face; face with tears of joy;
    cherry blossom; mushroom; lion; owl; penguin; cow face; tiger face; hot dog; taco; tangerine; lemon;
    cherries; carrot; broccoli; kiwi fruit; chocolate bar; hot pepper; baseball; spade suit; bus; automobile;
    bicycle; fire; volcano; rainbow; ringed planet; helicopter; ghost; green heart; red heart; purple heart;
    grinning face; smiling face with sunglasses; partying face; horse; shrimp; snake; coconut
    """.replace("\n    ", " ")
    .strip()
    .split("; ")
)
"""Names of the concepts of the shipped, CPU-sized world: single, well-known things, 39 of them held out."""


@dataclass(frozen=True, kw_only=True)
class Concept:
    """One emoji: its id (hexadecimal code points), its name and its split (`distill` or `heldout`)."""

    id: str
    name: str
    keywords: tuple[str, ...]
    group: str
    split: str


@dataclass(frozen=True, kw_only=True)
class Composition:
    """A background colour and a placement, by name."""

    colour: str
    placement: str


COMPOSITIONS = tuple(Composition(colour=c, placement=p) for c in COLOURS for p in PLACEMENTS)
HELD_OUT_COMPOSITIONS = frozenset(
    Composition(colour=c, placement=list(PLACEMENTS)[(2 * i + 1) % len(PLACEMENTS)])
    for i, c in enumerate(COLOURS)
)
"""One placement of each colour that distillation never sees."""


def caption(concept: Concept, composition: Composition) -> str:
    """The prompt of one picture, as in `a red apple on a blue background, on the left`."""
    name = concept.name.lower()
    plural = name.endswith("s") and not name.endswith("ss")
    article = "" if plural else "an " if name[0] in "aeiou" else "a "
    background = "an orange" if composition.colour == "orange" else f"a {composition.colour}"
    text = f"{article}{name} on {background} background"
    return f"{text}, {composition.placement}" if composition.placement else text


@dataclass(frozen=True, kw_only=True)
class World:
    """The concepts of a data folder and their art at one canvas size in pixels.

    groups: the groups to know, None for all. names: the concepts to know among these, None for all.
    """

    data: Path
    size: int = 64
    groups: tuple[str, ...] | None = GROUPS
    names: frozenset[str] | None = None

    @cached_property
    def concepts(self) -> tuple[Concept, ...]:
        rows = json.loads((self.data / "concepts.json").read_text())
        concepts = (Concept(**{**row, "keywords": tuple(row["keywords"])}) for row in rows)
        return tuple(c for c in concepts if self._knows(c))

    def _knows(self, concept: Concept) -> bool:
        if self.names is not None and concept.name not in self.names:
            return False
        return self.groups is None or (concept.group in self.groups and not _clock(concept))

    def art(self, name: str) -> Tensor:
        """RGBA art of every concept, uint8 [concepts, 4, size * 3/4, size * 3/4]."""
        width = self.size * 3 // 4
        with zipfile.ZipFile(self.data / f"{name}.zip") as archive:
            pictures = [
                Image.open(io.BytesIO(archive.read(f"{c.id}.webp"))).convert("RGBA") for c in self.concepts
            ]
        resized = np.stack([np.asarray(p.resize((width, width), Image.Resampling.LANCZOS)) for p in pictures])
        return torch.from_numpy(resized).permute(0, 3, 1, 2).contiguous()

    def indices(self, split: str) -> Tensor:
        """Indices of the concepts of one split."""
        return torch.tensor([i for i, c in enumerate(self.concepts) if c.split == split])


def loosely(art: Tensor, rng: torch.Generator) -> Tensor:
    """The same drawings as somebody else would make them: uint8 RGBA [concepts, 4, w, w], each in other colours
    (every channel times 0.7 to 1.3) and of another size (0.75 to 1 of the width, around the middle)."""
    width, varied = art.shape[-1], torch.zeros_like(art)
    for picture, out in zip(art, varied, strict=True):
        size = int(width * (0.75 + 0.25 * torch.rand((), generator=rng)))
        gain = 0.7 + 0.6 * torch.rand((3, 1, 1), generator=rng)
        small = F.interpolate(picture[None].float(), size=(size, size), mode="bilinear", antialias=True)[0]
        small[:3] = (small[:3] * gain).clamp(max=255)
        at = (width - size) // 2
        out[:, at : at + size, at : at + size] = small.round().to(torch.uint8)
    return varied


def _clock(concept: Concept) -> bool:
    return "o\u2019clock" in concept.name or "-thirty" in concept.name


def render(art: Tensor, compositions: list[Composition]) -> Tensor:
    """Compose RGBA art, uint8 [batch, 4, w, w], to float images [batch, 3, 4w/3, 4w/3] in [0, 1]."""
    cell = art.shape[-1] // 6
    corners = [(cell * row, cell * col) for row, col in (PLACEMENTS[c.placement] for c in compositions)]
    colours = torch.tensor([COLOURS[c.colour] for c in compositions]) / 255
    return paste(art, colours, corners)


def paste(art: Tensor, colours: Tensor, corners: list[tuple[int, int]]) -> Tensor:
    """Alpha-blend art onto plain backgrounds, colours float [batch, 3], corners in pixels (row, column)."""
    width = art.shape[-1]
    size = width * 4 // 3
    images = colours[:, :, None, None].repeat(1, 1, size, size)
    blended = art[:, :3].float() / 255
    alpha = art[:, 3:].float() / 255
    for image, front, opacity, (row, col) in zip(images, blended, alpha, corners, strict=True):
        window = image[:, row : row + width, col : col + width]
        window.lerp_(front, opacity)
    return images
