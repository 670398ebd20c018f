"""The judges: `mini-clip`, which reads and sees, and `mini-dino`, which only sees.

Both learn from real art of every core concept, never from what a generator draws, and are never part of a loss of
what they judge. Held-out and validation compositions are kept from the training of both, the held-out wordings from
that of mini-clip.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, CLIPVisionConfig, ViTConfig, ViTModel

from dekag.evaluation.judges import ClipJudge, Judge

from .grammar import COLOURS, PAIR_PLACES, PLACES, TRAINED_PATTERNS, Scene, Thing, caption
from .loop import write_json
from .pictures import ART, Art, backgrounds, draw, layout, paste
from .splits import HELD_OUT_COMPOSITIONS, SEEN_COMPOSITIONS
from .tokenizer import ATTENTION, forget_padding, text_config, tokenize

STYLES = {"fluent3d": "a glossy 3d icon of ", "noto": "a flat icon of ", "twemoji": "a flat simple icon of "}
STYLED = 0.25
"""Share of the captions that begin with the style, as captions on the web do."""
SAME_COMPOSITION = 0.7
"""Share of mini-clip's batches whose pictures share background and place, so that only the concept tells."""
PAIRS = 0.1
JITTER = 1 / 32
"""Most that mini-dino's drawings are off their place, a share of the canvas: a quarter of the step between places."""
PROTOTYPE_SCALE = 20.0
VISION: dict[str, Any] = {
    "hidden_size": 160,
    "intermediate_size": 480,
    "num_hidden_layers": 4,
    "num_attention_heads": 5,
    "patch_size": 8,
}
TEXT_WIDTH, TEXT_LAYERS = 128, 2
PROTOTYPES = 1024
TEACHER_TEMPERATURE, STUDENT_TEMPERATURE = 0.06, 0.1
TEACHER_DECAY = 0.99
TOLD_APART, APART_TEMPERATURE = 1.0, 0.2
"""Weight and temperature of telling the features of a batch's drawings apart."""
INSIDE = 64
"""Side at which judges see, in pixels; larger pictures are resized by their preprocessing."""


