"""The estimate by conjugate gradients against a solution of the whole system."""

import torch

from dekag.channel.fading import block_gains
from dekag.codec.lmmse import GRADIENT_TOLERANCE, lmmse
from dekag.codec.spreading import PairSpreading, Spreading, rudin_shapiro
from dekag.types import Condition

CONDITION = Condition(
    uses=torch.tensor([128, 128, 96, 30, 17, 128]),
    snr_db=torch.tensor([20.0, 5.0, 10.0, -5.0, 30.0, 20.0]),
    rayleigh=torch.tensor([True, False, True, True, True, True]),
    blocks=torch.tensor([4, 1, 1, 5, 17, 128]),
)


class Problem:
    """Components, and what arrives of them: `matched`, `quality`, `prior` as `lmmse` takes them."""

    def __init__(self, condition: Condition) -> None:
        rng = torch.Generator().manual_seed(0)
        payload, width = condition.payload, int(condition.payload.max())
        within = torch.arange(width) < payload[:, None]
        falling = torch.arange(1, 2 * width + 1).float().pow(-1.2).unflatten(0, (-1, 2))
        self.prior = falling * within[..., None]
        self.prior *= (payload / self.prior.sum(dim=(1, 2)))[:, None, None]
        noise = 10 ** (-condition.snr_db / 10)
        gain = block_gains(condition, width, rng=rng)
        components = torch.randn(len(condition), width, 2, generator=rng) * self.prior.sqrt()
        self.turns = Spreading(payload)
        sent = torch.view_as_complex(self.turns.spread(components).contiguous())
        white = torch.randn(len(condition), width, dtype=torch.complex64, generator=rng)
        received = gain * sent + noise.sqrt()[:, None] * white * within
        self.quality = 2 * gain.abs().square() / noise[:, None]
        self.matched = torch.view_as_real(2 * gain.conj() * received / noise[:, None])

    def solved(self, **options: float) -> torch.Tensor:
        return lmmse(
            self.matched,
            self.quality,
            self.prior,
            spread=self.turns.spread,
            despread=self.turns.despread,
            **options,
        )


def dense(problem: Problem, row: int, payload: int) -> torch.Tensor:
    """(P^-1 + F* G F)^-1 F* b by a factorisation in float64."""
    turns = Spreading(torch.full((2 * payload,), payload))
    unit = torch.eye(2 * payload).unflatten(1, (payload, 2)).double()
    spread = turns.spread(unit).flatten(1).T
    quality = problem.quality[row, :payload].double().repeat_interleave(2)
    prior = problem.prior[row, :payload].double().flatten()
    system = torch.diag(1 / prior) + spread.T @ (quality[:, None] * spread)
    return torch.linalg.solve(system, spread.T @ problem.matched[row, :payload].double().flatten())


def test_it_equals_a_dense_solution() -> None:
    """Within 1e-5 of the largest component, in fading of 1 to 128 blocks at -5 to 30 dB."""
    problem = Problem(CONDITION)
    found, worst = problem.solved(), 0.0
    for row, payload in enumerate(CONDITION.payload.tolist()):
        expected = dense(problem, row, payload)
        difference = found[row, :payload].double().flatten() - expected
        worst = max(worst, float(difference.abs().max() / expected.abs().max()))
        assert not found[row, payload:].any()
    print(f"LMMSE against a dense solution: at most {worst:.1e}")
    assert worst < 1e-5


def test_an_image_keeps_every_bit_among_others() -> None:
    """What another image needs in steps changes nothing."""
    whole = Problem(CONDITION).solved()
    problem = Problem(CONDITION)
    rows = torch.tensor([0, 5, 0])
    problem.turns = Spreading(CONDITION.payload[rows])
    problem.prior, problem.quality, problem.matched = (
        tensor[rows] for tensor in (problem.prior, problem.quality, problem.matched)
    )
    assert torch.equal(problem.solved(), whole[rows])


def test_one_step_is_exact_without_fading() -> None:
    problem = Problem(Condition(uses=64, snr_db=20.0))
    torch.testing.assert_close(problem.solved(steps=1), problem.solved(), rtol=1e-4, atol=1e-5)


def test_a_fixed_number_of_steps_comes_near() -> None:
    """What leaves as ONNX: 30 steps in products of matrices, all payload."""
    condition = Condition(uses=128, snr_db=20.0, rayleigh=True, blocks=8)
    problem = Problem(condition)
    expected = problem.solved()
    turns = PairSpreading(problem.matched, rudin_shapiro(512))
    problem.turns = turns  # type: ignore[assignment]
    found = problem.solved(steps=30, tolerance=0.0)
    assert ((found - expected).abs().max() / expected.abs().max()).item() < 1e-3


def test_its_gradient_is_that_of_the_solution() -> None:
    """Against the gradient of the dense solution, which autograd differentiates; to GRADIENT_TOLERANCE."""
    condition = Condition(uses=20, snr_db=10.0, rayleigh=True, blocks=4)
    problem = Problem(condition)
    problem.matched.requires_grad_()
    weights = torch.randn(1, 20, 2, generator=torch.Generator().manual_seed(1))
    (found,) = torch.autograd.grad((problem.solved() * weights).sum(), problem.matched)
    (expected,) = torch.autograd.grad((dense(problem, 0, 20) * weights.flatten()).sum(), problem.matched)
    assert (found - expected).norm() <= 2 * GRADIENT_TOLERANCE * expected.norm()


def test_silence_stays_silence() -> None:
    problem = Problem(CONDITION)
    problem.matched.zero_()
    assert not problem.solved().any()
