"""Quantisation: the error is what the bits allow, the bytes depend on values alone, damage is refused."""

from collections.abc import Callable, Mapping

import pytest
import torch
from jaxtyping import TypeCheckError
from random_draws import normal
from torch import Tensor

from dekag.bundle.bundle import load_bundle
from dekag.bundle.quantise import Bits, check_quantised, dequantise, quantise
from dekag.bundle.rank import reduce_rank
from dekag.types import InputError
from dekag.world import locate

A, B = "x.lora_A.weight", "x.lora_B.weight"
LARGEST = {8: 0.5 / 127, 4: 0.2}
"""Largest error as a share of the largest magnitude: half a step, or what the search for scales cuts off."""
both_widths = pytest.mark.parametrize("bits", [8, 4])


def gaussian(rank: int = 16, inputs: int = 768, outputs: int = 640) -> dict[str, Tensor]:
    return {A: normal(rank, inputs), B: normal(outputs, rank, seed=1)}


def product_errors(exact: Mapping[str, Tensor], coded: Mapping[str, Tensor]) -> tuple[float, float]:
    """Relative Frobenius error of B A: over all layers together, and of the worst one."""
    errors, powers = [], []
    for name in (name for name in exact if "lora_A" in name):
        full, approximate = (
            t[name.replace("lora_A", "lora_B")].double().flatten(1) @ t[name].double().flatten(1)
            for t in (exact, coded)
        )
        errors.append(float((full - approximate).square().sum()))
        powers.append(float(full.square().sum()))
    worst = max(error / power for error, power in zip(errors, powers, strict=True))
    return (sum(errors) / sum(powers)) ** 0.5, worst**0.5


@pytest.mark.parametrize(("bits", "least", "most"), [(8, 0.008, 0.014), (4, 0.13, 0.15)])
def test_error_on_gaussian_matrices(bits: Bits, least: float, most: float) -> None:
    """About 1 % in 8 bits, below 15 % in 4 bits, for ranks and widths of real layers."""
    for rank, inputs, outputs in ((1, 4096, 4096), (4, 320, 1280), (16, 768, 640), (64, 2304, 256)):
        exact = gaussian(rank, inputs, outputs)
        assert least < product_errors(exact, dequantise(quantise(exact, bits=bits)))[0] < most


@pytest.mark.parametrize(("bits", "most", "worst"), [(8, 0.014, 0.02), (4, 0.15, 0.2)])
def test_error_on_the_shipped_lora(bits: Bits, most: float, worst: float) -> None:
    """All layers together and the worst one, as trained and with the singular values split evenly."""
    trained = load_bundle(locate("emoji/makd", "bundle")).lora()
    for exact in (trained, reduce_rank(trained, energy=0.95)):
        total, layer = product_errors(exact, dequantise(quantise(exact, bits=bits)))
        assert total < most
        assert layer < worst


def test_4_bits_gain_by_the_search_for_scales() -> None:
    """Against plain rounding to the largest magnitude of each 64, done here by hand."""
    exact = normal(16, 640)
    groups = exact.unflatten(1, (-1, 64))
    scale = groups.abs().amax(-1, keepdim=True) / 7
    plain = (groups - (groups / scale).round() * scale).square().sum()
    searched = (exact - dequantise(quantise({A: exact}, bits=4))[A]).square().sum()
    assert searched < 0.9 * plain


@both_widths
@pytest.mark.parametrize("name", [A, B, "x.lokr_w1"])
@pytest.mark.parametrize(
    "shape", [(1, 1), (2, 3), (3, 2), (7, 65), (65, 7), (5, 1, 1, 1), (4, 5, 3, 3), (9, 4, 1, 1), (3, 2, 5)]
)
def test_shapes_come_back(bits: Bits, name: str, shape: tuple[int, ...]) -> None:
    """Even and odd, flat and kernels; with the shape come the values, to the rounding of the bits."""
    exact = normal(*shape)
    back = dequantise(quantise({name: exact}, bits=bits))[name]
    assert back.shape == shape
    assert back.dtype == torch.float32
    torch.testing.assert_close(back, exact, rtol=0, atol=1.001 * float(exact.abs().max()) * LARGEST[bits])


