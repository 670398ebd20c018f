"""Modules of torch as ONNX files, in a folder that keeps them under names that say what they were made of."""

import copy
import hashlib
import inspect
import logging
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dekag.bundle.canonical import digest_json
from dekag.types import InputError
from dekag.version import __version__
from dekag.wire.files import beside, put_in_place

OPSET = 18
LARGEST_FILE = 2**31 - 2**26
"""Bytes of weights beyond which they are beside the graph: a protobuf message has at most 2 GiB."""


@dataclass(frozen=True, kw_only=True)
class Varying:
    """A size that is not fixed: the dimension of some inputs, from `min_` to `max_`."""

    name: str
    inputs: tuple[str, ...]
    dimension: int
    min_: int = 1
    max_: int


@dataclass(frozen=True, kw_only=True)
class Graph:
    """What the exporter needs: a module, one example of each input by name, and what size varies.

    version: counted up when the module's code changes, so that no older file is taken for its own. settings: JSON
    values that the module depends on beside its weights and layers.
    """

    name: str
    version: int
    module: nn.Module
    inputs: dict[str, Tensor]
    output: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    varying: Varying | None = None

    @property
    def file(self) -> str:
        """Name of the file, which says all that it depends on."""
        shapes = {name: list(tensor.shape) for name, tensor in self.inputs.items()}
        made_of = [
            __version__,
            torch.__version__,
            OPSET,
            self.version,
            repr(self.module),
            shapes,
            dict(self.settings),
        ]
        return f"{self.name}-{digest_json([*made_of, _digest(self.module.state_dict())])[:16]}.onnx"


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Digest of named tensors to the last bit."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        held = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {held.dtype} {list(held.shape)}\n".encode())
        digest.update(held.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def exported(folder: Path, graphs: Sequence[Graph]) -> list[Path]:
    """The files of some graphs in a folder, made in seconds if they are not there.

    Raises InputError if the exporter is missing or cannot import a class of theirs.
    """
    if missing := [graph for graph in graphs if not (folder / graph.file).exists()]:
        with beside(folder / "any") as work:
            _export_apart(work, missing)
            for graph in missing:
                for file in (*work.glob(f"{graph.file}.*"), work / graph.file):  # the graph last
                    put_in_place(file, folder / file.name)
    return [folder / graph.file for graph in graphs]


def export_graph(path: Path, graph: Graph) -> None:
    """Write one file. While it traces, no other thread may call a module: torch replaces the call itself."""
    of = graph.varying
    size = None if of is None else {of.dimension: torch.export.Dim(of.name, min=of.min_, max=of.max_)}
    varies: tuple[Any, ...] = tuple(size if of and name in of.inputs else None for name in graph.inputs)
    parameters = inspect.signature(graph.module.forward).parameters.values()
    if any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters):
        varies = (varies,)
    large = sum(tensor.nbytes for tensor in graph.module.state_dict().values()) > LARGEST_FILE
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
            dynamic_shapes=varies,
            dynamo=True,
            external_data=large,
            verbose=False,
        )


def _export_apart(folder: Path, graphs: Sequence[Graph]) -> None:
    """Write files in a process of its own, as this one may be drawing meanwhile."""
    kinds = [type(module) for graph in graphs for module in graph.module.modules()]
    if inside := [
        kind.__name__ for kind in kinds if kind.__module__ == "__main__" or "<" in kind.__qualname__
    ]:
        raise InputError(f"{inside[0]} must be defined in a module that can be imported to leave as ONNX")
    if find_spec("onnxscript") is None:
        raise InputError('models as ONNX need the exporter: pip install "dekag[onnx]"')
    done = subprocess.run(
        [sys.executable, "-m", __name__, folder],
        input=pickle.dumps(list(graphs)),
        capture_output=True,
        # where this process finds classes of codecs of its own, that one does too
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise RuntimeError(f"no ONNX could be made: {lines[-1] if lines else done.returncode}")


def main() -> None:
    """Write the graphs that another process of ours put on standard input to a folder."""
    for graph in pickle.loads(sys.stdin.buffer.read()):
        export_graph(Path(sys.argv[1]) / graph.file, graph)


if __name__ == "__main__":
    main()
