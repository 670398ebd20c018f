"""Laws of the codec: they hold for any weights, so the weights here are random."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_codecs import SMALL

from dekag.channel import BlockFading, mmse_equalise
from dekag.codec import JsccCodec, JsccConfig, fit_klt, load_codec, save_codec
from dekag.codec.klt import from_blocks, to_blocks
from dekag.codec.spreading import Spreading, rudin_shapiro
from dekag.types import ChannelState, Condition, InputError, Received


def make(config: JsccConfig = SMALL) -> JsccCodec:
    torch.manual_seed(0)
    return JsccCodec(config).eval()


def latents(batch: int) -> torch.Tensor:
    return torch.randn(batch, 8, 4, 4, generator=torch.Generator().manual_seed(1))


MIXED = Condition(
    uses=torch.tensor([64, 17, 40, 8]),
    snr_db=torch.tensor([10.0, 0.0, 20.0, 5.0]),
    rayleigh=torch.tensor([False, True, True, False]),
    blocks=torch.tensor([1, 4, 2, 1]),
    pilots=torch.tensor([0, 0, 3, 0]),
)


@pytest.mark.parametrize("constellation", ["qpsk", "16qam", "64qam", "256qam", "1024qam", "analogue"])
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


def test_fewer_uses_carry_the_first_components_of_more() -> None:
    """Nested rates of the analogue codec: over the energies of each rate, and the image's scale, both have the same."""
    codec = started()
    found = []
    for uses in (64, 24):
        condition = Condition(uses=uses, snr_db=30.0).expand(3)
        components = torch.view_as_real(
            Spreading(condition.payload).despread_rows(codec.encode(decaying(3, 5), condition))
        )
        energy = codec._plan(condition, condition.payload).pairs[:, :uses]
        found.append((components / energy.sqrt())[:, 1:24])
    ratio = found[1] / found[0]
    torch.testing.assert_close(ratio, ratio[:, :1, :1].expand_as(ratio), rtol=1e-3, atol=1e-3)


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
        kept = tensor.half().float() if tensor.is_floating_point() else tensor
        assert torch.equal(kept, again.state_dict()[name])


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_damaged_codec_is_one_clear_line(tmp_path: Path, file: str) -> None:
    save_codec(make(), tmp_path)
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:-20])
    with pytest.raises(InputError, match=r"codec|config"):
        load_codec(tmp_path)


def test_wrong_sizes_are_refused() -> None:
    codec = make()
    with pytest.raises(InputError, match=r"takes latents \[batch, 8, 4, 4\]"):
        codec.encode(torch.zeros(1, 8, 8, 8), Condition(uses=8, snr_db=0.0))
    with pytest.raises(InputError, match="at most 64"):
        codec.encode(latents(1), Condition(uses=65, snr_db=0.0))
    with pytest.raises(InputError, match="describes 1 images, but there are 2"):
        codec.encode(latents(2), Condition(uses=8, snr_db=0.0))
    with pytest.raises(InputError, match="known are analogue, qpsk"):
        make(replace(SMALL, constellation="8psk"))


def test_more_uses_than_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="128 numbers fill 65 uses, got 66"):
        replace(SMALL, max_uses=66)


def decaying(batch: int, seed: int) -> torch.Tensor:
    """Gaussian latents with falling eigenvalues, 128^-1.5 to 1 of the largest, and a mean."""
    rng = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(128, 128, generator=torch.Generator().manual_seed(9)))[0]
    white = torch.randn(batch, 128, generator=rng) * torch.arange(1.0, 129).pow(-0.75)
    return (white @ basis.T).unflatten(1, (8, 4, 4)) + 0.5


def started(constellation: str = "analogue") -> JsccCodec:
    """A codec straight from the transform of such latents: linear."""
    codec = make(replace(SMALL, constellation=constellation))
    sent = decaying(20000, 1)
    codec.start_from(fit_klt(sent, torch.ones(8)), sent)
    return codec


