"""A codec and a channel of one's own go wherever the shipped ones go; what breaks the contract is one clear line."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from own_channel import Bursts
from own_codec import ConvCodec
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

from dekag import link, presets, sweep
from dekag.alignment.adapted import AdaptedCodec
from dekag.alignment.bundle import pack
from dekag.alignment.cala import CalaCodec, CalaConfig
from dekag.alignment.codec_rivals import METHODS, adapt, adapted_codec
from dekag.alignment.codec_update import update_size, update_tensors
from dekag.alignment.updates import apply_transmission, codec_digest, save_transmission
from dekag.channel import CHANNELS, BlockFading, ChannelKind, ChannelSettings, named_channel
from dekag.cli import app
from dekag.codec import (
    CODECS,
    Encoded,
    JsccCodec,
    PairDecoder,
    QamCodec,
    check_codec,
    importance_of,
    load_codec,
    save_codec,
)
from dekag.codec.contract import ADAPTABLE
from dekag.evaluation import grid
from dekag.evaluation.transmission import transmit
from dekag.registry import Shelf
from dekag.serving.edge.bundles import Bundles
from dekag.serving.edge.decoders import DecoderFiles
from dekag.serving.edge.deliveries import Picture, encode, see
from dekag.serving.images.engine import Drawn, Engine, Model
from dekag.serving.images.metrics import EngineMetrics
from dekag.serving.onnx import OnnxFile, codec_graph, export_decoders
from dekag.sweep.run import SweepConfig
from dekag.training.loop import TrainConfig
from dekag.training.transmission import FAST, ConditionRange, TransmissionData, fit, transmission_loss
from dekag.types import Channel, Condition, InputError, Latent, Received, Symbols

SHAPE, USES = (8, 4, 4), 64
SIZE = CalaConfig(rank=4, norm_rank=2)
RANGE = ConditionRange(uses=(16, 64), snrs_db=(0.0, 5.0, 10.0, 15.0), blocks=(0, 1, 4, FAST))
MIXED = Condition.cat(
    [Condition(uses=64, snr_db=12.0), Condition(uses=20, snr_db=0.0, rayleigh=True, blocks=4)]
)
EMOJI = (32, 8, 8)


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    """What a user's own module does when it is imported."""
    CODECS["conv"] = ConvCodec
    CHANNELS["bursts"] = ChannelKind(channel=lambda settings: Bursts())
    yield
    del CODECS["conv"], CHANNELS["bursts"]


def base(shape: tuple[int, int, int] = SHAPE, uses: int = USES) -> ConvCodec:
    torch.manual_seed(0)
    return ConvCodec(shape, uses).eval()


def latents(batch: int, seed: int = 1) -> Latent:
    """Gaussian latents, each of 16 numbers spread over 128."""
    mix = torch.randn(16, 128, generator=torch.Generator().manual_seed(5)) / 4
    return (torch.randn(batch, 16, generator=torch.Generator().manual_seed(seed)) @ mix).unflatten(1, SHAPE)


def trained_like(adapted: AdaptedCodec) -> AdaptedCodec:
    """An update whose matrices are all different from zero."""
    for tensor in update_tensors(adapted).values():
        tensor.normal_(std=0.1, generator=torch.Generator().manual_seed(3))
    return adapted.eval()


@torch.no_grad()
def through(codec: Any, condition: Condition, channel: Channel | None = None) -> Latent:
    rng = torch.Generator().manual_seed(2)
    return transmit(codec, channel or BlockFading(), latents(len(condition)), condition, rng=rng)


# the contract


def test_both_codecs_keep_the_contract(tmp_path: Path) -> None:
    shipped = presets.load(align=False).link.codec
    for codec in (base(), shipped):
        assert check_codec(codec) is codec
        assert isinstance(codec, PairDecoder)
    assert isinstance(shipped, QamCodec)
    assert not isinstance(base(), QamCodec)
    assert torch.equal(importance_of(base()), torch.ones(8))
    assert importance_of(shipped).std() > 0