def preprocessing(size: int = INSIDE) -> dict[str, object]:
    """What stands in a judge's preprocessor_config.json."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_center_crop": False,
        "size": {"height": size, "width": size},
        "resample": 3,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


def save_judge(model: CLIPModel | ViTModel, tokenizer: CLIPTokenizer | None, folder: Path) -> None:
    """Write a judge as `dekag.evaluation.judges` reads it."""
    model.save_pretrained(folder)
    if tokenizer is not None:
        forget_padding(tokenizer)
        tokenizer.save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", preprocessing())


def normalise(images: Tensor) -> Tensor:
    """[0, 1] to [-1, 1]."""
    return images * 2 - 1


def zoomed(images: Tensor, size: int, least: float, rng: torch.Generator) -> Tensor:
    """Random square crops, resized; the crop's side is a share in [least, 1] of the picture's."""
    batch, device = len(images), images.device
    side = least + (1 - least) * torch.rand(batch, generator=rng, device=device)
    shift = (1 - side)[:, None] * (2 * torch.rand(batch, 2, generator=rng, device=device) - 1)
    theta = torch.zeros(batch, 2, 3, device=device)
    theta[:, 0, 0] = theta[:, 1, 1] = side
    theta[:, :, 2] = shift
    grid = F.affine_grid(theta, [batch, 3, size, size], align_corners=False)
    return F.grid_sample(images, grid, align_corners=False, padding_mode="border")


def clip_model(tokenizer: CLIPTokenizer) -> CLIPModel:
    """A small CLIP (Radford et al. 2021) with fresh weights."""
    torch.manual_seed(3)
    config = CLIPConfig(
        text_config=text_config(tokenizer, TEXT_WIDTH, TEXT_LAYERS).to_dict(),
        vision_config=CLIPVisionConfig(**VISION, image_size=INSIDE, projection_dim=128).to_dict(),
        projection_dim=128,
    )
    model = CLIPModel(config)
    model.set_attn_implementation(ATTENTION)
    nn.init.normal_(model.text_model.get_input_embeddings().weight, std=0.1)
    return model


def clip_scenes(things: Sequence[Thing], batch: int, rng: Random) -> list[Scene]:
    """Scenes of different things, so that no negative is a positive."""
    drawn = iter(rng.sample(range(len(things)), len(things)))
    same = rng.choice(SEEN_COMPOSITIONS) if rng.random() < SAME_COMPOSITION else None
    found: list[Scene] = []
    while len(found) < batch:
        colour, place = same or rng.choice(SEEN_COMPOSITIONS)
        first = next(drawn, None)
        if first is None:
            break
        group: tuple[Thing, ...] = (things[first],)
        if place in PAIR_PLACES and rng.random() < PAIRS and (second := next(drawn, None)) is not None:
            group = (things[first], things[second])
        found.append(Scene(things=group, colour=colour, place=place))
    return found


class ClipStudent(nn.Module):
    """mini-clip and one prototype for each thing in the space that pictures and captions share.

    Contrast alone finds nothing for its first hundreds of steps, since either side waits for the other; with
    prototypes each learns by itself which thing it is about, among all things. They are no part of the judge.
    """

    def __init__(self, clip: CLIPModel, things: int) -> None:
        super().__init__()
        self.clip = clip
        self.prototypes = nn.Parameter(torch.randn(things, clip.text_projection.out_features))

    def about(self, embeddings: Tensor, target: Tensor) -> Tensor:
        """Cross entropy of what embeddings [batch, width] are about; target [batch, things], rows of sum 1."""
        logits = PROTOTYPE_SCALE * embeddings.float() @ F.normalize(self.prototypes, dim=1).T
        return F.cross_entropy(logits, target)


def clip_student(tokenizer: CLIPTokenizer, things: int) -> ClipStudent:
    return ClipStudent(clip_model(tokenizer), things)


def clip_loss(
    student: ClipStudent, tokenizer: CLIPTokenizer, things: Sequence[Thing], art: Art, batch: int
) -> Callable[[torch.Generator], Tensor]:
    """Symmetric cross entropy of pictures and captions over a batch, and of either with the prototypes.

    `art` holds the things in each hand of ART, one hand after the other.
    """
    index = {thing.id: i for i, thing in enumerate(things)}

    def loss(rng: torch.Generator) -> Tensor:
        device = art.large.device
        own = Random(rng.initial_seed())
        scenes = clip_scenes(things, batch, own)
        hands = [own.randrange(len(ART)) for _ in scenes]
        shown = [[index[thing.id] for thing in scene.things] for scene in scenes]
        rows = [
            [hand * len(things) + i for i in own_things]
            for own_things, hand in zip(shown, hands, strict=True)
        ]
        images = augmented(draw(art, layout(scenes, rows, art.size).to(device)), rng)
        texts = [styled(scene, ART[hand], own) for scene, hand in zip(scenes, hands, strict=True)]
        out = student.clip(input_ids=tokenize(tokenizer, texts).to(device), pixel_values=normalise(images))
        labels = torch.arange(len(scenes), device=device)
        logits = out.logits_per_image.float()
        contrast = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
        target = torch.zeros(len(scenes), len(things), device=device)
        for row, own_things in zip(target, shown, strict=True):
            row[own_things] = 1 / len(own_things)
        return contrast + student.about(out.image_embeds, target) + student.about(out.text_embeds, target)

    return loss


def styled(scene: Scene, hand: str, rng: Random) -> str:
    """A caption of a pattern that judges may read, sometimes with the style named."""
    text = caption(scene, seed=rng.randrange(2**40), patterns=TRAINED_PATTERNS)
    if rng.random() >= STYLED:
        return text
    plain = caption(scene, seed=rng.randrange(2**40), patterns=("statement",), plain=True)
    return STYLES[hand] + plain.removeprefix("an ").removeprefix("a ")


def augmented(images: Tensor, rng: torch.Generator) -> Tensor:
    """As INSIDE sees them, a quarter of them blurred, all with some noise: pictures that are drawn are not exact."""
    device = images.device
    if images.shape[-1] != INSIDE:
        images = F.interpolate(images, (INSIDE, INSIDE), mode="bicubic", antialias=True).clamp(0, 1)
    half = F.interpolate(images, scale_factor=0.5, mode="area")
    soft = F.interpolate(half, (INSIDE, INSIDE), mode="bilinear", align_corners=False)
    blurred = torch.rand(len(images), 1, 1, 1, generator=rng, device=device) < 0.25
    level = 0.04 * torch.rand(len(images), 1, 1, 1, generator=rng, device=device)
    return torch.where(blurred, soft, images) + level * torch.randn(
        images.shape, generator=rng, device=device
    )


class Student(nn.Module):
    """A ViT, a projection onto prototypes, and its own moving average, the teacher (Caron et al. 2021)."""

    def __init__(self, *, teacher: bool = True) -> None:
        super().__init__()
        width = int(VISION["hidden_size"])
        self.vit = ViTModel(ViTConfig(**VISION, image_size=INSIDE), add_pooling_layer=False)
        self.vit.set_attn_implementation(ATTENTION)
        self.head = nn.Sequential(nn.Linear(width, 320), nn.GELU(), nn.Linear(320, 96))
        self.prototypes = nn.Linear(96, PROTOTYPES, bias=False)
        if teacher:
            self.teacher = Student(teacher=False).requires_grad_(False)
            self.teacher.load_state_dict(self.state_dict(), strict=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features [batch, width] and scores [batch, prototypes] in [-1, 1]."""
        features = self.vit(normalise(images), interpolate_pos_encoding=True).last_hidden_state[:, 0]
        unit = F.normalize(self.head(features).float(), dim=1)
        return features.float(), unit @ F.normalize(self.prototypes.weight, dim=1).T

    @torch.no_grad()
    def advance_teacher(self) -> None:
        own = dict(self.named_parameters())
        for name, slow in self.teacher.named_parameters():
            slow.lerp_(own[name], 1 - TEACHER_DECAY)


