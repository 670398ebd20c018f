"""The channel core by law: masks, mixed batches, gradients, seeds, equalisation."""

import subprocess
import sys

import pytest
import torch
from random_draws import seeded

from dekag.channel import BlockFading, ChannelSettings, mmse_equalise, named_channel
from dekag.channel.fading import block_gains, block_index, correlate, spread
from dekag.codec.power import normalise_power
from dekag.types import ChannelState, Condition, InputError, Received

MIXED = Condition(
    uses=torch.tensor([64, 64, 48, 64, 40]),
    snr_db=torch.tensor([10.0, 5.0, 0.0, -5.0, 20.0]),
    rayleigh=torch.tensor([False, True, True, True, True]),
    blocks=torch.tensor([1, 1, 48, 8, 4]),
    correlation=torch.tensor([0.0, 0.0, 0.5, 0.9, 1.0]),
    phase=torch.tensor([0.0, 0.0, 0.1, 0.4, -0.3]),
    pilots=torch.tensor([2, 0, 0, 1, 2]),
)


def unit_symbols(condition: Condition, width: int, dtype: torch.dtype = torch.complex64) -> torch.Tensor:
    white = torch.randn(len(condition), width, dtype=dtype, generator=seeded(99))
    return normalise_power(white, condition.payload)


def test_families_are_those_of_the_condition() -> None:
    built = [named_channel(ChannelSettings(name=name)).condition(8, 0.0) for name in ("awgn", "rayleigh")]
    assert [bool(c.rayleigh) for c in built] == [False, True]


def test_blocks_are_equally_long() -> None:
    condition = Condition(uses=torch.tensor([8, 10, 12]), snr_db=0.0, rayleigh=True, blocks=4)
    assert block_index(condition, 12).tolist() == [
        [0, 0, 1, 1, 2, 2, 3, 3, 3, 3, 3, 3],
        [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 3, 3],
        [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3],
    ]


def test_blocks_share_the_payload_that_pilots_leave() -> None:
    condition = Condition(uses=12, snr_db=0.0, rayleigh=True, blocks=4, pilots=1)
    assert block_index(condition, 8).tolist() == [[0, 0, 1, 1, 2, 2, 3, 3]]


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.95, 1.0])
@pytest.mark.parametrize("blocks", [1, 2, 7, 64])
def test_correlated_gains_have_exactly_the_wanted_covariance(rho: float, blocks: int) -> None:
    """The map from white to correlated draws is a matrix A, and A A^H is R in closed form."""
    condition = Condition(uses=blocks, snr_db=0.0, rayleigh=True, blocks=blocks, correlation=rho, phase=0.7)
    a = correlate(torch.eye(blocks, dtype=torch.complex128), condition.expand(blocks)).T
    lag = torch.arange(blocks)[:, None] - torch.arange(blocks)[None, :]
    expected = torch.tensor(rho) ** lag.abs() * torch.exp(0.7j * lag)
    torch.testing.assert_close(a @ a.mH, expected.to(a.dtype), rtol=0, atol=1e-5)


def test_gains_are_constant_in_a_block_and_differ_between_blocks_and_images() -> None:
    condition = Condition(uses=16, snr_db=0.0, rayleigh=True, blocks=4).expand(3)
    gain = block_gains(condition, 16, rng=seeded()).reshape(3, 4, 4)
    assert torch.equal(gain, gain[:, :, :1].expand_as(gain))
    assert len(torch.unique(gain[:, :, 0].abs())) == 12


def test_a_gain_is_complex() -> None:
    """A "Rayleigh" gain that is real and positive would need no equaliser."""
    condition = Condition(uses=8, snr_db=0.0, rayleigh=True, blocks=8)
    gain = block_gains(condition, 8, rng=seeded())
    assert gain.imag.abs().min() > 0
    assert gain.real.min() < 0 < gain.real.max()


