"""The linear MMSE estimate of spread components of known energies through a channel that varies from use to use.

Symbols are y = H F x + n: F spreads (`codec.spreading`), H is the gain of each use, N the power of the noise in it, and
the real and imaginary parts of the components x have prior energies P. With x = P^(1/2) u and the noise whitened,

    (I + P^(1/2) F* G F P^(1/2)) u = P^(1/2) F* b,    G = 2 |H|^2 / N,    b = 2 H* y / N,

a symmetric positive definite system in real numbers. It is solved by conjugate gradients (Hestenes and Stiefel 1952)
with the diagonal that a channel of the same mean G would have: where all uses are alike, the first step is exact.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch._higher_order_ops import while_loop

Pairs = Float[Tensor, "batch uses 2"]
Turn = Callable[[Pairs], Pairs]

TOLERANCE = 1e-6
"""Of an image's residual over that of 0, below which its estimate is left as it is."""
GRADIENT_TOLERANCE = 1e-3
"""Of a gradient, whose batch is far noisier."""
MOST_STEPS = 60


def lmmse(
    matched: Pairs,
    quality: Float[Tensor, "batch uses"],
    prior: Pairs,
    *,
    spread: Turn,
    despread: Turn,
    tolerance: float = TOLERANCE,
    steps: int = MOST_STEPS,
) -> Pairs:
    """Estimates of the components, as real and imaginary parts; all is zero beyond each image's payload.

    matched: b above. quality: G above. prior: energies, of the first of `spread`'s dimensions. spread, despread: F
    and F*. tolerance: 0 makes all `steps` for every image, which a graph of ONNX holds as a loop.
    Differentiable in `matched` alone.
    """
    root = prior.sqrt()
    # uses of no prior are beyond the payload, where quality is 0 as well
    sent = (prior.sum(2) > 0).sum(1).clamp(min=1)
    scale = 1 / (1 + prior * (quality.sum(1) / sent)[:, None, None])

    def normal(u: Pairs) -> Pairs:
        return u + root * despread(quality[..., None] * spread(root * u))

    def solve(b: Pairs, tolerance: float = tolerance) -> Pairs:
        if not tolerance:
            return fixed_gradients(normal, b, scale, steps=steps)
        return conjugate_gradients(normal, b, scale, tolerance=tolerance, steps=steps)

    b = root * despread(matched)
    u: Pairs = _Solved.apply(b, solve) if b.requires_grad else solve(b)  # type: ignore[no-untyped-call]
    return root * u


def conjugate_gradients(normal: Turn, b: Pairs, scale: Pairs, *, tolerance: float, steps: int) -> Pairs:
    """The solution x of normal(x) = b, image by image: what one of them needs changes nothing in another.

    normal: linear, symmetric, positive definite. scale: diagonal of the preconditioner. tolerance: above 0.
    """
    x = torch.zeros_like(b)
    residual, step = b, scale * b
    product = _dot(residual, step)
    # an image that is solved, silence from the start, has a product of 0 from then on
    floor = tolerance**2 * product
    for _ in range(steps):
        open_ = product > floor
        if not bool(open_.any()):
            break
        image = normal(step)
        curvature = _dot(step, image)
        length = torch.where(open_, product / curvature.clamp(min=1e-30), 0.0)
        x = x + length * step
        residual = residual - length * image
        scaled = scale * residual
        further = _dot(residual, scaled)
        step = torch.where(open_, scaled + further / product.clamp(min=1e-30) * step, step)
        product = torch.where(open_, further, product)
    return x


def fixed_gradients(normal: Turn, b: Pairs, scale: Pairs, *, steps: int) -> Pairs:
    """As `conjugate_gradients`, but all steps: numbers alone flow from one to the next, no decision."""

    def further(done: Tensor, x: Pairs, residual: Pairs, step: Pairs) -> tuple[Tensor, Pairs, Pairs, Pairs]:
        product, image = _dot(residual, scale * residual), normal(step)
        length = product / _dot(step, image).clamp(min=1e-30)
        left = residual - length * image
        scaled = scale * left
        turned = scaled + _dot(left, scaled) / product.clamp(min=1e-30) * step
        return done + 1, x + length * step, left, turned

    state = (torch.zeros((), dtype=torch.int64, device=b.device), torch.zeros_like(b), b.clone(), scale * b)
    if torch.compiler.is_exporting():
        state = while_loop(lambda done, *_: done < steps, further, state)
    else:
        for _ in range(steps):
            state = further(*state)
    return state[1]


def _dot(a: Pairs, b: Pairs) -> Float[Tensor, "batch 1 1"]:
    return (a * b).sum(dim=(1, 2), keepdim=True)


class _Solved(torch.autograd.Function):
    """The solution of a symmetric system: its gradient is that of another solution, not of all steps."""

    @staticmethod
    def forward(ctx: Any, b: Tensor, solve: Callable[..., Pairs]) -> Tensor:
        """The solution for b."""
        ctx.solve = solve
        return solve(b)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The gradient in b."""
        return ctx.solve(gradients[0], GRADIENT_TOLERANCE), None
