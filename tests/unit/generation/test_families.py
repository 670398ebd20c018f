"""Every family of pipelines goes the whole way: load, distil, save, reload, apply, remove."""

import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import tiny_pipelines
import torch
from tiny_pipelines import CAPTIONS, CLOUDS, EDGES, PIXELS
from torch import Tensor

from dekag.alignment.config import MakdConfig
from dekag.alignment.generation.bundles import (
    apply_generation,
    pipeline_digest,
    save_generation,
    tokenizer_digest,
)
from dekag.alignment.generation.makd import distil
from dekag.alignment.generation.method import DistillationData
from dekag.alignment.generation.update import GenerationUpdate, apply_update, remove_update
from dekag.errors import PromptTruncatedWarning
from dekag.generation import families
from dekag.generation.diffusers import DiffusersGenerator, Sampling, load_generator
from dekag.generation.metaword import Metaword, PreparedMetaword, prepare_metaword
from dekag.training.diffusion import noising
from dekag.types import InputError
from dekag.world import hub

PROMPTS = CAPTIONS[:2]
SEEDS = [3, 4]
QUICK = MakdConfig(
    vectors=2,
    rank=2,
    metaword_steps=2,
    joint_steps=2,
    frozen_steps=2,
    joint_rate=1e-2,
    batch=2,
    text_dropout=0.0,
)
pytestmark = [
    # the pipeline of PRX is built on it
    pytest.mark.filterwarnings("ignore:`LoraLoaderMixin` is deprecated:FutureWarning"),
    # schedulers of diffusers turn tensors into arrays the old way
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]
LEFT_OUT = (
    r"time_embedding|add_embedding|modulation|norm_out|norm1\w*\.linear|^(img_in|txt_in|time_in|final_layer"
    r"|x_embedder|context_embedder|proj_out|time_guidance_embed|pos_embed|time_text_embed|adaln_single"
    r"|caption_projection)|^transformer_blocks\.1\.attn\.add_q_proj$"
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a family's tiny pipeline, as a hub would hold it."""
    root = tmp_path_factory.mktemp("pipelines")

    def folder(name: str) -> Path:
        if not (root / name).exists():
            tiny_pipelines.save(tiny_pipelines.build({**EDGES, **CLOUDS}[name]), root / name)
        return root / name

    return folder


@pytest.fixture(scope="module")
def load(saved: Callable[[str], Path]) -> Callable[[str], DiffusersGenerator]:
    """A family's generator, loaded afresh."""

    def fresh(name: str) -> DiffusersGenerator:
        return load_generator(saved(name), sampling=Sampling(steps=2, guidance=3.0), pixels=PIXELS)

    return fresh


@pytest.fixture(scope="module", params=EDGES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def edge(name: str, load: Callable[[str], DiffusersGenerator]) -> DiffusersGenerator:
    return load(name)


@pytest.fixture(scope="module")
def update(edge: DiffusersGenerator) -> GenerationUpdate:
    images = edge.images(PROMPTS, seeds=[5, 6]).flip(1)
    return distil(edge, DistillationData(prompts=PROMPTS, images=images), QUICK)


class Heard:
    """What a pipeline's denoiser is called with, and what it answers."""

    def __init__(self, denoiser: torch.nn.Module) -> None:
        self.calls: list[tuple[dict[str, Any], Tensor]] = []
        self.hook = denoiser.register_forward_hook(self.keep, with_kwargs=True)

    def keep(self, _: Any, args: tuple[Any, ...], told: dict[str, Any], answer: Any) -> None:
        named = dict(zip(("sample", "timestep", "encoder_hidden_states"), args, strict=False))
        self.calls.append(({**named, **told}, answer[0] if isinstance(answer, tuple) else answer.sample))


def heard(edge: DiffusersGenerator, call: Callable[[], object]) -> tuple[dict[str, Any], Tensor]:
    """The denoiser's first call within another."""
    ear = Heard(edge.denoiser)
    call()
    ear.hook.remove()
    return ear.calls[0]


def word_for(edge: DiffusersGenerator) -> PreparedMetaword:
    """A metaword of random vectors, read by the pipeline of an edge."""
    rng = torch.Generator().manual_seed(7)
    widths = {
        e: getattr(edge.pipeline, e).get_input_embeddings().weight.shape[1] for e in edge.family.encoders
    }
    vectors = {e: torch.randn(2, width, generator=rng) for e, width in widths.items()}
    word = Metaword(token="<dekag>", vectors=vectors)
    return prepare_metaword(edge.pipeline, word, edge.family.encoders)


@torch.no_grad()
def test_a_caption_that_is_too_long_leaves_the_metaword_whole(edge: DiffusersGenerator) -> None:
    """Every one of its tokens reaches every text encoder, in training's reading as in drawing; the caption is cut."""
    aligned = replace(edge, sampling=Sampling(steps=1, guidance=1.0), metaword=word_for(edge))
    assert aligned.metaword is not None
    caption = "a red apple and " * 240 + "a cactus"
    with pytest.warns(
        PromptTruncatedWarning, match="the metaword takes 2 of them; not read: .*cactus"
    ) as told:
        (text,) = aligned.metaword.add_to([caption])
    assert len(told) == 1
    assert "<dekag" not in str(told[0].message)
    kept = text.removesuffix(aligned.metaword.word.add_to(""))
    assert caption.startswith(kept)
    assert len(kept) > 8, "as much of the caption is read as there is room for"
    reads = {
        "training": lambda: edge.family.condition(edge.pipeline, [text]),
        "drawing": lambda: aligned([caption], seeds=[0]),
    }
    for read in reads.values():
        for encoder, tokenizer in edge.family.encoders.items():
            with aligned.active(), warnings.catch_warnings():
                warnings.simplefilter("ignore", PromptTruncatedWarning)
                ids = first_ids(getattr(edge.pipeline, encoder), read)
                known = aligned.metaword.tokenizers[tokenizer]
                wanted = known.convert_tokens_to_ids(list(aligned.metaword.word.tokens))
                assert [number for number in ids[0].tolist() if number in wanted] == wanted


def first_ids(encoder: torch.nn.Module, call: Callable[[], object]) -> Tensor:
    """The token ids that a text encoder is first called with."""
    seen: list[Tensor] = []

    def keep(_: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.append(named["input_ids"] if "input_ids" in named else args[0])

    hook = encoder.register_forward_pre_hook(keep, with_kwargs=True)
    call()
    hook.remove()
    return seen[0]


def test_a_metaword_that_leaves_no_room_is_refused(edge: DiffusersGenerator) -> None:
    limit = min(
        edge.family.limit(getattr(edge.pipeline, tokenizer)) for tokenizer in edge.family.encoders.values()
    )
    widths = {
        e: getattr(edge.pipeline, e).get_input_embeddings().weight.shape[1] for e in edge.family.encoders
    }
    word = Metaword(
        token="<dekag>", vectors={e: torch.zeros(limit + 1, width) for e, width in widths.items()}
    )
    prepared = prepare_metaword(edge.pipeline, word, edge.family.encoders)
    with pytest.raises(
        InputError, match=f"a metaword of {limit + 1} vectors has no room: {limit} tokens are read"
    ):
        prepared.add_to(["a cat"])


@torch.no_grad()
def test_training_calls_the_denoiser_as_drawing_does(edge: DiffusersGenerator) -> None:
    """The same latents, time and prompt, with a metaword, reach the denoiser in the same form."""
    one_step = replace(edge, sampling=Sampling(steps=1, guidance=1.0), metaword=word_for(edge))
    family, pipeline = edge.family, edge.pipeline
    drawn, answer = heard(edge, lambda: one_step(PROMPTS[:1], seeds=SEEDS[:1]))
    time = pipeline.scheduler.timesteps[:1]
    state = drawn.get("sample", drawn.get("hidden_states"))
    assert isinstance(state, Tensor)
    latents = family.from_step(state, like=torch.empty(1, *family.shape(pipeline, PIXELS)))
    with one_step.active():
        assert one_step.metaword is not None
        told = family.condition(pipeline, [one_step.metaword.word.add_to(PROMPTS[0])])
        said: list[Tensor] = []
        trained, _ = heard(edge, lambda: said.append(family.predict(pipeline, latents, time, told)))
    assert_same(trained, drawn)
    # behind the noise PixArt-Sigma says its variance
    answered = answer[:, : latents.shape[1]] if answer.ndim == latents.ndim else answer
    torch.testing.assert_close(said[0], family.from_step(answered, like=latents), rtol=1e-4, atol=1e-5)


def assert_same(trained: dict[str, Any], drawn: dict[str, Any]) -> None:
    for key, value in trained.items():
        if isinstance(value, dict):
            assert_same(value, drawn[key])
        elif isinstance(value, Tensor):
            other = drawn[key].expand(value.shape)
            torch.testing.assert_close(value.double(), other.double(), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_following_the_training_target_leads_to_the_latent(edge: DiffusersGenerator) -> None:
    """A denoiser that says exactly what training asks for makes the sampler end where the latent is."""
    pipeline, how = edge.pipeline, noising(edge.pipeline.scheduler)
    rng = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(2, *edge.family.shape(pipeline, PIXELS), generator=rng) for _ in range(2))
    scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    dynamic = {"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}
    scheduler.set_timesteps(20, **dynamic)
    at = 4
    share = scheduler.timesteps[at] / scheduler.config.num_train_timesteps
    noised, _, _ = how.noised(latents, noise, share.expand(2).float())
    # schedulers that count in standard deviations hold a state that is not of unit scale
    state = noised
    if float(getattr(scheduler, "init_noise_sigma", 1.0)) != 1:
        state = noised * (scheduler.sigmas[at] ** 2 + 1) ** 0.5
    for step in scheduler.timesteps[at:]:
        share = step / scheduler.config.num_train_timesteps
        _, _, target = how.noised(latents, noise, share.expand(2).float())
        state = scheduler.step(target, step, state, return_dict=False)[0]
    torch.testing.assert_close(state, latents, rtol=0.02, atol=0.05)


def test_decoding_is_the_pipelines_own(edge: DiffusersGenerator) -> None:
    latents = edge(PROMPTS, seeds=SEEDS)
    assert latents.shape == (2, *edge.family.shape(edge.pipeline, PIXELS))
    images = edge.images(PROMPTS, seeds=SEEDS)
    assert images.shape == (2, 3, PIXELS, PIXELS)
    torch.testing.assert_close(edge.decode(latents), images, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_scaling_is_undone_and_shapes_return(edge: DiffusersGenerator) -> None:
    family, vae = edge.family, edge.pipeline.vae
    images = torch.rand(2, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(0))
    latents = edge.encode(images)
    assert latents.shape == (2, *family.shape(edge.pipeline, PIXELS))
    assert edge.decode(latents).shape == images.shape
    torch.testing.assert_close(
        family.scaled(vae, family.unscaled(vae, latents)), latents, rtol=1e-4, atol=1e-4
    )


def test_own_noise_is_what_the_pipeline_draws(edge: DiffusersGenerator) -> None:
    channels = edge.family.shape(edge.pipeline, PIXELS)[0]
    mapped = replace(edge, noise_map=torch.eye(channels))
    assert torch.equal(mapped(PROMPTS, seeds=SEEDS), edge(PROMPTS, seeds=SEEDS))


def test_a_trajectory_ends_in_the_drawing(edge: DiffusersGenerator) -> None:
    states = edge.trajectory(PROMPTS, seeds=SEEDS)
    assert states.shape[:2] == (2, 3)
    torch.testing.assert_close(states[:, -1], edge(PROMPTS, seeds=SEEDS), rtol=1e-4, atol=1e-4)


def test_a_named_size_is_drawn(edge: DiffusersGenerator) -> None:
    large = replace(edge, pixels=2 * PIXELS, sampling=Sampling(steps=1, guidance=1.0))
    assert large.decode(large(PROMPTS[:1], seeds=[0])).shape == (1, 3, 2 * PIXELS, 2 * PIXELS)


@torch.no_grad()
def test_weights_may_be_of_half_precision(name: str, saved: Callable[[str], Path]) -> None:
    sampling = Sampling(steps=1, guidance=3.0)
    half = load_generator(saved(name), sampling=sampling, pixels=PIXELS, dtype=torch.bfloat16)
    latents = half(PROMPTS, seeds=SEEDS)
    assert latents.dtype == half.encode(half.decode(latents)).dtype == torch.float32
    told = half.family.condition(half.pipeline, PROMPTS)
    said = half.family.predict(half.pipeline, latents, torch.tensor([900, 20]), told)
    assert said.shape == latents.shape
    assert torch.isfinite(said).all()


@pytest.mark.slow
def test_metaword_and_low_rank_matrices_learn(edge: DiffusersGenerator, update: GenerationUpdate) -> None:
    pairs = DistillationData(prompts=PROMPTS, images=edge.images(PROMPTS, seeds=[5, 6]))
    fresh = distil(edge, pairs, replace(QUICK, adapter="none", metaword_steps=1))
    assert update.metaword is not None
    assert fresh.metaword is not None
    assert update.metaword.vectors.keys() == edge.family.encoders.keys()
    for encoder, vectors in update.metaword.vectors.items():
        assert torch.isfinite(vectors).all()
        assert (vectors - fresh.metaword.vectors[encoder]).abs().amax(1).gt(1e-4).all()
    layers = {key.partition(".lora_")[0] for key in update.adapter}
    assert all(t.any() for key, t in update.adapter.items() if key.endswith("lora_B.weight"))
    assert layers == aimed_at(edge)


def aimed_at(edge: DiffusersGenerator) -> set[str]:
    """All projections and convolutions but those of times, sizes, gates and the way in and out of a transformer."""
    kinds = torch.nn.Linear | torch.nn.Conv2d
    layers = [path for path, layer in edge.denoiser.named_modules() if isinstance(layer, kinds)]
    return {path for path in layers if not re.search(LEFT_OUT, path)}


@pytest.mark.slow
@pytest.mark.parametrize("stored", ["fp16", "int8"])
def test_bundle_in_a_fresh_pipeline_draws_as_the_update_and_leaves_no_trace(
    edge: DiffusersGenerator,
    update: GenerationUpdate,
    name: str,
    load: Callable[[str], DiffusersGenerator],
    stored: Literal["fp16", "int8"],
    tmp_path: Path,
) -> None:
    before = edge(PROMPTS, seeds=SEEDS)
    aligned = apply_update(edge, update)
    direct = aligned(PROMPTS, seeds=SEEDS)
    assert (direct - before).abs().max() > 1e-2
    assert torch.equal(edge(PROMPTS, seeds=SEEDS), before)
    remove_update(aligned)
    save_generation(tmp_path / "bundle", edge, update, settings={"rank": QUICK.rank}, quantisation=stored)

    fresh = load(name)
    marks = pipeline_digest(fresh), tokenizer_digest(fresh)
    assert marks == (pipeline_digest(edge), tokenizer_digest(edge))
    loaded, bundle = apply_generation(fresh, tmp_path / "bundle")
    drawn = loaded(PROMPTS, seeds=SEEDS)
    close = {"fp16": 0.02, "int8": 0.2}[stored]
    assert (drawn - direct).abs().max() < close * (direct - before).abs().max()
    assert torch.equal(fresh(PROMPTS, seeds=SEEDS), before)
    assert bundle.manifest.metaword is not None
    assert bundle.manifest.metaword.vectors == QUICK.vectors

    plain = remove_update(loaded)
    assert torch.equal(plain(PROMPTS, seeds=SEEDS), before)
    assert (pipeline_digest(fresh), tokenizer_digest(fresh)) == marks


@pytest.mark.slow
def test_a_bundle_of_another_family_is_refused(
    edge: DiffusersGenerator,
    update: GenerationUpdate,
    name: str,
    load: Callable[[str], DiffusersGenerator],
    tmp_path: Path,
) -> None:
    save_generation(tmp_path / "bundle", edge, update, settings={})
    names = list(EDGES)
    other = load(names[names.index(name) - 2])
    with pytest.raises(InputError, match="made for base model") as refused:
        apply_generation(other, tmp_path / "bundle")
    assert "\n" not in str(refused.value)


@torch.no_grad()
def test_stable_diffusion_3_without_t5_is_an_edge_of_two_encoders(tmp_path: Path) -> None:
    """Whoever saves its memory leaves the T5 encoder out; then the metaword has no vectors for it."""
    tiny_pipelines.save(tiny_pipelines.build(lambda: tiny_pipelines.stable_diffusion_3(t5=False)), tmp_path)
    edge = load_generator(tmp_path, sampling=Sampling(steps=1, guidance=1.0), pixels=PIXELS)
    assert list(edge.family.encoders) == ["text_encoder", "text_encoder_2"]
    word = word_for(edge)
    assert list(word.word.vectors) == list(edge.family.encoders)
    before = edge(PROMPTS[:1], seeds=[0])
    assert (replace(edge, metaword=word)(PROMPTS[:1], seeds=[0]) - before).abs().max() > 1e-3


@pytest.mark.parametrize("kind", CLOUDS)
def test_a_cloud_draws_images(kind: str, load: Callable[[str], DiffusersGenerator]) -> None:
    cloud = load(kind)
    images = cloud.images([*PROMPTS, PROMPTS[0]], seeds=[3, 4, 3])
    assert images.shape == (3, 3, PIXELS, PIXELS)
    assert images.min() >= 0
    assert images.max() <= 1
    torch.testing.assert_close(images[0], images[2], rtol=1e-3, atol=1e-3)
    assert torch.equal(images, cloud.images([*PROMPTS, PROMPTS[0]], seeds=[3, 4, 3]))
    other = cloud.images([PROMPTS[0]] * 2 + [PROMPTS[1]], seeds=[3, 5, 3])
    assert not torch.allclose(other[0], other[1], atol=1e-2)
    assert not torch.allclose(other[0], other[2], atol=1e-4)


@pytest.mark.parametrize("kind", CLOUDS)
def test_guidance_reaches_a_cloud(kind: str, load: Callable[[str], DiffusersGenerator]) -> None:
    cloud = load(kind)
    strong = replace(cloud, sampling=replace(cloud.sampling, guidance=9.0))
    assert not torch.allclose(
        cloud.images(PROMPTS, seeds=SEEDS), strong.images(PROMPTS, seeds=SEEDS), atol=1e-3
    )


def test_a_cloud_is_no_edge(load: Callable[[str], DiffusersGenerator]) -> None:
    with pytest.raises(InputError, match="ZImagePipeline is not known as an edge, only as a cloud"):
        load("z-image")(PROMPTS, seeds=SEEDS)


def test_hub_models_are_pinned_and_their_edges_known() -> None:
    assert len({model.id for model in hub.MODELS}) == len(hub.MODELS)
    for model in hub.MODELS:
        assert hub.revision(model.id) == model.revision is not None
        assert model.licence
        assert model.pipeline in families.FAMILIES or model.role == "cloud"
    assert hub.revision("somebody/their-own") is None


def test_a_model_without_a_commit_warns() -> None:
    with pytest.warns(hub.UnpinnedWarning, match="is not pinned to a commit"):
        assert hub.commit(replace(hub.MODELS[0], revision=None)) is None


def test_a_revision_must_be_a_commit() -> None:
    with pytest.raises(InputError, match="40 hexadecimal digits"):
        replace(hub.MODELS[0], revision="main")
