"""Exports: a fresh process that knows diffusers alone draws what dekag draws; names are kohya's; bad input."""

import copy
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from diffusers import FluxTransformer2DModel
from peft import PeftModel
from random_draws import normal
from safetensors.torch import load_file
from tiny_pipelines import (
    LAYERS,
    build,
    flux2_klein,
    pixart_sigma,
    prx,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
)
from torch import Tensor, nn
from typer.testing import CliRunner

from dekag.alignment.generation.bundles import apply_generation, save_generation
from dekag.alignment.generation.update import GenerationUpdate, remove_update
from dekag.bundle.bundle import Bundle, Contents, save_bundle
from dekag.bundle.canonical import digest_json
from dekag.bundle.container import CALA, EMBEDDING, LORA
from dekag.bundle.export import export_bundle, usual_layout
from dekag.bundle.manifest import Metaword
from dekag.cli import app
from dekag.generation import metaword
from dekag.generation.diffusers import DiffusersGenerator, Sampling
from dekag.types import InputError

TOKEN, PROMPT, SEED = "<dekag>", "a red apple", 7
RANKS = (1, 2, 3, 5, 8)
SAMPLING, FEW_STEPS = Sampling(steps=4, guidance=3.0), Sampling(steps=2, guidance=2.0)
STRANGER = f"""
import json, sys
import numpy, torch

drawn, refused = {{}}, {{}}
for name, code in json.load(open(sys.argv[1])).items():
    names = {{"rng": lambda: torch.Generator().manual_seed({SEED})}}
    try:
        exec(code, names)
        drawn[name] = names["image"].transpose(2, 0, 1)
    except ValueError as error:
        refused[name] = str(error)
numpy.savez(sys.argv[2], **drawn)
assert "dekag" not in sys.modules
print(json.dumps(refused))
"""
"""Runs lines that draw, and saves [3, height, width] by name."""
EDGES: dict[str, Callable[[], Any]] = {
    "sd": lambda: stable_diffusion(prediction="epsilon"),
    "sdxl": stable_diffusion_xl,
    "flux2": flux2_klein,
    "sd3": stable_diffusion_3,
}


def targeted(model: nn.Module) -> dict[str, nn.Module]:
    """Every linear and convolutional layer, in a model without adapters."""
    return {path: layer for path, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}


def random_lora(model: nn.Module, *, prefix: str = "", seed: int = 1) -> dict[str, Tensor]:
    """An update of every layer in PEFT's shapes, a fifth of the layer's own size, with RANKS in turn."""
    rng, lora = torch.Generator().manual_seed(seed), {}
    for number, (path, layer) in enumerate(targeted(model).items()):
        rank, weight = RANKS[number % len(RANKS)], layer.weight
        down = torch.randn((rank, *weight.shape[1:]), generator=rng)
        up = torch.randn((len(weight), rank, *(1,) * (weight.ndim - 2)), generator=rng)
        up *= 0.2 * float(weight.detach().std()) / rank**0.5
        lora |= {f"{prefix}{path}.lora_A.weight": down, f"{prefix}{path}.lora_B.weight": up}
    return lora


def noise(*shape: int, seed: int = 0) -> Tensor:
    return normal(*shape, seed=seed).half()


def save(folder: Path, tensors: dict[str, dict[str, Tensor]], **changes: Any) -> Bundle:
    """A generation bundle in fp16, with a metaword if there are vectors."""
    usual = {
        "kind": "generation",
        "base_digest": digest_json("base"),
        "tokenizer_digest": digest_json("tokenizer"),
        "metaword": Metaword(token=TOKEN, vectors=3, position="suffix") if EMBEDDING in tensors else None,
        "licence": "Apache-2.0",
        "quantisation": "fp16",
    }
    return save_bundle(folder, Contents(tensors=tensors, **{**usual, **changes}))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def edges(work: Path) -> dict[str, DiffusersGenerator]:
    """Edges of four families, also as folders."""
    generators = {
        name: DiffusersGenerator(pipeline=build(make), sampling=SAMPLING) for name, make in EDGES.items()
    }
    for name, generator in generators.items():
        generator.pipeline.save_pretrained(work / name)
    return generators


