"""Strangers' models: single files, variants and damaged folders, as a pipeline or one line that names them."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines
import torch
from command_line import dekag
from safetensors.torch import load_file, save_file
from tiny_pipelines import CAPTIONS, PIXELS
from torch import Tensor

from dekag.bundle.sgm import sgm_path
from dekag.errors import FieldError
from dekag.generation.diffusers import Sampling, load_generator
from dekag.generation.loading import PipelineSource, variants
from dekag.types import InputError

SAMPLING = Sampling(steps=2, guidance=3.0)
NORMS = {"norm1": "in_layers.0", "norm2": "out_layers.0"}
VAE_BLOCKS = (
    (r"^(en|de)coder\.mid_block\.resnets\.(\d)", lambda m: f"{m[1]}coder.mid.block_{int(m[2]) + 1}"),
    (r"^(en|de)coder\.mid_block\.attentions\.0\.group_norm", lambda m: f"{m[1]}coder.mid.attn_1.norm"),
    (r"^(en|de)coder\.mid_block\.attentions\.0\.to_([qkv])", lambda m: f"{m[1]}coder.mid.attn_1.{m[2]}"),
    (r"^(en|de)coder\.mid_block\.attentions\.0\.to_out\.0", lambda m: f"{m[1]}coder.mid.attn_1.proj_out"),
    (r"^encoder\.down_blocks\.(\d)\.resnets", lambda m: f"encoder.down.{m[1]}.block"),
    (r"^encoder\.down_blocks\.(\d)\.downsamplers\.0", lambda m: f"encoder.down.{m[1]}.downsample"),
    (r"^decoder\.up_blocks\.(\d)\.resnets", lambda m: f"decoder.up.{1 - int(m[1])}.block"),
    (r"^decoder\.up_blocks\.(\d)\.upsamplers\.0", lambda m: f"decoder.up.{1 - int(m[1])}.upsample"),
    (r"conv_shortcut", lambda m: "nin_shortcut"),
    (r"conv_norm_out", lambda m: "norm_out"),
)
"""Names of the autoencoder's two-block parts in checkpoints."""


def two_layers() -> Any:
    """Stable Diffusion with the two resnets a block that every published one has."""
    pipeline = tiny_pipelines.stable_diffusion()
    config = {**tiny_pipelines.unet_config(tiny_pipelines.WIDTH), "layers_per_block": 2}
    pipeline.register_modules(unet=type(pipeline.unet)(**config))
    return pipeline


def unet_name(name: str) -> str:
    path, _, end = name.rpartition(".")
    if path == "conv_norm_out":
        return f"out.0.{end}"
    block, _, last = path.rpartition(".")
    if last in NORMS and ".resnets." in path:
        return (sgm_path(f"{block}.conv1") or "").replace("in_layers.2", NORMS[last]) + f".{end}"
    return f"{sgm_path(path)}.{end}"


def vae_name(name: str) -> str:
    for pattern, new in VAE_BLOCKS:
        name = re.sub(pattern, new, name)
    return name


def checkpoint(pipeline: Any) -> dict[str, Tensor]:
    """The weights of a pipeline under the names of a checkpoint in one file."""
    prefixes: dict[str, tuple[str, Callable[[str], str]]] = {
        "unet": ("model.diffusion_model.", unet_name),
        "vae": ("first_stage_model.", vae_name),
        "text_encoder": ("cond_stage_model.transformer.", lambda name: f"text_model.{name}"),
    }
    return {
        prefix + rename(name): tensor.contiguous()
        for part, (prefix, rename) in prefixes.items()
        for name, tensor in getattr(pipeline, part).state_dict().items()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("loading")
    tiny_pipelines.save(tiny_pipelines.build(two_layers), root / "edge")
    return root / "edge"


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "edge"))


def drawn(source: str | Path | PipelineSource) -> Tensor:
    edge = load_generator(source, sampling=SAMPLING, pixels=PIXELS)
    return edge(CAPTIONS[:2], seeds=[3, 4])


def refused(source: str | Path | PipelineSource) -> InputError:
    with pytest.raises(InputError) as told:
        load_generator(source)
    assert "\n" not in str(told.value)
    return told.value


@pytest.mark.slow
def test_a_single_file_draws_what_its_folder_draws(folder: Path, tmp_path: Path) -> None:
    """A checkpoint of the same weights, with the folder's configurations, read by diffusers' own loader."""
    file = tmp_path / "model.safetensors"
    save_file(checkpoint(tiny_pipelines.build(two_layers)), file)
    assert torch.equal(drawn(PipelineSource(source=file, pipeline_config=folder)), drawn(folder))


@pytest.mark.slow
def test_a_single_file_without_its_configuration_is_one_line(tmp_path: Path) -> None:
    """On a machine without a network and with an empty cache of the hub."""
    file = tmp_path / "model.safetensors"
    save_file(checkpoint(tiny_pipelines.build(two_layers)), file)
    (tmp_path / "prompts.txt").write_text("a tree\n")
    words = [
        "generate",
        "--model",
        file,
        "--prompts-file",
        tmp_path / "prompts.txt",
        "--out",
        tmp_path / "out",
    ]
    command = [sys.executable, "-m", "dekag", *map(str, words)]
    alone = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(command, env=alone, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("dekag: ")]
    assert f"{file} is a single file, and the configuration of its pipeline, stable-diffusion-v1-5/" in line
    assert "is not on this machine, nor can it be fetched; give a folder" in line
    assert line.endswith("as --pipeline-config")


def test_a_configuration_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"x": torch.ones(1)}, file)
    error = refused(PipelineSource(source=file, pipeline_config=tmp_path))
    assert isinstance(error, FieldError)
    assert f"{tmp_path}, is not there" in str(error)


