"""Rank reduction: the nearest update of its rank, found without forming a full matrix, and budgets that hold."""

from typing import Any

import pytest
import torch
from random_draws import normal
from torch import Tensor

from dekag.bundle.rank import reduce_rank
from dekag.types import InputError


def pair(name: str, inputs: tuple[int, ...], outputs: int, rank: int, *, seed: int = 0) -> dict[str, Tensor]:
    """One layer whose directions have very different strengths, in PEFT's names."""
    strengths = 0.6 ** torch.arange(rank)
    up = normal(outputs, rank, seed=seed + 1) * strengths
    return {
        f"{name}.lora_A.weight": normal(rank, *inputs, seed=seed),
        f"{name}.lora_B.weight": up.reshape(outputs, rank, *[1] * (len(inputs) - 1)),
    }


def lora() -> dict[str, Tensor]:
    """Two linear layers and two convolutions."""
    return {
        **pair("unet.a", (40,), 24, 8, seed=0),
        **pair("unet.b", (12,), 100, 8, seed=2),
        **pair("unet.c", (6, 3, 3), 20, 8, seed=4),
        **pair("unet.d", (16, 1, 1), 10, 12, seed=6),
    }


def updates(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """B A of every layer in float64."""
    names = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
    return {
        name: tensors[f"{name}.lora_B.weight"].double().flatten(1)
        @ tensors[f"{name}.lora_A.weight"].double().flatten(1)
        for name in names
    }


def size(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


def lost(given: dict[str, Tensor], kept: dict[str, Tensor]) -> float:
    """Squared Frobenius norm of what the reduction took away, over all layers."""
    after = updates(kept)
    return sum(float((full - after.get(name, 0)).square().sum()) for name, full in updates(given).items())


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_truncation_is_that_of_the_full_matrix(rank: int) -> None:
    """Against the decomposition of B A itself, which the function never forms (Eckart and Young)."""
    reduced = updates(reduce_rank(lora(), rank=rank))
    for name, full in updates(lora()).items():
        left, values, right = torch.linalg.svd(full, full_matrices=False)
        nearest = left[:, :rank] * values[:rank] @ right[:rank]
        torch.testing.assert_close(reduced[name], nearest, rtol=0, atol=1e-5)
        assert torch.linalg.matrix_rank(reduced[name], rtol=1e-5) == rank


def test_the_full_rank_is_the_same_update() -> None:
    for kept in (reduce_rank(lora(), rank=99), reduce_rank(lora(), energy=1.0)):
        torch.testing.assert_close(updates(kept), updates(lora()), rtol=0, atol=1e-5)


def test_names_shapes_and_dtypes_are_those_of_peft() -> None:
    half = {name: tensor.half() for name, tensor in lora().items()}
    reduced = reduce_rank(half, rank=4)
    assert reduced.keys() == half.keys()
    assert reduced["unet.a.lora_A.weight"].shape == (4, 40)
    assert reduced["unet.c.lora_A.weight"].shape == (4, 6, 3, 3)
    assert reduced["unet.c.lora_B.weight"].shape == (20, 4, 1, 1)
    assert all(tensor.dtype == torch.float16 and tensor.is_contiguous() for tensor in reduced.values())


def test_singular_values_are_split_evenly() -> None:
    """Rows of A and columns of B are orthogonal, with the same lengths: square roots of the singular values."""
    reduced = reduce_rank(lora(), rank=5)
    for name, full in updates(lora()).items():
        values = torch.linalg.svdvals(full)[:5].float()
        down = reduced[f"{name}.lora_A.weight"].flatten(1)
        up = reduced[f"{name}.lora_B.weight"].flatten(1)
        torch.testing.assert_close(down @ down.T, torch.diag(values), rtol=0, atol=1e-4)
        torch.testing.assert_close(up.T @ up, torch.diag(values), rtol=0, atol=1e-4)


def test_reducing_twice_is_reducing_once() -> None:
    once = reduce_rank(lora(), rank=3)
    torch.testing.assert_close(updates(reduce_rank(once, rank=3)), updates(once), rtol=0, atol=1e-5)


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99, 0.9999])
def test_energy_is_held_with_the_least_rank(energy: float) -> None:
    reduced = reduce_rank(lora(), energy=energy)
    for name, full in updates(lora()).items():
        held = torch.linalg.svdvals(full).square().cumsum(0) / full.square().sum()
        rank = len(reduced[f"{name}.lora_A.weight"])
        assert held[rank - 1] >= energy
        assert rank == 1 or held[rank - 2] < energy