def dino_model() -> Student:
    torch.manual_seed(4)
    return Student()


@torch.no_grad()
def balanced(scores: Tensor) -> Tensor:
    """Sinkhorn-Knopp: assignments of the batch that use all prototypes alike (Caron et al. 2020)."""
    weights = torch.exp(scores.float() / TEACHER_TEMPERATURE)
    for _ in range(3):
        weights = weights / weights.sum(0, keepdim=True)
        weights = weights / weights.sum(1, keepdim=True)
    return weights


def told_apart(features: Tensor, seen: Tensor) -> Tensor:
    """Cross entropy of which of the teacher's features is of the same drawing (He et al. 2020, InfoNCE).

    What is reported are cosines of features, so these have to agree themselves, whatever the background.
    """
    cosines = F.normalize(features, dim=1) @ F.normalize(seen, dim=1).T
    return F.cross_entropy(cosines / APART_TEMPERATURE, torch.arange(len(cosines), device=cosines.device))


def dino_loss(student: Student, art: Art, batch: int) -> Callable[[torch.Generator], Tensor]:
    """Agreement of a whole and two partial views with the teacher's view of the same drawing, each on a background
    and at a place of its own. The teacher is advanced from the student before each loss."""

    def loss(rng: torch.Generator) -> Tensor:
        student.advance_teacher()
        which = torch.randperm(len(art.large), generator=rng, device=art.large.device)[:batch]
        drawings = art.large[which]
        with torch.no_grad():
            seen, scores = student.teacher(view(drawings, art.size, 64, 0.75, rng))
            target = balanced(scores)
        features, scores = student(view(drawings, art.size, 64, 0.75, rng))
        views = [scores, *(student(view(drawings, art.size, 32, 0.6, rng))[1] for _ in range(2))]
        agreement = sum(-(target * F.log_softmax(s / STUDENT_TEMPERATURE, 1)).sum(1).mean() for s in views)
        return agreement / len(views) + TOLD_APART * told_apart(features, seen)

    return loss


