"""The contract of a codec: how it is saved, and that whatever breaks it is one clear line before training."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from own_codec import ConvCodec
from own_parts import RANGE, SHAPE, SIZE, USES, base, latents, registered

import dekag
from dekag.alignment.transmission.bundles import codec_digest
from dekag.alignment.transmission.cala import CalaCodec
from dekag.alignment.transmission.methods import adapt
from dekag.alignment.transmission.train import ConditionRange, TransmissionData
from dekag.alignment.transmission.update import update_tensors
from dekag.codec import (
    Encoded,
    PairDecoder,
    QamCodec,
    check_codec,
    importance_of,
    load_codec,
    save_codec,
)
from dekag.codec.contract import ADAPTABLE
from dekag.training.loop import TrainConfig
from dekag.types import Condition, InputError, Latent, Received
from dekag.world import shipped as shipped_folder


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with registered():
        yield


def test_both_codecs_keep_the_contract(tmp_path: Path) -> None:
    shipped = dekag.load(align=False).link.codec
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
    source = shipped_folder("emoji/codec")
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
        ('{"kind": "jscc", "channels": 8}', "it must have exactly the keys block, channels, cols"),
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


def test_attention_needs_places() -> None:
    codec = base()
    codec.attention_modules = {}
    refused(codec, "ConvCodec names no attention_modules, .*; leave snr_attention out", "snr_attention")
    codec.attention_modules = {"encoder.7": 16}
    refused(codec, "has 'encoder.7', which is no module of it", "snr_attention")