@pytest.fixture(scope="module")
def saved(edges: dict[str, DiffusersGenerator], work: Path) -> dict[str, Bundle]:
    """Bundles of random updates; that of sd in int8 as well, and with a second adapter for few steps."""
    bundles = {}
    for name, generator in edges.items():
        encoders = {part: getattr(generator.pipeline, part) for part in generator.family.encoders}
        widths = {part: encoder.get_input_embeddings().weight.shape[1] for part, encoder in encoders.items()}
        vectors = {part: 0.5 * noise(3, width, seed=width).float() for part, width in widths.items()}
        few = {"few_step": random_lora(generator.denoiser, seed=2), "few_step_sampling": FEW_STEPS}
        update = GenerationUpdate(
            metaword=metaword.Metaword(token=TOKEN, position="suffix", vectors=vectors),
            adapter=random_lora(generator.denoiser),
            sampling=SAMPLING,
            **(few if name == "sd" else {}),
        )
        bundles[name] = save_generation(work / f"{name} bundle", generator, update, settings={})
        if name == "sd":
            folder = work / "int8 bundle"
            bundles["int8"] = save_generation(folder, generator, update, settings={}, quantisation="int8")
    return bundles


@pytest.fixture(scope="module")
def bundle(saved: dict[str, Bundle]) -> Bundle:
    return saved["sd"]


def draw(generator: DiffusersGenerator, folder: Path, *, few: bool) -> tuple[Tensor, Tensor]:
    """What dekag draws without and with a bundle, [3, height, width]."""
    before = generator.decode(generator([PROMPT], seeds=[SEED]))[0]
    aligned, _ = apply_generation(generator, folder, few_steps=few)
    drawn = aligned.decode(aligned([PROMPT], seeds=[SEED]))[0]
    remove_update(aligned)
    return before, drawn