def test_8_bits_are_within_half_a_step() -> None:
    """Of each vector's own scale: rows of A and columns of B, however much their sizes differ."""
    sizes = 10.0 ** torch.arange(-3, 5)
    exact = {A: normal(8, 5, 3, 3) * sizes[:, None, None, None], B: normal(20, 8) * sizes}
    coded = quantise(exact)
    back = dequantise(coded)
    assert coded[A].dtype == coded[B].dtype == torch.int8
    assert coded[f"{A}.scale"].shape == coded[f"{B}.scale"].shape == (8, 1)
    for off, name in (((exact[A] - back[A]).flatten(1), A), ((exact[B] - back[B]).T, B)):
        assert torch.all(off.abs() <= 0.5001 * coded[f"{name}.scale"].float())
        assert torch.all(coded[f"{name}.scale"][:, 0] < 1.001 * 5 * sizes / 127)


def test_bytes() -> None:
    """One a number in 8 bits, half of one in 4 bits; two for each vector's scale, or for that of 64 numbers."""
    exact, numbers = gaussian(16, 768, 640), 16 * (768 + 640)
    for bits, expected in ((8, numbers + 2 * 32), (4, numbers // 2 + 2 * numbers // 64)):
        coded = quantise(exact, bits=bits)
        assert sum(t.numel() * t.element_size() for t in coded.values()) == expected


@both_widths
def test_quantising_what_was_quantised_changes_nothing(bits: Bits) -> None:
    coded = quantise({**gaussian(), "bias": normal(5)}, bits=bits)
    again = quantise(dequantise(coded), bits=bits)
    assert coded.keys() == again.keys()
    assert all(torch.equal(coded[name], again[name]) for name in coded)


@both_widths
def test_a_power_of_two_is_all_in_the_scales(bits: Bits) -> None:
    """Numbers do not see it; scales do, within the normal range of fp16."""
    exact = gaussian()
    coded = quantise(exact, bits=bits)
    larger = quantise({name: 16 * tensor for name, tensor in exact.items()}, bits=bits)
    for name in exact:
        assert torch.equal(coded[name], larger[name])
        assert torch.equal(16 * coded[f"{name}.scale"], larger[f"{name}.scale"])


@both_widths
def test_only_values_count(bits: Bits) -> None:
    """Not strides, not gradients, not the other vectors."""
    exact = normal(6, 130)
    coded = quantise({A: exact}, bits=bits)
    strided = quantise({A: exact.T.contiguous().T.requires_grad_()}, bits=bits)
    assert all(torch.equal(coded[name], strided[name]) for name in coded)
    alone = quantise({A: exact[2:3]}, bits=bits)
    assert all(torch.equal(coded[name][2:3], alone[name]) for name in coded)


@both_widths
def test_zeros_and_the_smallest_numbers(bits: Bits) -> None:
    """A vector of zeros has scale zero; one below the reach of fp16 is off by half its least number at most."""
    exact = torch.stack((torch.zeros(70), 1e-7 * normal(70), 1e-20 * normal(70)))
    coded = quantise({A: exact}, bits=bits)
    back = dequantise(coded)[A]
    assert torch.count_nonzero(coded[f"{A}.scale"][0]) == 0
    assert torch.count_nonzero(back[0]) == 0
    assert torch.count_nonzero(back[1]) > 0
    assert torch.all((back - exact).abs() <= 2.0**-25)


@both_widths
def test_vectors_and_numbers_stay_fp16(bits: Bits) -> None:
    given = {"norm.weight": normal(9), "alpha": torch.tensor(0.5), "norm.scale": normal(3)}
    coded = quantise(given, bits=bits)
    assert coded.keys() == given.keys()
    for name, back in dequantise(coded).items():
        assert torch.equal(back, given[name].half().float())


UNFIT: dict[str, tuple[dict[str, Tensor], str]] = {
    "NaN": ({A: torch.full((2, 2), float("nan"))}, "must hold finite"),
    "infinite": ({A: torch.full((2, 2), float("inf"))}, "must hold finite"),
    "beyond float32": ({A: torch.full((2, 2), 1e300, dtype=torch.float64)}, "must hold finite"),
    "whole numbers": ({A: torch.ones(2, 2, dtype=torch.int64)}, "must hold finite"),
    "empty": ({A: torch.zeros(0, 2)}, "must hold finite"),
    "large matrix": ({A: torch.full((2, 2), 1e30)}, "too large for scales in fp16"),
    "large vector": ({"bias": torch.full((2,), 1e6)}, "'bias' is too large for fp16"),
    "taken name": ({A: normal(2, 2), f"{A}.scale": normal(2)}, "must have another name"),
    "strange name": ({"a\x1b[2J\nb": normal(0, 2)}, "must hold finite"),
}


@both_widths
@pytest.mark.parametrize(("tensors", "reason"), UNFIT.values(), ids=UNFIT.keys())
def test_what_cannot_be_quantised(bits: Bits, tensors: dict[str, Tensor], reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        quantise(tensors, bits=bits)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("bits", [0, 2, 16])
def test_other_widths(bits: Bits) -> None:
    with pytest.raises((InputError, TypeCheckError), match=r"8 or 4 bits|Literal\[8, 4\]"):
        quantise(gaussian(), bits=bits)


S = f"{A}.scale"
TAMPERED: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "missing scale": (lambda t: t.pop(S), "must have a scale"),
    "missing matrix": (lambda t: t.pop(A), f"'{S}' is neither"),
    "extra matrix": (lambda t: t.update(y=normal(2, 2).half()), "'y' is neither"),
    "extra dtype": (lambda t: t.update(y=normal(2)), "'y' is neither"),
    "scale of fp32": (lambda t: t.update({S: t[S].float()}), "must be float16 .*, got float32"),
    "scale of whole numbers": (lambda t: t.update({S: t[S].to(torch.int8)}), "got int8|must have a scale"),
    "flat scale": (lambda t: t.update({S: t[S].flatten()}), "must be float16"),
    "more scales": (lambda t: t.update({S: torch.cat((t[S], t[S]), 1)}), "must be float16"),
    "fewer vectors": (lambda t: t.update({A: t[A][1:]}), "must be float16"),
    "negative scale": (lambda t: t.update({S: -t[S]}), "finite and at least 0"),
    "infinite scale": (lambda t: t.update({S: t[S] / 0}), "finite and at least 0"),
    "no scale of sense": (lambda t: t.update({S: t[S] * float("nan")}), "finite and at least 0"),
    "vector": (lambda t: t.update({A: t[A].flatten()}), "2 to 5 dimensions"),
    "sixty dimensions": (lambda t: t.update({A: t[A].reshape(3, 1, *[1] * 58, -1)}), "2 to 5 dimensions"),
    "long name": (lambda t: t.update({"y" * 5000: t[A]}), "must have a scale"),
}


@both_widths
@pytest.mark.parametrize(("change", "reason"), TAMPERED.values(), ids=TAMPERED.keys())
def test_tampered(bits: Bits, change: Callable[[dict[str, Tensor]], object], reason: str) -> None:
    coded = quantise({A: normal(3, 130), B: normal(6, 3), "bias": normal(6)}, bits=bits)
    check_quantised(coded)
    change(coded)
    for use in (check_quantised, dequantise):
        with pytest.raises(InputError, match=reason) as caught:
            use(coded)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 700


@pytest.mark.parametrize("place", [(0, 0), (1, -1)])
def test_the_mark_of_odd_lengths_elsewhere(place: tuple[int, int]) -> None:
    """-8 stands at the end of every vector or of none, and nowhere else."""
    for length in (6, 7):
        coded = quantise({A: normal(3, length)}, bits=4)
        coded[A][place] = 0x88
        with pytest.raises(InputError, match="holds -8 elsewhere"):
            dequantise(coded)


def test_two_numbers_in_a_byte() -> None:
    """Closed form: the earlier number in the low half, two's complement, -8 after an odd end."""
    coded = quantise({A: torch.tensor([[7.0, -7.0, 1.0]])}, bits=4)
    assert coded[A].tolist() == [[0x97, 0x81]]
    assert coded[f"{A}.scale"].tolist() == [[1.0]]
