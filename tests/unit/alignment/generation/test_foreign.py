"""LoRA of other trainers: an edge draws with the bundle of it what diffusers draws with the file itself."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines
import torch
from command_line import dekag
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from peft import LoraConfig, get_peft_model_state_dict
from random_draws import seeded
from safetensors.torch import save_file
from tiny_pipelines import CAPTIONS, PIXELS
from torch import Tensor, nn

from dekag.alignment.generation.bundles import apply_generation, save_generation
from dekag.alignment.generation.foreign import read_lora
from dekag.alignment.generation.update import GenerationUpdate, remove_update
from dekag.bundle.bundle import load_bundle
from dekag.bundle.export import export_bundle
from dekag.bundle.sgm import plain_blocks, sgm_path
from dekag.generation.diffusers import DiffusersGenerator, Sampling, load_generator
from dekag.generation.metaword import Metaword
from dekag.types import InputError

PROMPTS, SEEDS = CAPTIONS[:2], [3, 4]
RANK, ALPHA = 4, 2.0
FAMILIES: dict[str, Callable[[], Any]] = {
    "sd15": tiny_pipelines.stable_diffusion,
    "sd21": lambda: linear(tiny_pipelines.stable_diffusion(prediction="v_prediction")),
    "sdxl": tiny_pipelines.stable_diffusion_xl,
}
pytestmark = [
    # schedulers of diffusers turn tensors into arrays the old way
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]


def linear(pipeline: Any) -> Any:
    """As SD 2.1, whose ways in and out of attention are linear layers."""
    config = {**tiny_pipelines.unet_config(tiny_pipelines.WIDTH), "use_linear_projection": True}
    pipeline.register_modules(unet=type(pipeline.unet)(**config))
    return pipeline


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("foreign")
    tiny_pipelines.save(tiny_pipelines.build(FAMILIES[family]), root / "edge")
    return root / "edge"


@pytest.fixture(scope="module")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("foreign")
    tiny_pipelines.save(tiny_pipelines.build(FAMILIES["sd15"]), root / "edge")
    return root / "edge"


def load(folder: Path) -> DiffusersGenerator:
    return load_generator(folder, sampling=Sampling(steps=2, guidance=3.0), pixels=PIXELS)


def targeted(module: nn.Module, parts: tuple[str, ...]) -> dict[str, nn.Module]:
    """Linear and convolutional layers within parts of that name."""
    kinds = nn.Linear | nn.Conv2d
    return {
        p: m for p, m in module.named_modules() if isinstance(m, kinds) and any(part in p for part in parts)
    }


def matrices(layer: Any, rng: torch.Generator, rank: int = RANK) -> tuple[Tensor, Tensor]:
    """Down and up of a layer, whose product is half as large as the layer's weight at alpha = 2 and rank 4."""
    weight = layer.weight
    down = torch.randn((rank, *weight.shape[1:]), generator=rng)
    up = torch.randn((len(weight), rank, *(1,) * (weight.ndim - 2)), generator=rng)
    return down, up * 0.5 * float(weight.detach().std()) / rank**0.5


CONVOLUTIONS = ("resnets", "samplers")
ATTENTION = ("attentions",)
TEXT = ("self_attn", "mlp")


def kohya(pipeline: Any, *, sgm: bool, alpha: float = ALPHA) -> dict[str, Tensor]:
    """What sd-scripts writes: attention, convolutions and text encoders, each with its alpha."""
    rng, file = seeded(1), dict[str, Tensor]()
    layers = targeted(pipeline.unet, (*ATTENTION, *CONVOLUTIONS))
    plain = plain_blocks(layers)
    spelt = {p: sgm_path(p, layers=1, plain=plain) if sgm else p for p in layers}
    names = {f"lora_unet_{str(spelt[path]).replace('.', '_')}": layer for path, layer in layers.items()}
    encoders = [part for part in ("text_encoder", "text_encoder_2") if hasattr(pipeline, part)]
    for number, part in enumerate(encoders, start=1):
        encoder = getattr(pipeline, part)
        for path, layer in targeted(encoder, TEXT).items():
            wrapped = path if path.startswith("text_model") else f"text_model.{path}"
            prefix = "lora_te" if len(encoders) == 1 else f"lora_te{number}"
            names[f"{prefix}_{wrapped.replace('.', '_')}"] = layer
    for name, layer in names.items():
        down, up = matrices(layer, rng)
        file |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        file[f"{name}.alpha"] = torch.tensor(alpha)
    return file


