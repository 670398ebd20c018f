"""Which samplers an edge can be trained for: every class of the installed diffusers is in the table below."""

import itertools
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from schedulers import class_names, latents, made, scheduler_class

from dekag.generation.schedule import affine_steps
from dekag.training.diffusion import denoising_loss, noising
from dekag.training.noise_process import Diffusion, process_of
from dekag.training.schedulers import SamplerWarning, check_scheduler, set_for
from dekag.types import InputError

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

EXACT = 1e-4
"""Largest error that counts as none, in steps."""
FEW_STEPS = {
    "CogVideoXDDIMScheduler",
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "FlowMapEulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
}
"""Fit, and let an edge learn fewer steps."""
TRAINING_ONLY = {
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "LTXEulerAncestralRFScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
}
"""Fit, but remember earlier steps or add noise of their own."""
REFUSED = {
    "AmusedScheduler": "counts None timesteps",
    "BlockRefinementScheduler": "counts None timesteps",
    "CMStochasticIterativeScheduler": "starts from noise of strength 1 alone",
    "CogVideoXDPMScheduler": "missing 2 required positional arguments",
    "ConsistencyDecoderScheduler": "more than 2 inference steps",
    "DDIMInverseScheduler": "starts from noise",
    "DDPMWuerstchenScheduler": "counts None timesteps",
    "DPMSolverMultistepInverseScheduler": "starts from noise",
    "DiscreteDDIMScheduler": "counts None timesteps",
    "EDMDPMSolverMultistepScheduler": "starts from noise",
    "EDMEulerScheduler": "starts from noise",
    "EntropyBoundScheduler": "counts None timesteps",
    "HeliosDMDScheduler": "no sampler that an edge",
    "HeliosScheduler": "no sampler that an edge",
    "IPNDMScheduler": "starts from noise",
    "KarrasVeScheduler": "counts None timesteps",
    "MiniMaxH3Scheduler": "counts None timesteps",
    "PiflowScheduler": "no sampler that an edge",
    "RFD4ProteinaScheduler": "counts None timesteps",
    "RePaintScheduler": "prediction_type of RePaintScheduler must be one of",
    "SCMScheduler": "Intermediate timesteps",
    "ScoreSdeVeScheduler": "no attribute 'step'",
    "ScoreSdeVpScheduler": "no attribute 'step'",
    "UnCLIPScheduler": "draws from other latents",
    "VQDiffusionScheduler": "no sampler that an edge",
}
"""Refused, and what the line says."""
ELSEWHERE = {"CosineDPMSolverMultistepScheduler", "DPMSolverSDEScheduler"}
"""Cannot be imported, nor a pipeline with them be loaded, without a package (torchsde) that dekag does not bring."""
STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
ZERO_SNR = {
    **STABLE_DIFFUSION,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    before = diffusers.utils.logging.get_verbosity()
    diffusers.utils.logging.set_verbosity_error()
    yield
    diffusers.utils.logging.set_verbosity(before)


def few_step_error(scheduler: Any, steps: int = 4) -> float:
    """Largest distance of the few-step formula from the sampler's own step on a state of its noise, in steps.

    The states are those that the sampler itself reaches with a denoiser that finds most of the noise.
    """
    line, sampler = affine_steps(partial(set_for, scheduler, steps)), set_for(scheduler, steps)
    rng = torch.Generator().manual_seed(1)
    noise = torch.randn(1, 4, 8, 8, generator=rng).double()
    state = noise * float(getattr(sampler, "init_noise_sigma", 1.0))
    worst = 0.0
    for t, step in zip(sampler.timesteps, line, strict=True):
        given = sampler.scale_model_input(state, t) if hasattr(sampler, "scale_model_input") else state
        said = noise + 0.1 * torch.randn(1, 4, 8, 8, generator=rng)
        after = sampler.step(said, t, state, return_dict=False)[0]
        size = (after - state).norm()
        assert step.timestep == float(t)
        worst = max(worst, float((step.scale * state - given).norm() / given.norm()))
        worst = max(worst, float((step.old * state + step.new * said - after).norm() / size))
        state = after
    return worst


def estimate_error(scheduler: Any) -> float:
    """Where the sampler tells its estimate of the latent: how far it is from the latent, in a training's first step.

    The denoiser says what the training asks for, and the state is what the training gives it.
    """
    sampler, process = set_for(scheduler, 10), process_of(scheduler)
    latent, noise = latents()
    first = sampler.timesteps[0]
    noised, told, target = process.noised(latent, noise, process.share(first[None].double()))
    scale = getattr(sampler, "scale_model_input", None)
    unit = 1.0 if scale is None else float(scale(torch.ones(1, 1, 1, 1), first))
    assert float(told) == float(first)
    step = sampler.step(target, first, noised / unit)
    found = getattr(step, "pred_original_sample", None)
    if found is None:
        return 0.0
    # what is lost in a step from noise of this strength
    strength = float(noised.std() / unit)
    return float((found - latent).abs().max()) / max(1.0, strength)


def test_every_class_of_diffusers_is_in_the_table() -> None:
    assert set(class_names()) == FEW_STEPS | TRAINING_ONLY | set(REFUSED) | ELSEWHERE
    assert {name for name in ELSEWHERE if scheduler_class(name) is None} == {
        name for name in class_names() if scheduler_class(name) is None
    }


@pytest.mark.parametrize("name", sorted(FEW_STEPS | TRAINING_ONLY))
def test_training_noises_what_the_sampler_draws_from(name: str) -> None:
    """As the class comes; the strength of noise that a sampler adds is an estimate of 4096 numbers (5 sigma)."""
    scheduler = made(name)
    fit = check_scheduler(scheduler)
    print(f"{name:38} fits {max(fit.error, estimate_error(scheduler)):.1e} of a step")
    assert max(fit.error, fit.conversion) < EXACT
    assert fit.noise_error < (0.4 if fit.random else EXACT)
    assert estimate_error(scheduler) < EXACT
    noising(scheduler)


@pytest.mark.parametrize("name", sorted(FEW_STEPS))
def test_the_few_step_formula_is_the_samplers_own_step(name: str) -> None:
    options = {"clip_sample": False} if "DDIM" in name else {}
    scheduler = made(name, **options)
    error = few_step_error(scheduler)
    print(f"{name:38} few steps {error:.1e} of a step")
    assert error < EXACT


@pytest.mark.parametrize("name", sorted(TRAINING_ONLY))
def test_samplers_with_a_memory_or_noise_of_their_own_teach_no_few_steps(name: str) -> None:
    with pytest.raises(InputError, match=f"first order that does not clip, as DDIM or Euler; {name} is none"):
        affine_steps(partial(set_for, made(name), 4))


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_no_sampler_of_an_edge_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(InputError, match=name) as told:
        noising(made(name))
    print(f"{name:38} refused: {told.value}")
    assert REFUSED[name] in str(told.value)
    assert "\n" not in str(told.value)


FITS: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIM with an SNR of 0": ("DDIMScheduler", {**ZERO_SNR, "clip_sample": False}),
    "DDPM with an SNR of 0": ("DDPMScheduler", {**ZERO_SNR, "clip_sample": False}),
    "Euler with an SNR of 0": ("EulerDiscreteScheduler", ZERO_SNR),
    "DPM-Solver with an SNR of 0": ("DPMSolverMultistepScheduler", ZERO_SNR),
    "UniPC with an SNR of 0": ("UniPCMultistepScheduler", ZERO_SNR),
    "latents": ("DDIMScheduler", {"prediction_type": "sample"}),
    "as in Stable Diffusion": (
        "PNDMScheduler",
        {**STABLE_DIFFUSION, "skip_prk_steps": True, "steps_offset": 1, "set_alpha_to_one": False},
    ),
    "2M with Karras' levels": (
        "DPMSolverMultistepScheduler",
        {**STABLE_DIFFUSION, "use_karras_sigmas": True},
    ),
    "2M SDE": (
        "DPMSolverMultistepScheduler",
        {**STABLE_DIFFUSION, "algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
    ),
    "Karras' levels": ("EulerDiscreteScheduler", {**STABLE_DIFFUSION, "use_karras_sigmas": True}),
    "the last level kept": (
        "DPMSolverMultistepScheduler",
        {**STABLE_DIFFUSION, "final_sigmas_type": "sigma_min"},
    ),
    "thresholding": ("DDIMScheduler", {**STABLE_DIFFUSION, "thresholding": True, "clip_sample": False}),
    "another variance": ("DDPMScheduler", {**STABLE_DIFFUSION, "variance_type": "fixed_large"}),
    "UniPC for flows": (
        "UniPCMultistepScheduler",
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0},
    ),
    "2M for flows, shifted by size": (
        "DPMSolverMultistepScheduler",
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "use_dynamic_shifting": True},
    ),
    "flow, shifted": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "flow, shifted by size": ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}),
    "flow with noise": ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
    "flow with Karras' levels": ("FlowMatchEulerDiscreteScheduler", {"use_karras_sigmas": True}),
}


