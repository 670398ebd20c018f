"""CALA: laws of the gated update, and a short training that must pay."""

from pathlib import Path

import pytest
import torch
from tiny_codecs import SMALL, small_codec

from dekag.alignment.config import CalaConfig
from dekag.alignment.transmission.bundles import apply_transmission, save_transmission
from dekag.alignment.transmission.cala import CalaCodec
from dekag.alignment.transmission.gated import GatedGain, GatedLinear, GatedNorm
from dekag.alignment.transmission.methods import adapt
from dekag.alignment.transmission.train import FAST, ConditionRange, TransmissionData, transmission_loss
from dekag.channel import BlockFading, mmse_equalise
from dekag.codec import JsccCodec
from dekag.training.loop import TrainConfig
from dekag.types import Condition, InputError

CALA = CalaConfig(rank=4, norm_rank=2, gain_rank=3)
RANGE = ConditionRange(uses=(16, 64), snrs_db=(0.0, 5.0, 10.0, 15.0), blocks=(0, 1, 4, FAST))


def trained_like(codec: JsccCodec) -> CalaCodec:
    """An update whose matrices are all different from zero."""
    adapted = CalaCodec(codec, CALA)
    with torch.no_grad():
        for layer in adapted.modules():
            if isinstance(layer, GatedLinear | GatedNorm | GatedGain):
                layer.lora_B.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(3))
    return adapted.eval()


def latents(batch: int) -> torch.Tensor:
    return torch.randn(batch, 8, 4, 4, generator=torch.Generator().manual_seed(1))


def through(codec: JsccCodec | CalaCodec, condition: Condition) -> torch.Tensor:
    sent = latents(len(condition))
    received = BlockFading()(codec.encode(sent, condition), condition, rng=torch.Generator().manual_seed(2))
    return codec.decode(mmse_equalise(received), condition)


@torch.no_grad()
def test_a_closed_gate_is_the_base_codec() -> None:
    """A gate of zero equals the base codec bit for bit, although the matrices are not zero."""
    codec = small_codec()
    adapted = trained_like(codec)
    last = adapted.gate.layers[2]
    last.weight.zero_()
    last.bias.fill_(-1e4)
    condition = Condition(uses=32, snr_db=5.0).expand(3)
    assert torch.equal(through(adapted, condition), through(codec, condition))


@torch.no_grad()
def test_an_open_gate_is_not_the_base_codec() -> None:
    condition = Condition(uses=32, snr_db=5.0).expand(3)
    codec = small_codec()
    assert not torch.allclose(through(trained_like(codec), condition), through(codec, condition))


@torch.no_grad()
@pytest.mark.parametrize(
    "condition",
    [Condition(uses=64, snr_db=12.0), Condition(uses=16, snr_db=0.0, rayleigh=True, blocks=4)],
    ids=["awgn", "rayleigh"],
)
def test_merged_equals_unmerged(condition: Condition) -> None:
    """The plain codec with W + B diag(g) A says what the gated one says, to rounding."""
    codec = trained_like(small_codec())
    merged = codec.merge(condition)
    assert not any(isinstance(m, GatedLinear | GatedNorm | GatedGain) for m in merged.modules())
    batch = condition.expand(3)
    analogue = [c.transmit(latents(3), batch).commitment for c in (codec, merged)]
    torch.testing.assert_close(*analogue, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(through(codec, batch), through(merged, batch), rtol=1e-3, atol=2e-3)


@torch.no_grad()
def test_conditions_do_not_interfere_within_a_batch() -> None:
    """Each image of a mixed batch meets its own gate."""
    codec = trained_like(small_codec())
    one, other = Condition(uses=64, snr_db=12.0), Condition(uses=64, snr_db=0.0, rayleigh=True, blocks=4)
    mixed = codec.encode(latents(2), Condition.cat([one, other]))
    alone = torch.cat([codec.encode(latents(2)[:1], one), codec.encode(latents(2)[1:], other)])
    torch.testing.assert_close(mixed, alone, rtol=1e-4, atol=1e-4)


def test_training_moves_only_the_update_and_lowers_the_loss() -> None:
    """100 steps on a codec that never met these conditions; the loss is compared on draws it did not train on."""
    codec = small_codec()
    before = {name: t.clone() for name, t in codec.state_dict().items()}
    data = torch.randn(256, 8, 4, 4, generator=torch.Generator().manual_seed(4))
    training = TrainConfig(steps=100, learning_rate=5e-3, ema_decay=0.9, warmup_steps=10)
    adapted = adapt("cala", codec, TransmissionData(latents=data, conditions=RANGE), CALA, training)

    def held_out(one: JsccCodec | CalaCodec) -> float:
        rng = torch.Generator().manual_seed(10**6)
        fresh = torch.randn(256, 8, 4, 4, generator=rng)
        condition = RANGE.draw(256, rng)
        return transmission_loss(one, BlockFading(), fresh, condition, codec.importance, rng=rng).item()

    with torch.no_grad():
        assert held_out(adapted) < 0.9 * held_out(codec)
    for name, tensor in codec.state_dict().items():
        assert torch.equal(tensor, before[name])
    frozen = {name.replace(".base.", "."): t for name, t in adapted.codec.state_dict().items()}
    for name, tensor in before.items():
        assert torch.equal(frozen[name], tensor)


def test_an_update_for_another_codec_is_refused(tmp_path: Path) -> None:
    codec = small_codec()
    save_transmission(tmp_path / "b", trained_like(codec), codec, settings={})
    torch.manual_seed(9)
    with pytest.raises(InputError, match="made for base model"):
        apply_transmission(JsccCodec(SMALL), tmp_path / "b")


def test_rank_must_share_out_evenly() -> None:
    with pytest.raises(InputError, match="multiple of the group"):
        CalaConfig(rank=6, group=4)
