"""What computes denoiser and image decoder of a pipeline: torch, or ONNX Runtime, which is faster on a CPU.

The pipeline, its sampler and its seeds stay as they are: in a copy of it two components are calls of ONNX Runtime.
The denoiser's graph is that of the call that the pipeline itself makes, so that every family has one.
"""

import copy
import json
import os
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import platformdirs
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from typing_extensions import override

from dekag.choices import engine_parts, require_engine
from dekag.engine.graphs import Graph, Varying, exported
from dekag.generation.diffusers import DiffusersGenerator
from dekag.types import InputError

GRAPHS = 1
"""Counted up when the modules below change, so that no older file is taken for theirs."""
MOST_ROWS = 1024
"""Rows of a batch; a guided picture has two."""


def cache_folder() -> Path:
    """What can be made again: DEKAG_CACHE, or the user's cache."""
    return Path(os.environ.get("DEKAG_CACHE") or platformdirs.user_cache_path("dekag"))


@dataclass(frozen=True, kw_only=True)
class EngineChoice:
    """An engine as a user names it: auto, torch, onnxruntime or onnxruntime:PROVIDER; and the folder of exports.

    auto: ONNX Runtime on a CPU where the exports are there already, else torch. threads: of ONNX Runtime, those of
    torch if None. Raises InputError for an unknown engine.
    """

    name: str = "auto"
    folder: Path = field(default_factory=lambda: cache_folder() / "onnx")
    threads: int | None = None

    def __post_init__(self) -> None:
        engine_parts(self.name)


TORCH = EngineChoice(name="torch")


def with_engine(generator: DiffusersGenerator, choice: EngineChoice) -> DiffusersGenerator:
    """A generator that draws what the given one does, by another engine; an update has to be merged before.

    What was not exported before is exported, which takes seconds and an exporter, unless the choice is `auto`.
    Raises InputError if the engine is not installed or the pipeline cannot leave torch.
    """
    graphs = engine_graphs(generator, choice)
    if not graphs:
        return generator
    _, provider = engine_parts(choice.name)
    denoiser, decoder = (_Session(file, provider, choice.threads) for file in exported(choice.folder, graphs))
    call = graphs[0].module
    assert isinstance(call, _Call)
    pipeline = copy.copy(generator.pipeline)
    setattr(pipeline, generator.family.denoiser, _Denoiser(call, denoiser))
    pipeline.vae = _Autoencoder(pipeline.vae, decoder)
    return replace(generator, pipeline=pipeline, engine=f"onnxruntime:{provider}")


def engine_graphs(generator: DiffusersGenerator, choice: EngineChoice) -> list[Graph]:
    """What has to be exported for an engine: denoiser and decoder, or nothing if torch draws."""
    engine, _ = engine_parts(choice.name)
    if engine == "torch" or (engine == "auto" and not _may_be_there(generator, choice.folder)):
        return []
    require_engine(choice.name)
    if generator.adapters:
        raise InputError("merge the update before its generator leaves torch: apply_generation(merge=True)")
    graphs = [_denoiser_graph(_call(generator)), _decoder_graph(generator)]
    if engine == "auto" and not all((choice.folder / graph.file).exists() for graph in graphs):
        return []
    return graphs


def _may_be_there(generator: DiffusersGenerator, folder: Path) -> bool:
    """Whether any export is; a look at a folder before weights are digested."""
    on_cpu = generator.denoiser.device.type == "cpu"
    return on_cpu and find_spec("onnxruntime") is not None and any(folder.glob("denoiser-*.onnx"))


class _Call(nn.Module):
    """A module's call in which all but some tensors is fixed: tensors -> tensor."""

    def __init__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.module = module
        self.example, self.fixed, self.tree = _flat(args, kwargs)

    def forward(self, *tensors: Tensor) -> Tensor:
        """The module's first output."""
        given = iter(tensors)
        leaves = [next(given) if leaf is ... else leaf for leaf in self.fixed]
        args, kwargs = pytree.tree_unflatten(leaves, self.tree)
        first: Tensor = self.module(*args, **kwargs)[0]
        return first

    def tensors(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """Those of a call. Raises InputError if anything else is not as in the call that is fixed."""
        tensors, fixed, tree = _flat(args, kwargs)
        if (fixed, tree) != (self.fixed, self.tree):
            raise InputError("the pipeline calls its denoiser in more than one way: choose --engine torch")
        return tensors


def _flat(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Tensor], list[Any], pytree.TreeSpec]:
    """Tensors of a call, all else with `...` in their places, and how it is nested."""
    leaves, tree = pytree.tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    return tensors, [... if isinstance(leaf, Tensor) else leaf for leaf in leaves], tree


