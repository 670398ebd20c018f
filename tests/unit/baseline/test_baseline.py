"""The digital baseline: exact source codes, budgets, concealment, and a ledger that adds up."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from random_draws import seeded
from scipy import stats

from dekag.baseline import (
    DigitalDelivery,
    DigitalLink,
    LatentSource,
    Quality,
    Source,
    Thresholds,
    best_scheme,
    fit_pictures,
    measuring,
    send,
)
from dekag.baseline.mcs import BY_NAME, TABLE, usable
from dekag.baseline.measuring import BATCH, Extent, Rule, extend_table
from dekag.baseline.pictures import FORMATS
from dekag.baseline.source import (
    ENERGIES_DB,
    HEADER_BITS,
    PRICE,
    STEP_BITS,
    centroids,
    fit,
    from_bits,
    load_source,
    save_source,
)
from dekag.baseline.thresholds import TARGET, Measurement, merge, read_thresholds, write_thresholds
from dekag.types import Condition, InputError
from dekag.units import db_to_linear

SHAPE = (4, 4, 4)
SCALES = 8 * torch.arange(1, 65) ** -0.8
"""Standard deviations of the test source's independent components."""
LDPC = [mcs for mcs in TABLE if mcs.code == "ldpc"]


def gaussian(count: int, seed: int) -> torch.Tensor:
    """Latents with the known spectrum."""
    return (SCALES * torch.randn(count, 64, generator=seeded(seed))).reshape(count, *SHAPE) + 1


def laplacian(count: int, seed: int) -> torch.Tensor:
    """The same variances under heavier tails."""
    uniform = torch.rand(count, 64, generator=seeded(seed)) - 0.5
    draws = -uniform.sign() * torch.log1p(-2 * uniform.abs()) / math.sqrt(2)
    return (SCALES * draws).reshape(count, *SHAPE)


@pytest.fixture(scope="module")
def source() -> LatentSource:
    return fit(gaussian(4000, 1))


def table(**thresholds: float) -> Thresholds:
    """Schemes of 64 uses over AWGN that hold from the given SNRs; `qpsk_449` stands for "qpsk 449"."""
    points = {
        name.replace("_", " "): (
            Measurement(snr_db=snr_db - 0.5, blocks=1000, errors=1000),
            Measurement(snr_db=snr_db, blocks=1000, errors=0),
        )
        for name, snr_db in thresholds.items()
    }
    return Thresholds(measured={"awgn 64 uses": points})


def link(source: Source) -> DigitalLink:
    return DigitalLink(source=source, thresholds=table(qpsk_449=0.0, **{"16qam_490": 8.0}))


