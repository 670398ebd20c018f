"""A codec and a channel of one's own go wherever the shipped ones go."""

import asyncio
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from own_channel import Bursts
from own_codec import ConvCodec
from own_parts import RANGE, SHAPE, SIZE, USES, base, latents, registered
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

import dekag
from dekag import link
from dekag.alignment.transmission.adapted import AdaptedCodec
from dekag.alignment.transmission.bundles import apply_transmission, save_transmission
from dekag.alignment.transmission.cala import CalaCodec
from dekag.alignment.transmission.methods import METHODS, adapt, adapted_codec
from dekag.alignment.transmission.train import ConditionRange, TransmissionData, fit, transmission_loss
from dekag.alignment.transmission.update import update_size, update_tensors
from dekag.bundle.sound import pack
from dekag.channel import BlockFading, ChannelSettings, named_channel
from dekag.cli import app
from dekag.codec import (
    Encoded,
    JsccCodec,
    importance_of,
    save_codec,
)
from dekag.evaluation import grid
from dekag.evaluation.transmission import transmit
from dekag.registry import Shelf
from dekag.serving.edge.bundles import Bundles
from dekag.serving.edge.decoders import DecoderFiles
from dekag.serving.edge.deliveries import Picture, encode, see
from dekag.serving.images.engine import Drawn, Engine, Model
from dekag.serving.images.metrics import EngineMetrics
from dekag.serving.onnx import OnnxFile, codec_graph, export_decoders
from dekag.tasks import sweep
from dekag.tasks.sweep.run import SweepConfig
from dekag.training.loop import TrainConfig
from dekag.types import Channel, Condition, InputError, Latent, Received, Symbols
from dekag.world import load_world

MIXED = Condition.cat(
    [Condition(uses=64, snr_db=12.0), Condition(uses=20, snr_db=0.0, rayleigh=True, blocks=4)]
)
EMOJI = (32, 8, 8)


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with registered():
        yield


def trained_like(adapted: AdaptedCodec) -> AdaptedCodec:
    """An update whose matrices are all different from zero."""
    for tensor in update_tensors(adapted).values():
        tensor.normal_(std=0.1, generator=torch.Generator().manual_seed(3))
    return adapted.eval()


@torch.no_grad()
def through(codec: Any, condition: Condition, channel: Channel | None = None) -> Latent:
    rng = torch.Generator().manual_seed(2)
    return transmit(codec, channel or BlockFading(), latents(len(condition)), condition, rng=rng)


@torch.no_grad()
@pytest.mark.parametrize("method", [name for name in METHODS if name != "appended"])
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


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("cala", "full", "appended")])
def test_rivals_have_at_most_the_numbers_of_cala(method: str) -> None:
    most = update_size(CalaCodec(base(), SIZE))
    assert 0 < update_size(adapted_codec(method, base(), SIZE)) <= most


def test_a_codec_that_is_told_nothing_has_no_condition_appended() -> None:
    with pytest.raises(InputError, match="ConvCodec names no condition_modules"):
        adapted_codec("appended", base(), SIZE)


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


def emoji_link(codec: Any, channel: Channel | None = None) -> link.Link:
    generator = dekag.load(align=False).link.generator
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


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param(sweep.Inline(), id="inline", marks=pytest.mark.slow),
        pytest.param(sweep.Processes(workers=1), id="processes", marks=pytest.mark.slow),
    ],
)
def test_a_sweep_beside_the_digital_baseline(engine: sweep.Engine, large: ConvCodec, tmp_path: Path) -> None:
    """One scheme, its own, whatever constellations the grid asks for; another process knows the class as well."""
    save_codec(large, tmp_path / "conv")
    config = SweepConfig(
        world=load_world("emoji"),
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_an_edge_serves_it(large: ConvCodec, decoders: Path, tmp_path: Path) -> None:
    """Its update goes onto the shelf, passes its test and is used; deliveries and decoders follow it."""
    adapted = trained_like(CalaCodec(large, SIZE))
    bundle = save_transmission(tmp_path / "b", adapted, large, settings={})
    shelf = Shelf(tmp_path / "shelf")
    pack(tmp_path / "b", shelf.folder / "b.tar")
    shelf.put(shelf.folder / "b.tar", name="conv")
    generator = dekag.load(align=False).link.generator
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
    """Nothing outside `codec/` asks whether a codec is the shipped one; what trains one makes it."""
    source = Path(link.__file__).parent
    asking = [
        str(path.relative_to(source))
        for path in source.rglob("*.py")
        if JsccCodec.__name__ in path.read_text() and path.parent.name not in ("codec", "tasks")
    ]
    print(asking)
    assert not asking


class Lossy:
    """Block fading whose receiver lost three uses of every image."""

    def __call__(self, symbols: Symbols, condition: Condition, *, rng: torch.Generator) -> Received:
        received = BlockFading()(symbols, condition, rng=rng)
        lost = torch.tensor([complex("nan"), complex("inf"), 1e30 + 0j])
        return replace(
            received, symbols=torch.cat([lost.repeat(len(symbols), 1), received.symbols[:, 3:]], dim=1)
        )


def test_what_is_measured_is_what_is_delivered(large: ConvCodec) -> None:
    """Bit for bit where uses were lost as well; training goes on with finite gradients."""
    chosen = emoji_link(large, Lossy())
    condition = Condition(uses=128, snr_db=10.0, rayleigh=True, blocks=4)
    latent = chosen.generator(["a red apple"], seeds=[0])
    received = Lossy()(large.encode(latent, condition).detach(), condition, rng=torch.Generator())
    delivered = link.receive(chosen, received, condition)
    assert delivered.erased_uses.tolist() == [3]
    measured = transmit(large, Lossy(), latent, condition, rng=torch.Generator())
    assert torch.equal(measured, delivered.latent)
    trained = base(EMOJI, 512)
    loss = transmission_loss(trained, Lossy(), latent, condition, torch.ones(32), rng=torch.Generator())
    loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in trained.parameters() if p.grad is not None)
