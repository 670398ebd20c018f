"""Judges by source: every kind of encoder is found from its folder and gives what transformers gives."""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from tiny_judges import (
    GREY,
    PREPROCESSOR,
    TEXTS,
    TINY,
    images,
    pixels,
    read_tokenizer,
    save_clip,
    text_config,
    write_preprocessor,
)
from torch import Tensor

from dekag.evaluation.generation import Drawn, score_generation
from dekag.evaluation.judges import ClipJudge, JudgeSizeWarning, load_clip, load_dino, load_judge
from dekag.evaluation.preprocessing import Preprocessing, load_preprocessing
from dekag.types import InputError

ViT = {name: value for name, value in TINY.items() if name != "intermediate_size"}
STAGES = {"num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1]}
SWIN = {
    "embed_dim": 8,
    "depths": [1, 1],
    "num_heads": [1, 2],
    "window_size": 2,
    "image_size": 16,
    "patch_size": 4,
}
TOKEN = "class token behind the final norm"
MEAN = "mean over patches behind the final norm"
OWN = "the model's own pooling"
ENCODERS: dict[str, tuple[dict[str, Any], str, Callable[[Any], Tensor]]] = {
    "ViT": (TINY, TOKEN, lambda out: out.last_hidden_state[:, 0]),
    "DeiT": (TINY, TOKEN, lambda out: out.last_hidden_state[:, 0]),
    "Dinov2": (ViT, TOKEN, lambda out: out.last_hidden_state[:, 0]),
    "Dinov2WithRegisters": (ViT, TOKEN, lambda out: out.last_hidden_state[:, 0]),
    "ConvNext": (STAGES, MEAN, lambda out: out.pooler_output),
    "ResNet": (
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
        MEAN,
        lambda out: out.last_hidden_state.mean((2, 3)),
    ),
    "Swin": (SWIN, MEAN, lambda out: out.last_hidden_state.mean(1)),
    "CLIPVision": (TINY, OWN, lambda out: out.pooler_output),
    "SiglipVision": (TINY, OWN, lambda out: out.pooler_output),
}


def save_encoder(kind: str, folder: Path) -> Any:
    """A random model of a kind in a folder, with its preprocessing."""
    config = getattr(transformers, f"{kind}Config")(**ENCODERS[kind][0])
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(config)
    model.save_pretrained(folder)
    write_preprocessor(folder, PREPROCESSOR)
    return model.eval()


@pytest.mark.parametrize("kind", list(ENCODERS))
def test_an_encoder_of_images_is_found_from_its_folder(kind: str, tmp_path: Path) -> None:
    """The features are read by hand from the same model."""
    model = save_encoder(kind, tmp_path)
    judge = load_judge(tmp_path, name="mine")
    with torch.no_grad():
        expected = F.normalize(ENCODERS[kind][2](model(pixels(images()))).flatten(1), dim=1)
    torch.testing.assert_close(judge(images()), expected, atol=1e-6, rtol=1e-5)
    assert (judge.name, judge.readout, judge.input_size) == ("mine", ENCODERS[kind][1], (16, 16))
    assert not isinstance(judge, ClipJudge)


def test_convnext_has_its_final_norm_behind_the_mean(tmp_path: Path) -> None:
    model = save_encoder("ConvNext", tmp_path)
    with torch.no_grad():
        maps = model(pixels(images())).last_hidden_state
        expected = F.normalize(model.layernorm(maps.mean((2, 3))), dim=1)
    torch.testing.assert_close(load_judge(tmp_path)(images()), expected, atol=1e-6, rtol=1e-5)


def save_siglip(folder: Path) -> Any:
    tokenizer = read_tokenizer(folder, length=10)
    text = {**text_config(tokenizer, length=10), "projection_size": 16}
    torch.manual_seed(0)
    config = transformers.SiglipConfig(text_config=text, vision_config=TINY)
    model = transformers.SiglipModel(config)
    model.save_pretrained(folder)
    write_preprocessor(folder, PREPROCESSOR)
    return model.eval(), tokenizer


def test_a_clip_reads(tmp_path: Path) -> None:
    judge = load_judge(save_clip(tmp_path))
    assert isinstance(judge, ClipJudge)
    model = transformers.CLIPModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = model.visual_projection(model.vision_model(pixels(images())).pooler_output)
    torch.testing.assert_close(judge(images()), F.normalize(expected, dim=1), atol=1e-6, rtol=1e-5)
    assert judge.read(TEXTS).shape == (3, 8)
    assert (judge.readout, judge.name) == (
        "embedding in the space that images and texts share",
        str(tmp_path),
    )


def test_a_siglip_reads_texts_filled_up_to_the_length_of_its_training(tmp_path: Path) -> None:
    """SigLIP was trained without a mask, so that the filling takes part (Zhai et al. 2023)."""
    model, tokenizer = save_siglip(tmp_path)
    judge = load_judge(tmp_path)
    assert isinstance(judge, ClipJudge)
    ids = tokenizer(
        TEXTS, padding="max_length", truncation=True, max_length=10, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        seen, read = model.vision_model(pixels(images())), model.text_model(input_ids=ids)
    torch.testing.assert_close(judge(images()), F.normalize(seen.pooler_output, dim=1), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        judge.read(TEXTS), F.normalize(read.pooler_output, dim=1), atol=1e-6, rtol=1e-5
    )


def test_the_imagenet_judge_goes_by_its_name() -> None:
    judge = load_judge("efficientnet-lite0", name="third")
    assert (judge.name, judge.input_size) == ("third", (224, 224))


def test_a_hub_id_goes_through_the_hubs_client_and_is_one_line_without_a_network() -> None:
    with pytest.raises(
        InputError, match=r"^some/judge is neither a folder nor in the hub's cache: .*huggingface"
    ) as caught:
        load_judge("some/judge")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_hub_id_that_the_hubs_client_has_in_its_cache_is_a_judge(tmp_path: Path) -> None:
    """In a process of its own, as the client looks for its cache when it is imported."""
    snapshot = tmp_path / "models--some--judge" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    save_encoder("Dinov2", snapshot)
    (tmp_path / "models--some--judge" / "refs").mkdir()
    (tmp_path / "models--some--judge" / "refs" / "main").write_text("0" * 40)
    code = (
        "from dekag.evaluation import load_judge; j = load_judge('some/judge'); print(j.name, j.input_size)"
    )
    given = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=given, capture_output=True, text=True, check=True
    )
    assert ended.stdout.splitlines()[-1] == "some/judge (16, 16)"


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no folder .*none$"):
        load_judge(tmp_path / "none")
    with pytest.raises(InputError, match="is neither a folder nor in the hub's cache: Repo id must be"):
        load_judge(str(tmp_path / "none"))


def test_code_of_a_models_own_is_never_run(tmp_path: Path) -> None:
    """The folder's module would leave a file behind if it were imported."""
    save_encoder("ViT", tmp_path)
    given = json.loads((tmp_path / "config.json").read_text())
    given["auto_map"] = {"AutoConfig": "own.Config", "AutoModel": "own.Model"}
    (tmp_path / "config.json").write_text(json.dumps(given))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(
        InputError, match=r"brings code of its own \(auto_map in its config.json\), which is never run"
    ):
        load_judge(tmp_path)
    given["model_type"] = "unheard-of"
    (tmp_path / "config.json").write_text(json.dumps(given))
    with pytest.raises(InputError, match="brings code of its own"):
        load_judge(tmp_path)
    assert not (tmp_path / "ran").exists()


class _Harm:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


def test_pickled_weights_are_read_as_weights_alone(tmp_path: Path) -> None:
    model = save_encoder("ViT", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert load_judge(tmp_path)(images()).shape == (5, 16)
    torch.save({"harm": _Harm(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="is no model folder that can be read") as caught:
        load_judge(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def spoil_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\0" * 64)


def spoil_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def lose_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def change_sizes(folder: Path) -> None:
    given = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**given, "hidden_size": 24}))


def change_types(folder: Path) -> None:
    given = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**given, "hidden_size": "many"}))


