"""The power constraint holds for every image by itself."""

import pytest
import torch

from dekag.codec.power import normalise_power, truncate
from dekag.types import InputError


def symbols(batch: int, width: int, dtype: torch.dtype = torch.complex64) -> torch.Tensor:
    return torch.randn(batch, width, dtype=dtype, generator=torch.Generator().manual_seed(0))


def power(sent: torch.Tensor, payload: torch.Tensor) -> torch.Tensor:
    return sent.abs().square().sum(dim=1) / payload


def test_every_image_has_unit_power_whatever_its_brightness() -> None:
    """Batch normalisation would leave a bright image at nearly 4 and the dark ones at nearly 0."""
    loudness = torch.tensor([1e3, 1.0, 1e-3, 1e-12])[:, None]
    payload = torch.tensor([64, 64, 17, 1])
    sent = normalise_power(symbols(4, 64) * loudness, payload)
    torch.testing.assert_close(power(sent, payload), torch.ones(4))


def test_batch_mates_change_nothing() -> None:
    s, payload = symbols(3, 32), torch.tensor([32, 20, 8])
    together = normalise_power(s * torch.tensor([1.0, 1e6, 0.0])[:, None], payload)
    alone = normalise_power(s[:1], payload[:1])
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=0)


def test_nothing_is_sent_or_counted_beyond_the_payload() -> None:
    s, payload = symbols(2, 32), torch.tensor([8, 32])
    sent = normalise_power(s, payload)
    assert torch.count_nonzero(sent[0, 8:]) == 0
    s[0, 8:] = 1e6
    torch.testing.assert_close(normalise_power(s, payload), sent, rtol=0, atol=0)


def test_normalising_twice_is_normalising_once() -> None:
    payload = torch.tensor([16, 5])
    once = normalise_power(symbols(2, 16), payload)
    torch.testing.assert_close(normalise_power(once, payload), once)


def test_silence_stays_silence_with_a_finite_gradient() -> None:
    s = symbols(2, 16)
    s[0] = 0
    s.requires_grad_()
    sent = normalise_power(s, torch.tensor([16, 16]))
    (gradient,) = torch.autograd.grad(sent.real.sum(), s)
    assert torch.count_nonzero(sent[0]) == 0
    assert gradient.isfinite().all()


def test_the_gradient_is_that_of_the_formula() -> None:
    """Against finite differences in double precision."""
    s = symbols(2, 6, torch.complex128).requires_grad_()
    payload = torch.tensor([6, 4])
    assert torch.autograd.gradcheck(lambda x: normalise_power(x, payload), s)


def test_images_stay_apart() -> None:
    """No derivative of one image's symbols by another's: I and Q are never taken from two images."""
    s = symbols(2, 4).requires_grad_()
    energy = normalise_power(s, torch.tensor([4, 4]))[0].abs().square()
    (gradient,) = torch.autograd.grad((energy * torch.arange(4)).sum(), s)
    assert torch.count_nonzero(gradient, dim=1).tolist() == [4, 0]


@pytest.mark.parametrize("payload", [0, 17])
def test_a_payload_that_does_not_fit_is_refused(payload: int) -> None:
    with pytest.raises(InputError, match=f"between 1 and the 16 symbols, got {payload}"):
        truncate(symbols(2, 16), torch.tensor([16, payload]))
