"""PSNR and SSIM against scikit-image."""

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from dekag.evaluation.metrics import PSNR_CAP_DB, psnr_db, ssim
from dekag.types import InputError, Metric


def pair(noise: float) -> tuple[Tensor, Tensor]:
    """Smooth pictures, and the same with noise."""
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand(3, 3, 5, 5, generator=rng)
    smooth = torch.nn.functional.interpolate(coarse, (40, 52), mode="bilinear")
    return smooth, (smooth + noise * torch.randn(smooth.shape, generator=rng)).clamp(0, 1)


def rows(images: Tensor) -> NDArray[np.float64]:
    return images.permute(0, 2, 3, 1).double().numpy()


@pytest.mark.parametrize("noise", [0.001, 0.05, 0.5])
def test_psnr_is_scikit_images(noise: float) -> None:
    one, other = pair(noise)
    theirs = [
        peak_signal_noise_ratio(a, b, data_range=1) for a, b in zip(rows(one), rows(other), strict=True)
    ]
    assert psnr_db(one, other).tolist() == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize("noise", [0.001, 0.05, 0.5])
def test_ssim_is_scikit_images(noise: float) -> None:
    one, other = pair(noise)
    theirs = [
        structural_similarity(
            a, b, data_range=1, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for a, b in zip(rows(one), rows(other), strict=True)
    ]
    assert ssim(one, other).tolist() == pytest.approx(theirs, abs=2e-5)


def test_equal_images_have_the_cap_and_an_ssim_of_one() -> None:
    image, _ = pair(0.0)
    assert psnr_db(image, image).tolist() == [PSNR_CAP_DB] * 3
    assert ssim(image, image).tolist() == pytest.approx([1.0] * 3, abs=1e-6)


def test_the_smallest_difference_of_8_bit_pictures_lies_below_the_cap() -> None:
    """One step in one of 3 x 128 x 128 values: 20 log10(255) + 10 log10(49152) = 95.05 dB."""
    image = torch.full((1, 3, 128, 128), 0.5)
    other = image.clone()
    other[0, 0, 0, 0] += 1 / 255
    assert psnr_db(image, other).item() == pytest.approx(95.05, abs=0.01)


@pytest.mark.parametrize("metric", [psnr_db, ssim])
def test_an_image_does_not_depend_on_its_batch_mates(metric: Metric) -> None:
    one, other = pair(0.1)
    alone = [metric(one[i : i + 1], other[i : i + 1]).item() for i in range(3)]
    assert metric(one, other).tolist() == pytest.approx(alone, abs=1e-5)
    assert metric(one, other).tolist() == pytest.approx(metric(other, one).tolist(), abs=1e-5)


@pytest.mark.parametrize("metric", [psnr_db, ssim])
@pytest.mark.parametrize("value", [255.0, -0.01, float("nan")])
def test_values_out_of_range_are_refused(metric: Metric, value: float) -> None:
    one, other = pair(0.1)
    other[0, 0, 0, 0] = value
    with pytest.raises(InputError, match=r"estimate must be within \[0, 1\]"):
        metric(one, other)


def test_images_that_do_not_fit_are_refused() -> None:
    image, _ = pair(0.0)
    # the shape hook of a test run, where it is on, refuses before we do
    with pytest.raises((InputError, TypeCheckError), match=r"one shape|batch=3"):
        psnr_db(image, image[:2])
    with pytest.raises(InputError, match="at least 11 x 11"):
        ssim(image[:, :, :10], image[:, :, :10])
