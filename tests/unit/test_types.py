"""The condition of a transmission: what it refuses, what it broadcasts, what it counts."""

from typing import Any

import pytest
import torch

from dekag.types import MAX_SNR_DB, Condition, InputError
from dekag.units import snr_db_to_noise_power

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"uses": 0}, "uses must be at least 1, got 0"),
        ({"uses": -5}, "uses must be at least 1, got -5"),
        ({"snr_db": NAN}, "snr_db must be within"),
        ({"snr_db": INF}, "snr_db must be within"),
        ({"snr_db": -INF}, "snr_db must be within"),
        ({"snr_db": 1000.0}, "snr_db must be within .* got 1000"),
        ({"blocks": 0}, "blocks must be at least 1"),
        ({"pilots": -1}, "pilots must be at least 0"),
        ({"phase": NAN}, "phase must be a finite number"),
        ({"correlation": NAN}, r"correlation must be in \[0, 1\]"),
        ({"correlation": 1.01}, r"correlation must be in \[0, 1\]"),
        ({"correlation": -0.1}, r"correlation must be in \[0, 1\]"),
        ({"rayleigh": True, "blocks": 65}, "64 uses cannot hold 65 blocks of 0 pilots"),
        ({"rayleigh": True, "blocks": 16, "pilots": 4}, "64 uses cannot hold 16 blocks of 4 pilots"),
        ({"rayleigh": True, "blocks": 22, "pilots": 2}, "64 uses cannot hold 22 blocks of 2 pilots"),
        ({"snr_db": torch.zeros(2, 3)}, r"one value per image, got shapes .*\(2, 3\)"),
        ({"snr_db": torch.zeros(2), "phase": torch.zeros(3)}, "same number of images"),
    ],
)
def test_condition_refuses(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Condition(**{"uses": 64, "snr_db": 10.0} | wrong)


def test_one_wrong_row_of_a_batch_is_named() -> None:
    with pytest.raises(InputError, match="got nan"):
        Condition(uses=64, snr_db=torch.tensor([1.0, NAN, 3.0]))


@pytest.mark.parametrize("snr_db", [-MAX_SNR_DB, MAX_SNR_DB])
def test_every_admitted_snr_has_a_noise_power_that_can_be_inverted(snr_db: float) -> None:
    noise_power = snr_db_to_noise_power(Condition(uses=1, snr_db=snr_db).snr_db)
    assert 0 < noise_power.item() < INF
    assert 0 < (1 / noise_power).item() < INF


def test_numbers_are_broadcast_to_the_batch() -> None:
    condition = Condition(uses=64, snr_db=torch.tensor([0.0, 5.0, 10.0]), rayleigh=True, blocks=4)
    assert len(condition) == 3
    assert condition.uses.tolist() == [64, 64, 64]
    assert condition.rayleigh.tolist() == [True, True, True]
    assert condition.uses.dtype == torch.int64
    assert condition.snr_db.dtype == torch.float32


def test_numbers_alone_describe_one_image() -> None:
    assert len(Condition(uses=64, snr_db=10.0)) == 1


def test_expand_and_its_mismatch() -> None:
    assert Condition(uses=64, snr_db=10.0).expand(5).uses.tolist() == [64] * 5
    three = Condition(uses=64, snr_db=torch.tensor([0.0, 5.0, 10.0]))
    assert three.expand(3).snr_db.tolist() == [0.0, 5.0, 10.0]
    with pytest.raises(InputError, match="describes 3 images, but there are 4"):
        three.expand(4)


def test_rows_and_concatenation_are_inverse() -> None:
    whole = Condition(uses=torch.tensor([16, 32, 64]), snr_db=torch.tensor([0.0, 5.0, 10.0]), rayleigh=True)
    again = Condition.cat([whole[:1], whole[torch.tensor([1, 2])]])
    assert again.uses.tolist() == [16, 32, 64]
    assert again.snr_db.tolist() == [0.0, 5.0, 10.0]
    assert again.rayleigh.all()


def test_pilots_are_paid_for_under_fading_and_only_there() -> None:
    """64 uses, 8 blocks, 2 pilots each: 48 symbols are left; AWGN needs no pilots."""
    condition = Condition(uses=64, snr_db=10.0, rayleigh=torch.tensor([True, False]), blocks=8, pilots=2)
    assert condition.payload.tolist() == [48, 64]


def test_a_block_per_payload_symbol_still_fits() -> None:
    assert Condition(uses=64, snr_db=10.0, rayleigh=True, blocks=32, pilots=1).payload.tolist() == [32]


def test_features_of_known_conditions() -> None:
    """[SNR / 10 dB, log2(payload / 256), fading, log2(J) / 4, correlation, estimated]."""
    awgn = Condition(uses=256, snr_db=10.0, blocks=16, correlation=0.9, pilots=1)
    fading = Condition(uses=144, snr_db=-5.0, rayleigh=True, blocks=16, correlation=0.5, phase=1.0, pilots=1)
    expected = torch.tensor([[1.0, 0, 0, 0, 0, 0], [-0.5, -1.0, 1.0, 1.0, 0.5, 1.0]])
    torch.testing.assert_close(Condition.cat([awgn, fading]).features(), expected)


def test_the_condition_is_frozen() -> None:
    with pytest.raises(AttributeError):
        Condition(uses=64, snr_db=10.0).uses = torch.tensor([1])  # type: ignore[misc]
