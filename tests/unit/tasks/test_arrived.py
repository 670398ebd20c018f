"""A receiver refuses what it did not receive, says what it measured, and takes everything that is right."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Say
from own_codec import ConvCodec

from dekag.channel import BlockFading
from dekag.channel.fading import used
from dekag.codec import TrainableCodec, energy_profile_of, load_codec
from dekag.codec.papr import OFDM, SINGLE_CARRIER, Waveform, clip_waveform
from dekag.tasks.arrived import measure, require_arrived, warn_of_doubt, warn_of_fading
from dekag.types import Condition, InputError, Latent, ReceptionWarning, Symbols
from dekag.units import snr_db_to_noise_power
from dekag.wire.sigmf import Recording, read_recording, write_recording
from dekag.world import load_world, shipped

WAVEFORMS = {"single carrier": SINGLE_CARRIER, "ofdm": OFDM}
PROMPTS = (
    "a red apple on a blue background",
    "a cat face on a pink background",
    "a rocket on a gray background",
)
TEN_DB = Condition(uses=512, snr_db=10.0)
Samples = torch.Tensor
Spoil = Callable[[Samples], Samples]


@dataclass(frozen=True, kw_only=True)
class Edge:
    """What a sender has: pictures as latents, the codec, and the ids of its updates."""

    latents: Latent
    codec: TrainableCodec
    bundles: dict[str, str]

    def symbols(self, condition: Condition) -> Symbols:
        with torch.no_grad():
            return self.codec.encode(self.latents, condition.expand(len(self.latents)))


@pytest.fixture(scope="module", params=["aligned", "plain"])
def edge(request: pytest.FixtureRequest) -> Edge:
    """Three drawings of the shipped world, with and without its updates."""
    link = load_world("emoji").system(align=request.param == "aligned").link
    assert isinstance(link.codec, TrainableCodec)
    return Edge(
        latents=link.generator(PROMPTS, seeds=[0, 1, 2]), codec=link.codec, bundles=dict(link.bundles)
    )


@pytest.fixture(scope="module")
def aligned() -> Edge:
    link = load_world("emoji").system().link
    assert isinstance(link.codec, TrainableCodec)
    return Edge(
        latents=link.generator(PROMPTS, seeds=[0, 1, 2]), codec=link.codec, bundles=dict(link.bundles)
    )


def white(count: int, power: float, seed: int = 1) -> Samples:
    """Complex Gaussian samples of a mean power."""
    rng = torch.Generator().manual_seed(seed)
    return power**0.5 * torch.randn(count, dtype=torch.complex64, generator=rng)


def received(edge: Edge, condition: Condition, seed: int) -> Symbols:
    """Symbols of the edge's pictures in white noise at the SNR of the condition."""
    sent = edge.symbols(condition)
    noise = white(sent.numel(), float(snr_db_to_noise_power(condition.snr_db)[0]), seed).view_as(sent)
    return sent + noise


def refusal(symbols: Symbols, condition: Condition, codec: TrainableCodec) -> str:
    """The line that refuses them; empty if they are taken."""
    whole = condition.expand(len(symbols))
    try:
        require_arrived(Path("trip"), measure(symbols, whole), whole, codec)
    except InputError as error:
        return str(error)
    return ""


def from_air(edge: Edge, waveform: Waveform, spoil: Spoil, condition: Condition = TEN_DB) -> Symbols:
    """Symbols of a receiver that got the samples of the edge's pictures in noise, spoilt."""
    sent, length = edge.symbols(condition), int(condition.payload[0])
    rows = []
    for row in sent:
        blocks = waveform.modulate(row[:length])
        # white noise of N0 L a sample is N0 a symbol
        noise = float(snr_db_to_noise_power(condition.snr_db)[0]) * waveform.oversampling
        samples = blocks.flatten() + white(blocks.numel(), noise)
        rows.append(waveform.demodulate(spoil(samples).view_as(blocks), length))
    return torch.stack(rows)


def tone(samples: Samples) -> Samples:
    """A carrier without modulation, off the centre."""
    return torch.exp(0.3j * torch.arange(len(samples))).to(samples.dtype)


