"""Folders for the Hugging Face hub: the card is one that the hub reads, and the weights are under diffusers' names."""

from pathlib import Path

import pytest
import tiny_pipelines
import torch
from command_line import dekag
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from dekag.alignment.generation.bundles import save_generation
from dekag.alignment.generation.update import GenerationUpdate
from dekag.bundle.bundle import Bundle, load_bundle
from dekag.bundle.card import Card
from dekag.bundle.export import export_bundle
from dekag.cli import app
from dekag.generation.diffusers import DiffusersGenerator, Sampling, load_generator
from dekag.generation.metaword import Metaword
from dekag.types import InputError
from dekag.wire.png import read_image

BASE = "stable-diffusion-v1-5/stable-diffusion-v1-5"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    tiny_pipelines.save(tiny_pipelines.build(tiny_pipelines.stable_diffusion), folder / "edge")
    return folder


@pytest.fixture(scope="module")
def edge(work: Path) -> DiffusersGenerator:
    return load_generator(work / "edge")


@pytest.fixture(scope="module")
def bundle(edge: DiffusersGenerator, work: Path) -> Bundle:
    layer = edge.denoiser.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.weight
    lora = {
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight": 0.1
        * torch.ones(2, layer.shape[1]),
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora_B.weight": torch.ones(len(layer), 2),
    }
    word = Metaword(token="<dekag>", vectors={"text_encoder": torch.ones(2, tiny_pipelines.WIDTH)})
    update = GenerationUpdate(metaword=word, adapter=lora, sampling=Sampling(steps=2, guidance=2.0))
    return save_generation(work / "bundle", edge, update, settings={})


def card_of(folder: Path) -> ModelCard:
    """The card as the hub's own library reads it; it refuses YAML that is none."""
    return ModelCard((folder / "README.md").read_text(), ignore_metadata_errors=False)


@pytest.mark.parametrize(
    ("licence", "said"),
    [("Apache-2.0", ("apache-2.0", None)), ("LicenseRef My Own", ("other", "licenseref-my-own"))],
)
def test_the_card_says_what_the_hub_asks_for(
    bundle: Bundle, edge: DiffusersGenerator, tmp_path: Path, licence: str, said: tuple[str, str | None]
) -> None:
    update = GenerationUpdate(adapter={k.removeprefix("unet."): t for k, t in bundle.lora().items()})
    other = save_generation(tmp_path / "b", edge, update, settings={}, licence=licence)
    export_bundle(other, tmp_path / "out", card=Card(base_model=BASE))
    data = card_of(tmp_path / "out").data.to_dict()
    assert data["base_model"] == BASE
    assert data["library_name"] == "diffusers"
    assert data["pipeline_tag"] == "text-to-image"
    assert {"lora", "diffusers", "text-to-image", "template:sd-lora"} <= set(data["tags"])
    assert (data["license"], data.get("license_name")) == said
    assert "instance_prompt" not in data
    assert "widget" not in data


def test_a_folder_of_the_command_has_pictures_and_replaces_an_earlier_one(
    bundle: Bundle, work: Path, tmp_path: Path
) -> None:
    """Two previews, drawn with the bundle; the same folder again, without pictures, replaces it whole."""
    out = tmp_path / "out"
    words = ["bundle", "export", str(work / "bundle"), "--out", str(out), "--hub", BASE]
    drawn = ["--edge", str(work / "edge"), "--prompt", "a tree", "--prompt", "a cat face", "--device", "cpu"]
    done = CliRunner().invoke(app, [*words, *drawn])
    assert done.exit_code == 0, done.output
    data = card_of(out).data.to_dict()
    assert data["instance_prompt"] == "<dekag>"
    assert [shown["text"] for shown in data["widget"]] == ["a tree <dekag>", "a cat face <dekag>"]
    pictures = [read_image(out / shown["output"]["url"]) for shown in data["widget"]]
    assert all(picture.shape == (1, 3, 16, 16) for picture in pictures)
    assert not torch.equal(*pictures)
    names = {"README.md", "images", "pytorch_lora_weights.safetensors", "learned_embeds.safetensors"}
    assert {path.name for path in out.iterdir()} == names
    text = card_of(out).text
    assert f'DiffusionPipeline.from_pretrained("{BASE}")' in text
    assert "BASE" not in text

    assert CliRunner().invoke(app, words).exit_code == 0
    assert {path.name for path in out.iterdir()} == names - {"images"}
    (out / "images").mkdir()
    (out / "images" / "mine.png").touch()
    with pytest.raises(InputError, match="is not an earlier export"):
        export_bundle(load_bundle(work / "bundle"), out, card=Card(base_model=BASE))


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--hub", "my model"], "names its base model as OWNER/NAME, got 'my model'"),
        (["--hub", BASE, "--to", "comfyui"], "in the layout diffusers, not comfyui"),
        (["--hub", BASE, "--edge", "emoji/edge"], "was made for base model"),
        (["--edge", "emoji/edge"], "--edge draws the previews of a model card; give --hub as well"),
        (["--hub", BASE, "--prompt", "a tree"], "--prompt is for previews, which --edge draws"),
        (
            ["--one-file"],
            "diffusers reads no metaword from the file of a LoRA; one file is for comfyui and a1111",
        ),
    ],
)
def test_what_cannot_be_a_folder_for_the_hub_is_one_line(
    bundle: Bundle, work: Path, tmp_path: Path, more: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    done = dekag(capsys, "bundle", "export", work / "bundle", "--out", tmp_path / "out", *more)
    assert done.code != 0
    assert len(done.complaints) == 1
    assert text in done.complaints[0]
    assert not (tmp_path / "out").exists()
