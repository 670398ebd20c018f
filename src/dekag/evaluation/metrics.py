"""Fidelity of a picture to a reference: PSNR and SSIM, one value per image."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dekag.types import Image, InputError, PerImage
from dekag.units import mse_to_psnr_db

PSNR_CAP_DB = 100.0
"""What identical images are given instead of infinity, so that means stay finite; 8-bit pictures that differ
by one step in one value of 3 x 128 x 128 are at 95 dB."""
WINDOW = 11
WINDOW_SIGMA = 1.5


def psnr_db(reference: Image, estimate: Image) -> PerImage:
    """Peak signal-to-noise ratio in decibels for a peak of 1, over all of an image; at most PSNR_CAP_DB.

    Raises InputError if the shapes differ or a value is outside [0, 1].
    """
    reference, estimate = _checked(reference, estimate)
    mse = (reference - estimate).square().flatten(1).mean(1)
    return mse_to_psnr_db(mse).clamp(max=PSNR_CAP_DB)


def ssim(reference: Image, estimate: Image) -> PerImage:
    """Structural similarity in [-1, 1], mean over the colours and over windows that lie within the image.

    Wang et al. 2004: Gaussian window of 11 x 11 with sigma 1.5, K1 = 0.01, K2 = 0.03.
    Raises InputError as `psnr_db` does, and if an image is smaller than the window.
    """
    x, y = _checked(reference, estimate)
    if min(x.shape[2:]) < WINDOW:
        raise InputError(f"SSIM needs images of at least {WINDOW} x {WINDOW}, got {tuple(x.shape[2:])}")
    # Wang et al. 2004, Eq. 13, with mu, sigma^2 and sigma_xy under the window (Eq. 14 to 16)
    mu_x, mu_y = _windowed(x), _windowed(y)
    var_x = _windowed(x.square()) - mu_x.square()
    var_y = _windowed(y.square()) - mu_y.square()
    cov = _windowed(x * y) - mu_x * mu_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mu_x * mu_y + c1) / (mu_x.square() + mu_y.square() + c1)
    structure = (2 * cov + c2) / (var_x + var_y + c2)
    return (luminance * structure).flatten(1).mean(1)


def _windowed(images: Tensor) -> Tensor:
    """Gaussian-weighted mean under each window, [batch, 3, height - 10, width - 10]."""
    offset = torch.arange(WINDOW, device=images.device) - WINDOW // 2
    weights = torch.exp(-offset.square() / (2 * WINDOW_SIGMA**2)).to(images.dtype)
    kernel = (weights / weights.sum()).expand(3, 1, 1, WINDOW)
    return F.conv2d(F.conv2d(images, kernel, groups=3), kernel.transpose(2, 3), groups=3)


def _checked(reference: Image, estimate: Image) -> tuple[Image, Image]:
    if reference.shape != estimate.shape:
        raise InputError(
            f"the images must have one shape, got {tuple(reference.shape)} and {tuple(estimate.shape)}"
        )
    for name, images in (("reference", reference), ("estimate", estimate)):
        if not bool(((images >= 0) & (images <= 1)).all()):
            low, high = images.min().item(), images.max().item()
            raise InputError(f"{name} must be within [0, 1], got values from {low:.4g} to {high:.4g}")
    return reference.float(), estimate.float()