@pytest.fixture(scope="module")
def strangers(
    saved: dict[str, Bundle], work: Path, request: pytest.FixtureRequest
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What a process with diffusers alone draws from each export that a test of this run asks for, or refuses."""
    for layout in ("comfyui", "a1111"):
        export_bundle(saved["sd"], work / layout, layout=layout)

    def readme(name: str, base: str, blocks: int = 1, layout: str = "diffusers") -> str:
        folder = f"{name} {layout} export"
        export_bundle(saved[name], work / folder, layout=layout)
        text = (work / folder / "README.md").read_text()
        text = text.replace("BASE", base).replace("FOLDER", folder)
        return "".join(re.findall("```python\n(.*?)```", text, re.DOTALL)[:blocks])

    base = 'from diffusers import DiffusionPipeline\npipeline = DiffusionPipeline.from_pretrained("sd")\n'
    lora = 'pipeline.load_lora_weights("{}/dekag.safetensors", adapter_name="dekag")\n'
    few = lora.replace("/dekag", "/dekag_few_step").replace('"dekag"', '"few"')
    few += 'pipeline.set_adapters(["dekag", "few"])\n'
    word = f'pipeline.load_textual_inversion("comfyui/embeddings/dekag.safetensors", token="{TOKEN}")\n'
    image = 'image = pipeline(prompt="a red apple <dekag>", num_inference_steps={}, guidance_scale={}).images[0]\n'
    comfyui = base + lora.format("comfyui/loras") + word
    codes = {
        "sd": readme("sd", "sd"),
        "sd few": readme("sd", "sd", blocks=2),
        "int8": readme("int8", "sd"),
        "sd peft": readme("sd", "sd", layout="peft"),
        "sd peft few": readme("sd", "sd", blocks=2, layout="peft"),
        "comfyui": comfyui + image.format(4, 3.0),
        "comfyui few": comfyui + few.format("comfyui/loras") + image.format(2, 2.0),
        "a1111": base + lora.format("a1111/Lora"),
        "sdxl": readme("sdxl", "sdxl"),
        "flux2": readme("flux2", "flux2"),
        "sd3": readme("sd3", "sd3"),
        "flux2 peft": readme("flux2", "flux2", layout="peft"),
    }
    layers = {"flux2": f", text_encoder_out_layers={LAYERS}"}
    calls = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    asked = {"a1111", *(params["case"] for params in calls if "case" in params)}
    codes = {name: code for name, code in codes.items() if name in asked}
    codes = {
        name: code.replace(
            ").images", f', generator=rng(), output_type="np"{layers.get(name.split()[0], "")}).images'
        )
        for name, code in codes.items()
    }
    (work / "codes.json").write_text(json.dumps(codes))
    command = [sys.executable, "-c", STRANGER, "codes.json", "drawn.npz"]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(work / "drawn.npz") as drawn:
        images = {name: torch.from_numpy(drawn[name]) for name in drawn}
    return images, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")  # PEFT's, of a second adapter
@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of SDXL's pipeline and numpy
@pytest.mark.parametrize(
    ("case", "tolerance"),
    [
        *(("sd few", 1e-5), ("sdxl", 1e-5), ("int8", 1e-3), ("comfyui few", 1e-3)),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("sd", 1e-5),
                ("flux2", 1e-5),
                ("sd3", 1e-5),
                ("sd peft", 1e-5),
                ("sd peft few", 1e-5),
                ("flux2 peft", 1e-5),
                ("comfyui", 1e-3),
            )
        ),
    ],
)
def test_diffusers_alone_draws_the_same_picture(
    edges: dict[str, DiffusersGenerator],
    strangers: tuple[dict[str, Tensor], dict[str, str]],
    work: Path,
    case: str,
    tolerance: float,
) -> None:
    """By the lines of the README, up to the order of sums; fp16 rounds what int8 gives and kohya's up matrices.

    The update changes pixels by a hundred times the larger tolerance.
    """
    name = case.split()[0]
    edge = edges.get(name, edges["sd"])
    bundle = work / f"{name if name in {'int8', *edges} else 'sd'} bundle"
    before, ours = draw(edge, bundle, few="few" in case)
    assert (ours - before).abs().max() > 0.1
    difference = (strangers[0][case] - ours).abs().max()
    print(f"{case}: max abs difference {difference:.1e}, change {(ours - before).abs().max():.2f}")
    assert difference < tolerance


@pytest.mark.filterwarnings(
    "ignore:`LoraLoaderMixin` is deprecated:FutureWarning"
)  # diffusers' PRX, of itself
@pytest.mark.parametrize("make", [prx, stable_diffusion, pixart_sigma])
def test_peft_alone_gives_the_denoiser_the_same_update(make: Callable[[], Any], tmp_path: Path) -> None:
    """Loaded into a fresh denoiser, output for output; every layer has another rank than its neighbours."""
    edge = DiffusersGenerator(pipeline=build(make), sampling=SAMPLING)
    targets = re.compile(edge.family.targets)
    lora = {
        name: tensor
        for name, tensor in random_lora(edge.denoiser).items()
        if targets.fullmatch(name.rpartition(".lora_")[0])
    }
    assert len({len(tensor) for name, tensor in lora.items() if "lora_A" in name}) == len(RANKS)
    saved = save_generation(tmp_path / "b", edge, GenerationUpdate(adapter=lora), settings={})
    export_bundle(saved, tmp_path / "out", layout="peft")
    noised = torch.randn(2, *edge.latent_shape, generator=torch.Generator().manual_seed(SEED))

    @torch.no_grad()
    def predicted(generator: DiffusersGenerator) -> Tensor:
        with generator.active():
            pipeline, family = generator.pipeline, generator.family
            told = family.condition(pipeline, [PROMPT, "a tree"])
            return family.predict(pipeline, noised, torch.tensor([500, 10]), told)

    pipeline = copy.copy(edge.pipeline)
    setattr(pipeline, edge.family.denoiser, copy.deepcopy(edge.denoiser))
    fresh = DiffusersGenerator(pipeline=pipeline, sampling=SAMPLING)
    before = predicted(edge)
    ours = predicted(apply_generation(edge, tmp_path / "b")[0])
    PeftModel.from_pretrained(fresh.denoiser, str(tmp_path / "out"))
    assert (ours - before).abs().max() > 0.1
    assert (predicted(fresh) - ours).abs().max() < 1e-5


def test_pixart_has_no_loader_in_diffusers(tmp_path: Path) -> None:
    names = {
        name.replace("unet.a", "transformer.transformer_blocks.0.attn1.to_q"): t for name, t in PAIR.items()
    }
    assert usual_layout(save(tmp_path / "b", {LORA: names})) == "peft"


def test_the_usual_layout_is_one_that_loads(bundle: Bundle, tmp_path: Path) -> None:
    """diffusers where it has a loader, PEFT for PRX; either replaces an earlier export of the other."""
    other = save(tmp_path / "b", {LORA: PRX, EMBEDDING: {TOKEN: noise(3, 16)}})
    for exported, layout, names in (
        (other, "peft", {"adapter_config.json", "adapter_model.safetensors", EMBEDDING, "README.md"}),
        (bundle, "diffusers", {LORA, "few_step_lora_weights.safetensors", EMBEDDING, "README.md"}),
    ):
        assert usual_layout(exported) == layout
        assert {path.name for path in export_bundle(exported, tmp_path / "out")} == names
        assert {path.name for path in (tmp_path / "out").iterdir()} == names


@pytest.mark.parametrize(("more", "layout"), [([], "peft"), (["--to", "comfyui"], "comfyui")])
def test_the_command_says_which_layout_it_wrote(more: list[str], layout: str, tmp_path: Path) -> None:
    save(tmp_path / "b", {LORA: PRX})
    words = ["bundle", "export", str(tmp_path / "b"), "--out", str(tmp_path / "out"), *more]
    lines = CliRunner().invoke(app, words).output.splitlines()
    assert lines[0] == f"layout {layout}"
    written = sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert lines[1:] == [f"wrote {path}" for path in written]


def test_diffusers_refuses_a_lora_file_that_holds_a_metaword(
    strangers: tuple[dict[str, Tensor], dict[str, str]],
) -> None:
    """A1111 reads `bundle_emb` keys; to diffusers they make the whole file no LoRA."""
    assert {name: text for name, text in strangers[1].items() if name != "a1111"} == {}
    assert "Invalid LoRA checkpoint" in strangers[1]["a1111"]


@pytest.mark.parametrize(("layout", "place"), [("comfyui", "loras"), ("a1111", "Lora")])
def test_kohya_names_every_layer_once_and_its_product_is_the_layers_update(
    edges: dict[str, DiffusersGenerator], bundle: Bundle, tmp_path: Path, layout: str, place: str
) -> None:
    """alpha / rank * up @ down, which ComfyUI, A1111 and kohya's trainer add to the weight; names from the U-Net."""
    export_bundle(bundle, tmp_path / "out", layout=layout)
    held = load_file(tmp_path / "out" / place / "dekag.safetensors")
    lora = bundle.lora()
    layers = targeted(edges["sd"].denoiser)
    keys = {path: "_".join(["lora", "unet", *path.split(".")]) for path in layers}
    assert len(layers) > 60
    assert Counter(name.partition(".")[0] for name in held if name.startswith("lora_unet_")) == Counter(
        dict.fromkeys(keys.values(), 3)
    )
    for path, layer in layers.items():
        down, up, alpha = (
            held[f"{keys[path]}.{part}"] for part in ("lora_down.weight", "lora_up.weight", "alpha")
        )
        assert down.dtype == up.dtype == alpha.dtype == torch.float16
        product = float(alpha) / len(down) * (up.flatten(1).float() @ down.flatten(1).float())
        wanted = lora[f"unet.{path}.lora_B.weight"].flatten(1) @ lora[f"unet.{path}.lora_A.weight"].flatten(1)
        assert product.reshape(layer.weight.shape).shape == layer.weight.shape
        assert (product - wanted).norm() < 1e-3 * wanted.norm()
        assert len(down) == up.shape[1] == len(lora[f"unet.{path}.lora_A.weight"])


def test_one_rank_is_exact_in_every_layout_and_alpha_is_the_rank(tmp_path: Path) -> None:
    matrices = {"unet.a.lora_A.weight": noise(3, 5), "unet.a.lora_B.weight": noise(7, 3, seed=1)}
    export_bundle(save(tmp_path / "b", {LORA: matrices}), tmp_path / "out", layout="comfyui")
    held = load_file(tmp_path / "out" / "loras" / "dekag.safetensors")
    assert held["lora_unet_a.alpha"] == 3
    assert torch.equal(held["lora_unet_a.lora_down.weight"], matrices["unet.a.lora_A.weight"])
    assert torch.equal(held["lora_unet_a.lora_up.weight"], matrices["unet.a.lora_B.weight"])


def metadata(path: Path) -> dict[str, str]:
    with safetensors.safe_open(path, "pt") as file:
        return dict(file.metadata())


def test_a1111_bundles_the_metaword_and_has_it_as_a_file(bundle: Bundle, tmp_path: Path) -> None:
    files = export_bundle(bundle, tmp_path, layout="a1111", name="My-Edge")
    names = ["Lora/my-edge.safetensors", "Lora/my-edge_few_step.safetensors", "README.md"]
    assert files == [tmp_path / name for name in [*names, "embeddings/my-edge.safetensors"]]
    vectors = bundle.embedding()[TOKEN].half()
    assert torch.equal(load_file(files[0])["bundle_emb.my-edge.string_to_param.*"], vectors)
    assert not any(name.startswith("bundle_emb") for name in load_file(files[1]))
    assert torch.equal(load_file(files[3])["emb_params"], vectors)
    text = files[2].read_text()
    assert "`a red apple my-edge <lora:my-edge:1>`" in text
    assert "`<lora:my-edge_few_step:1>`" in text


@pytest.mark.parametrize(
    ("width", "version", "v2"),
    [(768, "sd_v1", "False"), (1024, "sd_v2", "True"), (2048, "sdxl_base_v1-0", "False")],
)
def test_kohya_metadata_says_for_which_base(tmp_path: Path, width: int, version: str, v2: str) -> None:
    """A1111 hides a LoRA from a base that these keys do not name, and takes one without `ss_v2` for SD 1."""
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    lora = {f"{layer}.lora_A.weight": noise(2, width), f"{layer}.lora_B.weight": noise(4, 2)}
    bundle = save(tmp_path / "b", {LORA: lora})
    export_bundle(bundle, tmp_path / "out", layout="a1111")
    said = metadata(tmp_path / "out" / "Lora" / "dekag.safetensors")
    assert (said["ss_base_model_version"], said["ss_v2"]) == (version, v2)
    assert said["ss_network_dim"] == said["ss_network_alpha"] == "2"
    assert said["ss_output_name"] == said["modelspec.title"] == "dekag"
    assert said["modelspec.architecture"].endswith("/lora")
    assert said["dekag.bundle"] == bundle.id


def test_two_text_encoders_keep_their_names(saved: dict[str, Bundle], tmp_path: Path) -> None:
    """ComfyUI and A1111 know SDXL's two as clip_l and clip_g."""
    vectors = saved["sdxl"].embedding()
    assert vectors.keys() == {"clip_l", "clip_g"}
    for layout in ("comfyui", "a1111"):
        export_bundle(saved["sdxl"], tmp_path / layout, layout=layout)
        held = load_file(tmp_path / layout / "embeddings" / "dekag.safetensors")
        assert held.keys() == vectors.keys()
        assert all(torch.equal(held[name], rows.half()) for name, rows in vectors.items())
    bundled = load_file(tmp_path / "a1111" / "Lora" / "dekag.safetensors")
    assert torch.equal(bundled["bundle_emb.dekag.clip_g"], vectors["clip_g"].half())


def tiny_flux() -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 4, 8),
    )