@pytest.mark.parametrize("case", sorted(FITS))
def test_configurations_that_people_draw_with_fit(case: str) -> None:
    name, options = FITS[case]
    fit = check_scheduler(made(name, **options))
    print(f"{case:38} fits {fit.error:.1e} of a step")
    assert max(fit.error, fit.conversion) < EXACT


NO_FIT: dict[str, tuple[str, dict[str, Any], str]] = {
    "no such prediction": (
        "DDIMScheduler",
        {"prediction_type": "score"},
        "must be one of epsilon, v_prediction",
    ),
    "one timestep": ("DDIMScheduler", {"num_train_timesteps": 1}, "counts 1 timesteps"),
    "too few for these betas": (
        "EulerDiscreteScheduler",
        {"num_train_timesteps": 50},
        "training has noise of",
    ),
    "noise asked for at an SNR of 0": (
        "DDIMScheduler",
        {"rescale_betas_zero_snr": True},
        "ends at an SNR of 0, where prediction_type epsilon says nothing; v_prediction does",
    ),
    "a flow's prediction without a flow": (
        "DPMSolverMultistepScheduler",
        {"prediction_type": "flow_prediction"},
        "draws from other latents",
    ),
    "a flow without a flow's prediction": (
        "UniPCMultistepScheduler",
        {"use_flow_sigmas": True},
        "draws from other latents",
    ),
    "other times than timesteps": (
        "EulerDiscreteScheduler",
        {"timestep_type": "continuous", "prediction_type": "v_prediction"},
        "training has noise of",
    ),
    "a variance that the denoiser learned": ("DDPMScheduler", {"variance_type": "learned"}, "no sampler"),
    "clips what latents are": (
        "DDIMScheduler",
        {"clip_sample": True, "clip_sample_range": 0.1},
        "draws from other latents",
    ),
    "from the picture to the noise": (
        "FlowMatchEulerDiscreteScheduler",
        {"invert_sigmas": True},
        "starts from noise",
    ),
}


