"""Generation and MAKD on the shipped pipelines: the real code path, a few steps of it."""

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dekag import presets
from dekag.alignment.makd import (
    METAWORD,
    GenerationUpdate,
    MakdConfig,
    _token_ids,
    apply_update,
    distil,
    remove_update,
)
from dekag.alignment.updates import apply_generation, pipeline_digest, save_generation, tokenizer_digest
from dekag.generation.diffusers import DiffusersGenerator, Metaword, Sampling, load_generator
from dekag.generation.prompts import PromptTruncatedWarning
from dekag.types import InputError

PROMPTS = ["a red apple on a blue background", "a cat face on a pink background, on the left"]
QUICK = MakdConfig(metaword_steps=3, joint_steps=3, batch=4, rank=2)


@pytest.fixture(scope="module")
def edge() -> DiffusersGenerator:
    return replace(presets.edge(presets.emoji()), sampling=Sampling(steps=3, guidance=3.0))


@pytest.fixture(scope="module")
def update(edge: DiffusersGenerator) -> GenerationUpdate:
    images = edge.decode(edge(PROMPTS, seeds=[5, 6])).flip(1)
    return distil(edge, PROMPTS, images, QUICK)


def test_same_seed_same_bytes(edge: DiffusersGenerator) -> None:
    assert torch.equal(edge(PROMPTS, seeds=[0, 1]), edge(PROMPTS, seeds=[0, 1]))


def test_seed_and_prompt_matter(edge: DiffusersGenerator) -> None:
    latents = edge([PROMPTS[0]] * 2 + [PROMPTS[1]], seeds=[0, 1, 0])
    assert latents.shape == (3, 32, 8, 8)
    assert not torch.allclose(latents[0], latents[1], atol=0.1)
    assert not torch.allclose(latents[0], latents[2], atol=0.1)


def test_an_image_does_not_depend_on_its_batch(edge: DiffusersGenerator) -> None:
    """Up to rounding of matrix products of other sizes."""
    together = edge(PROMPTS, seeds=[0, 1])
    chunked = replace(edge, sampling=replace(edge.sampling, batch=1))(PROMPTS, seeds=[0, 1])
    torch.testing.assert_close(together, chunked, rtol=1e-3, atol=1e-3)


def test_latents_have_unit_scale_and_images_their_range(edge: DiffusersGenerator) -> None:
    latents = edge(PROMPTS, seeds=[0, 1])
    images = edge.decode(latents)
    assert 0.3 < latents.std() < 3
    assert images.shape == (2, 3, 64, 64)
    assert images.min() >= 0
    assert images.max() <= 1


def test_encode_undoes_decode_roughly(edge: DiffusersGenerator) -> None:
    latents = edge(PROMPTS, seeds=[0, 1])
    again = edge.encode(edge.decode(latents))
    assert (again - latents).square().mean() < 0.2 * latents.square().mean()


@pytest.mark.parametrize(
    ("prompts", "seeds", "text"),
    [
        ([], [], "no prompt"),
        (["a cat", "  "], [0, 1], "prompt 1 is empty"),
        (["x" * 5000], [0], "at most 4000"),
        (["a cat"], [0, 1], "one seed for each prompt"),
        ("a cat", [0], "put it in a list"),
    ],
)
def test_unusable_prompts_are_refused(
    edge: DiffusersGenerator, prompts: list[str], seeds: list[int], text: str
) -> None:
    with pytest.raises(InputError, match=text):
        edge(prompts, seeds=seeds)


def test_a_prompt_beyond_the_text_encoder_warns_and_names_what_is_cut(edge: DiffusersGenerator) -> None:
    long = "a red apple on a blue background " * 6 + "with a cactus"
    with pytest.warns(PromptTruncatedWarning, match="cactus"):
        edge([long], seeds=[0])


def test_a_prompt_that_fits_does_not_warn(edge: DiffusersGenerator) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", PromptTruncatedWarning)
        edge(PROMPTS, seeds=[0, 1])


@pytest.mark.parametrize("source", ["/no/such/folder", "nobody/no-such-model"])
def test_an_unknown_model_is_one_clear_line(source: str) -> None:
    with pytest.raises(InputError, match="no diffusers pipeline directory and no hub id"):
        load_generator(source)


def test_distillation_leaves_the_generator_alone(edge: DiffusersGenerator, update: GenerationUpdate) -> None:
    fresh = presets.edge(presets.emoji())
    assert pipeline_digest(edge.pipeline) == pipeline_digest(fresh.pipeline)
    assert tokenizer_digest(edge.pipeline) == tokenizer_digest(fresh.pipeline)
    assert any(name.endswith("lora_B.weight") and t.any() for name, t in update.lora.items())