class _Decoding(nn.Module):
    """An autoencoder's decoder: what it takes -> pixels in [-1, 1]."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        """As `vae.decode`."""
        pixels: Tensor = self.vae.decode(latents)[0]
        return pixels


class _FirstCallError(Exception):
    """Ends a pipeline at the first call of its denoiser."""


def _call(generator: DiffusersGenerator) -> _Call:
    """The call that a pipeline makes of its denoiser, for two pictures if it draws as many at a time."""
    found: list[_Call] = []

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(_Call(module, args, kwargs))
        raise _FirstCallError

    hook = generator.denoiser.register_forward_pre_hook(stop, with_kwargs=True)
    pictures = min(2, generator.at_once)
    try:
        generator(["a"] * pictures, seeds=[0] * pictures)
    except _FirstCallError:
        return found[0]
    finally:
        hook.remove()
    raise InputError(f"{type(generator.pipeline).__name__} never calls its {generator.family.denoiser}")


def _denoiser_graph(call: _Call) -> Graph:
    """For any number of rows, if the call has more than one."""
    rows = len(call.example[0])
    named = {f"tensor{place}": tensor for place, tensor in enumerate(call.example)}
    batched = tuple(
        name for name, tensor in named.items() if rows > 1 and tensor.ndim and len(tensor) == rows
    )
    config = dict(getattr(call.module, "config", {}))
    return Graph(
        name="denoiser",
        version=GRAPHS,
        module=call,
        # of two rows, whether it is guided or not
        inputs={name: tensor[:2] if name in batched else tensor for name, tensor in named.items()},
        output="predicted",
        settings={"config": json.loads(json.dumps(config, default=repr)), "fixed": repr(call.fixed)},
        varying=Varying(name="rows", inputs=batched, dimension=0, max_=MOST_ROWS) if batched else None,
    )


def _decoder_graph(generator: DiffusersGenerator) -> Graph:
    """For any number of latents."""
    decoding = _Decoding(generator.pipeline.vae)
    latents = generator.family.unscaled(decoding.vae, torch.zeros(2, *generator.latent_shape)).to(
        decoding.vae.dtype
    )
    return Graph(
        name="decoder",
        version=GRAPHS,
        module=decoding,
        inputs={"latents": latents},
        output="pixels",
        settings={"config": json.loads(json.dumps(dict(decoding.vae.config), default=repr))},
        varying=Varying(name="rows", inputs=("latents",), dimension=0, max_=MOST_ROWS),
    )


class _Session:
    """A graph in ONNX Runtime."""

    def __init__(self, file: Path, provider: str, threads: int | None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        # threads that wait in a loop take the processor from all others
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(file, options, providers=[provider])
        self._inputs = [each.name for each in self._session.get_inputs()]

    def __call__(self, tensors: list[Tensor]) -> Tensor:
        """The output, with device and type of the first tensor."""
        arrays = [
            (tensor.float() if tensor.is_floating_point() else tensor).detach().cpu().numpy()
            for tensor in tensors
        ]
        (found,) = self._session.run(None, dict(zip(self._inputs, arrays, strict=True)))
        return torch.from_numpy(found).to(tensors[0])


class _Output(tuple[Tensor]):
    """A component's output, as a tuple and by its name."""

    @property
    def sample(self) -> Tensor:
        """The only tensor."""
        return self[0]


class _InPlaceOf(nn.Module):
    """A component that is called elsewhere; all else is that of the original."""

    def __init__(self, original: nn.Module, session: _Session) -> None:
        super().__init__()
        self.original = original
        self.session = session

    @override
    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("original"), name)


class _Denoiser(_InPlaceOf):
    def __init__(self, call: _Call, session: _Session) -> None:
        super().__init__(call.module, session)
        self.tensors = call.tensors

    def forward(self, *args: Any, **kwargs: Any) -> _Output:
        """As the original, in the one way in which the pipeline calls it."""
        return _Output((self.session(self.tensors(args, kwargs)),))


class _Autoencoder(_InPlaceOf):
    def decode(self, latents: Tensor, **_: Any) -> _Output:
        """As the original."""
        return _Output((self.session([latents]),))
