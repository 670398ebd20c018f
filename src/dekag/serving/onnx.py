"""The user's two decoders as ONNX, for a page or a device without torch.

```
codec   symbols, gain, noise_power, condition -> latent
image   latent -> image
```
ONNX has no complex numbers: symbols and gains are pairs of real and imaginary part, and the inverse Fourier
transform of despreading is a product of real matrices of whatever size the payload asks for. What is no number
counts as not received, as in `channel.erase_invalid`, and CALA's gates run inside the graph.
"""

import copy
import hashlib
import logging
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dekag.alignment.attention import SnrAttentionCodec
from dekag.alignment.cala import CalaCodec
from dekag.alignment.container import beside
from dekag.alignment.digest import digest_json, digest_tensors
from dekag.channel.erasure import MOST_POWER
from dekag.codec import JsccCodec
from dekag.codec.spreading import rudin_shapiro
from dekag.generation.diffusers import DiffusersGenerator
from dekag.link import Link
from dekag.types import Condition, Image, InputError, Latent
from dekag.version import __version__

OPSET = 18
GRAPHS = 1
"""Counted up when the modules below change, so that no older file is taken for theirs."""
LARGEST = 3e38
"""What is above it is no number of float32."""

Pairs = Float[Tensor, "batch uses 2"]
TrainedCodec = JsccCodec | CalaCodec | SnrAttentionCodec


class CodecDecoder(nn.Module):
    """A codec's decoder in real numbers, from unequalised symbols; every symbol is one of the payload."""

    signs: Float[Tensor, " max_uses"]

    def __init__(self, codec: TrainedCodec) -> None:
        super().__init__()
        self.adapted = codec
        self.register_buffer("signs", rudin_shapiro(self.plain.config.max_uses), persistent=False)

    @property
    def plain(self) -> JsccCodec:
        """The codec, with whatever an update put inside."""
        return self.adapted if isinstance(self.adapted, JsccCodec) else self.adapted.codec

    def forward(
        self,
        symbols: Pairs,
        gain: Pairs,
        noise_power: Float[Tensor, " batch"],
        condition: Float[Tensor, "batch fields"],
    ) -> Latent:
        """Latents of received symbols; `condition` holds the fields of `Condition` in their order."""
        told = _condition(condition)
        adapted = (
            nullcontext()
            if isinstance(self.adapted, JsccCodec)
            else self.adapted.adapted(told, symbols.device)
        )
        with adapted:
            return self._decoded(symbols, gain, noise_power)

    def _decoded(self, symbols: Pairs, gain: Pairs, noise_power: Float[Tensor, " batch"]) -> Latent:
        equalised, reliability = _equalise(symbols, gain, noise_power[:, None])
        overall = reliability.mean(1, keepdim=True)
        spread = self.plain.config.spread
        kept = self._despread(equalised) if spread else equalised
        return self.plain.reconstruct(kept, overall if spread else reliability, overall)

    def _despread(self, symbols: Pairs) -> Pairs:
        """`codec.spreading.despread`: y_k = n^(-1/2) sum_j s_j x_j exp(2 pi i j k / n)."""
        index = torch.arange(symbols.shape[1], device=symbols.device)
        # a tensor, as the exporter knows no remainder of a size
        uses = index.new_full((), symbols.shape[1])
        # the product modulo n is exact; its multiples of 2 pi would not be
        angle = 2 * torch.pi * (index[:, None] * index % uses).to(symbols.dtype) / uses
        real, imaginary = (symbols * self.signs[: symbols.shape[1], None]).unbind(2)
        cosine, sine = angle.cos(), angle.sin()
        turned = torch.stack([real @ cosine - imaginary @ sine, real @ sine + imaginary @ cosine], dim=2)
        return turned * uses.to(symbols.dtype).rsqrt()


class ImageDecoder(nn.Module):
    """A generator's autoencoder, latents of unit scale to images in [0, 1]."""

    def __init__(self, generator: DiffusersGenerator) -> None:
        super().__init__()
        self.family = generator.family
        self.vae = generator.pipeline.vae

    def forward(self, latent: Latent) -> Image:
        """As `Generator.decode`."""
        return self.family.decode(SimpleNamespace(vae=self.vae), latent)


@dataclass(frozen=True, kw_only=True)
class OnnxFile:
    """A model file: where it is, its length in bytes, and the digest that names it."""

    path: Path
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Decoders:
    """What a user needs to make images of received symbols."""

    codec: OnnxFile
    image: OnnxFile