def test_a_codec_survives_its_files(tmp_path: Path) -> None:
    """Class, settings, weights to fp16, and the digest that bundles name it by."""
    codec = base()
    save_codec(codec, tmp_path)
    again = load_codec(tmp_path)
    assert type(again) is ConvCodec
    assert again.settings() == codec.settings()
    assert codec_digest(again) == codec_digest(codec)
    for name, tensor in codec.state_dict().items():
        assert torch.equal(tensor.half().float(), again.state_dict()[name])


def test_the_shipped_codec_has_no_kind(tmp_path: Path) -> None:
    """Its config.json is what it was before there were kinds; one that names it is read as well."""
    source = presets.folder(presets.emoji().codec, "codec")
    save_codec(load_codec(source), tmp_path)
    written = (tmp_path / "config.json").read_text()
    assert written == (source / "config.json").read_text()
    (tmp_path / "config.json").write_text(written.replace("{", '{"kind": "jscc",'))
    assert codec_digest(load_codec(tmp_path)) == codec_digest(load_codec(source))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ('{"kind": "mlp"}', "a codec of kind 'mlp' is not known here; known are jscc, conv; add yours"),
        ('{"kind": ["conv"]}', "is not known here"),
        ("[]", "must hold a JSON object"),
        ('{"kind": "conv"}', "settings that describe no codec: 'latent_shape'"),
        ('{"kind": "conv", "latent_shape": [8, 4, 4], "max_uses": "64", "width": 16}', "describe no codec"),
        (
            '{"kind": "conv", "latent_shape": [8, 4, 4], "max_uses": 32, "width": 16}',
            "does not fit its config",
        ),
        ('{"kind": "jscc", "channels": 8}', "it must have exactly the keys channels, cols"),
    ],
)
def test_a_folder_that_holds_no_codec_is_one_line(config: str, says: str, tmp_path: Path) -> None:
    save_codec(base(), tmp_path)
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(InputError, match=says) as error:
        load_codec(tmp_path)
    assert "\n" not in str(error.value)


def test_what_cannot_be_saved_is_one_line(tmp_path: Path) -> None:
    class Unknown(ConvCodec):
        pass

    with pytest.raises(InputError, match=r"Unknown has no kind .* dekag.codec.CODECS\['mine'\] = Unknown"):
        save_codec(Unknown(SHAPE, USES), tmp_path)
    large = base()
    large.encoder[0].weight.data.fill_(1e5)
    with pytest.raises(InputError, match=r"encoder.0.weight holds 100000, which is too large for fp16"):
        save_codec(large, tmp_path)


class Wrong(ConvCodec):
    """Breaks the contract in one of several ways."""

    fault = ""

    def transmit(self, latent: Latent, condition: Condition) -> Any:
        sent = super().transmit(latent, condition)
        symbols = sent.symbols
        faults: Mapping[str, Callable[[], Any]] = {
            "batch power": lambda: replace(sent, symbols=symbols * torch.tensor([1.2, 0.8])[:, None]),
            "beyond": lambda: replace(sent, symbols=symbols + 1),
            "tensor": lambda: symbols,
            "narrow": lambda: replace(sent, symbols=symbols[:, :32]),
        }
        return faults.get(self.fault, lambda: sent)()

    def decode(self, received: Received, condition: Condition) -> Latent:
        decoded = super().decode(received, condition)
        return {"rows": decoded[:, :, :2], "nan": decoded / 0}.get(self.fault, decoded)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("batch power", r"mean power 1 for each image \(codec.normalise_power\), got 1.44, 0.64"),
        ("beyond", r"must be zero beyond an image's payload \(codec.truncate\)"),
        ("tensor", r"must return Encoded\(symbols, commitment\)"),
        ("narrow", r"must return complex symbols \[2, 64\], got complex64 \[2, 32\]"),
        ("rows", r"must return finite latents \[2, 8, 4, 4\], got float32 \[2, 8, 2, 4\]"),
        ("nan", "must return finite latents"),
    ],
)
def test_a_broken_contract_is_found_before_training(fault: str, says: str) -> None:
    codec = Wrong(SHAPE, USES)
    codec.fault = fault
    refused(codec, says)


