"""Energies of Lee and Petersen, against conditions that only the best ones meet."""

import pytest
import torch

from dekag.codec.allocation import allocate

VARIANCE = torch.arange(1, 101).double().pow(-1.3)


def error(energy: torch.Tensor, noise: float) -> torch.Tensor:
    return (VARIANCE * noise / (energy + noise)).sum()


@pytest.mark.parametrize(
    ("count", "energy", "noise"), [(100, 50.0, 0.05), (64, 32.0, 1.0), (7, 3.0, 0.5), (1, 2.0, 0.1)]
)
def test_no_exchange_of_energy_between_two_amplitudes_helps(count: int, energy: float, noise: float) -> None:
    """Kuhn and Tucker: where energy is, the error falls equally by more of it; where none is, by no more than that."""
    count_, energy_, noise_ = (
        torch.tensor([count]),
        torch.tensor([energy]).double(),
        torch.tensor([noise]).double(),
    )
    found = allocate(VARIANCE, count_, energy_, noise_)[0]
    assert found.sum().item() == pytest.approx(energy)
    assert (found >= 0).all()
    assert not found[count:].any()
    fall = VARIANCE * noise / (found + noise).square()
    active = found > 0
    torch.testing.assert_close(fall[active], fall[0].expand(int(active.sum())))
    assert (fall[:count][~active[:count]] <= fall[0] * (1 + 1e-9)).all()


def test_rows_are_independent() -> None:
    """A row of a batch has the bits that it has alone."""
    count, energy, noise = (
        torch.tensor([100, 3, 40]),
        torch.tensor([50.0, 1.0, 20.0]),
        torch.tensor([0.1, 2.0, 0.01]),
    )
    variance = VARIANCE.float()
    together = allocate(variance, count, energy, noise)
    for row in range(3):
        one = slice(row, row + 1)
        assert torch.equal(together[one], allocate(variance, count[one], energy[one], noise[one]))
