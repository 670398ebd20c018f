"""The concepts of the emoji world: which emoji, what people call them, and what each is used for."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from world import Concept

from .nouns import NOUNS, SPOKEN, SYNONYMS, listed

CORE = listed(
    """
    mouse face; cow face; tiger face; rabbit face; cat face; dragon; crocodile; spouting whale; snail; snake;
    horse; dog face; pig face; elephant; octopus; honeybee; lady beetle; tropical fish; turtle; baby chick;
    penguin; koala; camel; dolphin; monkey face; frog; bear; panda; spider; spider web; crab; lion; scorpion;
    unicorn; eagle; duck; bat; shark; owl; fox; butterfly; deer; rhinoceros; shrimp; giraffe; zebra; hedgehog;
    sauropod; T-Rex; kangaroo; llama; peacock; hippopotamus; parrot; raccoon; swan; skunk; flamingo;
    jellyfish; feather; dove; evergreen tree; palm tree; cactus; tulip; cherry blossom; rose; sunflower; four
    leaf clover; maple leaf; seedling; mushroom; potted plant; hot dog; taco; hot pepper; ear of corn; tomato;
    eggplant; grapes; watermelon; tangerine; lemon; banana; pineapple; red apple; green apple; pear; peach;
    cherries; strawberry; hamburger; pizza; poultry leg; rice ball; spaghetti; bread; french fries; sushi;
    soft ice cream; doughnut; cookie; chocolate bar; candy; lollipop; honey pot; shortcake; wine glass;
    cocktail glass; beer mug; baby bottle; popcorn; birthday cake; kitchen knife; spoon; croissant; avocado;
    bacon; potato; carrot; baguette bread; egg; glass of milk; peanuts; kiwi fruit; chopsticks; cup with
    straw; coconut; broccoli; pie; pretzel; sandwich; mango; cheese wedge; cupcake; garlic; onion; butter;
    ice; blueberries; bell pepper; teapot; hot beverage; ribbon; wrapped gift; jack-o-lantern; Christmas tree;
    fireworks; balloon; party popper; artist palette; video game; bullseye; pool 8 ball; game die; tennis;
    basketball; trophy; american football; volleyball; ping pong; water pistol; crystal ball; boxing glove;
    puzzle piece; yarn; teddy bear; yo-yo; kite; magic wand; chess pawn; spade suit; club suit; heart suit;
    diamond suit; soccer ball; baseball; ice skate; sports medal; rainbow; volcano; water wave; globe showing
    Europe-Africa; full moon; crescent moon; sun with face; glowing star; shooting star; thermometer; cloud
    with rain; cloud with lightning; tornado; ferris wheel; roller coaster; circus tent; motorcycle;
    snow-capped mountain; house; factory; castle; church; droplet; fire; rocket; helicopter; locomotive; bus;
    ambulance; fire engine; police car; taxi; automobile; tractor; ship; vertical traffic light; bicycle; stop
    sign; ring buoy; flying saucer; skateboard; roller skate; parachute; ringed planet; watch; hourglass done;
    alarm clock; sun; cloud; umbrella; snowman; anchor; high voltage; sailboat; tent; airplane; snowflake;
    backpack; graduation cap; microphone; headphone; top hat; musical note; saxophone; guitar; musical
    keyboard; trumpet; violin; bow and arrow; crown; glasses; necktie; t-shirt; jeans; dress; handbag; running
    shoe; high-heeled shoe; lipstick; syringe; pill; ring; gem stone; light bulb; bomb; money bag; credit
    card; laptop; open book; telephone; megaphone; package; closed mailbox with raised flag; mobile phone;
    camera; television; radio; battery; magnifying glass tilted left; key; locked; bell; flashlight; wrench;
    hammer; microscope; telescope; candle; sunglasses; pencil; door; toilet; bathtub; bed; shopping cart;
    shield; drum; billed cap; scarf; gloves; socks; magnet; broom; stethoscope; chair; axe; accordion;
    screwdriver; ladder; mirror; window; bucket; toothbrush; gear; coffin; scissors; envelope; eye; ear; nose;
    brain; tooth; bone; ghost; alien; skull; robot; pile of poo; broken heart; blue heart; yellow heart; green
    heart; red heart; purple heart; clown face; grinning face; face with tears of joy; smiling face with halo;
    smiling face with horns; winking face; smiling face with heart-eyes; smiling face with sunglasses; face
    blowing a kiss; face with tongue; enraged face; loudly crying face; face screaming in fear; sleeping face;
    face with medical mask; nerd face; thinking face; cowboy hat face; partying face; cold face; zipper-mouth
    face
    """
)
"""Names of the emoji that the world is about: single well-known things, recognisable at 28 to 48 pixels."""

ASCII = str.maketrans(
    {"\u2019": "'", "\u201c": "", "\u201d": "", "\u00f1": "n", "\u014d": "o", "\u00ea": "e"}
)
STOP = frozenset(
    listed(
        "a; an; and; at; behind; face; facing; for; from; in; of; on; or; over; the; to; up; with; without"
    )
)
"""Words of a name that say nothing about the thing."""
VALIDATION_EVERY = 9
"""Every ninth distillable core concept is kept from distillation, to choose its settings on."""
OTHER_GROUPS = frozenset(
    {"animals-nature", "food-drink", "travel-places", "objects", "activities", "people-body"}
)
SCENES = frozenset(
    listed(
        """
    foggy; fog; camping; cooking; wedding; kiss; building construction; performing arts; moon viewing ceremony;
    person gesturing no; person gesturing ok; person standing; person kneeling; person; man; woman; pouring liquid;
    level slider; control knobs; bust in silhouette; busts in silhouette; middle finger; mx claus; person bowing;
    hand with index finger and thumb crossed; index pointing at the viewer; person facepalming; pregnant woman;
    deaf person; person taking bath; airplane departure; airplane arrival; rightwards hand; leftwards hand;
    rightwards pushing hand; muted speaker; speaker low volume; woman in steamy room; woman shrugging; sparkles;
    person frowning; person pouting; man feeding baby; woman in manual wheelchair; unlocked; mate
    """
    )
)
"""Emoji that show no thing of their own or can hardly be told from others."""
PEOPLE = frozenset(listed("man; men; woman; women; person; people; boy; girl; child"))


@dataclass(frozen=True, kw_only=True)
class Roles:
    """What each concept is used for; all in the order of their ids.

    distill: distilled. validation: distillable but kept, to choose settings on. heldout: kept from distillation
    and from all training of what is aligned. others: outside the core, for what a model knew before.
    """

    distill: tuple[Concept, ...]
    validation: tuple[Concept, ...]
    heldout: tuple[Concept, ...]
    others: tuple[Concept, ...]


def spoken_name(concept: Concept) -> str:
    """The name in ASCII and lower case, as a person says it."""
    return SPOKEN.get(concept.name, concept.name.translate(ASCII).lower())


def core_concepts(concepts: Iterable[Concept]) -> tuple[Concept, ...]:
    """The concepts of the core, in the order of their ids."""
    names = frozenset(CORE)
    return tuple(sorted((c for c in concepts if c.name in names), key=lambda c: c.id))


def core_synonyms(concepts: Sequence[Concept]) -> dict[str, tuple[str, ...]]:
    """Synonyms of every core concept, by id.

    A synonym is a keyword that is a noun (`NOUNS`) or an entry of `SYNONYMS`. It is nobody else's name. A keyword
    must also belong to no other core concept and be no word of another one's name.
    """
    core = core_concepts(concepts)
    names = Counter(name for c in concepts for name in {spoken_name(c), c.name.translate(ASCII).lower()})
    words = Counter(word for c in core for word in set(spoken_name(c).split()))
    keywords = Counter(k for c in core for k in {k.lower() for k in c.keywords})
    found = {}
    for concept in core:
        name = spoken_name(concept)
        known = {name: 1, concept.name.translate(ASCII).lower(): 1}
        own = [
            k
            for k in (k.lower() for k in concept.keywords)
            if k in NOUNS and keywords[k] == 1 and words[k] == (k in name.split())
        ]
        nouns = dict.fromkeys([*SYNONYMS.get(concept.name, ()), *own])
        found[concept.id] = tuple(k for k in nouns if k != name and names[k] <= known.get(k, 0))
    return found


def synonyms(concept: Concept, all_concepts: Sequence[Concept]) -> tuple[str, ...]:
    """Other nouns for a core concept; none for others. See `core_synonyms`."""
    return core_synonyms(all_concepts).get(concept.id, ())


def content_words(name: str) -> frozenset[str]:
    """The words of a spoken name that say what it is."""
    return frozenset(name.replace("-", " ").replace(":", " ").replace(",", " ").split()) - STOP


def roles(concepts: Sequence[Concept]) -> Roles:
    """What each concept is used for.

    `others` are concepts outside the core in `distill`, of groups that have things to draw, one of each family of
    people. Their names share no word with that of a concept of the other three.
    """
    core = core_concepts(concepts)
    known = [c for c in core if c.split == "distill"]
    validation = known[::VALIDATION_EVERY]
    taken = frozenset(word for c in core for word in content_words(spoken_name(c)))
    return Roles(
        distill=tuple(c for c in known if c not in validation),
        validation=tuple(validation),
        heldout=tuple(c for c in core if c.split == "heldout"),
        others=_others(concepts, taken),
    )


def _others(concepts: Sequence[Concept], taken: frozenset[str]) -> tuple[Concept, ...]:
    """Drawable concepts outside the core whose names have no word of `taken`."""
    scenes = frozenset(_family(name) for name in SCENES)
    families: dict[frozenset[str], Concept] = {}
    for concept in sorted(concepts, key=lambda c: c.id):
        family = _family(spoken_name(concept))
        if (
            concept.split == "distill"
            and concept.group in OTHER_GROUPS
            and not _undrawable(concept)
            and not family & taken
            and family not in scenes
        ):
            families.setdefault(family, concept)
    return tuple(families.values())


def _family(name: str) -> frozenset[str]:
    """What a man, a woman and a person who do the same have in common."""
    words = content_words(name)
    return words - PEOPLE or words


def _undrawable(concept: Concept) -> bool:
    """Clock faces, flags, and families of people."""
    name = spoken_name(concept)
    return "o'clock" in name or "-thirty" in name or "flag" in name or ":" in name