def nan_from(share: float) -> Spoil:
    def spoil(samples: Samples) -> Samples:
        lost = samples.clone()
        lost[int(share * len(samples)) :] = torch.nan
        return lost

    return spoil


REFUSED: dict[str, tuple[Spoil, str]] = {
    "noise alone": (lambda s: white(len(s), 1.1 * len(s) // 512), "like noise alone"),
    "zeros": (torch.zeros_like, "its samples are all 0"),
    "silence": (lambda s: white(len(s), 1e-7), "its mean symbol power is"),
    "gain of 10": (lambda s: 10 * s, "its mean symbol power is"),
    "gain of 0.001": (lambda s: 0.001 * s, "its mean symbol power is"),
    "gain of a million": (lambda s: 1e6 * s, "are NaN, infinite or absurdly strong, and at most half may be"),
    "all NaN": (nan_from(0.0), "512 of its 512 symbols are NaN, infinite"),
    "more than half NaN": (nan_from(0.4), "of its 512 symbols are NaN, infinite"),
    "a constant tone": (tone, "nothing was received: "),
}
TAKEN: dict[str, Spoil] = {
    "as received": lambda s: s,
    "a gain control that is 2 dB off": lambda s: 0.8 * s,
    "less than half NaN": nan_from(0.6),
    "a carrier of 0.3": lambda s: s + 0.3,
    "clipped at rms": lambda s: s / s.abs().clamp(min=1) * s.abs().square().mean().sqrt(),
    "an IQ imbalance of 1 dB": lambda s: torch.complex(1.06 * s.real, 0.94 * s.imag),
}


@pytest.mark.parametrize("waveform", WAVEFORMS)
@pytest.mark.parametrize("case", REFUSED)
def test_what_was_not_received_is_refused(case: str, waveform: str, edge: Edge) -> None:
    spoil, text = REFUSED[case]
    said = refusal(from_air(edge, WAVEFORMS[waveform], spoil), TEN_DB, edge.codec)
    assert said.startswith("trip: nothing was received: ")
    assert text in said


@pytest.mark.parametrize("waveform", WAVEFORMS)
@pytest.mark.parametrize("case", TAKEN)
def test_what_was_received_is_taken(case: str, waveform: str, edge: Edge) -> None:
    """What `cases.md` says costs at most 2.1 dB, and what gain control may leave."""
    assert refusal(from_air(edge, WAVEFORMS[waveform], TAKEN[case]), TEN_DB, edge.codec) == ""


@pytest.mark.parametrize("case", ["noise alone", "zeros", "gain of 0.001", "all NaN"])
def test_one_dead_image_of_three_is_named(case: str, edge: Edge) -> None:
    symbols = received(edge, TEN_DB, 1)
    symbols[1] = REFUSED[case][0](symbols[1])
    said = refusal(symbols, TEN_DB, edge.codec)
    assert said.startswith("trip: image 1 of 3 was not received: ")
    assert REFUSED[case][1] in said
    symbols[2] = 0
    assert refusal(symbols, TEN_DB, edge.codec).endswith("; nor was 1 other")


def test_a_refusal_says_what_would_be_right(aligned: Edge) -> None:
    said = refusal(10 * received(aligned, TEN_DB, 1), TEN_DB, aligned.codec)
    assert said == (
        "trip: nothing was received: its mean symbol power is 109, and 0.486 to 2.47 would be right at 10 dB (image 0)"
    )


@pytest.mark.parametrize("sent", WAVEFORMS)
def test_the_wrong_waveform_is_refused(sent: str, aligned: Edge) -> None:
    """OFDM read as symbols, and symbols read as OFDM of one sample a symbol: the energy is spread over all."""
    plain = Waveform(subcarriers=64, oversampling=1)
    symbols = received(aligned, TEN_DB, 1)
    other = plain.modulate if sent == "ofdm" else lambda row: plain.demodulate(row.view(8, 64), 512)
    wrong = torch.stack([other(row).flatten() for row in symbols])
    assert "nothing was received" in refusal(wrong, TEN_DB, aligned.codec)


def test_a_sample_late_and_an_inverted_spectrum_are_refused(aligned: Edge) -> None:
    """One of single carrier; both may be found by the energy of the components, the latter by its name."""
    symbols = received(aligned, TEN_DB, 1)
    assert refusal(symbols.roll(1, 1), TEN_DB, aligned.codec)
    assert "as if I and Q were swapped" in refusal(symbols.conj().resolve_conj(), TEN_DB, aligned.codec)


CONDITIONS = {
    f"{uses} uses at {snr} dB": Condition(uses=uses, snr_db=float(snr))
    for uses in (32, 128, 256, 512)
    for snr in (-5, 5, 20)
}
FADING = {
    "slow": Condition(uses=256, snr_db=5.0, rayleigh=True),
    "with pilots": Condition(uses=256, snr_db=10.0, rayleigh=True, blocks=8, pilots=2, correlation=0.9),
    "fast": Condition(uses=512, snr_db=8.7, rayleigh=True, blocks=512),
}


@pytest.mark.parametrize("name", CONDITIONS | FADING)
def test_recordings_as_sent_pass(name: str, edge: Edge) -> None:
    """At every condition, clipped or not, in both waveforms: what is sent has mean power 1."""
    condition = (CONDITIONS | FADING)[name].expand(3)
    sent = edge.symbols(condition)
    assert refusal(sent, condition, edge.codec) == ""
    for waveform in WAVEFORMS.values():
        clipped = clip_waveform(sent, condition.payload, waveform, ratio_db=3.0)
        assert refusal(clipped, condition, edge.codec) == ""


@pytest.mark.parametrize("name", CONDITIONS)
def test_received_recordings_pass(name: str, edge: Edge) -> None:
    """20 recordings of three images in noise. Each is refused with a probability below 1e-6, so that of 480 in all
    one fails by chance once in 2000 runs."""
    condition = CONDITIONS[name]
    for seed in range(20):
        symbols = received(edge, condition, seed)
        assert refusal(symbols, condition, edge.codec) == ""
        assert refusal(symbols[:1], condition, edge.codec) == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("images", "condition", "least"),
    [
        (1, Condition(uses=512, snr_db=15.0), 0.97),
        (1, Condition(uses=512, snr_db=10.0), 0.97),
        (1, Condition(uses=512, snr_db=5.0), 0.93),
        (2, Condition(uses=512, snr_db=0.0), 0.96),
        (2, Condition(uses=256, snr_db=10.0), 0.83),
        (3, Condition(uses=256, snr_db=10.0), 0.96),
    ],
)
def test_noise_is_found(images: int, condition: Condition, least: float, aligned: Edge) -> None:
    """Of 300 recordings of noise at the right power, as many as the table in `Evidence.is_noise` promises.

    The shares are 99.9, 99.8, 97.8, 99.3, 91.5 and 99.8 %; each limit lies at least 4.5 standard deviations of a
    binomial of 300 below, which chance passes once in 10,000 times.
    """
    n, power = int(condition.uses[0]), 1 + float(snr_db_to_noise_power(condition.snr_db)[0])
    found = 0
    for seed in range(300):
        symbols = white(images * n, power, seed).view(images, n)
        found += bool(refusal(symbols, condition, aligned.codec))
    assert found >= least * 300


def test_a_codec_of_ones_own_is_judged_by_power_alone() -> None:
    """It cannot tell its components from noise; its silence and its gain are refused all the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec = ConvCodec((32, 8, 8), 512)
    sent = codec.encode(torch.randn(2, 32, 8, 8), TEN_DB.expand(2)).detach()
    assert energy_profile_of(codec, sent, TEN_DB.expand(2)) is None
    assert refusal(sent, TEN_DB, codec) == ""
    assert refusal(white(1024, 1.1).view(2, 512), TEN_DB, codec) == ""
    assert "mean symbol power is 100" in refusal(10 * sent, TEN_DB, codec)
    assert "all 0" in refusal(0 * sent, TEN_DB, codec)


@pytest.mark.parametrize("uses", [1, 2, 3, 8])
def test_the_fewest_uses_decide_nothing_but_power(uses: int) -> None:
    codec = load_codec(shipped("emoji/codec"))
    assert isinstance(codec, TrainableCodec)
    condition = Condition(uses=uses, snr_db=10.0)
    assert refusal(white(uses, 1.1)[None], condition, codec) == ""


@pytest.fixture(scope="module")
def trip(aligned: Edge, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of three images as sent at 10 dB."""
    path = tmp_path_factory.mktemp("air") / "trip"
    write_recording(path, recording(aligned, TEN_DB))
    return path


def recording(edge: Edge, condition: Condition) -> Recording:
    whole = condition.expand(3)
    return Recording(
        symbols=edge.symbols(condition), condition=whole, seed=0, world="emoji", bundles=edge.bundles
    )


def on_air(trip: Path, folder: Path, spoil: Spoil) -> Path:
    """The sender's metadata beside what a radio returned of its samples, at 10 dB SNR."""
    data = np.fromfile(trip.with_name("trip.sigmf-data"), dtype="<c8")
    samples = spoil(torch.from_numpy(data) + white(len(data), 0.1))
    samples.numpy().astype("<c8").tofile(folder / "trip.sigmf-data")
    (folder / "trip.sigmf-meta").write_bytes(trip.with_name("trip.sigmf-meta").read_bytes())
    return folder / "trip"


@pytest.mark.parametrize("command", [("radio", "receive"), ("receive",)])
def test_noise_is_one_line_and_leaves_nothing(
    command: tuple[str, ...], trip: Path, tmp_path: Path, say: Say
) -> None:
    path = on_air(trip, tmp_path, lambda samples: white(len(samples), 1.1))
    done = say(*command, path, "--received", "--out", tmp_path / "new" / "got")
    assert done.code == 1
    assert len(done.complaints) == 1
    assert "nothing was received: its samples are like noise alone" in done.complaints[0]
    assert not (tmp_path / "new").exists()


def test_the_senders_metadata_beside_a_radios_samples(trip: Path, tmp_path: Path, say: Say) -> None:
    """Refused for the checksum, with the option that says what they are; with it they are decoded."""
    path = on_air(trip, tmp_path, lambda s: s)
    words = ("receive", path, "--out", tmp_path / "got")
    done = say(*words)
    assert done.code == 2
    assert done.complaints[0].endswith(
        "do not have the sha512 of trip.sigmf-meta; copy both again if they are as sent; if a radio made the samples,"
        " say so: --received"
    )
    assert not (tmp_path / "got").exists()
    assert say(*words, "--received").code == 0
    assert say("radio", "papr", path).code == 2
    assert say("radio", "papr", path, "--received").code == 0


@pytest.mark.parametrize("name", ["cf32_be", "ci16_le", "ci8", "cu8"])
def test_a_radio_may_return_other_datatypes(name: str, trip: Path, tmp_path: Path, say: Say) -> None:
    """From the sample at which it says that the images begin."""
    path = on_air(trip, tmp_path, lambda s: s)
    data, meta = (path.with_name(f"trip.sigmf-{kind}") for kind in ("data", "meta"))
    parts = np.fromfile(data, dtype="<f4").astype(np.float64)
    kind = {"cf32_be": ">f4", "ci16_le": "<i2", "ci8": "i1", "cu8": "u1"}[name]
    if "f" not in kind:
        parts = np.round(parts / np.abs(parts).max() * 100) + (128 if name == "cu8" else 0)
    np.concatenate([np.full(64, parts[0]), parts]).astype(kind).tofile(data)
    facts = json.loads(meta.read_text())
    facts["global"]["core:datatype"] = name
    facts["captures"][0]["core:sample_start"] = 32
    meta.write_text(json.dumps(facts))
    assert say("radio", "receive", path, "--received", "--out", tmp_path / "got").code == 0
    assert len(list((tmp_path / "got").glob("*.png"))) == 3


def test_the_samples_of_the_file_are_judged_and_not_those_of_a_simulation(
    trip: Path, tmp_path: Path, say: Say
) -> None:
    """A channel at -20 dB drowns every picture, and that is what the user asked to see."""
    facts = json.loads(trip.with_name("trip.sigmf-meta").read_text())
    facts["global"]["dekag:snr_db"] = [-20.0] * 3
    (tmp_path / "trip.sigmf-meta").write_text(json.dumps(facts))
    (tmp_path / "trip.sigmf-data").write_bytes(trip.with_name("trip.sigmf-data").read_bytes())
    done = say("radio", "receive", tmp_path / "trip", "--channel-seed", 1, "--out", tmp_path / "got")
    assert done.code == 0


@pytest.mark.parametrize("name", FADING)
def test_equalised_fading_passes(name: str, aligned: Edge) -> None:
    """What a radio returns that divides by the gain, 30 recordings of three images.

    An image is drowned, and then refused, with a probability of N0 / 10,000: 3e-3 in all at the lowest SNR.
    """
    condition = FADING[name].expand(3)
    sent = aligned.symbols(condition)
    for seed in range(30):
        rng = torch.Generator().manual_seed(seed)
        arrived = BlockFading()(sent, condition, rng=rng)
        known = used(condition, sent.shape[1])
        equalised = torch.where(known, arrived.symbols / torch.where(known, arrived.state.gain, 1.0), 0.0)
        assert refusal(equalised, condition, aligned.codec) == ""


@pytest.mark.parametrize(
    ("gain", "words", "warns"),
    [(1, (), False), (0.7j, (), True), (1j, ("--channel-seed", 1), False)],
    ids=["as sent", "faded", "turned and simulated"],
)
def test_fading_that_nothing_equalises_is_said(
    gain: complex, words: tuple[object, ...], warns: bool, aligned: Edge, tmp_path: Path, say: Say
) -> None:
    """Of symbols as sent nothing is said, and nothing where the channel is simulated."""
    sent = recording(aligned, Condition(uses=256, snr_db=10.0, rayleigh=True, blocks=4, pilots=2))
    write_recording(tmp_path / "trip", replace(sent, symbols=gain * sent.symbols))
    done = say("radio", "receive", tmp_path / "trip", *words, "--out", tmp_path / "got")
    assert done.code == 0
    assert ("decoded at unit gain" in done.err) == warns


def test_from_python_it_is_a_warning_of_its_own(aligned: Edge) -> None:
    condition = FADING["slow"].expand(3)
    with pytest.warns(ReceptionWarning, match="Rayleigh fading, and its samples are decoded at unit gain"):
        warn_of_fading(Path("trip"), measure(0.5 * aligned.symbols(condition), condition), condition)


def test_pilots_that_no_file_holds_are_said(tmp_path: Path, say: Say) -> None:
    """The recording is payload alone, and `radio send` says whose the pilots are."""
    words = ("--channel", "rayleigh", "--blocks", 4, "--pilots", 2, "--uses", 256, "--out", tmp_path / "trip")
    done = say("radio", "send", PROMPTS[0], *words)
    assert done.code == 0
    assert "8 pilots; 248 samples of all but the pilots, the pilots are left to the radio" in done.out
    assert read_recording(tmp_path / "trip").symbols.shape == (1, 248)


@pytest.mark.parametrize("uses", [128, 256, 512])
def test_noise_alone_is_never_decoded_without_a_word(edge: Edge, uses: int) -> None:
    """Refused, or said that it cannot be told from noise: 30 images one by one; 3e-7 of noise would pass in silence.

    Every third has a power of exactly 1, as symbols that nothing happened to.
    """
    condition = Condition(uses=uses, snr_db=10.0)
    refused = 0
    for seed in range(30):
        symbols = white(uses, 1.1, seed)[None]
        if seed % 3 == 0:
            symbols = symbols / symbols.abs().square().mean().sqrt()
        if refusal(symbols, condition, edge.codec):
            refused += 1
            continue
        with pytest.warns(ReceptionWarning, match="cannot be told from noise"):
            warn_of_doubt(Path("trip"), measure(symbols, condition), condition, edge.codec)
    print(f"{uses} uses: {refused} of 30 refused, the others warned of")


@pytest.mark.parametrize(("uses", "images"), [(256, 3), (512, 1)])
def test_pictures_in_noise_are_decoded_without_a_warning(edge: Edge, uses: int, images: int) -> None:
    """At 10 dB; of 60 pictures of 256 uses, one by one, none was warned of, and of these three one is at 4.9."""
    condition = Condition(uses=uses, snr_db=10.0).expand(images)
    for symbols in received(edge, condition[:1], 3).split(images):
        warn_of_doubt(Path("trip"), measure(symbols, condition), condition, edge.codec)
