"""The whole path on the shipped system, from the five lines of the README to the ledger."""

import subprocess
import sys

import pytest
import torch

import dekag
from dekag.evaluation.metrics import psnr_db
from dekag.wire.png import png_bytes

PROMPTS = ["a red apple on a blue background", "a cat face on a pink background"]
GOOD = dekag.Condition(uses=512, snr_db=15.0)


@pytest.fixture(scope="module")
def system() -> dekag.System:
    return dekag.load("emoji")


def test_same_seeds_same_bytes(system: dekag.System) -> None:
    one, other = (system.deliver(PROMPTS, GOOD, seeds=[1, 2], channel_seed=7) for _ in range(2))
    assert torch.equal(one.image, other.image)


def test_another_channel_seed_changes_only_what_is_received(system: dekag.System) -> None:
    one, other = (system.deliver(PROMPTS, GOOD, seeds=[1, 2], channel_seed=s) for s in (7, 8))
    assert torch.equal(one.latent_sent, other.latent_sent)
    assert not torch.equal(one.latent_received, other.latent_received)


def test_more_snr_is_no_worse(system: dekag.System) -> None:
    """Mean PSNR rises with the SNR; 8 images."""
    texts = PROMPTS * 4
    quality = []
    for snr_db in (0.0, 7.0, 15.0):
        delivery = system.deliver(texts, dekag.Condition(uses=512, snr_db=snr_db), seeds=list(range(8)))
        quality.append(psnr_db(delivery.drawn, delivery.image).mean())
    assert quality == sorted(quality)


def test_a_batch_may_mix_conditions(system: dekag.System) -> None:
    mixed = dekag.Condition(
        uses=torch.tensor([512, 128]),
        snr_db=torch.tensor([15.0, 5.0]),
        rayleigh=torch.tensor([False, True]),
        blocks=4,
    )
    delivery = system.deliver(PROMPTS, mixed, seeds=[0, 1])
    assert delivery.image.shape == (2, 3, 64, 64)
    assert delivery.ledger.payload_uses + delivery.ledger.side_uses == 640
    assert delivery.ledger.side_uses == 2


def test_ledger_counts_what_was_spent(system: dekag.System) -> None:
    condition = dekag.Condition(uses=300, snr_db=10.0, rayleigh=True, blocks=5, pilots=4)
    delivery = system.deliver(PROMPTS, condition, seeds=[0, 1])
    ledger = delivery.ledger
    assert ledger.prompt_bytes == sum(len(p.encode()) for p in PROMPTS)
    assert ledger.seed_bytes == 16
    assert ledger.id_bytes == 64
    assert ledger.pilot_uses == 2 * 5 * 4
    assert ledger.side_uses == 2
    assert ledger.payload_uses == 2 * 300 - ledger.pilot_uses - ledger.side_uses
    assert ledger.image_bytes == sum(len(file) for file in png_bytes(delivery.drawn))
    assert ledger.milliseconds.keys() == {"generate", "encode", "channel", "decode", "image"}
    assert delivery.bundles.keys() == {"generation", "transmission"}


def test_without_alignment_no_bundle_is_applied() -> None:
    delivery = dekag.load("emoji", align=False).deliver(PROMPTS[:1], GOOD, seeds=[0])
    assert delivery.bundles == {}
    assert delivery.ledger.id_bytes == 0


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: dekag.load("emojis"), "unknown world"),
        (lambda: dekag.Condition(uses=0, snr_db=10.0), "uses must be at least 1"),
        (lambda: dekag.Condition(uses=8, snr_db=float("nan")), "snr_db"),
    ],
)
def test_bad_input_is_an_input_error(make: object, text: str) -> None:
    with pytest.raises(dekag.InputError, match=text):
        make()  # type: ignore[operator]


def test_too_many_uses_are_refused(system: dekag.System) -> None:
    with pytest.raises(dekag.InputError, match="at most 512"):
        system.deliver(PROMPTS, dekag.Condition(uses=513, snr_db=10.0), seeds=[0, 1])


def test_importing_the_package_is_quick() -> None:
    """`import dekag` alone brings in none of the heavy libraries."""
    code = "import sys, dekag; print([m for m in ('torch', 'diffusers', 'sionna', 'matplotlib') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