def view(drawings: Tensor, size: int, seen: int, least: float, rng: torch.Generator) -> Tensor:
    """Drawings in seen compositions, up to JITTER off their places, cropped, in slightly other colours."""
    batch, device = len(drawings), drawings.device
    colours, places = (part.to(device) for part in seen_compositions(size))
    which = torch.randint(len(colours), (batch,), generator=rng, device=device)
    off = round(JITTER * size)
    moved = torch.randint(-off, off + 1, (batch, 2), generator=rng, device=device)
    corners = (places[which] + moved).clamp(0, size - drawings.shape[-1])
    images = paste(backgrounds(colours[which], size), drawings, corners)
    gain = 1 + 0.15 * (2 * torch.rand(batch, 3, 1, 1, generator=rng, device=device) - 1)
    noise = 0.02 * torch.randn(batch, 3, seen, seen, generator=rng, device=device)
    return (zoomed(images, seen, least, rng) * gain + noise).clamp(0, 1)


def seen_compositions(size: int) -> tuple[Tensor, Tensor]:
    """The seen compositions' colours in [0, 1], [compositions, 3], and upper left corners in pixels."""
    colours = torch.tensor([COLOURS[colour] for colour, _ in SEEN_COMPOSITIONS]) / 255
    corners = torch.tensor([[size * cell // 8 for cell in PLACES[place]] for _, place in SEEN_COMPOSITIONS])
    return colours, corners


def pictures_of(things: Sequence[Thing], art: Art, hand: int, composition: tuple[str, str]) -> Tensor:
    """Every thing in one hand and one composition, [things, 3, size, size]."""
    scenes = [Scene(things=(thing,), colour=composition[0], place=composition[1]) for thing in things]
    rows = [[hand * len(things) + i] for i in range(len(things))]
    return draw(art, layout(scenes, rows, art.size).to(art.large.device))


@torch.no_grad()
def retrieval(
    clip: ClipJudge,
    things: Sequence[Thing],
    art: Art,
    compositions: Sequence[tuple[str, str]],
    pattern: str,
) -> Tensor:
    """1 where a real picture's own caption is the nearest of all things' captions in its composition, else 0.

    [hands * compositions, things]; a guess is right with probability 1 / things.
    """
    rows = []
    for composition in compositions:
        scenes = [Scene(things=(thing,), colour=composition[0], place=composition[1]) for thing in things]
        texts = clip.read([caption(s, seed=0, patterns=(pattern,), plain=True) for s in scenes])
        for hand in range(len(ART)):
            images = clip(pictures_of(things, art, hand, composition))
            nearest = (images.to(texts.device) @ texts.T).argmax(1).cpu()
            rows.append((nearest == torch.arange(len(things))).float())
    return torch.stack(rows)


@torch.no_grad()
def cosines(judge: Judge, things: Sequence[Thing], art: Art) -> dict[str, Tensor]:
    """Cosines of pairs of real pictures in held-out compositions.

    The pairs: one drawing on two backgrounds at two places, two concepts on one background, one concept in two
    hands on one background.
    """
    found: dict[str, list[Tensor]] = {"same_picture": [], "two_concepts": [], "two_hands": []}
    compositions = HELD_OUT_COMPOSITIONS[::4]
    for at, composition in enumerate(compositions):
        other = compositions[(at + 3) % len(compositions)]
        seen = [judge(pictures_of(things, art, hand, composition)) for hand in range(len(ART))]
        hand = at % len(ART)
        found["same_picture"].append((seen[hand] * judge(pictures_of(things, art, hand, other))).sum(1))
        found["two_concepts"].append((seen[hand] * seen[hand].roll(1, 0)).sum(1))
        found["two_hands"].append((seen[0] * seen[1]).sum(1))
    return {name: torch.stack(values) for name, values in found.items()}
