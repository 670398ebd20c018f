"""The user's two decoders as ONNX, for a page or a device without torch.

```
codec   symbols, gain, noise_power, condition -> latent
image   latent -> image
```
ONNX has no complex numbers: symbols and gains are pairs of real and imaginary part, and a codec leaves with the
decoder that it has for such pairs (`codec.PairDecoder`). Symbols that are NaN or infinite count as not received,
as in `channel.erase_invalid`, and CALA's gates run inside the graph.
"""

import copy
import hashlib
import logging
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dekag.alignment.transmission.adapted import AdaptedCodec
from dekag.bundle.digest import digest_json, digest_tensors
from dekag.channel.erasure import MOST_POWER
from dekag.codec import AdaptableCodec, PairDecoder, Pairs, TrainableCodec
from dekag.generation.diffusers import DiffusersGenerator
from dekag.link import Link
from dekag.types import Codec, Condition, Image, InputError, Latent
from dekag.version import __version__
from dekag.wire.files import beside, put_in_place

OPSET = 18
GRAPHS = 4
"""Counted up when the modules below change, so that no older file is taken for theirs."""
LARGEST = 3e38
"""What is above it counts as infinite in float32."""


class CodecDecoder(nn.Module):
    """A codec's decoder in real numbers, from unequalised symbols; every symbol is one of the payload."""

    def __init__(self, codec: PairDecoder) -> None:
        super().__init__()
        self.codec = codec

    def forward(
        self,
        symbols: Pairs,
        gain: Pairs,
        noise_power: Float[Tensor, " batch"],
        condition: Float[Tensor, "batch fields"],
    ) -> Latent:
        """Latents of received symbols; `condition` holds the fields of `Condition` in their order."""
        equalised, reliability = _equalise(symbols, gain, noise_power[:, None])
        return self.codec.decode_pairs(equalised, reliability, _condition(condition))


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


@dataclass(frozen=True, kw_only=True)
class Graph:
    """What the exporter needs: a module, one example of each input by name, and the dimensions that vary."""

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    output: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """JSON values that the module depends on beside its weights and layers."""
    long: tuple[str, ...] = ()
    """Inputs of which the second dimension varies, from 1 to `longest`."""
    longest: int = 1

    @property
    def file(self) -> str:
        """Name of the file, which says all that it depends on."""
        shapes = {name: list(tensor.shape) for name, tensor in self.inputs.items()}
        made_of = [
            __version__,
            torch.__version__,
            OPSET,
            GRAPHS,
            repr(self.module),
            shapes,
            dict(self.settings),
        ]
        return f"{self.name}-{digest_json([*made_of, digest_tensors(self.module.state_dict())])[:16]}.onnx"


def export_decoders(folder: Path, link: Link) -> Decoders:
    """The decoders of a link's user, in `folder` under names that say what they were made of.

    Made in seconds if they are not there, found in milliseconds if they are.
    Raises InputError if the codec has no decoder in real numbers, the generator is no pipeline of diffusers, or the
    exporter is missing.
    """
    if not isinstance(link.generator, DiffusersGenerator):
        raise InputError("only the image decoder of a pipeline of diffusers leaves as ONNX")
    graphs = [codec_graph(link.codec), image_graph(link.generator, _sizes(link.codec).latent_shape)]
    if missing := [graph for graph in graphs if not (folder / graph.file).exists()]:
        with beside(folder / "any") as work:
            _export_apart(work, missing)
            for graph in missing:
                put_in_place(work / graph.file, folder / graph.file)
    made = [_described(folder / graph.file) for graph in graphs]
    return Decoders(codec=made[0], image=made[1])


def codec_graph(codec: Codec) -> Graph:
    """The decoder of a codec, for one image of any payload.

    Raises InputError if the codec has no decoder in real numbers.
    """
    sizes, plain = _sizes(codec), codec.codec if isinstance(codec, AdaptedCodec) else codec
    if not (
        isinstance(plain, PairDecoder) and isinstance(codec, PairDecoder) and isinstance(codec, nn.Module)
    ):
        raise InputError(
            f"{type(plain).__name__} has no decoder in real numbers (decode_pairs) to leave as ONNX"
        )
    uses = min(8, sizes.max_uses)
    nominal = Condition(uses=uses, snr_db=10.0)
    return Graph(
        name="codec",
        module=CodecDecoder(codec),
        # a tensor each: the exporter takes two inputs that are one tensor for one input
        inputs={
            "symbols": torch.zeros(1, uses, 2),
            "gain": torch.zeros(1, uses, 2),
            "noise_power": torch.ones(1),
            "condition": torch.stack([getattr(nominal, f.name).float() for f in fields(nominal)], dim=1),
        },
        output="latent",
        settings=plain.settings() if isinstance(plain, AdaptableCodec) else {},
        long=("symbols", "gain"),
        longest=sizes.max_uses,
    )