def test_update_changes_the_picture_and_goes_without_a_trace(
    edge: DiffusersGenerator, update: GenerationUpdate
) -> None:
    before = edge(PROMPTS, seeds=[0, 1])
    aligned = apply_update(edge, update)
    assert not torch.allclose(aligned(PROMPTS, seeds=[0, 1]), before, atol=1e-3)
    assert torch.equal(remove_update(aligned)(PROMPTS, seeds=[0, 1]), before)
    fresh = presets.edge(presets.emoji())
    assert pipeline_digest(edge.pipeline) == pipeline_digest(fresh.pipeline)
    assert tokenizer_digest(edge.pipeline) == tokenizer_digest(fresh.pipeline)


@pytest.mark.parametrize(
    ("name", "shape", "text"),
    [
        ("no_such_block.conv1.lora_A.weight", (2, 3, 3, 3), "no layer no_such_block.conv1"),
        ("conv_in.lora_A.weight", (2, 7, 3, 3), "for 7 channels, not 32"),
    ],
)
def test_an_update_that_does_not_fit_is_refused_before_it_touches_anything(
    edge: DiffusersGenerator, update: GenerationUpdate, name: str, shape: tuple[int, ...], text: str
) -> None:
    strange = replace(update, lora={**update.lora, name: torch.ones(shape)})
    before = edge(PROMPTS, seeds=[0, 1])
    with pytest.raises(InputError, match=text):
        apply_update(edge, strange)
    assert torch.equal(edge(PROMPTS, seeds=[0, 1]), before)


def test_all_vectors_of_the_metaword_are_read(edge: DiffusersGenerator, update: GenerationUpdate) -> None:
    """The token expands to as many vectors as were learned, where training put them."""
    aligned = apply_update(edge, update)
    tokenizer = aligned.pipeline.tokenizer
    text = aligned.pipeline.maybe_convert_prompt(METAWORD.add_to(PROMPTS[0]), tokenizer)
    ids = tokenizer(text, padding="max_length", return_tensors="pt").input_ids
    remove_update(aligned)
    assert torch.equal(ids, _token_ids(edge, PROMPTS[:1], QUICK))
    assert (ids >= edge.pipeline.text_encoder.get_input_embeddings().num_embeddings).sum() == QUICK.vectors


def test_bundle_round_trip_draws_the_same(
    edge: DiffusersGenerator, update: GenerationUpdate, tmp_path: Path
) -> None:
    """The fp16 bundle draws what the fp32 update draws, to the rounding of fp16."""
    aligned = apply_update(edge, update)
    direct = aligned(PROMPTS, seeds=[0, 1])
    remove_update(aligned)
    save_generation(tmp_path / "b", edge, update, settings={"rank": 2})
    loaded, bundle = apply_generation(edge, tmp_path / "b")
    drawn = loaded(PROMPTS, seeds=[0, 1])
    remove_update(loaded)
    torch.testing.assert_close(drawn, direct, rtol=0.05, atol=0.05)
    assert bundle.manifest.metaword is not None
    assert bundle.manifest.metaword.vectors == QUICK.vectors


def test_a_bundle_for_another_base_is_refused(
    edge: DiffusersGenerator, update: GenerationUpdate, tmp_path: Path
) -> None:
    save_generation(tmp_path / "b", edge, update, settings={})
    with pytest.raises(InputError, match="made for base model"):
        apply_generation(presets.cloud(presets.emoji()), tmp_path / "b")


def test_a_metaword_that_is_a_word_already_is_refused(edge: DiffusersGenerator) -> None:
    images = torch.zeros(1, 3, 64, 64)
    taken = replace(QUICK, metaword=Metaword(token="apple</w>"))
    with pytest.raises(InputError, match="in the vocabulary already"):
        distil(edge, PROMPTS[:1], images, taken)


def test_images_and_prompts_must_pair(edge: DiffusersGenerator) -> None:
    with pytest.raises(InputError, match="one cloud image for each prompt"):
        distil(edge, PROMPTS, torch.zeros(1, 3, 64, 64), QUICK)


def test_distillation_is_deterministic_and_resumable(edge: DiffusersGenerator, tmp_path: Path) -> None:
    """An interrupted run ends in the same tensors as one that was not."""
    images = edge.decode(edge(PROMPTS, seeds=[5, 6]))

    class Stop(Exception):  # noqa: N818
        pass

    def stop(stage: str, _: object) -> None:
        if stage == "joint":
            raise Stop

    straight = distil(edge, PROMPTS, images, QUICK)
    fresh = replace(presets.edge(presets.emoji()), sampling=edge.sampling)
    with pytest.raises(Stop):
        distil(fresh, PROMPTS, images, QUICK, checkpoint=tmp_path, on_step=stop)
    resumed = distil(edge, PROMPTS, images, QUICK, checkpoint=tmp_path)
    assert torch.equal(straight.vectors, resumed.vectors)
    for name, tensor in straight.lora.items():
        torch.testing.assert_close(tensor, resumed.lora[name])