@pytest.mark.parametrize("case", sorted(NO_FIT))
def test_configurations_that_training_does_not_know_are_refused(case: str) -> None:
    name, options, line = NO_FIT[case]
    with pytest.raises(InputError, match=line) as told:
        check_scheduler(made(name, **options))
    assert name in str(told.value)
    assert "\n" not in str(told.value)


def test_times_that_are_not_those_of_the_noise_are_said_with_what_would_be_right() -> None:
    """DDIM counts back by whole divisions of the training's timesteps, which linspace's times are not."""
    with pytest.warns(
        SamplerWarning, match="differ from its noise .* with timestep_spacing 'trailing' they do not"
    ):
        check_scheduler(DDIMScheduler(**STABLE_DIFFUSION, timestep_spacing="linspace"))


def test_a_measured_scheduler_is_left_as_it_was() -> None:
    scheduler = EulerDiscreteScheduler(**STABLE_DIFFUSION)
    scheduler.set_timesteps(7)
    before = scheduler.timesteps.clone()
    check_scheduler(scheduler)
    assert torch.equal(scheduler.timesteps, before)
    assert scheduler.step_index is None


def test_training_has_the_noise_levels_that_ddpm_has() -> None:
    """What is read off a sampler is to the bit what DDPM's own configuration gives."""
    for options in (STABLE_DIFFUSION, ZERO_SNR):
        process = process_of(DDIMScheduler(**options))
        assert isinstance(process, Diffusion)
        assert torch.equal(process.scheduler.alphas_cumprod, DDPMScheduler(**options).alphas_cumprod)


# min-SNR weights


def weights(kind: str, *, gamma: float = 5.0, zero_snr: bool = True) -> torch.Tensor:
    process = Diffusion(
        DDPMScheduler(**STABLE_DIFFUSION, prediction_type=kind, rescale_betas_zero_snr=zero_snr)
    )
    return process.weights(process.share(torch.arange(1000)), gamma)


@pytest.mark.parametrize(("kind", "limit"), [("epsilon", 1.0), ("v_prediction", 0.0), ("sample", 0.0)])
def test_weights_at_an_snr_of_0_are_their_limits(kind: str, limit: float) -> None:
    """min(SNR, gamma) over SNR, SNR + 1 and 1: at 0 they tend to 1, 0 and 0, from the timestep before on."""
    found = weights(kind)
    assert float(found[-1]) == limit
    assert abs(float(found[-2]) - limit) < 1e-3
    assert bool(torch.isfinite(found).all())
    assert bool((found >= 0).all())


