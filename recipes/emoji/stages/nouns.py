"""The nouns of the emoji world: what people call the emoji, and the articles of that."""

from dataclasses import dataclass
from functools import cache


def listed(text: str) -> tuple[str, ...]:
    """The names of a list that is separated by semicolons and broken over lines."""
    return tuple(name.strip() for name in " ".join(text.split()).split(";"))


SPOKEN = {
    "T-Rex": "t-rex",
    "baguette bread": "baguette",
    "closed mailbox with raised flag": "mailbox",
    "face with tears of joy": "laughing face",
    "globe showing Europe-Africa": "globe",
    "headphone": "headphones",
    "high voltage": "lightning bolt",
    "hourglass done": "hourglass",
    "ice": "ice cube",
    "locked": "padlock",
    "magnifying glass tilted left": "magnifying glass",
    "ping pong": "ping pong paddle",
    "smiling face with heart-eyes": "face with heart eyes",
    "tennis": "tennis racket",
    "vertical traffic light": "traffic light",
    "water wave": "wave",
    "yarn": "ball of yarn",
}
"""What a person calls an emoji whose name in Unicode is not what it is called; others keep their name."""

NOUNS = frozenset(
    listed(
        """
    bunny; kitten; kitty; serpent; racehorse; puppy; bee; bumblebee; ladybird; ladybug; tortoise; terrapin;
    dromedary; grizzly; brachiosaurus; brontosaurus; tyrannosaurus; alpaca; hippo; evergreen; clover; sapling;
    sprout; toadstool; frankfurter; hotdog; maize; aubergine; burger; drumstick; pasta; loaf; fries; donut;
    martini; beer; pint; kiwi; soda; capsicum; gift; present; controller; target; pawn; spade; teddy; wand;
    medal; whirlwind; chapel; flame; copter; cab; stoplight; lifesaver; thunderbolt; yacht; aeroplane; plane;
    jet; bookbag; rucksack; mic; sax; piano; eyeglasses; trousers; sneaker; stiletto; gem; jewel; bulb; book;
    parcel; tv; torch; spanner; trolley; cart; ax; hatchet; concertina; squeezebox; cog; cogwheel; letter;
    poo; poop; clown; demon; devil; nerd; geek; cowboy; palette; shades; bike; ufo; motorbike; onigiri; prawn;
    saturn; tie; pumpkin; car; gemstone; smartphone; telly; lock; bath; pail; casket; extraterrestrial;
    phantom; angel; wristwatch; milk; knife
    """
    )
)
"""The keywords that are nouns for their emoji, found by reading all keywords that belong to one core concept."""

