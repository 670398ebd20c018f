"""Train the judges: `python recipes/emoji/judges.py clip|dino --data DATA --runs RUNS`.

`mini-clip` learns pictures and captions of all three art sets against each other (Radford et al. 2021).
Half of its captions name the style, as captions on the web do. `mini-dino` sees no text: a student learns
to agree with its own moving average on other views of the same picture (Caron et al. 2021), with the
teacher's assignments balanced by Sinkhorn-Knopp and a spread term on the features (Oquab et al. 2023).
Judges see every concept of the core world; no judge is ever part of a loss of what it judges.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from progress import progress_bar
from text import cached_tokenizer, text_config, tokenize
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, CLIPVisionConfig, ViTConfig, ViTModel
from world import ART, COLOURS, COMPOSITIONS, CORE, World, caption, paste, render

from dekag.training.loop import Loss, TrainConfig, train

STYLES = {"fluent3d": "a glossy 3d icon of ", "noto": "a flat icon of ", "twemoji": "a flat simple icon of "}
VISION: dict[str, Any] = {
    "hidden_size": 160,
    "intermediate_size": 480,
    "num_hidden_layers": 4,
    "num_attention_heads": 5,
    "image_size": 64,
    "patch_size": 8,
}
PREPROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "do_center_crop": False,
    "size": {"height": 64, "width": 64},
    "resample": 3,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
SAME_COMPOSITION = 0.7
"""Share of CLIP's batches whose pictures share background and placement, so that only the concept tells."""
PROTOTYPES = 1024
TEACHER_TEMPERATURE, STUDENT_TEMPERATURE = 0.06, 0.1
TEACHER_DECAY = 0.99


def normalise(images: Tensor) -> Tensor:
    """[0, 1] to [-1, 1], as in PREPROCESSOR."""
    return images * 2 - 1


def zoomed(images: Tensor, size: int, least: float, rng: torch.Generator) -> Tensor:
    """Random square crops, resized; the crop's side is a share in [least, 1] of the picture's."""
    batch = len(images)
    side = least + (1 - least) * torch.rand(batch, generator=rng)
    shift = (1 - side)[:, None] * (2 * torch.rand(batch, 2, generator=rng) - 1)
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = side
    theta[:, :, 2] = shift
    grid = F.affine_grid(theta, [batch, 3, size, size], align_corners=False)
    return F.grid_sample(images, grid, align_corners=False, padding_mode="border")


def clip_model(tokenizer: CLIPTokenizer) -> CLIPModel:
    """A small CLIP with fresh weights."""
    torch.manual_seed(3)
    config = CLIPConfig(
        text_config=text_config(tokenizer, 128, 2).to_dict(),
        vision_config=CLIPVisionConfig(**VISION, projection_dim=128).to_dict(),
        projection_dim=128,
    )
    model = CLIPModel(config)
    nn.init.normal_(model.text_model.get_input_embeddings().weight, std=0.1)
    return model


def styled(text: str, art: str, rng: torch.Generator) -> str:
    """The caption, in half of the cases with the style named."""
    if torch.rand((), generator=rng) < 0.5:
        return text
    return STYLES[art] + text.removeprefix("an ").removeprefix("a ")


def clip_loss(model: CLIPModel, tokenizer: CLIPTokenizer, world: World, art: Tensor, batch: int) -> Loss:
    """Symmetric cross entropy over a batch of different concepts, so that no negative is a positive."""

    def loss(rng: torch.Generator) -> Tensor:
        concept = torch.randperm(art.shape[1], generator=rng)[:batch]
        source = torch.randint(len(ART), (batch,), generator=rng)
        drawn = torch.randint(len(COMPOSITIONS), (batch,), generator=rng)
        if torch.rand((), generator=rng) < SAME_COMPOSITION:
            drawn[:] = int(drawn[0])
        compositions = [COMPOSITIONS[i] for i in drawn]
        images = render(art[source, concept], compositions)
        images = images + 0.03 * torch.randn(images.shape, generator=rng)
        rows = zip(concept.tolist(), source.tolist(), compositions, strict=True)
        texts = [styled(caption(world.concepts[i], c), ART[s], rng) for i, s, c in rows]
        out = model(input_ids=tokenize(tokenizer, texts), pixel_values=normalise(images))
        labels = torch.arange(batch)
        return (
            F.cross_entropy(out.logits_per_image, labels) / 2
            + F.cross_entropy(out.logits_per_text, labels) / 2
        )

    return loss