def test_a_larger_rank_than_the_layer_is_cut_to_it() -> None:
    """Factors of rank 30 for a matrix of 8 x 5 say no more than rank 5 does."""
    wide = pair("x", (8,), 5, 30)
    reduced = reduce_rank(wide, rank=30)
    assert reduced["x.lora_A.weight"].shape == (5, 8)
    torch.testing.assert_close(updates(reduced), updates(wide), rtol=0, atol=1e-5)


def test_directions_that_carry_nothing_are_left_out() -> None:
    """Doubled directions are one, and the zeros that a LoRA starts from are none."""
    doubled = {
        name: torch.cat((t, t), dim=int("lora_B" in name)) for name, t in pair("x", (9,), 7, 2).items()
    }
    fresh = {"y.lora_A.weight": normal(4, 9), "y.lora_B.weight": torch.zeros(7, 4)}
    for limit in ({"rank": 4}, {"energy": 1.0}, {"parameters": 1000}):
        reduced = reduce_rank({**doubled, **fresh}, **limit)
        assert reduced.keys() == doubled.keys()
        assert reduced["x.lora_A.weight"].shape == (2, 9)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.8, 1.0])
def test_a_budget_is_kept_and_spent(share: float) -> None:
    """What is left of it does not pay for one more direction of any layer that still has one."""
    full, budget = lora(), int(share * size(lora()))
    reduced = reduce_rank(full, parameters=budget)
    assert size(reduced) <= budget
    for name, update in updates(full).items():
        kept = len(reduced.get(f"{name}.lora_A.weight", ()))
        if kept < torch.linalg.matrix_rank(update):
            assert budget - size(reduced) < sum(update.shape)


@pytest.mark.parametrize("rank", [1, 2, 4, 6])
def test_a_budget_loses_no_more_than_one_rank_for_all(rank: int) -> None:
    """At the same number of parameters, and by far less when the layers' strengths differ."""
    given = {name: tensor * (30 if "unet.b.lora_B" in name else 1) for name, tensor in lora().items()}
    even = reduce_rank(given, rank=rank)
    assert lost(given, reduce_rank(given, parameters=size(even))) < 0.8 * lost(given, even)


def test_a_weak_layer_vanishes() -> None:
    given = {**pair("strong", (30,), 30, 4), **{n: 1e-3 * t for n, t in pair("weak", (30,), 30, 4).items()}}
    reduced = reduce_rank(given, parameters=240)
    assert reduced.keys() == {"strong.lora_A.weight", "strong.lora_B.weight"}
    assert reduce_rank(given, parameters=59) == {}


def test_the_order_of_layers_does_not_matter() -> None:
    backwards = dict(reversed(lora().items()))
    for limit in ({"rank": 3}, {"energy": 0.9}, {"parameters": 900}):
        first, second = reduce_rank(lora(), **limit), reduce_rank(backwards, **limit)
        assert list(first) == list(second)
        assert all(torch.equal(first[name], second[name]) for name in first)


LIMITS: dict[str, dict[str, Any]] = {
    "none": {},
    "two": {"rank": 2, "energy": 0.5},
    "no energy": {"energy": 0.0},
    "too much energy": {"energy": 1.01},
    "no number": {"energy": float("nan")},
    "no rank": {"rank": 0},
    "negative rank": {"rank": -1},
    "no parameters": {"parameters": 0},
    "truth": {"parameters": True},
}


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS.keys())
def test_limits_of_no_sense_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="give one of energy") as caught:
        reduce_rank(lora(), **limits)
    assert str(caught.value).isprintable()


A, B = "x.lora_A.weight", "x.lora_B.weight"
UNFIT: dict[str, tuple[dict[str, Tensor], str]] = {
    "no partner": ({A: normal(2, 3)}, "pairs of <layer>.lora_A.weight"),
    "no low rank": ({**pair("x", (3,), 4, 2), "x.bias": normal(4)}, "but x.bias is alone or no part"),
    "other ranks": ({A: normal(2, 3), B: normal(4, 3)}, r"got \[2, 3\] and \[4, 3\]"),
    "vectors": ({A: normal(2), B: normal(2)}, "A must be"),
    "empty": ({A: normal(0, 3), B: normal(4, 0)}, "A must be"),
    "kernel in B": ({A: normal(2, 3, 3, 3), B: normal(4, 2, 3, 3)}, "A must be"),
    "infinite": ({A: normal(2, 3) / 0, B: normal(4, 2)}, "must hold finite"),
    "whole numbers": ({A: torch.ones(2, 3, dtype=torch.int64), B: normal(4, 2)}, "must hold finite"),
}


@pytest.mark.parametrize(("tensors", "reason"), UNFIT.values(), ids=UNFIT.keys())
def test_tensors_that_are_no_lora_are_refused(tensors: dict[str, Tensor], reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        reduce_rank(tensors, rank=1)
    assert str(caught.value).isprintable()