def refused(codec: Any, says: str, method: str = "cala") -> None:
    """One line, and not one step of training."""
    steps: list[int] = []
    data = TransmissionData(latents=latents(8), conditions=RANGE)
    with pytest.raises(InputError, match=says) as error:
        adapt(
            method,
            codec,
            data,
            SIZE,
            TrainConfig(steps=2, learning_rate=1e-3),
            on_step=lambda progress: steps.append(progress.step),
        )
    assert "\n" not in str(error.value)
    assert not steps


@pytest.mark.parametrize("member", ADAPTABLE)
def test_a_missing_member_is_named(member: str) -> None:
    """Sizes are attributes of a ConvCodec, the rest are methods."""

    def missing(self: Any, *_: Any) -> None:
        raise AttributeError(member)

    codec = base()
    if member in codec.__dict__:
        delattr(codec, member)
    else:
        codec.__class__ = type("Lacking", (ConvCodec,), {member: property(missing)})
    refused(codec, rf"it lacks {member} \(")


def test_what_cannot_be_adapted_is_refused() -> None:
    refused(torch.nn.Linear(2, 2), "Linear is no codec that can be trained: it lacks latent_shape")
    changes: dict[str, tuple[str, Any, str]] = {
        "shape": ("latent_shape", [8, 4, 4], "must be channels, rows and columns"),
        "uses": ("max_uses", 0, "must be a positive whole number, got 0"),
        "importance": ("importance", torch.ones(4), "importance of ConvCodec must be 8 numbers"),
        "places": ("gated_modules", ("encoder.9",), "has 'encoder.9', which is none of nn.Linear, nn.Conv2d"),
        "none": ("gated_modules", (), "has no module that may be gated"),
    }
    for name, value, says in changes.values():
        codec = base()
        setattr(codec, name, value)
        refused(codec, says)


def test_data_that_do_not_fit_are_refused() -> None:
    wide = ConditionRange(uses=(128,), snrs_db=(5.0,), blocks=(0,))
    paid = ConditionRange(uses=(80,), snrs_db=(5.0,), blocks=(4,), pilots=(4, 8))
    assert paid.max_payload == 64
    for data, says in (
        (TransmissionData(latents=latents(4)[:, :2], conditions=RANGE), r"takes latents \[images, 8, 4, 4\]"),
        (TransmissionData(latents=latents(4), conditions=wide), "at most 64 payload uses .* have up to 128"),
        (TransmissionData(latents=latents(0), conditions=RANGE), "at least one latent"),
    ):
        with pytest.raises(InputError, match=says):
            adapt("cala", base(), data, SIZE, TrainConfig(steps=1, learning_rate=1e-3))


class Flat(ConvCodec):
    """Hands a module the cells of all images as rows."""

    def __init__(self, *sizes: Any) -> None:
        super().__init__(*sizes)
        self.mix = torch.nn.Linear(8, 8)

    def transmit(self, latent: Latent, condition: Condition) -> Encoded:
        cells = self.mix(latent.movedim(1, 3).reshape(-1, 8)).view(len(latent), 4, 4, 8)
        return super().transmit(cells.movedim(3, 1), condition)


def test_modules_that_do_not_keep_images_apart_are_refused_or_left_out() -> None:
    torch.manual_seed(0)
    codec = Flat(SHAPE, USES)
    refused(codec, "was given 32 rows of 2 images")
    codec.gated_modules = ("encoder.0", "decoder.2")
    adapted = CalaCodec(codec, SIZE)
    assert {name.split(".lora")[0] for name in update_tensors(adapted) if ".lora" in name} == {
        "codec.encoder.0",
        "codec.decoder.2",
    }