def drawn_by_diffusers(folder: Path, file: Path) -> Tensor:
    """What diffusers draws once it has loaded the file."""
    edge = load(folder)
    edge.pipeline.load_lora_weights(file)
    with torch.no_grad():
        return edge._run(list(PROMPTS), SEEDS, output_type="pt").cpu()


def imported(folder: Path, file: Path, out: Path) -> tuple[Tensor, Tensor, GenerationUpdate]:
    """What the edge draws without and with the bundle of the file, once it is saved and loaded."""
    edge = load(folder)
    found = read_lora(edge, file)
    assert dict(found.unread) == {}
    save_generation(out, edge, found.update, settings={})
    before = edge.images(PROMPTS, seeds=SEEDS)
    aligned, _ = apply_generation(edge, out)
    drawn = aligned.images(PROMPTS, seeds=SEEDS)
    assert torch.equal(edge.images(PROMPTS, seeds=SEEDS), before), "the plain edge beside it"
    plain = remove_update(aligned)
    assert torch.equal(plain.images(PROMPTS, seeds=SEEDS), before), "the edge without it"
    return before, drawn, found.update


@pytest.mark.slow
def test_kohyas_lora_draws_what_diffusers_draws_with_it(family: str, folder: Path, tmp_path: Path) -> None:
    """Attention, convolutions and text encoders, alpha half the rank; SDXL in its trainer's names of SGM."""
    save_file(kohya(load(folder).pipeline, sgm=family == "sdxl"), tmp_path / "lora.safetensors")
    before, ours, update = imported(folder, tmp_path / "lora.safetensors", tmp_path / "bundle")
    theirs = drawn_by_diffusers(folder, tmp_path / "lora.safetensors")
    difference, change = (ours - theirs).abs().max(), (ours - before).abs().max()
    print(f"{family}: max abs difference {difference:.1e}, change {change:.2f}")
    assert change > 0.1
    assert difference < 1e-3
    assert update.encoders.keys() == load(folder).family.encoders.keys()


def test_a_few_layers_of_unet_and_text_encoder_draw_what_diffusers_draws(sd15: Path, tmp_path: Path) -> None:
    """The same of a sample of the layers."""
    held = kohya(load(sd15).pipeline, sgm=False)
    kept = r"lora_unet_mid_block_(resnets_0|attentions_0_.*attn2)|lora_te_.*layers_0_self_attn"
    save_file({k: t for k, t in held.items() if re.match(kept, k)}, tmp_path / "lora.safetensors")
    before, ours, _ = imported(sd15, tmp_path / "lora.safetensors", tmp_path / "bundle")
    theirs = drawn_by_diffusers(sd15, tmp_path / "lora.safetensors")
    assert (ours - before).abs().max() > 0.1
    assert (ours - theirs).abs().max() < 1e-3


def test_text_encoders_alone_are_an_update(sd15: Path, tmp_path: Path) -> None:
    held = kohya(load(sd15).pipeline, sgm=False)
    kept = {k: t for k, t in held.items() if k.startswith("lora_te") and "layers_0_mlp" in k}
    save_file(kept, tmp_path / "lora.safetensors")
    before, ours, update = imported(sd15, tmp_path / "lora.safetensors", tmp_path / "bundle")
    assert not update.adapter
    assert (ours - before).abs().max() > 1e-2


