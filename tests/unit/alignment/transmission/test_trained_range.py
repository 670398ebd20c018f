"""The range that an update was trained for travels with its bundle, and a condition outside it is a warning."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import dekag

from dekag.alignment.config import CalaConfig
from dekag.alignment.transmission.bundles import apply_transmission, save_transmission, trained_range
from dekag.alignment.transmission.cala import CalaCodec
from dekag.codec import TrainedRange, load_codec
from dekag.types import Condition, ConditionWarning, InputError
from dekag.world import load_world, shipped

RANGE = TrainedRange(
    uses_min=64,
    uses_max=512,
    snr_db_min=-5.0,
    snr_db_max=20.0,
    fading=True,
    blocks_min=1,
    blocks_max=16,
    correlation_max=0.9,
    estimated=True,
)
INSIDE = {"uses": 256, "snr_db": 10.0, "rayleigh": True, "blocks": 4, "correlation": 0.5, "pilots": 2}


def test_settings_and_back() -> None:
    """Only what a bundle's settings may hold: integers, numbers and text, no bool."""
    for given in (RANGE, replace(RANGE, fading=False)):
        settings = given.to_settings()
        assert {type(value) for value in settings.values()} == {int, float}
        assert TrainedRange.from_settings(settings) == given
        assert TrainedRange.from_settings({"rank": 16, "note": "x", **settings}) == given
    assert TrainedRange.from_settings({"rank": 16, "groups": 8}) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"trained_uses_max": None}, "trained_uses_max is missing"),
        ({"trained_phase_max": 1.0}, "trained_phase_max is unknown"),
        ({"trained_uses_max": "512"}, "trained_uses_max must be a whole number, got '512'"),
        ({"trained_uses_max": 512.5}, "trained_uses_max must be a whole number, got 512.5"),
        ({"trained_snr_db_min": "low"}, "trained_snr_db_min must be a number, got 'low'"),
        ({"trained_fading": 2}, "trained_fading must be 1 or 0, got 2"),
        ({"trained_uses_min": 600}, "range of uses must have its least value first, got 600 to 512"),
        ({"trained_snr_db_max": -6}, "range of snr_db must have its least value first, got -5.0 to -6"),
        ({"trained_blocks_min": 0}, "blocks_min of a trained range must be at least 1, got 0"),
        ({"trained_correlation_max": 1.5}, "correlation_max of a trained range must be at most 1"),
        ({"trained_estimated": 2}, "trained_estimated must be 1 or 0, got 2"),
    ],
)
def test_a_broken_range_is_one_line(change: dict[str, Any], says: str) -> None:
    settings = {name: v for name, v in (RANGE.to_settings() | change).items() if v is not None}
    with pytest.raises(InputError, match=says):
        TrainedRange.from_settings(settings)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, []),
        ({"uses": 64}, []),
        ({"snr_db": -5.0}, []),
        ({"snr_db": 20.0}, []),
        ({"correlation": 0.9}, []),
        ({"uses": 63}, ["uses is 63 (trained for 64 to 512)"]),
        ({"snr_db": 35.5}, ["snr_db is 35.5 (trained for -5 to 20)"]),
        ({"snr_db": -6.0}, ["snr_db is -6 (trained for -5 to 20)"]),
        ({"blocks": 17}, ["blocks is 17 (trained for 1 to 16)"]),
        ({"correlation": 0.95}, ["correlation is 0.95 (trained for 0 to 0.9)"]),
        ({"pilots": 5}, []),
        ({"rayleigh": False, "blocks": 99, "pilots": 9, "correlation": 1.0}, []),
        (
            {"uses": torch.tensor([600, 70, 900]), "snr_db": torch.tensor([0.0, -9.0, 21.0])},
            ["uses is 900 (trained for 64 to 512)", "snr_db is -9 (trained for -5 to 20)"],
        ),
    ],
)
def test_what_lies_outside_is_named(change: dict[str, Any], says: list[str]) -> None:
    assert RANGE.outside(Condition(**INSIDE | change)) == says


def test_fading_that_was_never_met() -> None:
    still = replace(RANGE, fading=False)
    assert still.outside(Condition(**INSIDE)) == ["rayleigh is true (trained without fading)"]
    assert still.outside(Condition(uses=256, snr_db=0.0)) == []


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An update of the shipped codec, not trained, that says what it was trained for."""
    codec = load_codec(shipped("emoji/codec"))
    with torch.random.fork_rng():
        adapted = CalaCodec(codec, CalaConfig())
    folder = tmp_path_factory.mktemp("cala") / "bundle"
    save_transmission(folder, adapted, codec, settings={"steps": 0, **RANGE.to_settings()})
    return folder


def test_the_range_travels_with_the_bundle(bundle: Path, tmp_path: Path) -> None:
    codec = load_codec(shipped("emoji/codec"))
    adapted, loaded = apply_transmission(codec, bundle)
    assert trained_range(loaded) == RANGE
    broken = {**RANGE.to_settings(), "trained_fading": 3}
    with pytest.raises(InputError, match="trained_fading must be 1 or 0"):
        save_transmission(tmp_path / "new", adapted, codec, settings=broken)
    assert not (tmp_path / "new").exists()


def test_a_delivery_outside_warns_and_goes_on(bundle: Path) -> None:
    system = load_world("emoji").with_bundles([bundle]).system()
    assert system.link.trained == RANGE
    with pytest.warns(ConditionWarning) as caught:
        delivery = system.deliver(["a red apple"], Condition(uses=32, snr_db=35.0))
    assert [str(warning.message) for warning in caught] == [
        "the update of the codec was not trained for this condition: uses is 32 (trained for 64 to 512);"
        " snr_db is 35 (trained for -5 to 20)"
    ]
    assert bool(delivery.image.isfinite().all())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        system.deliver(["a red apple"], Condition(uses=64, snr_db=20.0))


def test_a_bundle_that_says_nothing_warns_of_nothing(tmp_path: Path) -> None:
    codec = load_codec(shipped("emoji/codec"))
    with torch.random.fork_rng():
        adapted = CalaCodec(codec, CalaConfig())
    saved = save_transmission(tmp_path / "bundle", adapted, codec, settings={"steps": 0})
    assert trained_range(saved) is None
    system = load_world("emoji").with_bundles([tmp_path / "bundle"]).system()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        system.deliver(["a red apple"], Condition(uses=8, snr_db=90.0))


def test_estimated_gains_are_another_matter_than_known_ones() -> None:
    known = replace(RANGE, estimated=False)
    assert known.outside(Condition(**INSIDE)) == [
        "the gain is estimated from pilots (trained with known gains)"
    ]
    assert not known.outside(Condition(**{**INSIDE, "pilots": 0}))
    assert not known.outside(Condition(**{**INSIDE, "rayleigh": False}))


def test_every_command_says_it_in_one_line_and_goes_on(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = ("a red apple", "--snr-db", 35, "--uses", 100, "--channel", "rayleigh", "--pilots", 5)
    commands: list[tuple[object, ...]] = [
        ("deliver", *outside, "--out", tmp_path / "out", "--bundle", bundle),
        ("radio", "send", *outside, "--out", tmp_path / "trip", "--bundle", bundle),
        ("radio", "receive", tmp_path / "trip", "--out", tmp_path / "got", "--bundle", bundle),
    ]
    for words in commands:
        done = dekag(capsys, *words)
        assert done.code == 0
        assert [line for line in done.err.splitlines() if "warning" in line] == [
            "dekag: warning: the update of the codec was not trained for this condition: snr_db is 35 (trained for"
            " -5 to 20)"
        ]