SYNONYMS = {
    "T-Rex": ("tyrannosaurus rex",),
    "airplane": ("airliner",),
    "alien": ("extraterrestrial",),
    "artist palette": ("paint palette",),
    "automobile": ("car",),
    "baby bottle": ("milk bottle",),
    "backpack": ("knapsack",),
    "baguette bread": ("french bread",),
    "bathtub": ("tub",),
    "beer mug": ("mug of beer",),
    "bell pepper": ("sweet pepper",),
    "bicycle": ("bike", "pushbike"),
    "billed cap": ("baseball cap",),
    "bread": ("loaf of bread",),
    "broken heart": ("heartbreak",),
    "broom": ("broomstick",),
    "bullseye": ("dartboard",),
    "butter": ("stick of butter",),
    "candy": ("piece of candy",),
    "castle": ("fortress",),
    "cheese wedge": ("slice of cheese",),
    "circus tent": ("big top",),
    "closed mailbox with raised flag": ("letter box",),
    "cloud with lightning": ("thundercloud", "storm cloud"),
    "cloud with rain": ("raincloud",),
    "coffin": ("casket",),
    "cold face": ("freezing face",),
    "cookie": ("biscuit",),
    "credit card": ("bank card",),
    "crocodile": ("alligator",),
    "cup with straw": ("soft drink",),
    "deer": ("stag",),
    "dove": ("pigeon",),
    "dress": ("gown",),
    "droplet": ("water drop", "drop of water"),
    "drum": ("snare drum",),
    "duck": ("mallard",),
    "eagle": ("bald eagle",),
    "ear of corn": ("corn cob",),
    "enraged face": ("furious face",),
    "evergreen tree": ("pine tree", "fir tree"),
    "eye": ("eyeball",),
    "face blowing a kiss": ("kissy face",),
    "face screaming in fear": ("screaming face",),
    "face with medical mask": ("masked face",),
    "face with tears of joy": ("crying laughing face",),
    "feather": ("plume", "quill"),
    "ferris wheel": ("big wheel",),
    "fire engine": ("fire truck", "firetruck"),
    "flying saucer": ("ufo",),
    "french fries": ("chips",),
    "game die": ("die",),
    "garlic": ("garlic bulb",),
    "gem stone": ("gemstone",),
    "ghost": ("phantom",),
    "glass of milk": ("milk",),
    "glasses": ("spectacles",),
    "globe showing Europe-Africa": ("world globe",),
    "gloves": ("mittens",),
    "glowing star": ("shining star",),
    "graduation cap": ("mortarboard",),
    "grapes": ("bunch of grapes",),
    "headphone": ("earphones",),
    "helicopter": ("chopper",),
    "high-heeled shoe": ("high heel",),
    "honey pot": ("jar of honey",),
    "hot beverage": ("cup of coffee",),
    "hot pepper": ("chili pepper",),
    "hourglass done": ("sand timer",),
    "jack-o-lantern": ("pumpkin", "carved pumpkin"),
    "jeans": ("pants",),
    "kitchen knife": ("knife",),
    "koala": ("koala bear",),
    "ladder": ("stepladder",),
    "lady beetle": ("ladybug",),
    "laptop": ("laptop computer",),
    "light bulb": ("lightbulb",),
    "locked": ("lock",),
    "locomotive": ("steam train", "steam engine"),
    "magnet": ("horseshoe magnet",),
    "magnifying glass tilted left": ("magnifier",),
    "megaphone": ("bullhorn",),
    "mirror": ("looking glass",),
    "mobile phone": ("smartphone", "cell phone"),
    "money bag": ("bag of money",),
    "motorcycle": ("motorbike",),
    "musical note": ("music note",),
    "necktie": ("tie",),
    "package": ("cardboard box",),
    "palm tree": ("palm",),
    "panda": ("panda bear",),
    "parrot": ("macaw",),
    "partying face": ("party face",),
    "party popper": ("confetti popper",),
    "pie": ("slice of pie",),
    "pig face": ("piglet",),
    "pile of poo": ("pile of poop",),
    "pill": ("capsule",),
    "ping pong": ("table tennis paddle",),
    "pizza": ("slice of pizza",),
    "police car": ("cop car", "patrol car"),
    "pool 8 ball": ("billiard ball", "eight ball"),
    "potato": ("spud",),
    "potted plant": ("houseplant",),
    "poultry leg": ("chicken leg",),
    "puzzle piece": ("jigsaw piece",),
    "rhinoceros": ("rhino",),
    "rice ball": ("onigiri",),
    "ring": ("diamond ring", "engagement ring"),
    "ring buoy": ("lifebuoy", "life ring"),
    "rocket": ("spaceship", "rocket ship"),
    "roller coaster": ("rollercoaster",),
    "running shoe": ("sports shoe",),
    "ship": ("cruise ship", "ocean liner"),
    "shooting star": ("falling star",),
    "shopping cart": ("grocery cart",),
    "shortcake": ("slice of cake",),
    "shrimp": ("prawn",),
    "sleeping face": ("snoring face",),
    "smiling face with halo": ("angel face",),
    "smiling face with horns": ("devil face",),
    "smiling face with sunglasses": ("cool face",),
    "snow-capped mountain": ("snowy mountain", "mountain peak"),
    "socks": ("pair of socks",),
    "soft ice cream": ("ice cream cone",),
    "spider": ("tarantula",),
    "spider web": ("cobweb",),
    "sun with face": ("smiling sun",),
    "sunglasses": ("dark glasses",),
    "t-shirt": ("tee shirt",),
    "tangerine": ("mandarin", "clementine"),
    "taxi": ("taxicab",),
    "telephone": ("landline phone",),
    "television": ("telly", "television set"),
    "toilet": ("lavatory",),
    "tooth": ("molar",),
    "trophy": ("trophy cup",),
    "umbrella": ("parasol",),
    "video game": ("game controller", "gamepad"),
    "watch": ("wristwatch",),
    "water pistol": ("squirt gun", "water gun"),
    "water wave": ("ocean wave", "sea wave"),
    "wine glass": ("glass of wine",),
    "wrapped gift": ("gift box",),
    "yarn": ("ball of wool",),
    "zipper-mouth face": ("zipped mouth face",),
}
"""Further nouns by the name of the emoji, for what the keywords leave out."""

MASS = frozenset(
    listed(
        """
    bacon; bowling; bread; broccoli; bubble tea; butter; dna; falafel; fondue; french bread; garlic; ginger
    root; heartbreak; lacrosse; luggage; maize; milk; mount fuji; mrs. claus; nail polish; oden; pasta;
    popcorn; sake; santa claus; saturn; soap; softball; spaghetti; sushi; thread; tokyo tower; wood
    """
    )
)
"""Singular names without an article."""
PLURALS = frozenset(
    listed(
        """
    admission tickets; ballet shoes; beans; blueberries; bookmark tabs; books; bubbles; chains; cherries;
    chips; chopsticks; clapping hands; crossed swords; dark glasses; earphones; eyeglasses; film frames;
    fireworks; flower playing cards; folded hands; french fries; fries; glasses; gloves; grapes; headphones;
    houses; jeans; lungs; maracas; mittens; nesting dolls; pancakes; pants; peanuts; people with bunny ears;
    pinched fingers; prayer beads; raising hands; scissors; shades; shorts; skis; socks; spectacles;
    sunglasses; thumbs down; trousers; woman's clothes; women wrestling
    """
    )
)
DEFINITE = frozenset({"milky way", "statue of liberty"})
"""What there is one of, with the definite article."""
CONSONANTAL = ("uni", "uf", "one", "eu", "ew", "ut")
"""Beginnings that are written with a vowel and said with a consonant."""


@dataclass(frozen=True, kw_only=True)
class Noun:
    """A name with the indefinite article and whether it is plural."""

    name: str
    a: str
    plural: bool


@cache
def make_noun(name: str) -> Noun:
    """The name with its article."""
    if name in PLURALS:
        return Noun(name=name, a=name, plural=True)
    if name in MASS:
        return Noun(name=name, a=name, plural=False)
    if name in DEFINITE:
        return Noun(name=name, a=f"the {name}", plural=False)
    vowel = name.startswith(("a", "e", "i", "o", "u", "x-")) and not name.startswith(CONSONANTAL)
    return Noun(name=name, a=f"an {name}" if vowel else f"a {name}", plural=False)