def peft_file(folder: Path, file: Path, *, config: dict[str, Any]) -> None:
    """What PEFT and diffusers' own training scripts make: random LoRA of attention in U-Net and text encoder."""
    pipeline = load(folder).pipeline
    state, metadata = {}, {}
    with torch.random.fork_rng():
        torch.manual_seed(2)
        for part, targets in (("unet", ["to_q", "to_v", "conv1"]), ("text_encoder", ["q_proj", "fc1"])):
            module = getattr(pipeline, part)
            alphas = {k: alpha for k, alpha in config.get("alpha_pattern", {}).items() if k in targets}
            options = {**config, "alpha_pattern": alphas}
            made = LoraConfig(r=RANK, target_modules=targets, init_lora_weights=False, **options)
            module.add_adapter(made)
            held = get_peft_model_state_dict(module, adapter_name="default")
            state |= {f"{part}.{name}": tensor.contiguous() for name, tensor in held.items()}
            metadata |= {f"{part}.{k}": v for k, v in made.to_dict().items()}
    told = {k: sorted(v) if isinstance(v, set) else v for k, v in metadata.items()}
    save_file(state, file, metadata={"lora_adapter_metadata": json.dumps(told, default=str)})


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        {"lora_alpha": 8},
        {"lora_alpha": 8, "use_rslora": True},
        {"lora_alpha": 8, "alpha_pattern": {"to_v": 1, "fc1": 2}},
    ],
)
def test_pefts_names_and_configuration_draw_what_diffusers_draws(
    sd15: Path, tmp_path: Path, config: dict[str, Any]
) -> None:
    peft_file(sd15, tmp_path / "lora.safetensors", config=config)
    before, ours, _ = imported(sd15, tmp_path / "lora.safetensors", tmp_path / "bundle")
    theirs = drawn_by_diffusers(sd15, tmp_path / "lora.safetensors")
    difference = (ours - theirs).abs().max()
    print(f"{config}: max abs difference {difference:.1e}, change {(ours - before).abs().max():.2f}")
    assert (ours - before).abs().max() > 0.1
    assert difference < 1e-3


def renamed(name: str) -> str:
    """A name of PEFT as diffusers wrote it before it used PEFT."""
    for new, old in (("lora_A", "down"), ("lora_B", "up")):
        name = name.replace(f".to_out.0.{new}", f".processor.to_out_lora.{old}")
        for projection in "qkv":
            name = name.replace(f".to_{projection}.{new}", f".processor.to_{projection}_lora.{old}")
    return name


def test_every_spelling_of_a_layer_is_the_same_layer(sd15: Path, tmp_path: Path) -> None:
    """PEFT's bare names and its prefixes, diffusers' newer and older ones, kohya's by diffusers' own converter."""
    edge, rng = load(sd15), seeded(3)
    lora: dict[str, Tensor] = {}
    for path, layer in targeted(edge.denoiser, ("attn1.to_", "attn2.to_")).items():
        down, up = matrices(layer, rng)
        lora |= {f"{path}.lora_A.weight": down, f"{path}.lora_B.weight": up}
    files = {
        "bare": lora,
        "peft": {f"base_model.model.{name}": tensor for name, tensor in lora.items()},
        "diffusers": {f"unet.{name}": tensor for name, tensor in lora.items()},
        "older": {f"unet.{renamed(name)}": tensor for name, tensor in lora.items()},
        "oldest": {renamed(name): tensor for name, tensor in lora.items()},
        "adapter": {name.replace(".weight", ".default.weight"): tensor for name, tensor in lora.items()},
        "kohya": convert_state_dict_to_kohya({f"unet.{k}": t for k, t in copy.copy(lora).items()}),
    }
    first = None
    for name, tensors in files.items():
        save_file({k: t.contiguous() for k, t in tensors.items()}, tmp_path / f"{name}.safetensors")
        found = read_lora(edge, tmp_path / f"{name}.safetensors")
        assert dict(found.unread) == {}, name
        assert found.layers == len(lora) // 2
        assert found.rank == RANK
        first = first or found.update.adapter
        assert found.update.adapter.keys() == first.keys()
        assert all(torch.equal(found.update.adapter[key], first[key]) for key in first), name
    for path in {key.partition(".lora_")[0] for key in lora}:
        down, up = (lora[f"{path}.lora_{letter}.weight"] for letter in "AB")
        ours = first[f"{path}.lora_B.weight"] @ first[f"{path}.lora_A.weight"] if first else up
        torch.testing.assert_close(ours, up @ down, rtol=1e-6, atol=1e-6)