def test_the_transform_decorrelates() -> None:
    """Components of 20,000 draws: an orthonormal basis, and correlations of at most 6 standard errors, 6 / sqrt(n),
    of which 128^2 / 2 are looked at (false alarm 2e-5)."""
    sent, importance = decaying(20000, 1), torch.linspace(0.5, 1.5, 8)
    klt = fit_klt(sent, importance)
    torch.testing.assert_close(klt.basis.T @ klt.basis, torch.eye(128), rtol=0, atol=1e-5)
    weighted = (sent - klt.mean) * klt.weight[:, None, None]
    assert weighted.square().mean().item() == pytest.approx(1.0, rel=1e-4)
    components = to_blocks(weighted, 4)[:, 0] @ klt.basis
    torch.testing.assert_close(components.square().mean(0), klt.variance, rtol=1e-3, atol=1e-5)
    assert (klt.variance.diff() <= 0).all()
    correlations = torch.corrcoef(components.T) - torch.eye(128)
    assert correlations.abs().max() < 6 / 20000**0.5


@pytest.mark.parametrize("block", [1, 2, 4])
def test_blocks_are_put_together_as_they_were(block: int) -> None:
    grid = latents(3)
    assert torch.equal(from_blocks(to_blocks(grid, block), block, (4, 4)), grid)


@torch.no_grad()
@pytest.mark.parametrize(("uses", "snr_db"), [(64, 10.0), (64, 0.0), (20, 20.0)])
def test_a_fresh_codec_is_the_linear_code_of_lee_and_petersen(uses: int, snr_db: float) -> None:
    """It loses what its theory says, and little for the scale.

    Amplitudes of variance v_k and energy p_k leave v_k n / (p_k + n) in noise n, and what is not sent is lost whole.
    2,000 images of 128 numbers: the mean error is known to 1 %. The theory takes an image's energy for that of the
    mean; that each has its own costs up to 8 % here.
    """
    codec = started()
    sent = decaying(2000, 2)
    condition = Condition(uses=uses, snr_db=snr_db).expand(len(sent))
    received = BlockFading()(codec.encode(sent, condition), condition, rng=torch.Generator().manual_seed(3))
    error = (codec.decode(mmse_equalise(received), condition) - sent) * codec.weight[:, None, None]
    plan = codec._plan(condition[:1], condition.payload[:1])
    noise = 10 ** (-snr_db / 10) / 2
    theory = (codec._variance * noise / (plan.energy[0] + noise)).sum() / 128 + codec.rest.mean()
    assert error.square().mean().item() == pytest.approx(theory.item(), rel=0.1)


@torch.no_grad()
def test_coloured_estimation_beats_one_tap_in_block_fading() -> None:
    """Four blocks at 10 dB: the exact estimate leaves less error than that with the mean quality of all uses."""
    codec = started("256qam")
    sent = decaying(500, 2)
    condition = Condition(uses=64, snr_db=10.0, rayleigh=True, blocks=4).expand(len(sent))
    received = mmse_equalise(
        BlockFading()(codec.encode(sent, condition), condition, rng=torch.Generator().manual_seed(3))
    )
    exact = codec.decode(received, condition)
    energy = received.state.gain.abs().square().mean(1, keepdim=True).sqrt().expand(-1, 64)
    one_tap = replace(received, state=replace(received.state, gain=energy.to(torch.complex64)))
    errors = [(found - sent).square().mean() for found in (exact, codec.decode(one_tap, condition))]
    assert errors[0] < 0.8 * errors[1]


@torch.no_grad()
def test_bright_and_dark_images_arrive_alike() -> None:
    """Latents at a third or three times the deviation: the scale is known, so the relative error does not change."""
    codec = started("256qam")
    condition = Condition(uses=64, snr_db=15.0).expand(500)
    errors = []
    for factor in (0.5, 1.0, 2.0):
        sent = codec.mean + factor * (decaying(500, 4) - codec.mean)
        received = BlockFading()(
            codec.encode(sent, condition), condition, rng=torch.Generator().manual_seed(3)
        )
        found = codec.decode(mmse_equalise(received), condition)
        errors.append(((found - sent).square().mean() / (sent - codec.mean).square().mean()).item())
    assert max(errors) < 1.1 * min(errors)