def export_decoders(folder: Path, link: Link) -> Decoders:
    """The decoders of a link's user, in `folder` under names that say what they were made of.

    Made in seconds if they are not there, found in milliseconds if they are.
    Raises InputError if the link is no codec and autoencoder of ours, or the exporter is missing.
    """
    codec, generator = link.codec, link.generator
    if not isinstance(codec, TrainedCodec) or not isinstance(generator, DiffusersGenerator):
        raise InputError("only a codec of dekag and a pipeline of diffusers leave as ONNX")
    module = CodecDecoder(codec)
    config = module.plain.config
    uses = {1: torch.export.Dim("uses", min=1, max=config.max_uses)}
    nominal = Condition(uses=8, snr_db=10.0)
    numbers = torch.stack([getattr(nominal, field.name).float() for field in fields(nominal)], dim=1)
    decoder = _Graph(
        module=module,
        # a tensor each: the exporter takes two inputs that are one tensor for one input
        inputs={
            "symbols": torch.zeros(1, 8, 2),
            "gain": torch.zeros(1, 8, 2),
            "noise_power": torch.ones(1),
            "condition": numbers,
        },
        output="latent",
        dynamic=(uses, uses, None, None),
    )
    latent = torch.zeros(1, config.channels, config.rows, config.cols)
    pictures = _Graph(
        module=ImageDecoder(generator), inputs={"latent": latent}, output="image", dynamic=(None,)
    )
    return Decoders(codec=_cached(folder, "codec", decoder), image=_cached(folder, "image", pictures))


@dataclass(frozen=True, kw_only=True)
class _Graph:
    """What the exporter needs: a module, one example of each input by name, and the dimensions that vary."""

    module: nn.Module
    inputs: dict[str, Tensor]
    output: str
    dynamic: tuple[dict[int, Any] | None, ...]

    def digest(self) -> str:
        """Of everything that the file depends on."""
        shapes = {name: list(tensor.shape) for name, tensor in self.inputs.items()}
        weights = digest_tensors(self.module.state_dict())
        return digest_json(
            [__version__, torch.__version__, OPSET, GRAPHS, repr(self.module), shapes, weights]
        )


def _cached(folder: Path, name: str, graph: _Graph) -> OnnxFile:
    path = folder / f"{name}-{graph.digest()[:16]}.onnx"
    if not path.exists():
        with beside(path) as work:
            _export(work / path.name, graph)
            (work / path.name).replace(path)
    raw = path.read_bytes()
    return OnnxFile(path=path, bytes=len(raw), sha256=hashlib.sha256(raw).hexdigest())


def _export(path: Path, graph: _Graph) -> None:
    try:
        import_module("onnxscript")
    except ModuleNotFoundError as error:
        raise InputError('decoders as ONNX need the exporter: pip install "dekag[serve]"') from error
    # it warns of packages that it would know as well
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    # tracing changes a module for a while: a copy leaves the one that others use alone
    module = copy.deepcopy(graph.module).cpu().eval().float()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's about itself
        torch.onnx.export(
            module,
            tuple(graph.inputs.values()),
            path,
            input_names=list(graph.inputs),
            output_names=[graph.output],
            opset_version=OPSET,
            dynamic_shapes=graph.dynamic,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def _condition(row: Float[Tensor, "batch fields"]) -> Condition:
    """A condition of numbers that are not known yet, hence not checked."""
    condition = object.__new__(Condition)
    for place, field in enumerate(fields(Condition)):
        column = row[:, place]
        object.__setattr__(condition, field.name, column > 0.5 if field.name == "rayleigh" else column)
    return condition


def _equalise(
    symbols: Pairs, gain: Pairs, noise_power: Float[Tensor, "batch 1"]
) -> tuple[Pairs, Float[Tensor, "batch uses"]]:
    """`channel.erase_invalid` and `channel.mmse_equalise`: equalised symbols and their reliability."""
    known = noise_power.abs() <= LARGEST
    noise_power = torch.where(known, noise_power, 1.0)
    power, energy = symbols.square().sum(2), gain.square().sum(2)
    level = energy + noise_power
    # a comparison with what is no number is false
    valid = known & (level <= LARGEST) & (power <= (MOST_POWER * level).clamp(max=LARGEST))
    symbols, gain = (torch.where(valid[..., None], pairs, 0.0) for pairs in (symbols, gain))
    energy = torch.where(valid, energy, 0.0)
    (real, imaginary), (h_real, h_imaginary) = symbols.unbind(2), gain.unbind(2)
    turned = [h_real * real + h_imaginary * imaginary, h_real * imaginary - h_imaginary * real]
    level = energy + noise_power
    return torch.stack(turned, dim=2) / level[..., None], energy / level
