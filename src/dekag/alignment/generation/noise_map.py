"""Shared noise: the edge starts from the cloud's noise, turned into its own latent space.

Deterministic samplers of well-trained diffusion models map equal noise to similar images (Zhang et al. 2024, "The
emergence of reproducibility and consistency in diffusion models"). Two latent spaces differ by more than the eye
sees, but noise of unit variance stays such noise under an orthogonal map of its channels. This goes beyond DeKA-g.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from dekag.types import Image, ImageRows, InputError

Latents = Float[Tensor, "_ _ _ _"]
"""As Latent, of any sizes: the two spaces may differ."""
IMAGES = 64
"""Images that a map is fitted on."""


@runtime_checkable
class Encoder(Protocol):
    """Images in [0, 1] to latents, unit scale."""

    def encode(self, image: Image) -> Latents:
        """Latents of images with values in [0, 1]."""
        ...


def shared_noise_map(
    cloud: Encoder | None, edge: Encoder, images: ImageRows
) -> Float[Tensor, "channels channels"] | None:
    """The map of shared noise between cloud and edge, fitted on some of the cloud's images.

    None if there is no cloud at hand, as when its images came from a folder or an endpoint, or if the two have
    latents of other shapes: an update is then drawn with noise of the edge's own.
    """
    if cloud is None:
        return None
    subset = images[:: max(1, len(images) // IMAGES)]
    cloud_latents, edge_latents = cloud.encode(subset), edge.encode(subset)
    return fit_noise_map(cloud_latents, edge_latents) if cloud_latents.shape == edge_latents.shape else None


def fit_noise_map(cloud: Latents, edge: Latents) -> Float[Tensor, "channels channels"]:
    """The orthogonal map P of channels that brings the cloud's latents nearest to the edge's, of the same images.

    It minimises |P cloud - edge| over all rows, cols and images (orthogonal Procrustes, Schoenemann 1966); both are
    [images, channels, rows, cols] and are centred first. A few images are enough.
    Raises InputError unless both have the same shape.
    """
    if cloud.shape != edge.shape:
        raise InputError(
            f"shared noise needs latents of one shape, the cloud's are {tuple(cloud.shape[1:])} and the edge's"
            f" {tuple(edge.shape[1:])}"
        )
    edge_latents, cloud_latents = (z.double().transpose(0, 1).flatten(1) for z in (edge, cloud))
    edge_latents, cloud_latents = (z - z.mean(1, keepdim=True) for z in (edge_latents, cloud_latents))
    left, _, right = torch.linalg.svd(edge_latents @ cloud_latents.T)
    mapped: Tensor = (left @ right).float()
    return mapped
