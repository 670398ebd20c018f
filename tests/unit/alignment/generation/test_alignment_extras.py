"""What an update carries beside metaword and LoRA: the noise map, and the second update for fewer steps."""

from dataclasses import replace

import pytest
import torch

from dekag.alignment.config import FewStepConfig, MakdConfig
from dekag.alignment.generation.bundles import apply_generation, pipeline_digest, save_generation
from dekag.alignment.generation.few_steps import distil_few_steps
from dekag.alignment.generation.makd import distil
from dekag.alignment.generation.method import DistillationData
from dekag.alignment.generation.noise_map import fit_noise_map, shared_noise_map
from dekag.alignment.generation.update import apply_update, remove_update
from dekag.generation.diffusers import DiffusersGenerator, Sampling
from dekag.types import InputError
from dekag.world import load_world

PROMPTS = ["a red apple on a blue background", "a cat face on a pink background, on the left"]


@pytest.fixture(scope="module")
def edge() -> DiffusersGenerator:
    return replace(load_world("emoji").edge(), sampling=Sampling(steps=4, guidance=2.0))


def test_a_rotation_of_the_channels_is_found_again() -> None:
    rng = torch.Generator().manual_seed(0)
    truth = torch.linalg.qr(torch.randn(6, 6, generator=rng)).Q
    cloud = torch.randn(5, 6, 4, 4, generator=rng) * torch.arange(1, 7)[:, None, None]
    edge = torch.einsum("dc,bcij->bdij", truth, cloud) + 3.0
    found = fit_noise_map(cloud, edge)
    torch.testing.assert_close(found, truth, atol=1e-5, rtol=0)
    torch.testing.assert_close(found @ found.T, torch.eye(6), atol=1e-5, rtol=0)


def test_a_noisy_map_is_still_orthogonal_and_the_best_of_its_kind() -> None:
    rng = torch.Generator().manual_seed(1)
    cloud, edge = (torch.randn(3, 4, 2, 2, generator=rng) for _ in range(2))
    found = fit_noise_map(cloud, edge)
    torch.testing.assert_close(found @ found.T, torch.eye(4), atol=1e-5, rtol=0)
    ours, theirs = ((z - z.mean((0, 2, 3), keepdim=True)).transpose(0, 1).flatten(1) for z in (edge, cloud))
    best = (found @ theirs - ours).square().sum()
    for _ in range(50):
        other = torch.linalg.qr(torch.randn(4, 4, generator=rng)).Q
        assert best <= (other @ theirs - ours).square().sum() + 1e-4


def test_latents_of_two_shapes_cannot_share_noise() -> None:
    with pytest.raises(InputError, match="latents of one shape"):
        fit_noise_map(torch.zeros(2, 4, 8, 8), torch.zeros(2, 16, 8, 8))


def test_no_map_is_fitted_without_a_cloud_or_between_two_shapes(edge: DiffusersGenerator) -> None:
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert shared_noise_map(None, edge, images) is None
    found = shared_noise_map(edge, edge, images)
    assert found is not None
    torch.testing.assert_close(found, torch.eye(32), atol=1e-5, rtol=0)

    class OtherShape:
        def encode(self, image: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(image), 4, 8, 8)

    assert shared_noise_map(OtherShape(), edge, images) is None


def test_the_identity_map_draws_what_the_pipeline_draws_itself(edge: DiffusersGenerator) -> None:
    mapped = replace(edge, noise_map=torch.eye(32))
    torch.testing.assert_close(mapped(PROMPTS, seeds=[3, 4]), edge(PROMPTS, seeds=[3, 4]))


def test_a_trajectory_begins_with_the_noise_and_ends_with_the_latent(edge: DiffusersGenerator) -> None:
    states = edge.trajectory(PROMPTS, seeds=[3, 4])
    assert states.shape == (2, 5, 32, 8, 8)
    noise = torch.randn(1, 32, 8, 8, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(states[:1, 0], noise)
    torch.testing.assert_close(states[:, -1], edge(PROMPTS, seeds=[3, 4]))


@pytest.mark.slow
def test_fewer_steps_learn_the_trajectory_and_travel_in_the_bundle(
    edge: DiffusersGenerator, tmp_path
) -> None:  # type: ignore[no-untyped-def]
    """After training, two unguided steps are nearer to the four guided ones than before."""
    images = edge.decode(edge(PROMPTS, seeds=[5, 6]))
    learned = distil(
        edge,
        DistillationData(prompts=PROMPTS, images=images),
        MakdConfig(metaword_steps=2, joint_steps=2, frozen_steps=2, batch=4, rank=2, prior_share=0.0),
    )
    digest = pipeline_digest(edge)
    aligned = apply_update(edge, learned)
    target = aligned(PROMPTS, seeds=[400_000, 400_001])
    few = FewStepConfig(steps=2, rank=8, train_steps=60, batch=8, learning_rate=5e-3)
    tensors, sampling = distil_few_steps(aligned, PROMPTS, few)
    torch.testing.assert_close(aligned(PROMPTS, seeds=[400_000, 400_001]), target)
    untrained = replace(aligned, sampling=sampling)(PROMPTS, seeds=[400_000, 400_001])
    remove_update(aligned)
    assert pipeline_digest(edge) == digest

    assert (sampling.steps, sampling.guidance) == (2, 1.0)
    whole = replace(learned, few_step=tensors, few_step_sampling=sampling)
    save_generation(tmp_path / "b", edge, whole, settings={}, quantisation="int8")
    fast, _ = apply_generation(edge, tmp_path / "b", few_steps=True)
    drawn = fast(PROMPTS, seeds=[400_000, 400_001])
    remove_update(fast)
    assert (drawn - target).norm() < 0.7 * (untrained - target).norm()
    assert pipeline_digest(edge) == digest


@pytest.mark.parametrize("steps", [3, 4, 8])
def test_steps_that_do_not_divide_the_teachers_are_refused(edge: DiffusersGenerator, steps: int) -> None:
    with pytest.raises(InputError, match="must divide the teacher's, which are 4"):
        distil_few_steps(edge, PROMPTS, FewStepConfig(steps=steps))


def test_asking_for_what_a_bundle_lacks_is_one_clear_line(edge: DiffusersGenerator) -> None:
    from dekag.alignment.generation.update import GenerationUpdate

    with pytest.raises(InputError, match="nothing for fewer steps"):
        apply_update(edge, GenerationUpdate(), few_steps=True)
    with pytest.raises(InputError, match="no noise map"):
        apply_update(edge, GenerationUpdate(), shared_noise=True)