@pytest.mark.parametrize(("layout", "file"), [("diffusers", LORA), ("comfyui", "loras/dekag.safetensors")])
def test_a_transformers_lora_keeps_pefts_names_and_scale(tmp_path: Path, layout: str, file: str) -> None:
    """Loaded by diffusers, every layer changes by up @ down whatever its rank."""
    flux = tiny_flux()
    lora = random_lora(flux, prefix="transformer.")
    export_bundle(save(tmp_path / "b", {LORA: lora}), tmp_path / "out", layout=layout)
    assert load_file(tmp_path / "out" / file).keys() == lora.keys()
    layers = list(targeted(flux))
    flux.load_lora_adapter(tmp_path / "out", weight_name=file, prefix="transformer", adapter_name="dekag")
    for path in layers:
        down, up = (lora[f"transformer.{path}.lora_{letter}.weight"].half().float() for letter in "AB")
        with torch.no_grad():
            torch.testing.assert_close(flux.get_submodule(path).get_delta_weight("dekag"), up @ down)


def test_a_metaword_alone_or_lora_alone_is_exported(bundle: Bundle, tmp_path: Path) -> None:
    word = save(tmp_path / "word", {EMBEDDING: {TOKEN: noise(3, 16)}})
    files = {"diffusers": [EMBEDDING], "comfyui": ["embeddings/dekag.safetensors"]}
    for layout, names in (files | {"a1111": files["comfyui"]}).items():
        written = export_bundle(word, tmp_path / "out" / layout, layout=layout)
        assert sorted(written) == sorted(tmp_path / "out" / layout / name for name in [*names, "README.md"])
    lora = save(tmp_path / "lora", {LORA: bundle.lora()})
    written = export_bundle(lora, tmp_path / "out" / "lora", layout="a1111")
    assert [path.name for path in written] == ["dekag.safetensors", "README.md"]
    assert "`a red apple <lora:dekag:1>`" in written[1].read_text()