# alignment


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_an_untrained_update_is_none(method: str) -> None:
    codec = base()
    torch.testing.assert_close(through(adapted_codec(method, codec, SIZE), MIXED), through(codec, MIXED))


@torch.no_grad()
def test_merged_equals_gated_and_images_do_not_interfere() -> None:
    """Convolutions, a transposed one and a norm: each image of a mixed batch meets its own plain codec."""
    adapted = trained_like(CalaCodec(base(), SIZE))
    assert isinstance(adapted, CalaCodec)
    sent = adapted.transmit(latents(2), MIXED).symbols
    for row in range(2):
        one = MIXED[row : row + 1]
        merged = adapted.merge(one)
        assert type(merged) is ConvCodec
        alone = merged.transmit(latents(2)[row : row + 1], one).symbols
        torch.testing.assert_close(sent[row : row + 1, : alone.shape[1]], alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(sent, base().transmit(latents(2), MIXED).symbols, atol=1e-2)


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("cala", "full")])
def test_rivals_have_at_most_the_numbers_of_cala(method: str) -> None:
    most = update_size(CalaCodec(base(), SIZE))
    assert 0 < update_size(adapted_codec(method, base(), SIZE)) <= most


def test_attention_needs_places() -> None:
    codec = base()
    codec.attention_modules = {}
    refused(codec, "ConvCodec names no attention_modules, .*; leave snr_attention out", "snr_attention")
    codec.attention_modules = {"encoder.7": 16}
    refused(codec, "has 'encoder.7', which is no module of it", "snr_attention")


@pytest.fixture(scope="module")
def nominal() -> ConvCodec:
    """Trained at one condition alone, over AWGN."""
    codec = base()
    conditions = ConditionRange(uses=(64,), snrs_db=(10.0,), blocks=(0,))
    data = TransmissionData(latents=latents(512), conditions=conditions)
    fit(codec.train(), data, TrainConfig(steps=300, learning_rate=5e-3, ema_decay=0.9, warmup_steps=10))
    return codec.eval()


def loss_of(codec: Any, channel: Channel) -> float:
    """On latents and draws that nothing was trained on."""
    rng = torch.Generator().manual_seed(10**6)
    condition = RANGE.draw(256, rng)
    with torch.no_grad():
        return transmission_loss(
            codec, channel, latents(256, seed=9), condition, importance_of(codec), rng=rng
        ).item()


@pytest.mark.parametrize(
    ("method", "channel"),
    [
        *((name, BlockFading()) for name in ("cala", "shared_lora", "hard_gate", "snr_attention")),
        ("cala", Bursts()),
    ],
)
def test_every_method_learns(method: str, channel: Channel, nominal: ConvCodec) -> None:
    """Nats of the mean logarithm of the error that 150 steps gain, over a channel of one's own as over the shipped."""
    data = TransmissionData(latents=latents(512), conditions=RANGE, channel=channel)
    before = {name: tensor.clone() for name, tensor in nominal.state_dict().items()}
    training = TrainConfig(steps=150, learning_rate=1e-2, ema_decay=0.9, warmup_steps=10)
    adapted = adapt(method, nominal, data, SIZE, training)
    gain = loss_of(nominal, channel) - loss_of(adapted, channel)
    print(f"{method} over {channel}: {gain:.2f} nats")
    assert gain > 0.03
    for name, tensor in nominal.state_dict().items():
        assert torch.equal(tensor, before[name])


@torch.no_grad()
@pytest.mark.parametrize("method", ["cala", "snr_attention"])
def test_an_update_survives_its_bundle(method: str, tmp_path: Path) -> None:
    """Kernels in int8 within a few percent; another codec of the same class refuses it."""
    adapted = trained_like(adapted_codec(method, base(), SIZE))
    save_transmission(tmp_path / "b", adapted, base(), settings={})
    loaded, _ = apply_transmission(base(), tmp_path / "b")
    assert type(loaded) is type(adapted)
    for name, tensor in update_tensors(adapted).items():
        assert (update_tensors(loaded)[name] - tensor).norm() < 0.02 * tensor.norm(), name
    torch.manual_seed(7)
    with pytest.raises(InputError, match="made for base model"):
        apply_transmission(ConvCodec(SHAPE, USES), tmp_path / "b")