@pytest.mark.parametrize(("kind", "limit"), [("epsilon", 0.0), ("v_prediction", 0.0), ("sample", 5.0)])
def test_weights_without_noise_are_their_limits(kind: str, limit: float) -> None:
    process = Diffusion(DDPMScheduler(trained_betas=[0.0, 0.5], prediction_type=kind, num_train_timesteps=2))
    assert float(process.weights(torch.tensor([0.0]), 5.0)) == limit


def test_the_three_weights_are_one_weight_of_the_latent() -> None:
    """An error of the noise is SNR, one of the velocity SNR + 1 times the latent's (Salimans and Ho 2022, Sec. 4)."""
    power = DDPMScheduler(**STABLE_DIFFUSION).alphas_cumprod
    snr = power / (1 - power)
    by_latent = weights("sample", zero_snr=False)
    torch.testing.assert_close(weights("epsilon", zero_snr=False) * snr, by_latent)
    torch.testing.assert_close(weights("v_prediction", zero_snr=False) * (snr + 1), by_latent)
    torch.testing.assert_close(by_latent, snr.clamp(max=5.0))


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_the_weighted_loss_of_pure_noise_is_nothing(kind: str) -> None:
    """All images at the last timestep of a schedule that ends at an SNR of 0."""
    process = Diffusion(DDPMScheduler(**STABLE_DIFFUSION, prediction_type=kind, rescale_betas_zero_snr=True))
    loss = denoising_loss(
        lambda noised, _: noised,
        process,
        torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
        rng=torch.Generator().manual_seed(0),
        min_share=0.9995,
        gamma=5.0,
    )
    assert float(loss) == 0.0


def test_a_flow_is_weighted_evenly() -> None:
    process = noising(FlowMatchEulerDiscreteScheduler())
    assert torch.equal(process.weights(torch.tensor([0.0, 0.5, 0.999]), 5.0), torch.ones(3))


SWEPT = {
    "prediction_type": ["epsilon", "v_prediction", "sample"],
    "timestep_spacing": ["leading", "trailing", "linspace"],
    "beta_schedule": ["linear", "scaled_linear"],
    "use_karras_sigmas": [False, True],
    "rescale_betas_zero_snr": [False, True],
    "final_sigmas_type": ["zero", "sigma_min"],
    "solver_order": [1, 2, 3],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "DDIMScheduler",
        "DDPMScheduler",
        "DEISMultistepScheduler",
        "DPMSolverMultistepScheduler",
        "EulerDiscreteScheduler",
        "HeunDiscreteScheduler",
        "PNDMScheduler",
        "UniPCMultistepScheduler",
    ],
)
def test_every_configuration_fits_or_is_said(name: str) -> None:
    """Nothing but the three states: exact, a warning with the size of it, a refusal in one line."""
    kind: Any = scheduler_class(name)
    known = {key: values for key, values in SWEPT.items() if key in kind().config}
    counts = {"fits": 0, "warns": 0, "refused": 0}
    for values in itertools.product(*known.values()):
        options = dict(zip(known, values, strict=True))
        scheduler = kind(**options)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", SamplerWarning)
            try:
                fit = check_scheduler(scheduler)
            except InputError:
                counts["refused"] += 1
                continue
        warned = any(issubclass(one.category, SamplerWarning) for one in said)
        assert warned == (fit.error > 1e-3)
        counts["warns" if warned else "fits"] += 1
    print(name, counts)
    assert counts["fits"]


class Unscaled(EulerDiscreteScheduler):  # type: ignore[misc]
    """Gives the denoiser its state as it is."""

    def scale_model_input(self, sample: torch.Tensor, timestep: Any) -> torch.Tensor:
        super().scale_model_input(sample, timestep)
        return sample


class Mistaken(DDIMScheduler):  # type: ignore[misc]
    """Takes for the noise what its configuration calls a velocity."""

    def step(self, *arguments: Any, **options: Any) -> Any:
        other = DDIMScheduler.from_config(self.config, prediction_type="epsilon")
        other.set_timesteps(self.num_inference_steps)
        return other.step(*arguments, **options)


@pytest.mark.parametrize("kind", [Unscaled, Mistaken])
def test_a_samplers_of_ones_own_that_is_wrong_is_found(kind: Any) -> None:
    """No list of names: what is refused is what it does."""
    with pytest.raises(InputError, match=f"{kind.__name__}"):
        check_scheduler(kind(**STABLE_DIFFUSION, prediction_type="v_prediction"))
    check_scheduler(kind.__base__(**STABLE_DIFFUSION, prediction_type="v_prediction"))