def test_one_draw_per_block_or_per_use() -> None:
    slow = Condition(uses=32, snr_db=0.0, rayleigh=True, blocks=1)
    fast = Condition(uses=32, snr_db=0.0, rayleigh=True, blocks=32)
    assert len(torch.unique(block_gains(slow, 32, rng=seeded()).abs())) == 1
    assert len(torch.unique(block_gains(fast, 32, rng=seeded()).abs())) == 32


def test_spread_is_one_without_fading_and_zero_beyond_the_payload() -> None:
    condition = Condition(
        uses=torch.tensor([3, 2]), snr_db=0.0, rayleigh=torch.tensor([False, True]), blocks=2
    )
    gain = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 8]], dtype=torch.complex64)
    assert spread(gain, condition).tolist() == [[1, 1, 1, 0], [5, 6, 0, 0]]


def test_nothing_beyond_the_payload_before_or_after_equalisation() -> None:
    received = BlockFading()(unit_symbols(MIXED, 64), MIXED, rng=seeded())
    beyond = torch.arange(64) >= MIXED.payload[:, None]
    for part in (received.symbols, received.state.gain, mmse_equalise(received).symbols):
        assert torch.count_nonzero(part[beyond]) == 0
        assert torch.count_nonzero(part[~beyond]) == int(MIXED.payload.sum())
    assert torch.count_nonzero(received.state.reliability[beyond]) == 0


