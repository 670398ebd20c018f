"""The separable Karhunen-Loeve transform of latents: where a codec starts from."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dekag.types import InputError, Latent


@dataclass(frozen=True, kw_only=True, eq=False)
class Klt:
    """Latents less `mean` and times `weight`, decorrelated over channels, rows and columns in turn.

    importance: how much an error in each channel shows, mean 1; the weight is its square root over the
    deviation of the weighted latents, so that weighted numbers have unit variance on average.
    channel_basis: columns are components. row_basis, col_basis: for each of them, columns are components.
    variance: of each component of the latents it was fitted to.
    """

    importance: Float[Tensor, " channels"]
    mean: Float[Tensor, "channels rows cols"]
    weight: Float[Tensor, " channels"]
    channel_basis: Float[Tensor, "channels components"]
    row_basis: Float[Tensor, "components rows rows"]
    col_basis: Float[Tensor, "components cols cols"]
    variance: Float[Tensor, " coefficients"]


def fit_klt(latents: Latent, importance: Float[Tensor, " channels"]) -> Klt:
    """The transform of latents, each basis the eigenvectors of its own sample covariance.

    Raises InputError for fewer than two latents, values that are not finite, or importances that are not
    positive.
    """
    if len(latents) < 2 or not bool(latents.isfinite().all()):
        raise InputError(f"a transform is fitted to at least two finite latents, got {len(latents)}")
    if importance.shape != latents.shape[1:2] or not bool((importance > 0).all()):
        raise InputError(f"importance must be {latents.shape[1]} positive numbers, one for each channel")
    mean = latents.double().mean(0)
    weighted = (latents.double() - mean) * importance.double().sqrt()[:, None, None]
    deviation = weighted.square().mean().sqrt()
    x = weighted / deviation
    channel_basis = _basis(torch.einsum("nchw,ndhw->cd", x, x))
    x = torch.einsum("cd,nchw->ndhw", channel_basis, x)
    row_basis = _basis(torch.einsum("ndhw,ndkw->dhk", x, x))
    col_basis = _basis(torch.einsum("ndhw,ndhk->dwk", x, x))
    components = torch.einsum("ndhw,dhi,dwj->ndij", x, row_basis, col_basis)
    return Klt(
        importance=importance,
        mean=mean.float(),
        weight=(importance.double().sqrt() / deviation).float(),
        channel_basis=channel_basis.float(),
        row_basis=row_basis.float(),
        col_basis=col_basis.float(),
        variance=components.square().mean(0).flatten().float(),
    )


def _basis(covariance: Tensor) -> Tensor:
    """Eigenvectors as columns, by falling eigenvalue."""
    vectors: Tensor = torch.linalg.eigh(covariance).eigenvectors
    return vectors.flip(-1)
