"""Names of parts, known before the modules that make them are imported: a wrong name is refused at once.

Each table grows by what a user's file adds to it. That file imports the table's module, so such names are known too.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

from dekag.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Parts by name. usual: those that ship. module, table: where a user's file adds its own, if it can."""

    noun: str
    usual: tuple[str, ...]
    module: str = ""
    table: str = ""

    @property
    def known(self) -> tuple[str, ...]:
        """The usual names, and those that were added."""
        loaded = sys.modules.get(self.module)
        return tuple(dict.fromkeys((*self.usual, *getattr(loaded, self.table, ()))))

    def require(self, *names: str, beside: Sequence[str] = ()) -> None:
        """Raise InputError, which lists the known names, for one that is neither known nor among those beside."""
        known = dict.fromkeys((*beside, *self.known))
        for name in names:
            if name not in known:
                raise InputError(f"unknown {self.noun} {name!r}; known are {', '.join(known)}")


GENERATION_METHODS = Choice(
    noun="method",
    module="dekag.alignment.generation.methods",
    table="METHODS",
    usual=("makd", "textual_inversion", "lora", "dreambooth", "lokr", "full"),
)
TRANSMISSION_METHODS = Choice(
    noun="method",
    module="dekag.alignment.transmission.methods",
    table="METHODS",
    usual=(
        "cala",
        "shared_lora",
        "hard_gate",
        "snr_groups",
        "snr_attention",
        "scaling",
        "appended",
        "content_gate",
        "full",
    ),
)
ADAPTERS = Choice(
    noun="adapter",
    module="dekag.alignment.generation.adapter_kinds",
    table="KINDS",
    usual=("lora", "lokr", "dora", "loha"),
)
CHANNELS = Choice(
    noun="channel",
    module="dekag.channel.named",
    table="CHANNELS",
    usual=("awgn", "rayleigh", *(f"{kind}-{letter}" for kind in ("tdl", "cdl") for letter in "abcde")),
)
CONSTELLATIONS = Choice(
    noun="constellation",
    module="dekag.codec.constellation",
    table="CONSTELLATIONS",
    usual=("analogue", "qpsk", "16qam", "64qam", "256qam", "1024qam"),
)
LAYOUTS = Choice(
    noun="layout",
    module="dekag.bundle.layouts",
    table="LAYOUTS",
    usual=("diffusers", "peft", "comfyui", "a1111"),
)
GRIDS = Choice(
    noun="grid", module="dekag.evaluation.grid", table="GRIDS", usual=("held-out", "full", "small")
)
GRID_CHANNELS = Choice(
    noun="channel",
    module="dekag.evaluation.grid",
    table="CHANNELS",
    usual=("awgn", *(f"rayleigh-{blocks}" for blocks in (1, 4, 8, "uses")), "correlated", "estimated"),
)
ENGINES = Choice(noun="engine", usual=("inline", "processes", "ray", "slurm"))
SENDING_METHODS = Choice(noun="method", usual=("no_ka", "cala", "digital", "jpeg", "webp", "avif"))
TRACKERS = Choice(
    noun="tracker",
    module="accelerate.tracking",
    table="LOGGER_TYPE_TO_CLASS",
    usual=(
        *("aim", "comet_ml", "mlflow", "tensorboard", "wandb", "clearml"),
        *("dvclive", "swanlab", "trackio"),
    ),
)

IMAGENET = "efficientnet-lite0"
NAMED_JUDGES = (IMAGENET,)
"""Judges that a package brings along, by name."""


def require_package(*modules: str, reason: str, extra: str) -> None:
    """Raise InputError, which says what to install, unless the modules of an extra are there; nothing is imported."""
    if any(sys.modules.get(name, ...) is None or find_spec(name) is None for name in modules):
        raise InputError(f'{reason}: pip install "dekag[{extra}]"')


DRAWING_ENGINES = Choice(noun="engine", usual=("auto", "torch", "onnxruntime"))
PROVIDERS = {
    "": "CPUExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "cuda": "CUDAExecutionProvider",
}
"""Short names of ONNX Runtime's execution providers."""


def engine_parts(name: str) -> tuple[str, str]:
    """An engine and its execution provider, of `engine` or `engine:provider`. Raises InputError if it is unknown."""
    engine, _, provider = name.partition(":")
    DRAWING_ENGINES.require(engine)
    if provider and engine != "onnxruntime":
        raise InputError(f"only onnxruntime has execution providers, got {name!r}")
    return engine, PROVIDERS.get(provider, provider)


def require_engine(name: str) -> None:
    """Raise InputError for a drawing engine that is unknown, or whose package or execution provider is not there."""
    engine, provider = engine_parts(name)
    if engine != "onnxruntime":
        return
    require_package("onnxruntime", reason=f"the engine {name} needs ONNX Runtime", extra="onnx")
    if provider != PROVIDERS[""]:
        known = import_module("onnxruntime").get_available_providers()
        if provider not in known:
            raise InputError(f"ONNX Runtime has no {provider} here; it has {', '.join(known)}")