def test_what_peft_saves_beside_its_model_counts(sd15: Path, tmp_path: Path) -> None:
    edge = load(sd15)
    path = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    down, up = matrices(edge.denoiser.get_submodule(path), seeded(4))
    names = {f"base_model.model.{path}.lora_A.weight": down, f"base_model.model.{path}.lora_B.weight": up}
    save_file(names, tmp_path / "adapter_model.safetensors")
    file = tmp_path / "adapter_config.json"
    for config, scale in (
        ({"lora_alpha": 2 * RANK}, 2.0),
        ({"lora_alpha": 2 * RANK, "use_rslora": True}, 4.0),
    ):
        file.write_text(json.dumps({"peft_type": "LORA", "r": RANK, **config}))
        held = read_lora(edge, tmp_path / "adapter_model.safetensors").update.adapter
        product = held[f"{path}.lora_B.weight"] @ held[f"{path}.lora_A.weight"]
        torch.testing.assert_close(product, scale * up @ down)
    file.write_text(json.dumps({"peft_type": "LOHA"}))
    with pytest.raises(InputError, match="it is LOHA, and LORA is read"):
        read_lora(edge, tmp_path / "adapter_model.safetensors")


def test_tiny_matrices_survive_fp16(sd15: Path, tmp_path: Path) -> None:
    """An alpha of 1 at rank 128 and matrices of 1e-4, which fp16 alone would round to a tenth of themselves."""
    path = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    name = f"lora_unet_{path.replace('.', '_')}"
    edge, rng = load(sd15), seeded(5)
    down, up = matrices(edge.denoiser.get_submodule(path), rng, rank=128)
    up *= 1e-4 / up.std()
    held = {
        f"{name}.lora_down.weight": down,
        f"{name}.lora_up.weight": up,
        f"{name}.alpha": torch.tensor(1.0),
    }
    save_file(held, tmp_path / "lora.safetensors")
    update = read_lora(edge, tmp_path / "lora.safetensors").update
    save_generation(tmp_path / "bundle", edge, update, settings={})
    lora = load_bundle(tmp_path / "bundle").lora()
    product = lora[f"unet.{path}.lora_B.weight"] @ lora[f"unet.{path}.lora_A.weight"]
    wanted = up @ down / 128
    assert (product - wanted).norm() < 1e-3 * wanted.norm()


def test_one_file_comes_back_with_its_metaword(sd15: Path, tmp_path: Path) -> None:
    """Exported for A1111 in one file, and imported again: the same picture."""
    edge = load(sd15)
    down, up = matrices(edge.denoiser.conv_in, seeded(6))
    word = Metaword(token="<dekag>", vectors={"text_encoder": torch.randn(2, 16, generator=seeded(7))})
    lora = {"conv_in.lora_A.weight": down, "conv_in.lora_B.weight": up}
    update = GenerationUpdate(metaword=word, adapter=lora)
    bundle = save_generation(tmp_path / "bundle", edge, update, settings={})
    for layout, place in (("a1111", "Lora"), ("comfyui", "loras")):
        export_bundle(bundle, tmp_path / layout, layout=layout, one_file=True)
        written = {p.relative_to(tmp_path / layout).as_posix() for p in (tmp_path / layout).rglob("*.*")}
        assert written == {f"{place}/dekag.safetensors", "README.md"}
    _, ours, again = imported(sd15, tmp_path / "comfyui" / "loras" / "dekag.safetensors", tmp_path / "again")
    assert again.metaword is not None
    assert again.metaword.token == "<dekag>"
    aligned, _ = apply_generation(edge, tmp_path / "bundle")
    assert (aligned.images(PROMPTS, seeds=SEEDS) - ours).abs().max() < 1e-3