def test_same_seed_same_bytes_and_another_seed_others() -> None:
    s = unit_symbols(MIXED, 64)
    first, again, other = (BlockFading()(s, MIXED, rng=seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(first.symbols, again.symbols)
    assert torch.equal(first.state.gain, again.state.gain)
    assert not torch.equal(first.symbols, other.symbols)


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    before = torch.random.get_rng_state()
    BlockFading()(unit_symbols(MIXED, 64), MIXED, rng=seeded())
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("row", range(len(MIXED)))
def test_an_image_is_not_changed_by_content_or_condition_of_its_mates(row: int) -> None:
    """Given the same draws, image `row` of a mixed batch meets what it meets among clones of itself."""
    s = unit_symbols(MIXED, 64)
    mixed = BlockFading()(s, MIXED, rng=seeded())
    clones = MIXED[row : row + 1].expand(len(MIXED))
    alike = BlockFading()(s[row].expand(len(MIXED), -1).contiguous(), clones, rng=seeded())
    assert torch.equal(mixed.symbols[row], alike.symbols[row])
    assert torch.equal(mixed.state.gain[row], alike.state.gain[row])
    assert torch.equal(mixed.state.noise_power[row], alike.state.noise_power[row])


def test_images_stay_apart() -> None:
    """No derivative of one image's symbols by another's: I and Q are never taken from two images."""
    s = unit_symbols(MIXED, 64).requires_grad_()
    equalised = mmse_equalise(BlockFading()(s, MIXED, rng=seeded())).symbols
    (gradient,) = torch.autograd.grad(equalised[3].abs().square().sum(), s)
    moved = gradient.abs().sum(dim=1) > 0
    assert moved.tolist() == [False, False, False, True, False]


def test_in_phase_and_quadrature_are_kept_at_high_snr() -> None:
    """A real image and an imaginary one come back real and imaginary."""
    s = torch.stack([torch.ones(16) + 0j, 1j * torch.ones(16)])
    condition = Condition(uses=16, snr_db=200.0, rayleigh=True, blocks=4)
    torch.testing.assert_close(mmse_equalise(BlockFading()(s, condition, rng=seeded())).symbols, s)


def test_differentiable_from_symbols_to_equalised_symbols() -> None:
    """Against finite differences in double precision, with the same draws at each evaluation."""
    condition = MIXED[torch.tensor([0, 1, 3])]
    s = unit_symbols(condition, 64, torch.complex128).requires_grad_()

    def through(x: torch.Tensor) -> torch.Tensor:
        return mmse_equalise(BlockFading()(x, condition, rng=seeded())).symbols

    assert torch.autograd.gradcheck(through, s, fast_mode=True)


def test_one_condition_serves_any_number_of_images() -> None:
    received = BlockFading()(torch.ones(5, 8) + 0j, Condition(uses=8, snr_db=10.0), rng=seeded())
    assert received.symbols.shape == (5, 8)
    assert received.state.noise_power.shape == (5,)


def test_a_condition_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="payload of 16 uses, but there are 8 symbols"):
        BlockFading()(torch.ones(2, 8) + 0j, Condition(uses=16, snr_db=10.0), rng=seeded())
    with pytest.raises(InputError, match="describes 3 images, but there are 2"):
        BlockFading()(torch.ones(2, 8) + 0j, Condition(uses=8, snr_db=torch.zeros(3)), rng=seeded())


def test_mmse_known_answers() -> None:
    """s_hat = conj(h) y / (|h|^2 + N0) and |h|^2 / (|h|^2 + N0), by hand."""
    state = ChannelState(
        gain=torch.tensor([[2j, 1 + 1j], [1 + 0j, 0j]]), noise_power=torch.tensor([1.0, 0.25])
    )
    received = Received(symbols=torch.tensor([[5 + 0j, 3j], [2.5 + 0j, 1 + 0j]]), state=state)
    equalised = mmse_equalise(received)
    torch.testing.assert_close(equalised.symbols, torch.tensor([[-2j, 1 + 1j], [2 + 0j, 0j]]))
    assert equalised.state is state
    torch.testing.assert_close(state.reliability, torch.tensor([[0.8, 2 / 3], [0.8, 0.0]]))


@pytest.mark.parametrize("snr_db", [-300.0, 300.0])
def test_extreme_snr_stays_finite(snr_db: float) -> None:
    condition = Condition(uses=64, snr_db=snr_db, rayleigh=True, blocks=8, pilots=2)
    s = unit_symbols(condition, 64).requires_grad_()
    equalised = mmse_equalise(BlockFading()(s, condition, rng=seeded()))
    (gradient,) = torch.autograd.grad(equalised.symbols.real.sum(), s)
    assert equalised.symbols.isfinite().all()
    assert equalised.state.reliability.isfinite().all()
    assert gradient.isfinite().all()


def test_pilots_are_not_symbols_and_cost_payload() -> None:
    """64 uses with 8 pilots leave 56 symbols, and a known gain is returned as it is."""
    condition = Condition(uses=64, snr_db=10.0, rayleigh=True, blocks=8, pilots=torch.tensor([1, 0]))
    received = BlockFading()(unit_symbols(condition, 64), condition, rng=seeded())
    assert torch.count_nonzero(received.symbols, dim=1).tolist() == [56, 64]
    true_gain = block_gains(condition, 64, rng=seeded())
    assert not torch.equal(received.state.gain[0], true_gain[0])
    assert torch.equal(received.state.gain[1], true_gain[1])
    torch.testing.assert_close(received.state.noise_power, torch.tensor([0.1 + 0.1 / 1.1, 0.1]))


def test_an_estimate_is_constant_in_its_block() -> None:
    condition = Condition(uses=16, snr_db=0.0, rayleigh=True, blocks=4, pilots=1)
    received = BlockFading()(unit_symbols(condition, 12), condition, rng=seeded())
    gain = received.state.gain.reshape(4, 3)
    assert torch.equal(gain, gain[:, :1].expand_as(gain))


def test_sionna_is_not_imported_with_the_package() -> None:
    code = "import sys, dekag.channel.sionna; sys.exit('sionna' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.gpu
@pytest.mark.parametrize("rng_device", ["cpu", "cuda"])
def test_symbols_on_an_accelerator_stay_there(rng_device: str) -> None:
    """Draws come from the generator's device: a CPU generator gives the CPU's channel."""
    s = unit_symbols(MIXED, 64)
    rng = torch.Generator(rng_device).manual_seed(0)
    received = mmse_equalise(BlockFading()(s.cuda(), MIXED, rng=rng))
    assert received.symbols.is_cuda
    assert received.state.noise_power.is_cuda
    if rng_device == "cpu":
        expected = mmse_equalise(BlockFading()(s, MIXED, rng=seeded())).symbols
        torch.testing.assert_close(received.symbols.cpu(), expected)