@pytest.mark.parametrize(
    ("name", "text"),
    [("model.ckpt", "may hold code, so it is not read"), ("model.gguf", "is no model; give a folder")],
)
def test_other_files_are_not_read(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    assert text in str(refused(tmp_path / name))


@pytest.mark.parametrize("content", [b"", b"x" * 64, b"\x10" + b"\0" * 7 + b'{"a":1}          '])
def test_a_damaged_single_file_is_one_line_that_names_it(
    content: bytes, folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    assert f"{file} is no checkpoint of a pipeline" in str(
        refused(PipelineSource(source=file, pipeline_config=folder))
    )


def test_a_lora_is_no_model(folder: Path, tmp_path: Path) -> None:
    save_file({"lora_unet_conv_in.lora_down.weight": torch.ones(2, 4)}, tmp_path / "lora.safetensors")
    error = refused(PipelineSource(source=tmp_path / "lora.safetensors", pipeline_config=folder))
    assert "lora.safetensors is no checkpoint of a pipeline" in str(error)


def as_variant(folder: Path, *parts: str, variant: str = "fp16") -> None:
    for part in parts:
        for file in (folder / part).glob("*.safetensors"):
            file.rename(file.with_name(f"{file.stem}.{variant}.safetensors"))


PARTS = ("unet", "vae", "text_encoder")


@pytest.mark.parametrize("parts", [PARTS, ("unet",)])
def test_a_folder_of_a_variant_needs_its_name_and_then_draws_the_same(
    parts: tuple[str, ...], copy: Path, folder: Path
) -> None:
    as_variant(copy, *parts)
    assert variants(copy) == ["fp16"]
    assert variants(folder) == []
    error = refused(copy)
    assert str(error) == f"{copy} holds weights as fp16 only; give variant fp16"
    assert error.fields == ("variant",) if isinstance(error, FieldError) else False
    assert torch.equal(drawn(PipelineSource(source=copy, variant="fp16")), drawn(folder))


def test_shards_of_a_variant_are_seen(tmp_path: Path) -> None:
    for name in ("model.fp16-00001-of-00002", "other-00001-of-00002", "other.fp16-00001-of-00003"):
        (tmp_path / "unet").mkdir(exist_ok=True)
        (tmp_path / "unet" / f"{name}.safetensors").touch()
    assert variants(tmp_path) == ["fp16"]
    (tmp_path / "unet" / "model-00001-of-00003.safetensors").touch()
    assert variants(tmp_path) == []


def test_a_variant_that_is_not_there_is_one_line(copy: Path) -> None:
    assert "holds plain weights; leave it out" in str(refused(PipelineSource(source=copy, variant="fp16")))
    as_variant(copy, *PARTS, variant="bf16")
    assert "it holds bf16" in str(refused(PipelineSource(source=copy, variant="fp16")))


def test_what_is_not_of_the_source_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    assert "single file, which has no variant" in str(
        refused(PipelineSource(source=tmp_path / "model.safetensors", variant="fp16"))
    )
    assert "is no single file" in str(refused(PipelineSource(source=folder, pipeline_config=folder)))


def test_the_command_line_names_the_option_and_draws_with_it(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    as_variant(copy, "unet")
    (tmp_path / "prompts.txt").write_text("a tree\n")
    words = ["generate", "--prompts-file", tmp_path / "prompts.txt", "--out", tmp_path / "out", "--steps", 1]
    done = dekag(capsys, *words, "--model", copy)
    assert done.complaints == [f"dekag: {copy} holds weights as fp16 only; give --variant fp16"]
    done = dekag(capsys, *words, "--variant", "fp16")
    assert done.complaints == ["dekag: --variant is for a model that is given as --edge or --cloud"]
    assert not (tmp_path / "out").exists()
    assert dekag(capsys, *words, "--model", copy, "--variant", "fp16").code == 0
    assert (tmp_path / "out" / "0000_seed0.png").is_file()


def write_json(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


def cut(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def drop(folder: Path, part: str) -> None:
    shutil.rmtree(folder / part)


def null(folder: Path, part: str) -> None:
    write_json(folder / "model_index.json", lambda index: index | {part: [None, None]})


def narrow(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor[:1].clone() for name, tensor in load_file(file).items()}, file)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "an index of another class": lambda f: write_json(
        f / "model_index.json", lambda i: i | {"_class_name": "SecretPipeline"}
    ),
    "an index that is a list": lambda f: write_json(f / "model_index.json", lambda i: [i]),
    "an index that is no JSON": lambda f: (f / "model_index.json").write_bytes(b"\xff\xfe{") and None,
    "a part of an unknown class": lambda f: write_json(
        f / "model_index.json", lambda i: i | {"unet": ["diffusers", "SecretUNet"]}
    ),
    "a part of an unknown library": lambda f: write_json(
        f / "model_index.json", lambda i: i | {"unet": ["secret_library", "UNet2DConditionModel"]}
    ),
    "weights that are cut": cut,
    "weights of other shapes": narrow,
    "a configuration of another type": lambda f: write_json(
        f / "unet" / "config.json", lambda c: c | {"block_out_channels": "many"}
    ),
    "no U-Net": partial(drop, part="unet"),
    "no tokenizer": partial(drop, part="tokenizer"),
    "no scheduler": partial(drop, part="scheduler"),
    "a tokenizer without its words": lambda f: (f / "tokenizer" / "tokenizer.json").unlink(),
    "a null U-Net": partial(null, part="unet"),
    "a null text encoder": partial(null, part="text_encoder"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_folder_is_one_line_that_names_it(damage: str, copy: Path) -> None:
    DAMAGE[damage](copy)
    assert str(copy) in str(refused(copy))
