"""Engines: the same pictures by ONNX Runtime, by merged weights, and in every size of batch that is allowed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_pipelines import EDGES, build

from dekag.alignment.generation.adapters import own_bytes
from dekag.alignment.generation.bundles import apply_generation
from dekag.alignment.generation.update import remove_update
from dekag.engine.drawing import TORCH, EngineChoice, with_engine
from dekag.generation.diffusers import DiffusersGenerator, Sampling
from dekag.types import InputError
from dekag.world import load_world, shipped

PROMPTS = ["a red apple on a blue background", "a dog", "a ghost on a pink background, on the left"]
SEEDS = [3, 4, 5]


@pytest.fixture(scope="module")
def edge() -> DiffusersGenerator:
    return load_world("emoji").edge()


@pytest.fixture(scope="module")
def merged(edge: DiffusersGenerator) -> DiffusersGenerator:
    return apply_generation(edge, shipped("emoji/makd"), merge=True)[0]


@pytest.fixture(scope="module")
def exported(merged: DiffusersGenerator, decoders: Path) -> DiffusersGenerator:
    return with_engine(merged, EngineChoice(name="onnxruntime", folder=decoders))


@pytest.mark.parametrize("few_steps", [False, True])
def test_a_merged_update_draws_what_an_unmerged_one_does(edge: DiffusersGenerator, few_steps: bool) -> None:
    """Within 1e-5, from weights of its own, the same bytes each time; the edge is left as it is."""
    before = edge(PROMPTS, seeds=SEEDS)
    merged, _ = apply_generation(edge, shipped("emoji/makd"), few_steps=few_steps, merge=True)
    found = merged(PROMPTS, seeds=SEEDS)
    assert torch.equal(found, merged(PROMPTS, seeds=SEEDS))
    assert torch.equal(edge(PROMPTS, seeds=SEEDS), before)
    assert not hasattr(edge.denoiser, "peft_config")
    own, whole = own_bytes(merged.denoiser, edge.denoiser), sum(p.nbytes for p in edge.denoiser.parameters())
    print(f"{own} bytes of its own, of {whole}")
    assert 0 < own < whole
    aligned, _ = apply_generation(edge, shipped("emoji/makd"), few_steps=few_steps)
    error = (aligned(PROMPTS, seeds=SEEDS) - found).abs().max()
    remove_update(aligned)
    print(f"largest difference of a latent {error:.1e}")
    assert 0 < error < 1e-5
    assert not torch.allclose(found, before, atol=0.1)


def test_onnx_runtime_draws_what_torch_does(merged: DiffusersGenerator, exported: DiffusersGenerator) -> None:
    assert exported.engine == "onnxruntime:CPUExecutionProvider"
    one, other = (g.decode(g(PROMPTS, seeds=SEEDS)) for g in (merged, exported))
    levels = ((one * 255).round() - (other * 255).round()).abs().max()
    assert levels <= 1
    assert merged.engine == "torch"


def test_the_size_of_a_batch_does_not_matter_to_onnx_runtime(exported: DiffusersGenerator) -> None:
    """Guided pictures, whose batches have two rows for each, in batches of one, two and three."""
    whole = exported(PROMPTS, seeds=SEEDS)
    for size in (1, 2):
        parts = replace(exported, sampling=replace(exported.sampling, batch=size))
        assert torch.equal(parts(PROMPTS, seeds=SEEDS), whole)
        assert torch.equal(parts.decode(whole), exported.decode(whole))


def test_auto_takes_what_was_exported_for_these_weights(
    edge: DiffusersGenerator, merged: DiffusersGenerator, exported: DiffusersGenerator, decoders: Path
) -> None:
    choice = EngineChoice(folder=decoders)
    assert with_engine(merged, choice).engine == exported.engine
    assert with_engine(edge, choice).engine == "torch"
    assert with_engine(merged, EngineChoice(folder=decoders / "none")).engine == "torch"
    assert with_engine(merged, TORCH) is merged


def test_weights_that_differ_by_less_than_fp16_have_exports_of_their_own(
    merged: DiffusersGenerator, exported: DiffusersGenerator, decoders: Path
) -> None:
    near = merged.denoiser.conv_in.bias
    with torch.no_grad():
        kept = near.clone()
        near.mul_(1 + 2**-20)
        found = with_engine(merged, EngineChoice(folder=decoders)).engine
        near.copy_(kept)
    assert found == "torch"
    assert with_engine(merged, EngineChoice(folder=decoders)).engine == exported.engine


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tensorrt", "unknown engine 'tensorrt'; known are auto, torch, onnxruntime"),
        ("torch:cuda", "only onnxruntime has execution providers"),
    ],
)
def test_engines_that_there_are_not(name: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        EngineChoice(name=name)


def test_a_provider_that_is_not_installed(merged: DiffusersGenerator, decoders: Path) -> None:
    with pytest.raises(InputError, match=r"ONNX Runtime has no OpenVINOExecutionProvider here; it has .*CPU"):
        with_engine(merged, EngineChoice(name="onnxruntime:openvino", folder=decoders / "new"))
    assert not (decoders / "new").exists()


def test_an_update_is_merged_first(edge: DiffusersGenerator, decoders: Path) -> None:
    aligned, _ = apply_generation(edge, shipped("emoji/food"))
    with pytest.raises(InputError, match="merge the update"):
        with_engine(aligned, EngineChoice(name="onnxruntime", folder=decoders))
    remove_update(aligned)


@pytest.mark.slow
@pytest.mark.parametrize("family", EDGES)
def test_every_family_leaves_torch(family: str, decoders: Path) -> None:
    generator = DiffusersGenerator(pipeline=build(EDGES[family]), sampling=Sampling(steps=2))
    by_onnx = with_engine(generator, EngineChoice(name="onnxruntime", folder=decoders))
    one, other = (g.decode(g(["a dog"], seeds=[1])) for g in (generator, by_onnx))
    assert (one - other).abs().max() < 1 / 255