def test_the_same_bundle_gives_the_same_bytes_and_replaces_an_earlier_export(
    bundle: Bundle, tmp_path: Path
) -> None:
    first = {path: path.read_bytes() for path in export_bundle(bundle, tmp_path / "out", layout="a1111")}
    export_bundle(bundle, tmp_path / "out", layout="comfyui")
    assert not (tmp_path / "out" / "Lora").exists()
    assert {
        path: path.read_bytes() for path in export_bundle(bundle, tmp_path / "out", layout="a1111")
    } == first


def test_a_strangers_setting_does_not_become_python(bundle: Bundle, tmp_path: Path) -> None:
    held = {LORA: bundle.lora()}
    sly = save(tmp_path / "b", held, settings={"sampling_steps": "1); evil(", "sampling_guidance": 2.5})
    export_bundle(sly, tmp_path / "out", layout="diffusers")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "evil" not in text
    assert "guidance_scale=2.5" in text


PAIR = {"unet.a.lora_A.weight": noise(2, 3), "unet.a.lora_B.weight": noise(3, 2)}


LARGE = {name: 1e6 * tensor.float() for name, tensor in PAIR.items()}
PRX = {name.replace("unet.a", "transformer.blocks.0.img_qkv_proj"): tensor for name, tensor in PAIR.items()}