@torch.no_grad()
@pytest.mark.parametrize("uses", [2, 16, 33, 64])
def test_the_decoder_in_real_numbers_is_the_same(uses: int) -> None:
    codec = started("256qam")
    condition = Condition(uses=uses, snr_db=12.0, rayleigh=True, blocks=2).expand(20)
    received = mmse_equalise(
        BlockFading()(
            codec.encode(decaying(20, 6), condition), condition, rng=torch.Generator().manual_seed(3)
        )
    )
    pairs = torch.view_as_real(received.symbols)
    found = codec.decode_pairs(pairs, received.state.reliability, condition)
    torch.testing.assert_close(found, codec.decode(received, condition), rtol=0, atol=1e-3)


@pytest.mark.parametrize("uses", [1, 2])
def test_an_image_needs_a_use_beside_its_scale(uses: int) -> None:
    codec = make()
    condition = Condition(uses=uses, snr_db=0.0)
    if uses == 2:
        codec.encode(latents(1), condition)
        return
    with pytest.raises(InputError, match="an image needs at least 2, got 1"):
        codec.encode(latents(1), condition)


def test_an_older_codec_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="before the scale was sent"):
        JsccCodec.from_settings({**make().settings(), "spread": True})


@pytest.mark.parametrize(
    ("shape", "block"),
    [((32, 8, 8), 8), ((4, 64, 64), 16), ((16, 128, 128), 8), ((4, 48, 72), 12), ((8, 7, 5), 1)],
)
def test_squares_are_the_largest_that_a_matrix_of_2048_rows_takes(
    shape: tuple[int, int, int], block: int
) -> None:
    channels, rows, cols = shape
    assert JsccConfig(channels=channels, rows=rows, cols=cols, max_uses=64).block == block


def test_spreading_is_unitary_and_its_own_rows_only() -> None:
    """Energy of each row's payload is kept, the inverse gives it back, nothing lies beyond it, and a row is what
    numpy's transform of it alone is."""
    payload = torch.tensor([64, 17, 40, 17])
    rows = torch.randn(4, 64, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    turns = Spreading(payload)
    sent = turns.spread_rows(rows)
    back = turns.despread_rows(sent)
    for row, out, again, length in zip(rows, sent, back, payload.tolist(), strict=True):
        expected = np.fft.fft(row[:length].numpy()) / length**0.5 * rudin_shapiro(length).numpy()
        np.testing.assert_allclose(out[:length].numpy(), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(again[:length], row[:length], rtol=1e-4, atol=1e-5)
        assert not out[length:].any()
        assert not again[length:].any()


def test_spread_symbols_have_equal_power() -> None:
    """Independent components of powers from 1 to 1/64: every use has their mean power.

    Each is a mean of 20,000 squares, of exponential law, so its relative error is 1 / sqrt(20,000) = 0.7 %; 5 of
    those for 64 uses is a false alarm of 4e-5.
    """
    rng = torch.Generator().manual_seed(1)
    power = torch.arange(1, 65).float().reciprocal()
    rows = torch.randn(20000, 64, dtype=torch.complex64, generator=rng) * power.sqrt()
    found = Spreading(torch.full((20000,), 64)).spread_rows(rows).abs().square().mean(0)
    torch.testing.assert_close(found, power.mean().expand(64), rtol=5 * 20000**-0.5, atol=0)


def test_signs_flatten_a_tone() -> None:
    """Golay 1961: the spectrum of the first 2^m signs is at most twice its mean, at any frequency; so is that of a
    tone times them. Without them all of its energy would be at one."""
    for length in (64, 128, 256, 512):
        tone = torch.zeros(1, length, dtype=torch.complex64)
        tone[0, 5] = 1.0
        waveform = torch.fft.ifft(
            Spreading(torch.tensor([length])).spread_rows(tone), n=8 * length, norm="ortho"
        )
        energy = waveform.abs().square()
        assert (energy.max() / energy.mean()).item() <= 2.0 + 1e-4