def padded(bits: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([bits, np.zeros(size - len(bits), dtype=bool)])


def test_schemes_are_those_of_the_standard() -> None:
    """Against Sionna's reading of TS 38.214, Tables 5.1.3.1-1 and -2."""
    from dekag.baseline.code import _sionna

    _sionna()
    from sionna.phy.nr.utils import decode_mcs_index

    theirs = set()
    for index, count in ((1, 29), (2, 28)):
        for mcs in range(count):
            bits, rate = decode_mcs_index(mcs, table_index=index, is_pusch=False)
            theirs.add((int(bits), round(float(rate) * 1024, 1)))
    assert {(mcs.bits, mcs.rate) for mcs in TABLE} == theirs
    assert [mcs.block_bits(512) for mcs in TABLE] == sorted(mcs.block_bits(512) for mcs in TABLE)
    assert all(mcs.info_bits(64) >= 8 for mcs in usable(64))


def test_the_transform_is_orthonormal(source: LatentSource) -> None:
    """Energy less the mean is that of the components, and the inverse undoes it."""
    latent = gaussian(1, 2)[0]
    components = source._transform(latent)
    energy = (latent - source.concealment).square().sum().item()
    assert np.square(components).sum() == pytest.approx(energy, rel=1e-5)
    torch.testing.assert_close(source._inverse(components), latent, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("budget", [20, 100, 400])
def test_source_round_trip_is_exact_and_close_to_the_model(source: LatentSource, budget: int) -> None:
    """What is decoded is the quantised latent; the code is at most 2 bits above -log2 P, never above budget."""
    for latent in gaussian(10, 3):
        bits = source.encode(latent, budget)
        assert bits is not None
        assert len(bits) <= budget
        index = from_bits(bits[:STEP_BITS])
        energy = source._energy(source._transform(latent))
        levels = source._quantised(source._transform(latent), energy)[0][index]
        code = padded(bits, budget)[source.header_bits :]
        assert np.array_equal(source._decompress(code, index, energy), levels)
        # Witten, Neal and Cleary 1987: below -log2 P + 2; the floor of 2^-24 per level may save some of it
        assert len(bits) - source.header_bits <= source.model_bits(levels, index, energy) + 2
        assert torch.equal(source.decode(bits), source.decode(padded(bits, budget)))


@pytest.mark.parametrize("budget", [6, 20, 200])
def test_no_step_that_fits_leaves_less_error(source: LatentSource, budget: int) -> None:
    """Of those that fit by their ideal lengths, and of those near it whose codes do."""
    for fitted, draw in ((source, gaussian), (fit(laplacian(400, 19)), laplacian)):
        for latent in draw(2, 20):
            components = fitted._transform(latent)
            energy = fitted._energy(components)
            levels, sizes, errors = fitted._quantised(components, energy)
            over = HEADER_BITS + sizes - budget
            fits = over <= -2
            for index in np.flatnonzero(np.abs(over) < 2):
                code = fitted._compress(levels[index], int(index), energy, near=0)
                fits[index] = HEADER_BITS + len(code) <= budget
            found = fitted.encode(latent, budget)
            assert (found is None) == (not fits.any())
            if found is not None:
                assert errors[from_bits(found[:STEP_BITS])] == errors[fits].min()


def test_decisions_by_rate_and_distortion_pay(source: LatentSource) -> None:
    """At equal bits, less error than with the nearest levels alone, in the mean of 50 latents."""
    gains = []
    for latent in gaussian(50, 21):
        components = source._transform(latent)
        energy = source._energy(components)
        _, sizes, errors = source._quantised(components, energy)
        nearest = np.round(components / source.steps[:, None]).astype(np.int32)
        plain_sizes = source.model_bits(nearest, np.arange(2**STEP_BITS), energy)
        plain = np.square(components - source.steps[:, None] * nearest).sum(1)
        gains.append(np.log10(plain[plain_sizes <= 100].min() / errors[sizes <= 100].min()))
    assert np.mean(gains) > 3 * np.std(gains) / len(gains) ** 0.5


def test_the_energy_follows_the_latent(source: LatentSource) -> None:
    """Latents of half or twice the deviation cost less, error and bits together, than with the mean one's energy."""
    usual = ENERGIES_DB.index(0.0)
    for factor in (0.5, 2.0):
        gains = []
        for drawn in gaussian(20, 23):
            components = source._transform(source.concealment + factor * (drawn - source.concealment))
            costs = []
            for index in (source._energy(components), usual):
                _, sizes, errors = source._quantised(components, index)
                costs.append(errors[60] / source.steps[60] ** 2 + PRICE * sizes[60])
            gains.append(costs[1] - costs[0])
        assert np.mean(gains) > 3 * np.std(gains) / len(gains) ** 0.5


def reverse_water_filling_bits(distortion: float) -> float:
    """Cover and Thomas, Theorem 10.3.3: sum of max(0, log2(variance / water) / 2)."""
    variances = SCALES.double().square()
    low, high = 0.0, variances.max().item()
    for _ in range(60):
        water = (low + high) / 2
        low, high = (water, high) if variances.clamp(max=water).sum().item() < distortion else (low, water)
    return torch.log2(variances / water).clamp(min=0).sum().item() / 2


@pytest.mark.parametrize("budget", [60, 150, 300])
def test_gaussian_rate_is_within_a_quarter_bit_of_the_bound(source: LatentSource, budget: int) -> None:
    """Gish and Pierce 1968: 0.254 bit a component at most; never below the bound. 40 latents of 64 components.

    Their mean distortion has a relative spread below sqrt(2 / (40 * 10)) = 7 %, 0.05 bit for each of the 64.
    The header does not describe the latent and is left out; the end of the code is not.
    """
    latents = gaussian(40, 4)
    coded = [source.encode(latent, budget) for latent in latents]
    decoded = torch.stack([source.decode(bits) for bits in coded if bits is not None])
    bound = reverse_water_filling_bits((decoded - latents).square().flatten(1).sum(1).mean().item())
    spent = sum(len(bits) - source.header_bits for bits in coded if bits is not None) / len(latents)
    assert bound - 64 * 0.05 <= spent <= bound + 64 * (0.254 + 0.05)


def test_the_law_is_chosen_by_likelihood() -> None:
    assert not fit(gaussian(2000, 5)).laplacian
    assert fit(laplacian(2000, 5)).laplacian


def test_more_bits_look_better_and_none_are_forged(source: LatentSource) -> None:
    latents = gaussian(8, 6)
    errors = []
    for budget in (20, 60, 200, 600):
        coded = [source.encode(latent, budget) for latent in latents]
        decoded = torch.stack([source.decode(bits) for bits in coded if bits is not None])
        errors.append((decoded - latents).square().mean().item())
    assert errors == sorted(errors, reverse=True)
    assert source.encode(latents[0], source.header_bits - 1) is None


def test_importance_moves_errors_to_where_they_do_not_show() -> None:
    """With all channels alike but one that counts a hundredfold, that one has less error."""
    latents = torch.randn(400, *SHAPE, generator=seeded(7))
    weighted = fit(latents, torch.tensor([100.0, 1.0, 1.0, 1.0]))
    errors = torch.stack(
        [
            (weighted.decode(weighted.encode(latent, 60)) - latent).square().mean((1, 2))
            for latent in latents[:20]
        ]
    ).mean(0)
    assert errors[0] < errors[1:].min() / 3


def test_a_source_survives_its_file(source: LatentSource, tmp_path) -> None:
    save_source(source, tmp_path / "source.safetensors")
    again = load_source(tmp_path / "source.safetensors")
    latent = gaussian(1, 8)[0]
    torch.testing.assert_close(
        again.decode(again.encode(latent, 300)), source.decode(source.encode(latent, 300))
    )


@pytest.mark.parametrize("form", FORMATS)
def test_pictures_keep_to_the_budget_and_improve_with_it(form: str) -> None:
    ramp = torch.linspace(0, 1, 64).expand(3, 64, 64) * torch.tensor([1.0, 0.7, 0.3])[:, None, None]
    pictures = fit_pictures(form, ramp[None])
    errors = []
    for budget in (300, 700, 3000):
        bits = pictures.encode(ramp, budget)
        assert bits is not None
        assert len(bits) <= budget
        shown = pictures.decode(padded(bits, budget))
        assert shown is not None
        errors.append((shown - ramp).square().mean().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3
    assert pictures.encode(ramp, 20) is None
    noise = np.random.default_rng(0).random(400) < 0.5
    assert pictures.decode(noise) is None


@pytest.fixture(scope="module")
def mixed(source: LatentSource) -> tuple[torch.Tensor, DigitalDelivery]:
    """One image below every scheme, two at QPSK, one at 16-QAM, one whose channel is not what it seems."""
    latents = gaussian(5, 9)
    condition = Condition(uses=64, snr_db=torch.tensor([-1.0, 3.0, 5.0, 12.0, 3.0]))

    def worse(symbols, at, *, rng):
        from dekag.channel import BlockFading

        fade = torch.tensor([0, 0, 0, 0, -30.0])
        return BlockFading()(symbols, Condition(uses=at.uses, snr_db=at.snr_db + fade), rng=rng)

    digital = DigitalLink(source=source, thresholds=link(source).thresholds, channel=worse)
    return latents, send(digital, latents, condition, rng=seeded(10))


def test_delivery_shows_what_arrived_and_conceals_what_did_not(source, mixed) -> None:
    latents, delivery = mixed
    assert delivery.ledger.arrived.tolist() == [False, True, True, True, False]
    assert [mcs and mcs.name for mcs in delivery.ledger.mcs] == [
        None, "qpsk 449", "qpsk 449", "16qam 490", "qpsk 449",
    ]  # fmt: skip
    for row in (0, 4):
        assert torch.equal(delivery.received[row], source.concealment)
    for row in (1, 2, 3):
        mcs = delivery.ledger.mcs[row]
        expected = source.decode(source.encode(latents[row], mcs.info_bits(64)))
        assert torch.equal(delivery.received[row], expected)


def test_the_ledger_sums_to_the_uses(mixed) -> None:
    _, delivery = mixed
    ledger = delivery.ledger
    bits = torch.tensor([mcs.bits if mcs else 0 for mcs in ledger.mcs])
    parts = (ledger.source_bits, ledger.header_bits, ledger.padding_bits, ledger.crc_bits, ledger.parity_bits)
    assert all(bool((part >= 0).all()) for part in parts)
    assert torch.equal(sum(parts), ledger.payload_uses * bits)
    assert torch.equal(ledger.payload_uses + ledger.pilot_uses + ledger.idle_uses, delivery.condition.uses)
    assert ledger.idle_uses.tolist() == [64, 0, 0, 0, 0]


def test_pilots_are_paid_for(source: LatentSource) -> None:
    """72 uses with 4 blocks of 2 pilots leave 64."""
    condition = Condition(uses=72, snr_db=60.0, rayleigh=True, blocks=4, pilots=2)
    ledger = send(link(source), gaussian(1, 11), condition, rng=seeded(12)).ledger
    assert (ledger.payload_uses.item(), ledger.pilot_uses.item(), ledger.idle_uses.item()) == (64, 8, 0)
    assert ledger.arrived.item()


def test_a_file_that_does_not_fit_is_not_sent() -> None:
    """At 64 uses of QPSK 449 there are 40 bits: no JPEG."""
    grey = torch.full((3, 64, 64), 0.5)
    pictures = link(
        replace(fit_pictures("jpeg", grey[None]), quality=Quality(budgets=(16,), decibels=(9.0,), lost=0.0))
    )
    images = torch.rand(1, 3, 64, 64, generator=seeded(13))
    delivery = send(pictures, images, Condition(uses=64, snr_db=4.0), rng=seeded(14))
    assert torch.equal(delivery.received[0], grey)
    assert delivery.ledger.idle_uses.item() == 64
    assert delivery.ledger.mcs == (BY_NAME["qpsk 449"],)


def test_a_batch_mate_changes_nothing_but_the_draws(source: LatentSource) -> None:
    """At 60 dB noise does not matter: each image of a batch is what it is alone."""
    latents, condition = gaussian(3, 15), Condition(uses=64, snr_db=60.0)
    together = send(link(source), latents, condition, rng=seeded(16)).received
    for row in range(3):
        alone = send(link(source), latents[row : row + 1], condition, rng=seeded(17)).received
        assert torch.equal(together[row], alone[0])


def test_threshold_lies_between_the_last_failure_and_the_first_success() -> None:
    points = (
        Measurement(snr_db=2.0, blocks=100, errors=10),
        Measurement(snr_db=2.5, blocks=1000, errors=1),
    )
    measured = Thresholds(measured={"awgn 64 uses": {"qpsk 449": points}})
    assert measured.threshold_db("awgn 64 uses", BY_NAME["qpsk 449"]) == pytest.approx(2.25)


def test_an_interrupted_table_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Killed after its second scheme and started again, it ends in the bytes of a table made in one go."""
    extend = partial(
        extend_table,
        conditions=[Condition(uses=16, snr_db=0)],
        made_by="test",
        extent=Extent(schemes=lambda uses: LDPC[8:12], rule=Rule(ratio=2.0, blocks=100, step_db=0.5)),
    )
    whole, halves = tmp_path / "whole.json", tmp_path / "halves.json"
    lines: list[str] = []

    def stop(line: str) -> None:
        lines.append(line)
        if len(lines) == 2:
            raise KeyboardInterrupt

    extend(whole, report=str)
    with pytest.raises(KeyboardInterrupt):
        extend(halves, report=stop)
    extend(halves, report=lines.append)
    assert whole.read_bytes() == halves.read_bytes()
    assert len(read_thresholds(whole).measured["awgn 16 uses"]) == 4


def test_a_waterfall_is_measured_down_to_where_most_is_lost() -> None:
    """From the point of a search downwards; over fading nothing is added, as no waterfall is fitted there."""
    extent = Extent(
        schemes=lambda uses: [BY_NAME["qpsk 449 polar"]], rule=Rule(ratio=2.0, blocks=100, step_db=0.5)
    )
    for rayleigh, adds in ((False, True), (True, False)):
        condition = Condition(uses=64, snr_db=0, rayleigh=rayleigh, blocks=64 if rayleigh else 1)
        ((_, points),) = measuring.measure(condition, {}, extent=extent)
        lowest = min(points, key=lambda point: point.snr_db)
        assert (lowest.errors >= 50) == adds
        known = {"qpsk 449 polar": points}
        assert list(measuring.measure(condition, known, extent=extent)) == [("qpsk 449 polar", points)]


def pass_probability(rule: Rule, error_rate: float) -> float:
    """By recursion over the batches: the distribution of the lost blocks of those who are still undecided."""
    batch = stats.binom.pmf(np.arange(BATCH + 1), BATCH, error_rate)
    alive, sent, passing = np.ones(1), 0, 0.0
    while alive.any():
        alive, sent = np.convolve(alive, batch), sent + BATCH
        done = np.array([rule.decided(sent, errors) for errors in range(len(alive))])
        passing += alive[done & (np.arange(len(alive)) <= TARGET * sent)].sum()
        alive = np.where(done, 0, alive)
    return float(passing)


@pytest.mark.parametrize("rule", [measuring.AWGN, measuring.FADING, measuring.SLOW])
def test_a_verdict_is_seldom_wrong(rule: Rule) -> None:
    """Exact: under 2 % at the rates that the test is built for, under 0.2 % a factor ratio^0.5 further out."""
    assert pass_probability(rule, TARGET * rule.ratio) < 0.02
    assert pass_probability(rule, TARGET / rule.ratio) > 0.98
    assert pass_probability(rule, TARGET * rule.ratio**1.5) < 0.002
    assert pass_probability(rule, TARGET / rule.ratio**1.5) > 0.998
    assert not rule.decided(0, 0)


def test_less_redundancy_than_a_hopeless_scheme_is_not_measured() -> None:
    """With the search ending at 0 dB, QPSK 308 fails at its end and everything beyond is left out."""
    extent = Extent(schemes=lambda uses: LDPC[2:7], highest_db=0.0)
    found = dict(measuring.measure(Condition(uses=64, snr_db=0), {}, extent=extent))
    assert [mcs.name for mcs in LDPC[2:7]] == list(found)
    assert found["qpsk 193"][-1].snr_db < 0
    hopeless = [name for name, points in found.items() if not any(point.passes for point in points)]
    assert max(point.snr_db for point in found[hopeless[0]]) == 0.0
    assert [found[name] for name in hopeless[1:]] == [()] * (len(hopeless) - 1)
    thresholds = Thresholds(measured={"awgn 64 uses": found})
    assert all(math.isinf(thresholds.threshold_db("awgn 64 uses", BY_NAME[name])) for name in hopeless)


def test_slow_fading_is_met_as_evenly_spread_gains() -> None:
    """|h|^2 is exponential: 1 - exp(-x) of 1000 gains lie below x, to a block or two, and in every part of them."""
    condition = Condition(uses=64, snr_db=0, rayleigh=True)
    batches = [measuring._batch(condition, 10.0, sent) for sent in range(0, 1000, BATCH)]
    assert not any(bool(batch.rayleigh.any()) for batch in batches)
    energy = db_to_linear(torch.cat([batch.snr_db for batch in batches]) - 10)
    assert energy.mean().item() == pytest.approx(1, abs=0.01)
    for below in (0.005, 0.01, 0.02, 0.5, 2.0):
        for sent in (300, 500, 1000):
            expected = -math.expm1(-below) * sent
            assert abs(int((energy[:sent] < below).sum()) - expected) < 2


def test_tables_are_put_together_unless_they_differ(tmp_path) -> None:
    one, other = table(qpsk_449=0.0), table(qpsk_526=1.0, qpsk_449=0.0)
    assert merge([one, other]).measured == table(qpsk_449=0.0, qpsk_526=1.0).measured
    with pytest.raises(InputError, match="two tables differ on 'qpsk 449' for 'awgn 64 uses'"):
        merge([one, table(qpsk_449=0.5)])
    write_thresholds(one, tmp_path / "one.json", "test")
    write_thresholds(other, tmp_path / "other.json", "test")
    taken = [tmp_path / "one.json", tmp_path / "other.json"]
    extend_table(tmp_path / "both.json", [], taken=taken, made_by="test", report=str)
    assert read_thresholds(tmp_path / "both.json").measured == other.measured


def test_bad_input_is_one_clear_line(source: LatentSource, tmp_path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text('{"target": 0.01')
    latents = gaussian(1, 18)
    calls = (
        (lambda: fit(latents), "at least 8 latents, got 1"),
        (lambda: fit(gaussian(8, 1) / 0), "finite latents"),
        (lambda: fit(gaussian(8, 1), torch.ones(3)), "4 positive numbers"),
        (lambda: load_source(broken), "holds no source"),
        (lambda: read_thresholds(broken), "holds no measured thresholds"),
        (lambda: fit_pictures("bpg", latents[:, :3]), "known are jpeg, webp, avif"),
        (lambda: fit_pictures("jpeg", latents[:0, :3]), "at least one"),
        (
            lambda: best_scheme(Thresholds(measured={}), source.quality, Condition(uses=63, snr_db=0)),
            "over AWGN",
        ),
        (lambda: send(link(source), latents / 0, Condition(uses=64, snr_db=0), rng=seeded(1)), "finite"),
        (
            lambda: send(link(source), latents[:, :3], Condition(uses=64, snr_db=9), rng=seeded(1)),
            "takes items of shape",
        ),
    )
    for call, text in calls:
        with pytest.raises(InputError, match=text) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("laplacian", [False, True])
def test_a_level_far_in_the_tail_has_a_finite_centroid(laplacian: bool) -> None:
    """All of its probability lies at the edge of its cell, where no node of the integral is."""
    levels, spread = np.array([3, -3, 1, 0], dtype=np.int32), np.array([1e-4, 1e-4, 1e-3, 1e-4])
    found = centroids(levels, spread, laplacian=laplacian)
    np.testing.assert_allclose(found, [2.5, -2.5, 0.5, 0.0], atol=0.03)
