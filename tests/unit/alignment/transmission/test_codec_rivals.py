"""The gates of CALA's rivals, their sizes, and their way through a bundle."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_codecs import small_codec

from dekag.alignment.config import CalaConfig
from dekag.alignment.transmission.bundles import apply_transmission, save_transmission
from dekag.alignment.transmission.cala import CalaCodec
from dekag.alignment.transmission.gates import HardGate, OpenGate, SnrGroupGate, SoftGate
from dekag.alignment.transmission.methods import METHODS, adapted_codec
from dekag.alignment.transmission.train import FAST, ConditionRange
from dekag.alignment.transmission.update import load_update, update_size, update_tensors
from dekag.channel import BlockFading, mmse_equalise
from dekag.tasks.align_transmission import CALA_RANGE, trained_range
from dekag.types import Condition, InputError

SIZE = CalaConfig(rank=4, gain_rank=2)
CONDITIONS = Condition(
    uses=torch.tensor([64, 16, 32]),
    snr_db=torch.tensor([-5.0, 3.7, 20.0]),
    rayleigh=torch.tensor([False, True, True]),
    blocks=torch.tensor([1, 4, 1]),
)
RANKS = (4, 8, 2)


def through(codec: torch.nn.Module) -> torch.Tensor:
    sent = torch.randn(3, 8, 4, 4, generator=torch.Generator().manual_seed(1))
    rng = torch.Generator().manual_seed(2)
    received = BlockFading()(codec.encode(sent, CONDITIONS), CONDITIONS, rng=rng)
    decoded: torch.Tensor = codec.decode(mmse_equalise(received), CONDITIONS)
    return decoded


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_an_untrained_update_is_none(method: str) -> None:
    """Every method starts from the codec itself."""
    codec = small_codec()
    torch.testing.assert_close(through(adapted_codec(method, codec, SIZE).eval()), through(codec))


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("cala", "full")])
def test_rivals_have_at_most_the_numbers_of_cala(method: str) -> None:
    codec = small_codec()
    most = update_size(adapted_codec("cala", codec, SIZE))
    size = update_size(adapted_codec(method, codec, SIZE))
    assert size <= most
    if method in ("shared_lora", "snr_attention"):  # which take what the gate does not
        assert size > 0.8 * most


def test_full_trains_everything_and_updates_train_nothing_of_the_codec() -> None:
    codec = small_codec()
    assert update_size(adapted_codec("full", codec, SIZE)) == sum(p.numel() for p in codec.parameters())
    names = update_tensors(adapted_codec("cala", codec, SIZE))
    assert all(name.startswith("gate.") or "lora_" in name for name in names)


def test_gates_are_within_0_and_1_and_of_one_opening_a_rank_channel() -> None:
    features = CONDITIONS.features()
    gates = (
        SoftGate(features.shape[1], RANKS, width=8),
        SoftGate(features.shape[1], RANKS, width=8, group=2),
        SoftGate(features.shape[1], RANKS, width=8, shared=True),
        OpenGate(RANKS),
        HardGate(features.shape[1], RANKS, width=8, experts=2),
        SnrGroupGate(RANKS, [0.0, 1.0]),
    )
    for gate in gates:
        openings = gate(features)
        assert openings.shape == (3, sum(RANKS))
        assert openings.min() >= 0
        assert openings.max() <= 1


def test_channels_of_a_group_open_together_and_a_shared_gate_opens_modules_alike() -> None:
    features = CONDITIONS.features()
    grouped = SoftGate(features.shape[1], RANKS, width=8, group=2)(features)
    assert torch.equal(grouped[:, ::2], grouped[:, 1::2])
    assert not torch.equal(grouped[:, 0], grouped[:, 2])
    shared = SoftGate(features.shape[1], RANKS, width=8, shared=True)(features)
    assert torch.equal(shared[:, :4], shared[:, 4:8])
    assert torch.equal(shared[:, :2], shared[:, 12:])


def test_a_hard_gate_opens_one_expert_alike_in_all_modules() -> None:
    gate = HardGate(CONDITIONS.features().shape[1], RANKS, width=8, experts=2)
    openings = gate(CONDITIONS.features())
    assert set(openings.unique().tolist()) == {0.0, 1.0}
    first = openings[:, 0]
    expected = torch.cat([torch.stack([first, 1 - first], 1).repeat_interleave(r // 2, 1) for r in RANKS], 1)
    assert torch.equal(openings, expected)
    openings[:, 0].sum().backward()
    assert gate.layers[0].weight.grad.abs().sum() > 0


def test_snr_groups_split_at_their_edges() -> None:
    """Ranges below 0 dB, from 0 to 10 dB, and from 10 dB on."""
    gate = SnrGroupGate((3,), [0.0, 1.0])
    condition = Condition(uses=8, snr_db=torch.tensor([-5.0, -0.1, 0.0, 9.9, 10.0, 20.0]))
    expected = torch.eye(3)[torch.tensor([0, 0, 1, 1, 2, 2])]
    assert torch.equal(gate(condition.features()), expected)


@torch.no_grad()
@pytest.mark.parametrize("method", [name for name in METHODS if name != "full"])
def test_every_update_survives_its_bundle(tmp_path: Path, method: str) -> None:
    """In int8 to a few percent; what is loaded is of the same kind and size."""
    codec = small_codec()
    adapted = adapted_codec(method, codec, SIZE)
    rng = torch.Generator().manual_seed(3)
    for tensor in update_tensors(adapted).values():
        tensor.normal_(std=0.1, generator=rng)
    save_transmission(tmp_path / "b", adapted, codec, settings=trained_range(CALA_RANGE).to_settings())
    loaded, bundle = apply_transmission(codec, tmp_path / "b")
    assert type(loaded) is type(adapted)
    assert bundle.manifest.kind == "transmission"
    assert bundle.manifest.quantisation == "int8"
    for name, tensor in update_tensors(adapted).items():
        error = (update_tensors(loaded)[name] - tensor).norm() / tensor.norm()
        assert error < 0.02, name
    if isinstance(adapted, CalaCodec):
        assert loaded.cala == adapted.cala


def test_an_update_of_another_size_is_refused() -> None:
    codec = small_codec()
    small = update_tensors(CalaCodec(codec, SIZE))
    with pytest.raises(InputError, match="the codec needs"):
        load_update(CalaCodec(codec, replace(SIZE, rank=8)), small)
    with pytest.raises(InputError, match="is in one and not in the other"):
        load_update(CalaCodec(codec, replace(SIZE, norm_rank=0)), small)


def test_unknown_methods_are_named() -> None:
    with pytest.raises(InputError, match="known are cala, shared_lora"):
        adapted_codec("dropout", small_codec(), SIZE)


def test_the_range_of_a_grid_is_its_extremes() -> None:
    found = trained_range(
        ConditionRange(uses=(64, 16), snrs_db=(3.0, -5.0, 20.0), blocks=(0, 2, FAST), correlations=(0.0, 0.9))
    )
    assert (found.uses_min, found.uses_max, found.snr_db_min, found.snr_db_max) == (16, 64, -5.0, 20.0)
    assert (found.fading, found.blocks_min, found.blocks_max, found.correlation_max) == (True, 2, 64, 0.9)
    assert not trained_range(ConditionRange(uses=(64,), snrs_db=(3.0,), blocks=(0,))).fading


def test_drawn_conditions_are_of_the_grid() -> None:
    """10,000 draws: every value of every field is met, correlations and pilots under few blocks only."""
    drawn = CALA_RANGE.draw(10000, torch.Generator().manual_seed(0))
    assert set(drawn.uses.tolist()) == set(CALA_RANGE.uses)
    assert set(drawn.snr_db.tolist()) == set(CALA_RANGE.snrs_db)
    few = drawn.rayleigh & (drawn.blocks == 8)
    assert bool(few.any())
    for field in (drawn.correlation, drawn.pilots):
        assert not field[~few].any()
        assert bool(field[few].any())
    fast = drawn.rayleigh & (drawn.blocks > 8)
    assert torch.equal(drawn.blocks[fast], drawn.uses[fast])
    assert abs(drawn.rayleigh.float().mean().item() - 0.75) < 5 * (0.75 * 0.25 / 10000) ** 0.5