class Student(nn.Module):
    """A ViT and a projection onto prototypes."""

    def __init__(self) -> None:
        super().__init__()
        width = VISION["hidden_size"]
        self.vit = ViTModel(ViTConfig(**VISION), add_pooling_layer=False)
        self.head = nn.Sequential(nn.Linear(width, 320), nn.GELU(), nn.Linear(320, 96))
        self.prototypes = nn.Linear(96, PROTOTYPES, bias=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features [batch, width] and scores [batch, prototypes] in [-1, 1]."""
        features = self.vit(normalise(images), interpolate_pos_encoding=True).last_hidden_state[:, 0]
        unit = F.normalize(self.head(features), dim=1)
        return features, unit @ F.normalize(self.prototypes.weight, dim=1).T


@torch.no_grad()
def balanced(scores: Tensor) -> Tensor:
    """Sinkhorn-Knopp: assignments of the batch that use all prototypes alike (Caron et al. 2020)."""
    weights = torch.exp(scores / TEACHER_TEMPERATURE)
    for _ in range(3):
        weights = weights / weights.sum(0, keepdim=True)
        weights = weights / weights.sum(1, keepdim=True)
    return weights


def koleo(features: Tensor) -> Tensor:
    """Kozachenko-Leonenko spread: minus log distance to the nearest other feature of the batch."""
    unit = F.normalize(features, dim=1)
    nearest = (unit @ unit.T - 2 * torch.eye(len(unit))).argmax(1)
    return -torch.log((unit - unit[nearest]).norm(dim=1) + 1e-4).mean()


def dino_loss(student: Student, art: Tensor, batch: int) -> Loss:
    """Agreement of one whole and two partial views with the teacher's view of the same picture.

    The teacher is advanced from the student at each draw, before its loss.
    """
    teacher = Student().requires_grad_(False)
    teacher.load_state_dict(student.state_dict())
    student.teacher = teacher

    def view(pictures: Tensor, size: int, least: float, rng: torch.Generator) -> Tensor:
        palette = torch.tensor(list(COLOURS.values())) / 255
        colours = palette[torch.randint(len(palette), (batch,), generator=rng)]
        corners = torch.randint(art.shape[-1] // 3 + 1, (batch, 2), generator=rng).tolist()
        images = zoomed(paste(pictures, colours, [(r, c) for r, c in corners]), size, least, rng)
        gain = 1 + 0.15 * (2 * torch.rand(batch, 3, 1, 1, generator=rng) - 1)
        return (images * gain).clamp(0, 1)

    def loss(rng: torch.Generator) -> Tensor:
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), student.parameters(), strict=False):
                slow.lerp_(fast, 1 - TEACHER_DECAY)
        flat = art.flatten(0, 1)
        pictures = flat[torch.randperm(len(flat), generator=rng)[:batch]]
        target = balanced(teacher(view(pictures, 64, 0.7, rng))[1])
        features, scores = student(view(pictures, 64, 0.7, rng))
        views = [scores] + [student(view(pictures, 32, 0.4, rng))[1] for _ in range(2)]
        agreement = sum(-(target * F.log_softmax(s / STUDENT_TEMPERATURE, 1)).sum(1).mean() for s in views)
        return agreement / len(views) + 0.1 * koleo(features)

    return loss


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=("clip", "dino"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    world = World(data=options.data, groups=None, names=CORE)
    art = torch.stack([world.art(name) for name in ART])
    folder = options.runs / f"mini-{options.name}"
    trained: nn.Module
    model: CLIPModel | ViTModel
    if options.name == "clip":
        tokenizer = cached_tokenizer(world.concepts, folder / "model")
        clip = clip_model(tokenizer)
        trained, model = clip, clip
        loss = clip_loss(clip, tokenizer, world, art, options.batch)
    else:
        torch.manual_seed(4)
        student = Student()
        trained, model = student, student.vit
        loss = dino_loss(student, art, options.batch)
    config = TrainConfig(
        steps=options.steps, learning_rate=1e-3, weight_decay=0.05, ema_decay=0.99, checkpoint_every=50
    )
    with progress_bar(options.name, every=20) as on_step:
        train(trained, loss, config, checkpoint=folder / "resume.pt", on_step=on_step)
    model.save_pretrained(folder / "model")
    (folder / "model" / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=2) + "\n")


if __name__ == "__main__":
    main()