def test_what_cannot_be_read_is_named_and_the_rest_is_a_bundle(
    sd15: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edge = load(sd15)
    down, up = matrices(edge.denoiser.conv_in, seeded(8))
    held = {
        "lora_unet_conv_in.lora_down.weight": down,
        "lora_unet_conv_in.lora_up.weight": up,
        "lora_unet_conv_out.lora_down.weight": torch.ones(2, 3),
        "lora_unet_conv_out.lora_up.weight": torch.ones(3, 2),
        "lora_unet_nowhere.lora_down.weight": torch.ones(2, 3),
        "lora_unet_nowhere.lora_up.weight": torch.ones(3, 2),
        "lora_unet_mid_block_resnets_0_conv1.lora_down.weight": torch.ones(2, 16, 3, 3),
        "lora_unet_mid_block_resnets_0_conv2.hada_w1_a": torch.ones(2, 3),
        "lora_unet_time_embedding_linear_1.lora_down.weight": torch.ones(2, 8),
        "lora_unet_time_embedding_linear_1.lora_up.weight": torch.ones(32, 2),
        "lora_unet_time_embedding_linear_1.dora_scale": torch.ones(32),
        "bundle_emb.word.clip_g": torch.ones(2, 5),
    }
    metadata = {"modelspec.license": "MIT"}
    save_file(held, tmp_path / "lora.safetensors", metadata=metadata)
    words = ["bundle", "import", tmp_path / "lora.safetensors", "--base", sd15, "--out", tmp_path / "bundle"]
    done = dekag(capsys, *words)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[-1] == f"wrote {tmp_path / 'bundle'}: 1 layers, licence MIT; 6 not read"
    for name, reason in (
        ("lora_unet_conv_out", "it is [2, 3] and [3, 2], for a weight of [4, 8, 3, 3]"),
        ("lora_unet_nowhere", "the model has no layer of this name"),
        ("lora_unet_mid_block_resnets_0_conv1", "one of its two matrices is missing"),
        ("lora_unet_mid_block_resnets_0_conv2", "hada_w1_a is no part of LoRA"),
        ("lora_unet_time_embedding_linear_1", "dora_scale is no part of LoRA"),
        ("bundle_emb.word.clip_g", "it is no metaword for this model, or not the only one"),
    ):
        assert f"not read: {name}: {reason}" in lines
    manifest = load_bundle(tmp_path / "bundle").manifest
    assert manifest.licence == "MIT"
    assert manifest.settings == {"imported": "lora.safetensors", "rank": RANK}


@pytest.mark.parametrize(
    ("held", "text"),
    [
        (
            {"lora_unet_input_blocks_4_1_proj_in.lora_down.weight": torch.ones(2, 3)},
            "one of its two matrices",
        ),
        ({"model.diffusion_model.out.2.weight": torch.ones(2)}, "no part of LoRA"),
        ({}, "it is empty"),
    ],
)
def test_a_file_of_which_nothing_fits_is_one_line(
    sd15: Path, tmp_path: Path, held: dict[str, Tensor], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "lora.safetensors"
    save_file(held, file, metadata={"ss_base_model_version": "sdxl_base_v1-0"})
    done = dekag(capsys, "bundle", "import", file, "--base", sd15, "--out", tmp_path / "bundle")
    assert done.code != 0
    assert len(done.complaints) == 1
    assert f"{file} holds no LoRA for this model" in done.complaints[0]
    assert text in done.complaints[0]
    assert "the file says it is for sdxl_base_v1-0" in done.complaints[0]
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" + bytes(100)])
def test_what_is_no_safetensors_file_is_one_line(sd15: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lora.pt").write_bytes(content)
    with pytest.raises(InputError, match="is no safetensors file that can be read") as told:
        read_lora(load(sd15), tmp_path / "lora.pt")
    assert "\n" not in str(told.value)


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "place"), [("diffusers", "."), ("comfyui", "loras")])
def test_an_imported_lora_is_exported_with_its_text_encoders(
    family: str, folder: Path, tmp_path: Path, layout: str, place: str
) -> None:
    """diffusers draws the same from the file that was imported and from the one that the bundle of it becomes."""
    save_file(kohya(load(folder).pipeline, sgm=family == "sdxl"), tmp_path / "lora.safetensors")
    edge = load(folder)
    update = read_lora(edge, tmp_path / "lora.safetensors").update
    bundle = save_generation(tmp_path / "bundle", edge, update, settings={})
    (file,) = [
        p for p in export_bundle(bundle, tmp_path / "out", layout=layout) if p.suffix == ".safetensors"
    ]
    assert file.parent == (tmp_path / "out" / place).resolve()
    wanted = drawn_by_diffusers(folder, tmp_path / "lora.safetensors")
    assert (drawn_by_diffusers(folder, file) - wanted).abs().max() < 1e-3
