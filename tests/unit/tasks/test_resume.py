"""What a run keeps is of that run: under any other input it is refused, and never mixed into another run's result."""

import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_judges import save_dinov2
from tiny_pipelines import CAPTIONS, build, stable_diffusion

from dekag.alignment.config import CalaConfig, FewStepConfig, MakdConfig
from dekag.alignment.generation.method import DistillationData
from dekag.data.images import CloudImages
from dekag.generation.diffusers import DiffusersGenerator, Sampling
from dekag.tasks.align_generation import GenerationTask, align_generation, train_update
from dekag.tasks.align_transmission import (
    TransmissionTask,
    align_transmission,
    edge_latents,
    transmission_training,
)
from dekag.tasks.config import CodecConfig
from dekag.tasks.material import ImageSource, Material, material
from dekag.tasks.train_codec import train_codec
from dekag.tasks.validate import Extras
from dekag.training.kept import kept_rows
from dekag.training.keys import digest_of, key_of
from dekag.training.run import ALONE, Run
from dekag.types import InputError
from dekag.world import Model, World, load_world

CONFIG = MakdConfig(
    metaword_steps=2, joint_steps=2, frozen_steps=2, validate_every=1, batch=2, rank=2, prior_share=0.5
)
PRIOR = (CAPTIONS[0], CAPTIONS[1])
SAMPLING = Sampling(steps=2, guidance=2.0)


def pictures(seed: int) -> torch.Tensor:
    drawn = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return (255 * drawn).round() / 255


