"""Generation and MAKD on the shipped pipelines: the real code path, a few steps of it."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dekag.alignment.config import MakdConfig
from dekag.alignment.generation.bundles import (
    apply_generation,
    pipeline_digest,
    save_generation,
    tokenizer_digest,
)
from dekag.alignment.generation.makd import TRAINED, distil
from dekag.alignment.generation.method import DistillationData, TrainingRun
from dekag.alignment.generation.methods import METHODS, method_config
from dekag.alignment.generation.update import GenerationUpdate, apply_update, remove_update
from dekag.errors import PromptTruncatedWarning
from dekag.generation.diffusers import DiffusersGenerator, Sampling, load_generator
from dekag.training.run import Tracking
from dekag.types import InputError
from dekag.world import load_world

PROMPTS = ["a red apple on a blue background", "a cat face on a pink background, on the left"]
QUICK = MakdConfig(metaword_steps=3, joint_steps=3, frozen_steps=3, batch=4, rank=2)


def pairs(images: torch.Tensor, prior: Sequence[str] = ()) -> DistillationData:
    return DistillationData(prompts=PROMPTS, images=images, prior=prior)


@pytest.fixture(scope="module")
def edge() -> DiffusersGenerator:
    return replace(load_world("emoji").edge(), sampling=Sampling(steps=3, guidance=3.0))


@pytest.fixture(scope="module")
def update(edge: DiffusersGenerator) -> GenerationUpdate:
    images = edge.decode(edge(PROMPTS, seeds=[5, 6])).flip(1)
    return distil(edge, pairs(images), QUICK)


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
    with pytest.raises(InputError, match="no diffusers pipeline folder and no hub id"):
        load_generator(source)


def _digests(generator: DiffusersGenerator) -> tuple[str, str]:
    return pipeline_digest(generator), tokenizer_digest(generator)


def test_distillation_leaves_the_generator_alone(edge: DiffusersGenerator, update: GenerationUpdate) -> None:
    assert _digests(edge) == _digests(load_world("emoji").edge())
    assert any(name.endswith("lora_B.weight") and t.any() for name, t in update.adapter.items())


def test_the_plain_edge_draws_as_before_beside_an_update(
    edge: DiffusersGenerator, update: GenerationUpdate
) -> None:
    """An update is on while its own generator draws, and off for everybody else."""
    before = edge(PROMPTS, seeds=[0, 1])
    aligned = apply_update(edge, update)
    assert not torch.allclose(aligned(PROMPTS, seeds=[0, 1]), before, atol=1e-3)
    assert torch.equal(edge(PROMPTS, seeds=[0, 1]), before)
    assert _digests(edge) == _digests(load_world("emoji").edge())
    remove_update(aligned)
    assert torch.equal(edge(PROMPTS, seeds=[0, 1]), before)
    assert not any("lora" in name for name, _ in edge.denoiser.named_modules())


def test_images_are_drawn_with_the_update_too(edge: DiffusersGenerator, update: GenerationUpdate) -> None:
    """The pipeline's own decoder shows what decoding the generator's latents shows."""
    aligned = apply_update(edge, update)
    images = aligned.images(PROMPTS, seeds=[0, 1])
    decoded = aligned.decode(aligned(PROMPTS, seeds=[0, 1]))
    remove_update(aligned)
    torch.testing.assert_close(images, decoded, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(images, edge.images(PROMPTS, seeds=[0, 1]), atol=1e-2)


def test_two_updates_take_turns_on_one_pipeline(edge: DiffusersGenerator, update: GenerationUpdate) -> None:
    halved = replace(update, metaword=None, adapter={k: t * 0.5 for k, t in update.adapter.items()})
    alone = []
    for one in (update, halved):
        aligned = apply_update(edge, one)
        alone.append(aligned(PROMPTS, seeds=[0, 1]))
        remove_update(aligned)
    first, second = apply_update(edge, update, name="first"), apply_update(edge, halved, name="second")
    for _ in range(2):
        torch.testing.assert_close(first(PROMPTS, seeds=[0, 1]), alone[0])
        torch.testing.assert_close(second(PROMPTS, seeds=[0, 1]), alone[1])
    remove_update(first)
    torch.testing.assert_close(second(PROMPTS, seeds=[0, 1]), alone[1])
    with pytest.raises(InputError, match="second is loaded already"):
        apply_update(edge, halved, name="second")
    remove_update(second)
    assert _digests(edge) == _digests(load_world("emoji").edge())


@pytest.mark.parametrize(
    ("name", "shape", "text"),
    [
        ("no_such_block.conv1.lora_A.weight", (2, 3, 3, 3), "another base: the denoiser has no layer"),
        (
            "conv_in.lora_A.weight",
            (2, 7, 3, 3),
            "another base: conv_in.lora_A.weight is 2 x 7 x 3 x 3 there, 2 x 32 x 3 x 3 here",
        ),
    ],
)
def test_an_update_that_does_not_fit_is_refused_before_it_touches_anything(
    edge: DiffusersGenerator, update: GenerationUpdate, name: str, shape: tuple[int, ...], text: str
) -> None:
    strange = replace(update, adapter={**update.adapter, name: torch.ones(shape)})
    before = edge(PROMPTS, seeds=[0, 1])
    with pytest.raises(InputError, match=text):
        apply_update(edge, strange)
    assert torch.equal(edge(PROMPTS, seeds=[0, 1]), before)


@pytest.mark.parametrize("position", ["prefix", "suffix"])
def test_all_vectors_of_the_metaword_are_read_where_it_was_put(
    edge: DiffusersGenerator, update: GenerationUpdate, position: str
) -> None:
    assert update.metaword is not None
    word = replace(update.metaword, position=position)
    aligned = apply_update(edge, replace(update, metaword=word))
    known = len(edge.pipeline.text_encoder.get_input_embeddings().weight)
    with aligned.active():
        ids = aligned.pipeline.tokenizer(word.add_to(PROMPTS[0])).input_ids
    remove_update(aligned)
    new = list(range(known, known + QUICK.vectors))
    plain = edge.pipeline.tokenizer(PROMPTS[0], add_special_tokens=False).input_ids
    assert ids[1:-1] == (new + plain if position == "prefix" else plain + new)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "full"])
@pytest.mark.parametrize("quantisation", ["fp16", "int8"])
def test_bundle_round_trip_draws_the_same(
    edge: DiffusersGenerator, method: str, quantisation: str, tmp_path: Path
) -> None:
    """Whatever the method learned, its bundle draws it again, to the rounding of its numbers."""
    images = edge.decode(edge(PROMPTS, seeds=[5, 6])).flip(1)
    learned = METHODS[method].train(edge, pairs(images, prior=PROMPTS[:1]), QUICK)
    aligned = apply_update(edge, learned)
    direct = aligned(PROMPTS, seeds=[0, 1])
    remove_update(aligned)
    save_generation(tmp_path / "b", edge, learned, settings={"rank": 2}, quantisation=quantisation)  # type: ignore[arg-type]
    loaded, bundle = apply_generation(edge, tmp_path / "b")
    drawn = loaded(PROMPTS, seeds=[0, 1])
    remove_update(loaded)
    moved = (direct - edge(PROMPTS, seeds=[0, 1])).norm()
    assert (drawn - direct).norm() < 0.05 * moved
    assert (bundle.manifest.metaword is None) == (learned.metaword is None)


def test_full_fine_tuning_changes_a_copy(edge: DiffusersGenerator, tmp_path: Path) -> None:
    images = edge.decode(edge(PROMPTS, seeds=[5, 6])).flip(1)
    before = edge(PROMPTS, seeds=[0, 1])
    learned = distil(edge, pairs(images), method_config("full", QUICK))
    tuned = apply_update(edge, learned)
    assert not torch.allclose(tuned(PROMPTS, seeds=[0, 1]), before, atol=1e-3)
    assert torch.equal(edge(PROMPTS, seeds=[0, 1]), before)
    with pytest.raises(InputError, match="a bundle carries low-rank updates only"):
        save_generation(tmp_path / "b", edge, learned, settings={})


def test_what_a_bundle_recommends_is_what_is_drawn_with(
    edge: DiffusersGenerator, update: GenerationUpdate, tmp_path: Path
) -> None:
    gentle = replace(update, sampling=Sampling(steps=2, guidance=1.5))
    save_generation(tmp_path / "b", edge, gentle, settings={})
    loaded, _ = apply_generation(edge, tmp_path / "b")
    remove_update(loaded)
    assert loaded.sampling == Sampling(steps=2, guidance=1.5, batch=edge.sampling.batch)


def test_a_bundle_for_another_base_is_refused(
    edge: DiffusersGenerator, update: GenerationUpdate, tmp_path: Path
) -> None:
    save_generation(tmp_path / "b", edge, update, settings={})
    with pytest.raises(InputError, match="made for base model"):
        apply_generation(load_world("emoji").cloud(), tmp_path / "b")


def test_a_metaword_that_is_a_word_already_is_refused() -> None:
    edge = load_world("emoji").edge()
    edge.pipeline.tokenizer.add_tokens(["<taken>"])
    with pytest.raises(InputError, match="in the vocabulary already"):
        distil(edge, pairs(torch.zeros(2, 3, 64, 64)), replace(QUICK, token="<taken>"))


def test_images_and_prompts_must_pair() -> None:
    with pytest.raises(InputError, match="one cloud image for each prompt"):
        pairs(torch.zeros(1, 3, 64, 64))


def test_every_image_keeps_its_own_prompt_when_shuffled(edge: DiffusersGenerator) -> None:
    """The order of the pairs is no matter of what is learned: latents are never paired with another's prompt.

    Two orders draw other batches, so the check is on the loss of a batch as large as the data, without a gradient.
    """
    from dekag.alignment.generation.makd import _cached_reader, _Drawings, _loss, _Training

    images = edge.decode(edge(PROMPTS, seeds=[5, 6]))
    latents = edge.encode(images)
    swapped = _Drawings(prompts=PROMPTS[::-1], latents=latents.flip(0), with_word=False)
    straight = _Drawings(prompts=PROMPTS, latents=latents, with_word=False)
    for drawings in (straight, swapped):
        read = _cached_reader(edge, drawings.prompts)
        for row, prompt in enumerate(drawings.prompts):
            states = read(torch.tensor([row]), torch.tensor([False]))["states"]
            torch.testing.assert_close(states, edge.read([prompt])["states"])
            assert torch.equal(drawings.latents[row], latents[PROMPTS.index(prompt)])
    training = _Training(generator=edge, config=replace(QUICK, text_dropout=0.0, batch=64))
    wrong = _Drawings(prompts=PROMPTS[::-1], latents=latents, with_word=False)
    part, mixed = (_loss(training, (drawings,), cached=True) for drawings in (straight, wrong))
    with torch.no_grad():
        right, mistaken = (f(torch.Generator().manual_seed(0)) for f in (part, mixed))
    assert right < 0.9 * mistaken


def test_cached_text_states_are_those_that_are_read_anew(edge: DiffusersGenerator) -> None:
    from dekag.alignment.generation.makd import _cached_reader, _reader

    index, dropped = torch.tensor([1, 0, 1]), torch.tensor([False, False, True])
    cached, anew = (make(edge, PROMPTS)(index, dropped) for make in (_cached_reader, _reader))
    torch.testing.assert_close(cached["states"], anew["states"])


def test_distillation_is_deterministic_and_resumable(edge: DiffusersGenerator, tmp_path: Path) -> None:
    """A run that was interrupted in its last stage ends in the same bytes as one that was not."""
    images = edge.decode(edge(PROMPTS, seeds=[5, 6]))

    class StopError(Exception):
        pass

    def stop(stage: str, _: object) -> None:
        if stage == "frozen":
            raise StopError

    straight = distil(edge, pairs(images, prior=PROMPTS), QUICK)
    with pytest.raises(StopError):
        distil(edge, pairs(images, prior=PROMPTS), QUICK, TrainingRun(checkpoint=tmp_path, on_step=stop))
    resumed = distil(edge, pairs(images, prior=PROMPTS), QUICK, TrainingRun(checkpoint=tmp_path))
    assert straight.metaword is not None
    assert resumed.metaword is not None
    for name, vectors in straight.metaword.vectors.items():
        assert torch.equal(vectors, resumed.metaword.vectors[name])
    for name, tensor in straight.adapter.items():
        assert torch.equal(tensor, resumed.adapter[name])


def test_a_state_file_holds_nothing_that_does_not_train(edge: DiffusersGenerator, tmp_path: Path) -> None:
    images = edge.decode(edge(PROMPTS, seeds=[5, 6]))
    distil(edge, pairs(images), QUICK, TrainingRun(checkpoint=tmp_path))
    state = torch.load(tmp_path / "frozen.pt", weights_only=True)
    assert all(TRAINED in name for name in state["model"])


def test_validation_keeps_the_best_average_and_sees_the_update(
    edge: DiffusersGenerator, tmp_path: Path
) -> None:
    """The score is of the generator as it trains; what comes back is the best, not the last."""
    images = edge.decode(edge(PROMPTS, seeds=[5, 6])).flip(1)
    before, seen = edge(PROMPTS, seeds=[0, 1]), []

    def worse_with_every_step(generator: DiffusersGenerator, stage: str, step: int) -> float:
        seen.append((stage, step, generator(PROMPTS, seeds=[0, 1])))
        return -float(step)

    config = replace(QUICK, frozen_steps=3, validate_every=2)
    run = TrainingRun(
        validate=worse_with_every_step, tracking=Tracking(trackers=("tensorboard",), folder=tmp_path)
    )
    learned = distil(edge, pairs(images), config, run)
    assert [(stage, step) for stage, step, _ in seen] == [("frozen", 2), ("frozen", 3)]
    aligned = apply_update(edge, learned)
    torch.testing.assert_close(aligned(PROMPTS, seeds=[0, 1]), seen[0][2])
    remove_update(aligned)
    assert not torch.allclose(seen[0][2], before, atol=1e-3)
    assert any(tmp_path.rglob("events.out.tfevents*"))


def test_gradient_checkpointing_changes_nothing_but_memory(edge: DiffusersGenerator) -> None:
    images = edge.decode(edge(PROMPTS, seeds=[5, 6]))
    plain, saving = (
        distil(edge, pairs(images), replace(QUICK, gradient_checkpointing=g)) for g in (False, True)
    )
    for name, tensor in plain.adapter.items():
        torch.testing.assert_close(tensor, saving.adapter[name])
    assert not edge.denoiser.is_gradient_checkpointing


def test_the_merged_forward_gives_pefts_outputs_and_gradients(edge: DiffusersGenerator) -> None:
    from dekag.alignment.generation import adapters

    config = adapters.config_for("lora", rank=3, targets=edge.family.targets)
    noised, timesteps = torch.randn(2, 32, 8, 8), torch.tensor([10, 700])
    conditioning = edge.read(PROMPTS)
    with adapters.fresh(edge.denoiser, "merged_test", config, seed=0):
        own = {n: p for n, p in edge.denoiser.named_parameters() if ".merged_test." in n}
        with torch.no_grad():
            for parameter in own.values():
                parameter.add_(0.02 * torch.randn_like(parameter))

        def outcome() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            out = edge.family.predict(edge.pipeline, noised, timesteps, conditioning)
            return out.detach(), dict(
                zip(own, torch.autograd.grad(out.square().mean(), own.values()), strict=True)
            )

        usual, gradients = outcome()
        with adapters.merged_forward(edge.denoiser, "merged_test"):
            merged, merged_gradients = outcome()
        again, _ = outcome()
    torch.testing.assert_close(merged, usual, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(again, usual)
    for name, gradient in gradients.items():
        torch.testing.assert_close(merged_gradients[name], gradient, rtol=1e-3, atol=1e-5)