# channel, delivery, sweep, ONNX, edge


def emoji_link(codec: Any, channel: Channel | None = None) -> link.Link:
    generator = presets.load(align=False).link.generator
    return link.Link(generator=generator, codec=codec, channel=channel or BlockFading())


@pytest.fixture(scope="module")
def large() -> ConvCodec:
    """For the latents of the emoji world."""
    return base(EMOJI, 512)


def test_a_delivery_over_both(large: ConvCodec) -> None:
    named = named_channel(ChannelSettings(name="bursts"))
    assert named.channel == Bursts()
    condition = named.condition(256, 10.0)
    seen = {}
    for channel in (named.channel, BlockFading()):
        delivery = link.deliver(
            emoji_link(large, channel), ["a red apple"], condition, seeds=[0], rng=torch.Generator()
        )
        assert delivery.ledger.payload_uses == 256
        seen[type(channel)] = delivery.latent_received
    assert not torch.equal(seen[Bursts], seen[BlockFading])
    with pytest.raises(InputError, match="blocks is not for bursts: it describes rayleigh"):
        named_channel(ChannelSettings(name="bursts", blocks=2))


def test_a_named_channel_on_the_command_line(tmp_path: Path) -> None:
    words = ["deliver", "a red apple", "--uses", "64", "--channel", "bursts", "--out", str(tmp_path / "out")]
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 0, told.output
    assert (tmp_path / "out" / "report.json").exists()


@pytest.mark.parametrize("engine", [sweep.Inline(), sweep.Processes(workers=1)], ids=["inline", "processes"])
def test_a_sweep_beside_the_digital_baseline(engine: sweep.Engine, large: ConvCodec, tmp_path: Path) -> None:
    """One scheme, its own, whatever constellations the grid asks for; another process knows the class as well."""
    save_codec(large, tmp_path / "conv")
    config = SweepConfig(
        grid=grid.read_grid(
            "small", uses="64", snrs="14", channels="awgn,bursts", constellations="qpsk,256qam"
        ),
        methods=("no_ka", "digital"),
        codecs=(f"conv={tmp_path / 'conv'}",),
        images=2,
        draws=16,
    )
    outcome = sweep.sweep(config, tmp_path / "out", engine, on_stage=lambda text: None)
    labels = [(r.cell.point.channel, r.cell.label, r.cell.constellation) for r in outcome.results]
    for channel in ("awgn", "bursts"):
        assert {label for where, label, _ in labels if where == channel} == {
            *("no_ka qpsk", "no_ka 256qam", "digital", "conv"),
        }
    assert {scheme for _, label, scheme in labels if label == "conv"} == {"own"}
    psnr = {(r.cell.point.channel, r.cell.label): np.mean(r.values["psnr_db"]) for r in outcome.results}
    assert psnr["bursts", "no_ka qpsk"] < psnr["awgn", "no_ka qpsk"]
    assert {r.cell.point.family for r in outcome.results} == {"awgn", "bursts"}


def decoded(file: OnnxFile, received: Received, condition: Condition) -> np.ndarray:
    """What a page does with one image."""
    row = [getattr(condition, field.name).float() for field in fields(condition)]
    inputs = {
        "symbols": torch.view_as_real(received.symbols).numpy(),
        "gain": torch.view_as_real(received.state.gain).numpy(),
        "noise_power": received.state.noise_power.numpy(),
        "condition": torch.stack(row, dim=1).numpy(),
    }
    session = onnxruntime.InferenceSession(file.path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, inputs)[0])