def name_no_model(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "unheard-of"}))


def lose_preprocessor(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()


def prepare_other_pixels(folder: Path) -> None:
    write_preprocessor(folder, {**PREPROCESSOR, "size": {"height": 24, "width": 24}})


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_weights,
        spoil_config,
        lose_config,
        change_sizes,
        change_types,
        name_no_model,
        lose_preprocessor,
        prepare_other_pixels,
    ],
)
def test_a_damaged_folder_is_one_clear_line(spoil: Callable[[Path], None], tmp_path: Path) -> None:
    save_encoder("ViT", tmp_path)
    spoil(tmp_path)
    with pytest.raises(InputError) as caught:
        load_judge(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_image_encoder_is_refused(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.BertModel(transformers.BertConfig(vocab_size=20, **sizes)).save_pretrained(tmp_path)
    write_preprocessor(tmp_path, PREPROCESSOR)
    with pytest.raises(InputError, match="is a bert model, which is no image encoder"):
        load_judge(tmp_path)
    with pytest.raises(InputError, match="is a bert model, which does not read texts as CLIP does"):
        load_clip(tmp_path)


def test_an_encoder_that_hides_patches_at_random_cannot_judge(tmp_path: Path) -> None:
    sizes = {
        **TINY,
        "image_size": 48,
        "decoder_hidden_size": 8,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 1,
    }
    torch.manual_seed(0)
    transformers.ViTMAEModel(transformers.ViTMAEConfig(**sizes)).save_pretrained(tmp_path)
    write_preprocessor(tmp_path, {**PREPROCESSOR, "size": {"height": 48, "width": 48}})
    with pytest.raises(InputError, match="no features that depend on the picture alone"):
        load_judge(tmp_path)


def test_pictures_larger_than_a_judge_sees_are_a_warning_once_a_size(tmp_path: Path) -> None:
    save_encoder("Dinov2", tmp_path)
    judge = load_judge(tmp_path, name="tiny")
    text = r"^16 x 16 pixels is all that judge tiny sees; pictures of 40 x 40 are made smaller$"
    with pytest.warns(JudgeSizeWarning, match=text):
        judge(images(size=40))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        judge(images(size=40))
        judge(images(size=16))
        judge(images(size=9))
    with pytest.warns(JudgeSizeWarning, match="pictures of 17 x 17 are"):
        judge(images(size=17))
    with pytest.warns(JudgeSizeWarning, match="pictures of 40 x 40 are"):
        load_judge(tmp_path)(images(size=40))


@pytest.mark.parametrize(
    ("resize", "crop", "seen", "fits", "larger"),
    [
        (256, (224, 224), (224, 224), 256, 257),
        (64, None, (64, 64), 64, 65),
        ((48, 32), None, (48, 32), 32, 33),
    ],
)
def test_what_a_judge_sees_is_what_its_preprocessing_leaves(
    resize: Any, crop: Any, seen: tuple[int, int], fits: int, larger: int
) -> None:
    steps = Preprocessing(resize=resize, crop=crop, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert steps.input_size == seen
    assert min(steps.resized(fits, fits)) >= fits
    assert min(steps.resized(larger, larger)) < larger


@pytest.mark.parametrize(
    ("edge", "expected"),
    [(224, {"resize": 256, "crop": (224, 224)}), (384, {"resize": (384, 384), "crop": None})],
)
def test_convnexts_share_of_the_picture_is_cut_out(
    edge: int, expected: dict[str, Any], tmp_path: Path
) -> None:
    theirs = transformers.ConvNextImageProcessorPil(
        size={"shortest_edge": edge}, crop_pct=0.875, resample=3, **GREY
    )
    theirs.save_pretrained(tmp_path)
    colours = {"mean": tuple(GREY["image_mean"]), "std": tuple(GREY["image_std"])}
    assert load_preprocessing(tmp_path) == Preprocessing(resample="bicubic", **expected, **colours)


def test_another_scale_of_colours_is_refused(tmp_path: Path) -> None:
    write_preprocessor(tmp_path, {**PREPROCESSOR, "rescale_factor": 1 / 127.5})
    with pytest.raises(InputError, match=r"rescale_factor must be 1/255, got 0\.0078"):
        load_preprocessing(tmp_path)


def test_a_judge_of_any_name_scores_without_a_ceiling(tmp_path: Path) -> None:
    """What needs a second drawing of the cloud is absent; the rest is as with one."""
    save_encoder("Swin", tmp_path)
    judge = load_dino(tmp_path)
    rng = torch.Generator().manual_seed(4)
    cloud, plain, ours, again = (torch.rand(6, 3, 16, 16, generator=rng) for _ in range(4))
    prompts = torch.arange(3).repeat_interleave(2)
    methods = {"no_ka": [plain], "makd": [0.5 * ours + 0.5 * cloud], "lora": [ours]}
    alone = score_generation(Drawn(prompts=prompts, cloud=cloud, by_method=methods), {"style": judge})
    again = 0.9 * cloud + 0.1 * again
    whole = score_generation(
        Drawn(prompts=prompts, cloud=cloud, ceiling=again, by_method=methods), {"style": judge}
    )
    assert alone.consistency.keys() == {"no_ka", "makd", "lora", "floor"}
    assert whole.consistency.keys() == {"no_ka", "makd", "lora", "ceiling", "floor"}
    assert alone.consistency == {method: v for method, v in whole.consistency.items() if method != "ceiling"}
    assert alone.gain_percent == whole.gain_percent
    assert (alone.gap_closed, alone.by_judge, alone.by_training_seed, alone.lead) == ({}, {}, {}, {})
    assert whole.gap_closed.keys() == {"makd", "lora"}
    assert whole.lead.keys() == {"lora"}


def test_several_judges_of_any_names_count_alike_unless_some_lead(tmp_path: Path) -> None:
    judges = {}
    for kind in ("Swin", "ViT"):
        save_encoder(kind, tmp_path / kind)
        judges[kind] = load_judge(tmp_path / kind)
    rng = torch.Generator().manual_seed(4)
    cloud, plain, ours = (torch.rand(6, 3, 16, 16, generator=rng) for _ in range(3))
    drawn = Drawn(
        prompts=torch.arange(3).repeat_interleave(2),
        cloud=cloud,
        by_method={"no_ka": [plain], "makd": [ours]},
    )
    means = score_generation(drawn, judges).consistency
    before, after = (sum(m.mean for m in means[method].values()) for method in ("no_ka", "makd"))
    gain = score_generation(drawn, judges).gain_percent["makd"].mean
    assert gain == pytest.approx(100 * (after / before - 1), rel=1e-4)
    one = score_generation(drawn, judges, leading=["ViT"]).gain_percent["makd"].mean
    assert one == pytest.approx(100 * (means["makd"]["ViT"].mean / means["no_ka"]["ViT"].mean - 1), rel=1e-4)
    with pytest.raises(InputError, match="the judges are Swin, ViT, but clip must lead"):
        score_generation(drawn, judges, leading=["clip"])
