"""Laws of the codec: they hold for any weights, so the weights here are random."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dekag.channel import BlockFading, mmse_equalise
from dekag.codec import JsccCodec, JsccConfig, load_codec, save_codec
from dekag.types import ChannelState, Condition, InputError, Received

SMALL = JsccConfig(channels=6, rows=4, cols=4, width=16, depth=1, heads=2, slots=4)


def make(config: JsccConfig = SMALL) -> JsccCodec:
    torch.manual_seed(0)
    return JsccCodec(config).eval()


def latents(batch: int) -> torch.Tensor:
    return torch.randn(batch, 6, 4, 4, generator=torch.Generator().manual_seed(1))


MIXED = Condition(
    uses=torch.tensor([64, 17, 40, 8]),
    snr_db=torch.tensor([10.0, 0.0, 20.0, 5.0]),
    rayleigh=torch.tensor([False, True, True, False]),
    blocks=torch.tensor([1, 4, 2, 1]),
    pilots=torch.tensor([0, 0, 3, 0]),
)


@pytest.mark.parametrize("constellation", ["qpsk", "16qam", "64qam", "256qam", "analogue"])
def test_power_is_one_per_image_over_its_payload(constellation: str) -> None:
    """Mean |s|^2 = 1 for each image, whatever its rate, brightness or batch mates."""
    codec = make(replace(SMALL, constellation=constellation))
    bright = latents(4) * torch.tensor([1.0, 30.0, 0.01, 5.0]).reshape(4, 1, 1, 1)
    symbols = codec.encode(bright, MIXED)
    for row, payload in zip(symbols, MIXED.payload.tolist(), strict=True):
        torch.testing.assert_close(row[:payload].abs().square().mean(), torch.tensor(1.0))
        assert not row[payload:].any()


def test_an_image_does_not_depend_on_its_batch_mates() -> None:
    """encode(batch)[i] == encode(batch[i:i+1]); matrix products of other sizes may round differently."""
    codec = make()
    whole = codec.encode(latents(4), MIXED)
    for i, payload in enumerate(MIXED.payload.tolist()):
        alone = codec.encode(latents(4)[i : i + 1], MIXED[i : i + 1])
        assert alone.shape == (1, payload)
        torch.testing.assert_close(whole[i, :payload], alone[0], rtol=1e-5, atol=1e-5)


def test_fewer_uses_are_a_prefix_of_more_up_to_power() -> None:
    """Nested rates of the analogue codec: the shorter transmission is the longer one's beginning, rescaled."""
    codec = make(replace(SMALL, constellation="analogue"))
    long = codec.encode(latents(2), Condition(uses=64, snr_db=10.0).expand(2))
    short = codec.encode(latents(2), Condition(uses=24, snr_db=10.0).expand(2))
    ratio = short / long[:, :24]
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-4, atol=1e-4)
    assert ratio.imag.abs().max() < 1e-5


def test_symbols_lie_on_the_constellation_up_to_one_real_scale_per_image() -> None:
    codec = make(replace(SMALL, constellation="16qam"))
    symbols = codec.encode(latents(3), Condition(uses=64, snr_db=10.0).expand(3))
    for row in symbols:
        amplitudes = torch.cat([row.real, row.imag]).abs()
        # the two amplitudes of 16-QAM are 1 : 3
        low = amplitudes.min()
        assert set((amplitudes / low).round().int().tolist()) <= {1, 3}
        torch.testing.assert_close(amplitudes / low, (amplitudes / low).round(), rtol=1e-4, atol=1e-4)


def test_gradients_reach_the_input_through_quantiser_channel_and_equaliser() -> None:
    codec = make()
    sent = latents(4).requires_grad_()
    received = BlockFading()(codec.encode(sent, MIXED), MIXED, rng=torch.Generator().manual_seed(2))
    out = codec.decode(mmse_equalise(received), MIXED)
    out.square().sum().backward()
    assert out.shape == sent.shape
    assert sent.grad is not None
    assert sent.grad.isfinite().all()
    assert (sent.grad.flatten(1).abs().sum(1) > 0).all()


def test_the_decoder_does_not_see_beyond_the_payload() -> None:
    """Garbage after an image's payload changes nothing."""
    codec = make()
    condition = Condition(uses=torch.tensor([64, 20]), snr_db=10.0)
    symbols = torch.randn(2, 64, dtype=torch.complex64)
    state = ChannelState(gain=torch.ones(2, 64, dtype=torch.complex64), noise_power=torch.full((2,), 0.1))
    clean = codec.decode(Received(symbols=symbols, state=state), condition)
    symbols[1, 20:] = 99
    dirty = codec.decode(Received(symbols=symbols, state=state), condition)
    assert torch.equal(clean, dirty)


def test_codec_survives_its_files(tmp_path: Path) -> None:
    codec = make()
    save_codec(codec, tmp_path)
    again = load_codec(tmp_path)
    assert again.config == codec.config
    for name, tensor in codec.state_dict().items():
        assert torch.equal(tensor.half().float(), again.state_dict()[name])


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_damaged_codec_is_one_clear_line(tmp_path: Path, file: str) -> None:
    save_codec(make(), tmp_path)
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:-20])
    with pytest.raises(InputError, match=r"codec|config"):
        load_codec(tmp_path)


def test_wrong_sizes_are_refused() -> None:
    codec = make()
    with pytest.raises(InputError, match=r"takes latents \[batch, 6, 4, 4\]"):
        codec.encode(torch.zeros(1, 6, 8, 8), Condition(uses=8, snr_db=0.0))
    with pytest.raises(InputError, match="at most 64"):
        codec.encode(latents(1), Condition(uses=65, snr_db=0.0))
    with pytest.raises(InputError, match="describes 1 images, but there are 2"):
        codec.encode(latents(2), Condition(uses=8, snr_db=0.0))
    with pytest.raises(InputError, match="known are analogue, qpsk"):
        make(replace(SMALL, constellation="8psk"))