class StopError(Exception):
    """An interruption."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """All that a training depends on."""

    world: World
    data: Material
    config: MakdConfig = CONFIG

    def train(self, out: Path, run: Run = ALONE) -> str:
        """The id of the bundle."""
        extras = Extras(guidance=(), strengths=(), quantisation="fp32")
        return align_generation(
            self.world, self.data, GenerationTask(config=self.config, extras=extras), out, run
        ).id

    def interrupted(self, state: Path, stage: str) -> None:
        """The state that a run leaves that ends in a stage, after its last step."""
        last: list[str] = []

        def stop(name: str, _: object) -> None:
            if last and last[-1] == stage and name != stage:
                raise StopError
            last.append(name)

        try:
            self.train(state.parent / "unused", Run(resume=state, on_step=stop))
        except StopError:
            assert stage != "frozen"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("parts")
    edge = DiffusersGenerator(pipeline=build(stable_diffusion), sampling=SAMPLING)
    world = World(
        name="tiny",
        edge_model=Model(source=edge),
        pixels=16,
        judge_models={"dino": save_dinov2(folder / "dino")},
        prompt_splits={"prior": PRIOR},
    )
    data = Material(
        train=CloudImages(prompts=tuple(CAPTIONS), images=pictures(0)),
        held_back=CloudImages(prompts=tuple(CAPTIONS[:2]), images=pictures(1)[:2]),
    )
    return Inputs(world=world, data=data)


def other_picture(images: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """One number is another, by one step of 8 bits."""
    changed = images.clone()
    at = tuple(rng.randrange(size) for size in images.shape)
    changed[at] = changed[at] - 1 / 255 if changed[at] > 0.5 else changed[at] + 1 / 255
    return changed


def with_train(inputs: Inputs, **changes: object) -> Inputs:
    train = replace(inputs.data.train, **changes)  # type: ignore[arg-type]
    return replace(inputs, data=replace(inputs.data, train=train))


def with_world(inputs: Inputs, **changes: object) -> Inputs:
    return replace(inputs, world=replace(inputs.world, **changes))  # type: ignore[arg-type]


def other_caption(inputs: Inputs, rng: random.Random, folder: Path) -> Inputs:
    prompts = list(inputs.data.train.prompts)
    prompts[rng.randrange(3)] = "a green apple on a tree"
    return with_train(inputs, prompts=tuple(prompts))


def swapped(inputs: Inputs, rng: random.Random, folder: Path) -> Inputs:
    prompts = list(inputs.data.train.prompts)
    a, b = rng.sample(range(3), 2)
    prompts[a], prompts[b] = prompts[b], prompts[a]
    return with_train(inputs, prompts=tuple(prompts))


def other_images(inputs: Inputs, rng: random.Random, folder: Path) -> Inputs:
    return with_train(inputs, images=other_picture(inputs.data.train.images, rng))


def other_validation(inputs: Inputs, rng: random.Random, folder: Path) -> Inputs:
    assert inputs.data.held_back is not None
    images = other_picture(inputs.data.held_back.images, rng)
    return replace(inputs, data=replace(inputs.data, held_back=replace(inputs.data.held_back, images=images)))


def other_rate(inputs: Inputs, rng: random.Random, folder: Path) -> Inputs:
    name = rng.choice(["metaword_rate", "joint_rate"])
    return replace(inputs, config=replace(CONFIG, **{name: getattr(CONFIG, name) * 1.5}))  # type: ignore[arg-type]


def other_batch(inputs: Inputs, rng: random.Random, folder: Path) -> Inputs:
    return replace(inputs, config=replace(CONFIG, batch=rng.choice([3, 4])))


def other_prior(inputs: Inputs, rng: random.Random, folder: Path) -> Inputs:
    if rng.random() < 0.5:
        return replace(inputs, config=replace(CONFIG, prior_share=0.0))
    return with_world(inputs, prompt_splits={"prior": PRIOR[::-1]})


def other_base(inputs: Inputs, rng: random.Random, folder: Path) -> Inputs:
    edge = DiffusersGenerator(pipeline=build(stable_diffusion), sampling=SAMPLING)
    weight = next(iter(edge.pipeline.unet.parameters()))
    with torch.no_grad():
        weight.view(-1)[rng.randrange(weight.numel())].mul_(1 + 1e-6).add_(1e-7)
    return with_world(inputs, edge_model=Model(source=edge))


def other_sampler(inputs: Inputs, rng: random.Random, folder: Path) -> Inputs:
    source = inputs.world.edge_model.source
    assert isinstance(source, DiffusersGenerator)
    sampling = rng.choice([Sampling(steps=3, guidance=2.0), Sampling(steps=2, guidance=2.5)])
    return with_world(inputs, edge_model=Model(source=replace(source, sampling=sampling)))


def other_judge(inputs: Inputs, rng: random.Random, folder: Path) -> Inputs:
    target = folder / "judge"
    shutil.copytree(str(inputs.world.judge_models["dino"]), target)
    weights = load_file(target / "model.safetensors")
    name = rng.choice(sorted(weights))
    weights[name] = weights[name] + 1e-3
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    return with_world(inputs, judge_models={"dino": target})


CHANGES: Sequence[Callable[[Inputs, random.Random, Path], Inputs]] = (
    other_caption,
    swapped,
    other_images,
    other_validation,
    other_rate,
    other_batch,
    other_prior,
    other_base,
    other_sampler,
    other_judge,
)


def check_pair(number: int, inputs: Inputs, folder: Path) -> str:
    """A run, interrupted or not, and a second one that differs in one input; what became of the second."""
    rng = random.Random(number)
    state = folder / "state"
    inputs.interrupted(state, rng.choice(["metaword", "joint", "frozen"]))
    changed = CHANGES[number % len(CHANGES)](inputs, rng, folder)
    try:
        second = changed.train(folder / "second", Run(resume=state))
    except InputError as error:
        text = str(error)
        assert "is of a run with" in text
        assert "resume it as it was or choose another place" in text
        assert "\n" not in text
        return "refused"
    assert second == changed.train(folder / "fresh")
    return "equal"


@pytest.mark.slow
def test_a_run_goes_on_bit_for_bit(inputs: Inputs, tmp_path: Path) -> None:
    """The same inputs, after an interruption behind any stage: the bundle of one that was not interrupted."""
    straight = inputs.train(tmp_path / "straight")
    for stage in ("metaword", "frozen"):
        inputs.interrupted(tmp_path / stage / "state", stage)
        assert inputs.train(tmp_path / stage / "out", Run(resume=tmp_path / stage / "state")) == straight


@pytest.mark.parametrize("number", [0, 1, 4, 9])
def test_a_state_is_not_used_for_another_run(number: int, inputs: Inputs, tmp_path: Path) -> None:
    """Some of the 40 that the slow test has."""
    check_pair(number, inputs, tmp_path)


@pytest.mark.slow
def test_no_mixture_in_40_pairs(inputs: Inputs, tmp_path: Path) -> None:
    """Ten kinds of inputs, four random changes of each: every second run equals a fresh one or is refused."""
    ends = [check_pair(number, inputs, tmp_path / str(number)) for number in range(40)]
    print(ends.count("refused"), "refused,", ends.count("equal"), "equal to a fresh run")


def test_a_state_of_an_earlier_version_is_refused(inputs: Inputs, tmp_path: Path) -> None:
    """It does not say what it is of."""
    inputs.interrupted(tmp_path / "state", "metaword")
    state = torch.load(tmp_path / "state" / "metaword.pt", weights_only=True)
    torch.save(
        {name: value for name, value in state.items() if name != "key"}, tmp_path / "state" / "metaword.pt"
    )
    with pytest.raises(
        InputError, match=r"metaword\.pt does not say what it was made of: delete it to start anew"
    ):
        inputs.train(tmp_path / "out", Run(resume=tmp_path / "state"))


def test_fewer_steps_are_keyed_as_well(inputs: Inputs, tmp_path: Path) -> None:
    """The states before it stay; the other one is refused."""
    few = FewStepConfig(steps=1, rank=2, train_steps=2, batch=2)
    pairs = DistillationData(prompts=inputs.data.train.prompts, images=inputs.data.train.images)
    task = GenerationTask(config=CONFIG, extras=Extras(few_steps=few))
    edge, run = inputs.world.edge(), Run(resume=tmp_path)
    scheduler = edge.pipeline.scheduler
    trailing = type(scheduler).from_config(scheduler.config, timestep_spacing="trailing")
    edge.pipeline.register_modules(scheduler=trailing)  # one step of 'leading' times is none of two
    first = train_update(edge, pairs, task, None, run).few_step
    again = train_update(edge, pairs, task, None, run).few_step
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    other = replace(task, extras=Extras(few_steps=replace(few, batch=3)))
    with pytest.raises(
        InputError, match=r"few_steps\.pt is of a run with batch 2, this one has 3: resume it as it"
    ):
        train_update(edge, pairs, other, None, run)


def test_pictures_of_the_cloud_belong_to_their_prompts(tmp_path: Path) -> None:
    """Another prompt, another seed, another cloud: none gets the pictures that are kept."""
    (tmp_path / "a.txt").write_text(f"{CAPTIONS[0]}\n")
    (tmp_path / "b.txt").write_text(f"{CAPTIONS[1]}\n")
    world = load_world("emoji")
    cloud = world.cloud_model
    assert isinstance(cloud, Model)
    quick = replace(world, cloud_model=replace(cloud, sampling=Sampling(steps=2, guidance=2.0)))
    run, source = Run(resume=tmp_path / "state"), ImageSource(prompts_file=tmp_path / "a.txt")
    kept = material(quick, source, run).train.images[:]
    assert torch.equal(material(quick, source, run).train.images[:], kept)
    others = [
        (quick, replace(source, prompts_file=tmp_path / "b.txt"), "other prompts"),
        (quick, replace(source, seed=1), "other seeds"),
        (world, source, "other cloud"),
    ]
    for changed, wanted, line in others:
        with pytest.raises(
            InputError, match=f"cloud.safetensors is of a run with {line}: resume it as it was or"
        ):
            material(changed, wanted, run)


@pytest.mark.slow
def test_the_codec_and_its_update_are_keyed(tmp_path: Path) -> None:
    """Latents, base, size, rate, batch: a state of others is refused, and so is what the edge drew for others."""
    world = replace(load_world("emoji"), updates={})
    latents = torch.randn(4, 32, 8, 8, generator=torch.Generator().manual_seed(0))
    training = transmission_training("cala", 2, 0)
    task = TransmissionTask(training=training, batch=2, size=CalaConfig(rank=2))
    run = Run(resume=tmp_path / "cala")
    first = align_transmission(world, latents, task, tmp_path / "first", run)
    again = align_transmission(world, latents, task, tmp_path / "again", run)
    assert first is not None
    assert again is not None
    assert first.id == again.id
    changes = [
        (latents.flip(0), task, "other latents"),
        (latents, replace(task, batch=3), "batch 2, this one has 3"),
        (
            latents,
            replace(task, training=replace(training, learning_rate=1e-3)),
            "learning_rate 0.003, this one has",
        ),
    ]
    for data, other, line in changes:
        with pytest.raises(InputError, match=rf"cala\.pt is of a run with {line}"):
            align_transmission(world, data, other, tmp_path / "out", run)
    numbers = CodecConfig(width=16, encoder_depth=1, decoder_depth=1, steps=2, batch=2)
    train_codec(world, latents, numbers, tmp_path / "codec", run)
    with pytest.raises(InputError, match=r"codec\.pt is of a run with other latents"):
        train_codec(world, latents + 1e-6, numbers, tmp_path / "codec", run)


def test_what_the_edge_drew_is_of_its_prompts(tmp_path: Path) -> None:
    world = replace(load_world("emoji"), updates={}, prompt_splits={"distill": CAPTIONS[:2]})
    quick = replace(world, edge_model=replace(world.edge_model, sampling=Sampling(steps=2)))
    kept = edge_latents(quick, Run(resume=tmp_path), draws=1)
    assert torch.equal(edge_latents(quick, Run(resume=tmp_path), draws=1), kept)
    with pytest.raises(InputError, match=r"edge\.safetensors is of a run with other prompts"):
        edge_latents(
            replace(quick, prompt_splits={"distill": CAPTIONS[1::-1]}), Run(resume=tmp_path), draws=1
        )
    with pytest.raises(InputError, match=r"edge\.safetensors is of a run with other edge"):
        edge_latents(world, Run(resume=tmp_path), draws=1)


def test_a_cache_without_a_key_is_refused(tmp_path: Path) -> None:
    save_file({"cloud": torch.zeros(2)}, tmp_path / "cloud.safetensors")
    with pytest.raises(InputError, match=r"does not say what it was made of: delete it to start anew"):
        kept_rows(tmp_path, "cloud", 2, lambda: [torch.zeros(2)], lambda: {"prompts": ["a"]})
    (tmp_path / "cloud.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"cannot be read: delete it to start anew"):
        kept_rows(tmp_path, "cloud", 2, lambda: [torch.zeros(2)], lambda: {"prompts": ["a"]})


def test_keys_tell_everything_apart() -> None:
    """Order, type, shape and the last bit; equal values have equal keys."""
    one = torch.ones(2, 3)
    values = [
        None, 0, 0.0, False, "", "0", [], [0], [[0]], ["a", "b"], ["ab"], ["b", "a"], {"a": 1}, {"a": 2}, {"b": 1},
        one, one.double(), one.reshape(3, 2), torch.nextafter(one, 2 * one), CONFIG, replace(CONFIG, batch=3),
        torch.nn.Linear(2, 2), SAMPLING,
    ]  # fmt: skip
    digests = [digest_of(value) for value in values]
    assert len(set(digests)) == len(values)
    assert digest_of({"a": 1, "b": one}) == digest_of({"b": one.clone(), "a": 1})
    assert key_of({"batch": 3, "prompts": ["a"]})["batch"] == 3