def image_graph(generator: DiffusersGenerator, latent_shape: tuple[int, int, int]) -> Graph:
    """The image decoder of a generator, for one latent of channels, rows and columns."""
    latent = torch.zeros(1, *latent_shape)
    return Graph(name="image", module=ImageDecoder(generator), inputs={"latent": latent}, output="image")


def export_graph(path: Path, graph: Graph) -> None:
    """Write one file. While it traces, no other thread may call a module: torch replaces the call itself."""
    varies = {1: torch.export.Dim("uses", min=1, max=graph.longest)} if graph.long else None
    # it warns of packages that it would know as well
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's about itself
        torch.onnx.export(
            copy.deepcopy(graph.module).cpu().eval().float(),
            tuple(graph.inputs.values()),
            path,
            input_names=list(graph.inputs),
            output_names=[graph.output],
            opset_version=OPSET,
            dynamic_shapes=tuple(varies if name in graph.long else None for name in graph.inputs),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def _export_apart(folder: Path, graphs: list[Graph]) -> None:
    """Write files in a process of its own, as this one may be drawing meanwhile."""
    kinds = [type(module) for graph in graphs for module in graph.module.modules()]
    if inside := [
        kind.__name__ for kind in kinds if kind.__module__ == "__main__" or "<" in kind.__qualname__
    ]:
        raise InputError(f"{inside[0]} must be defined in a module that can be imported to leave as ONNX")
    if find_spec("onnxscript") is None:
        raise InputError('decoders as ONNX need the exporter: pip install "dekag[serve]"')
    done = subprocess.run(
        [sys.executable, "-m", __name__, folder],
        input=pickle.dumps(graphs),
        capture_output=True,
        # where this process finds classes of codecs of its own, that one does too
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise RuntimeError(f"decoders could not be made: {lines[-1] if lines else done.returncode}")


def _sizes(codec: Codec) -> TrainableCodec:
    if not isinstance(codec, TrainableCodec):
        raise InputError(
            f"{type(codec).__name__} does not tell its latent_shape and max_uses, which ONNX needs"
        )
    return codec


def _described(path: Path) -> OnnxFile:
    raw = path.read_bytes()
    return OnnxFile(path=path, bytes=len(raw), sha256=hashlib.sha256(raw).hexdigest())


def _condition(row: Float[Tensor, "batch fields"]) -> Condition:
    """A condition of numbers that are not known yet, hence not checked."""
    condition = object.__new__(Condition)
    for place, entry in enumerate(fields(Condition)):
        column = row[:, place]
        object.__setattr__(condition, entry.name, column > 0.5 if entry.name == "rayleigh" else column)
    return condition


def _equalise(
    symbols: Pairs, gain: Pairs, noise_power: Float[Tensor, "batch 1"]
) -> tuple[Pairs, Float[Tensor, "batch uses"]]:
    """`channel.erase_invalid` and `channel.mmse_equalise`: equalised symbols and their reliability."""
    known = noise_power.abs() <= LARGEST
    noise_power = torch.where(known, noise_power, 1.0)
    power, energy = symbols.square().sum(2), gain.square().sum(2)
    level = energy + noise_power
    # a comparison with NaN is false
    valid = known & (level <= LARGEST) & (power <= (MOST_POWER * level).clamp(max=LARGEST))
    symbols, gain = (torch.where(valid[..., None], pairs, 0.0) for pairs in (symbols, gain))
    energy = torch.where(valid, energy, 0.0)
    (real, imaginary), (h_real, h_imaginary) = symbols.unbind(2), gain.unbind(2)
    turned = [h_real * real + h_imaginary * imaginary, h_real * imaginary - h_imaginary * real]
    level = energy + noise_power
    return torch.stack(turned, dim=2) / level[..., None], energy / level


def main() -> None:
    """Write the graphs that another process of ours put on standard input to a folder."""
    for graph in pickle.loads(sys.stdin.buffer.read()):
        export_graph(Path(sys.argv[1]) / graph.file, graph)


if __name__ == "__main__":
    main()