@torch.no_grad()
def test_decoders_as_onnx_equal_pytorch(large: ConvCodec, decoders: Path) -> None:
    """With CALA's gates in its convolutions, at several rates, within 1e-3."""
    chosen = emoji_link(trained_like(CalaCodec(large, SIZE)))
    exported = export_decoders(decoders, chosen)
    worst = 0.0
    for uses, rayleigh in ((64, False), (97, True), (512, False)):
        condition = Condition(uses=uses, snr_db=5.0, rayleigh=rayleigh)
        rng = torch.Generator().manual_seed(uses)
        symbols = torch.randn(1, uses, dtype=torch.complex64, generator=rng)
        received = BlockFading()(symbols, condition, rng=rng)
        found = decoded(exported.codec, received, condition)
        arrived = link.receive(chosen, received, condition).latent.numpy()
        worst = max(worst, float(np.abs(found - arrived).max()))
    print(f"ONNX against PyTorch: at most {worst:.1e}")
    assert worst < 1e-3


def test_a_decoder_in_complex_numbers_alone_does_not_leave(large: ConvCodec, tmp_path: Path) -> None:
    class Complex:
        latent_shape, max_uses = EMOJI, 512

        def transmit(self, latent: Latent, condition: Condition) -> Encoded:
            raise NotImplementedError

        def encode(self, latent: Latent, condition: Condition) -> Symbols:
            raise NotImplementedError

        def decode(self, received: Received, condition: Condition) -> Latent:
            raise NotImplementedError

    with pytest.raises(InputError, match=r"Complex has no decoder in real numbers \(decode_pairs\)"):
        codec_graph(Complex())

    class Local(ConvCodec):
        pass

    with pytest.raises(InputError, match="Local must be defined in a module that can be imported"):
        export_decoders(tmp_path, emoji_link(Local(EMOJI, 512)))


def test_an_edge_serves_it(large: ConvCodec, decoders: Path, tmp_path: Path) -> None:
    """Its update goes onto the shelf, passes its test and is used; deliveries and decoders follow it."""
    adapted = trained_like(CalaCodec(large, SIZE))
    bundle = save_transmission(tmp_path / "b", adapted, large, settings={})
    shelf = Shelf(tmp_path / "shelf")
    pack(tmp_path / "b", shelf.folder / "b.tar")
    shelf.put(shelf.folder / "b.tar", name="conv")
    generator = presets.load(align=False).link.generator
    prompt, condition = "a red apple", Condition(uses=200, snr_db=10.0)

    async def serve() -> None:
        engine = Engine(batch=1, queue=10, metrics=EngineMetrics(CollectorRegistry()), threads=1)
        await engine.start()
        bundles = Bundles(generator=generator, codec=large, shelf=shelf, engine=engine, max_loaded=2)
        await bundles.restore()
        assert (await bundles.coder()).codec is large
        await bundles.activate(bundle.id)
        coder = await bundles.coder()
        assert coder.bundle == bundle.id
        latent = generator([prompt], seeds=[0])
        drawn = Drawn(
            image=generator.decode(latent),
            latent=latent,
            seed=0,
            steps=4,
            tokens=4,
            unread=0,
            queue_ms=0.0,
            draw_ms=1.0,
        )
        model = Model(generator=generator)
        pictures = {}
        for air in (BlockFading(), Bursts()):
            picture = Picture(drawn=drawn, png=b"")
            delivery = encode(prompt, picture, model, coder, condition, "own", air)
            pictures[type(air)] = see(delivery, 3).image
        assert not torch.equal(pictures[Bursts], pictures[BlockFading])
        reply = await DecoderFiles(decoders, bundles).current()
        assert reply.transmission == bundle.id
        await engine.stop()

    asyncio.run(serve())


def test_the_shipped_codec_is_one_of_many() -> None:
    """Nothing outside `codec/` asks whether a codec is the shipped one."""
    source = Path(link.__file__).parent
    asking = [
        str(path.relative_to(source))
        for path in source.rglob("*.py")
        if JsccCodec.__name__ in path.read_text() and path.parent.name != "codec"
    ]
    print(asking)
    assert not asking
