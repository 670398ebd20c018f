"""Constellations: energy, labels, nearest points, gradients."""

import pytest
import torch

from dekag.codec.constellation import (
    CONSTELLATIONS,
    Constellation,
    commitment_loss,
    constellation_named,
    demap_bits,
    map_bits,
    quantise,
)
from dekag.types import InputError

FINITE = [c for c in CONSTELLATIONS.values() if c.bits]
finite = pytest.mark.parametrize("constellation", FINITE, ids=lambda c: c.name)


def draw(batch: int, width: int) -> torch.Tensor:
    return torch.randn(batch, width, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))


def test_the_named_constellations() -> None:
    sizes = {name: len(c.points) for name, c in CONSTELLATIONS.items()}
    assert sizes == {"analogue": 0, "qpsk": 4, "16qam": 16, "64qam": 64, "256qam": 256, "1024qam": 1024}
    assert all(name == c.name for name, c in CONSTELLATIONS.items())


def test_an_unknown_name_lists_the_known_ones() -> None:
    assert constellation_named("qpsk") is CONSTELLATIONS["qpsk"]
    with pytest.raises(InputError, match="'8psk'; known are analogue, qpsk, 16qam, 64qam, 256qam"):
        constellation_named("8psk")


@finite
def test_mean_energy_is_one_and_points_are_distinct(constellation: Constellation) -> None:
    points = constellation.points
    assert points.abs().square().mean().item() == pytest.approx(1.0, abs=1e-6)
    assert points.mean().abs().item() < 1e-6
    assert len(torch.unique(torch.view_as_real(points), dim=0)) == 2**constellation.bits


@finite
def test_neighbours_differ_in_one_bit(constellation: Constellation) -> None:
    """Gray labelling; the smallest distance is twice the unit, and such pairs are neighbours."""
    points = constellation.points
    distance = (points[:, None] - points[None, :]).abs()
    first, second = (distance - 2 * constellation.unit).abs().lt(1e-4).nonzero(as_tuple=True)
    side = constellation.levels
    assert len(first) == 4 * side * (side - 1)
    assert all(int(label).bit_count() == 1 for label in first ^ second)


def test_qpsk_is_the_diagonal() -> None:
    expected = torch.tensor([-1 - 1j, -1 + 1j, 1 - 1j, 1 + 1j]) / 2**0.5
    torch.testing.assert_close(CONSTELLATIONS["qpsk"].points, expected)


def test_16qam_labels_of_one_axis() -> None:
    """The Gray sequence 00, 01, 11, 10 runs from -3 to 3 units, 1/sqrt(10) each."""
    points = CONSTELLATIONS["16qam"].points[[0b0000, 0b0100, 0b1100, 0b1000]]
    torch.testing.assert_close(points.real * 10**0.5, torch.tensor([-3.0, -1.0, 1.0, 3.0]))
    torch.testing.assert_close(points.imag * 10**0.5, torch.full((4,), -3.0))


@finite
def test_bits_survive_the_round_trip(constellation: Constellation) -> None:
    generator = torch.Generator().manual_seed(2)
    bits = torch.rand(3, 64, constellation.bits, generator=generator) < 0.5
    mapped = map_bits(bits, constellation)
    assert mapped.shape == (3, 64)
    assert torch.equal(demap_bits(mapped, constellation), bits)
    jitter = 0.98 * constellation.unit * torch.exp(1j * torch.arange(64))
    assert torch.equal(demap_bits(mapped + jitter, constellation), bits)


@finite
def test_the_nearest_point_is_found(constellation: Constellation) -> None:
    """Rounding per axis against an exhaustive search, far outliers included, and exactly on a point."""
    s = 2 * draw(4, 512)
    points = constellation.points
    nearest = points[(s[..., None] - points).abs().argmin(dim=-1)]
    assert torch.equal(quantise(s, constellation), nearest)


@finite
def test_points_are_their_own_quantisation(constellation: Constellation) -> None:
    points = constellation.points[None]
    assert torch.equal(quantise(points, constellation), points)


@finite
def test_the_gradient_is_straight_through(constellation: Constellation) -> None:
    s = draw(2, 32).requires_grad_()
    upstream = draw(2, 32).flip(1)
    (gradient,) = torch.autograd.grad(quantise(s, constellation), s, grad_outputs=upstream)
    assert torch.equal(gradient, upstream)


def test_quantisation_keeps_double_precision() -> None:
    s = draw(2, 8).to(torch.complex128)
    assert quantise(s, CONSTELLATIONS["16qam"]).dtype == torch.complex128


def test_analogue_leaves_symbols_alone() -> None:
    s = draw(2, 8)
    assert torch.equal(quantise(s, CONSTELLATIONS["analogue"]), s)
    assert torch.equal(commitment_loss(s, quantise(s, CONSTELLATIONS["analogue"])), torch.zeros(2))


def test_commitment_is_the_mean_squared_distance_of_each_image() -> None:
    s = torch.tensor([[1 + 1j, 0.5j], [2 + 0j, 9 + 9j]])
    points = torch.tensor([[1 + 0j, 0j], [0j, 0j]])
    torch.testing.assert_close(commitment_loss(s, points), torch.tensor([0.625, 83.0]))
    counted = commitment_loss(s, points, torch.tensor([2, 1]))
    torch.testing.assert_close(counted, torch.tensor([0.625, 4.0]))


def test_commitment_pulls_symbols_to_points_that_stay() -> None:
    """d/ds mean |s - c|^2 = 2 (s - c) / uses, although c was quantised straight-through from s."""
    constellation = CONSTELLATIONS["16qam"]
    s = draw(2, 8).requires_grad_()
    quantised = quantise(s, constellation)
    (gradient,) = torch.autograd.grad(commitment_loss(s, quantised).sum(), s)
    torch.testing.assert_close(gradient, 2 * (s - quantised).detach() / 8)


def test_bits_need_a_finite_constellation_and_its_number_of_bits() -> None:
    analogue, qpsk = CONSTELLATIONS["analogue"], CONSTELLATIONS["qpsk"]
    with pytest.raises(InputError, match="analogue symbols carry no bits"):
        map_bits(torch.zeros(1, 4, 2, dtype=torch.bool), analogue)
    with pytest.raises(InputError, match="analogue symbols carry no bits"):
        demap_bits(draw(1, 4), analogue)
    with pytest.raises(InputError, match="qpsk carries 2 bits a symbol, got 4"):
        map_bits(torch.zeros(1, 4, 4, dtype=torch.bool), qpsk)