def renamed(component: str) -> dict[str, Tensor]:
    return {name.replace("unet", component): tensor for name, tensor in PAIR.items()}


@pytest.mark.parametrize(
    ("lora", "layout", "text"),
    [
        (PAIR, "webui", "unknown layout 'webui'; known are diffusers, peft, comfyui, a1111"),
        (renamed("transformer"), "a1111", "no names for LoRA of a transformer"),
        (renamed("text_encoder"), "diffusers", "updates text_encoder; only LoRA"),
        (PAIR | renamed("transformer"), "diffusers", "updates transformer, unet; only LoRA of one"),
        (
            {"unet.a.lora_A.weight": noise(2, 3)},
            "diffusers",
            "lora_B.weight of each layer .* 'unet.a.lora_B.weight'",
        ),
        ({"unet.a.lokr_w1": noise(2, 3)}, "diffusers", "lora_B.weight of each layer"),
        (
            {**PAIR, "unet.a.lora_B.weight": noise(3, 4)},
            "comfyui",
            r"one rank, got shapes \[2, 3\] and \[3, 4\]",
        ),
        (LARGE, "diffusers", "within .-65504"),
        (PRX, "diffusers", "cannot load LoRA into PRX"),
    ],
)
def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(
    tmp_path: Path, lora: dict[str, Tensor], layout: str, text: str
) -> None:
    bundle = save(tmp_path / "b", {LORA: lora}, quantisation="fp32" if lora is LARGE else "fp16")
    with pytest.raises(InputError, match=text) as error:
        export_bundle(bundle, tmp_path / "out", layout=layout)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_bundle_of_another_kind_or_with_nothing_in_it_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    held = {CALA: {"scale": noise(3)}}
    other = save(tmp_path / "b", held, kind="transmission", tokenizer_digest=None)
    with pytest.raises(InputError, match="is for transmission"):
        export_bundle(other, tmp_path / "out", layout="diffusers")
    with pytest.raises(InputError, match="nothing to export"):
        export_bundle(replace(bundle, tensors={}), tmp_path / "out", layout="diffusers")


@pytest.mark.parametrize("name", ["", "two words", "../up", "a" * 63])
def test_a_name_that_is_no_file_name_is_refused(bundle: Bundle, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="the name of an export is"):
        export_bundle(bundle, tmp_path / "out", layout="comfyui", name=name)


def a_file(target: Path) -> None:
    target.write_text("mine")


def a_strangers_file(target: Path) -> None:
    (target / "loras").mkdir(parents=True)
    (target / "loras" / "mine.safetensors").write_bytes(safetensors.torch.save({"x": torch.ones(2)}))


def a_strangers_readme(target: Path) -> None:
    target.mkdir()
    (target / "README.md").write_text("# Mine\n")


def a_link(target: Path) -> None:
    (target.parent / "real").mkdir()
    target.symlink_to(target.parent / "real")


@pytest.mark.parametrize("put", [a_file, a_strangers_file, a_strangers_readme, a_link])
def test_what_is_no_export_is_kept(bundle: Bundle, tmp_path: Path, put: Callable[[Path], None]) -> None:
    put(tmp_path / "out")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="is not an earlier export, so it is kept"):
        export_bundle(bundle, tmp_path / "out", layout="comfyui")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_bundles_own_folder_is_kept(bundle: Bundle, work: Path) -> None:
    with pytest.raises(InputError, match="is not an earlier export"):
        export_bundle(bundle, work / "sd bundle", layout="diffusers")
