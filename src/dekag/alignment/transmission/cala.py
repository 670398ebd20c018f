"""CALA: condition-aware low-rank adaptation of a codec (T-KA).

`W(c) x = W x + B diag(g(c)) A x` for every linear layer and convolution of the codec. The rank channels of A
and B are shared out among K groups, and `g(c)` in [0, 1]^K is a small network of the condition's features. The
paper states a low-rank update with a soft gate driven by the condition; this form of it is ours, and so are the
gated biases, norms and gains of the symbols. For one condition the update merges into `W` and costs nothing.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import torch
from torch import Tensor, nn

from dekag.alignment.config import CalaConfig
from dekag.alignment.transmission.adapted import AdaptedCodec
from dekag.alignment.transmission.gated import KINDS, Gated, Ranks, gateable, gated
from dekag.alignment.transmission.gates import HardGate, OpenGate, SnrGroupGate, SoftGate
from dekag.bundle.manifest import Setting
from dekag.codec import AdaptableCodec
from dekag.types import Condition, InputError

LOWEST_SNR_DB, HIGHEST_SNR_DB = -5.0, 20.0
"""What the groups of the `snr` gate divide evenly."""


def ranks_of(config: CalaConfig) -> Ranks:
    """The rank of each kind of module, as the configuration gives it."""
    return Ranks(
        weights=config.rank,
        norms=config.norm_rank,
        gains=config.gain_rank,
        biases=config.biases,
        content=config.gate == "content",
    )


class CalaCodec(AdaptedCodec):
    """A codec with its update; implements `codec.TrainableCodec`. The codec it is made from is left alone.

    Raises InputError if that is no AdaptableCodec, or has no module that can be gated.
    """

    def __init__(self, codec: AdaptableCodec, config: CalaConfig) -> None:
        super().__init__(codec)
        self.cala = config
        for name, module in _places(self.codec, config):
            self.codec.set_submodule(name, module)
        self.gate = _gate(config, [_rank(module) for module in self._gated()])

    @torch.no_grad()
    def merge(self, condition: Condition) -> AdaptableCodec:
        """The plain codec for one condition: W + B diag(g) A in every layer.

        Raises InputError if the condition is not that of one image.
        """
        if len(condition) != 1:
            raise InputError(f"an update merges for one condition, got {len(condition)}")
        merged = copy.deepcopy(self.codec)
        parts = self._gate_values(condition, next(self.parameters()).device)
        for (name, module), gate_values in zip(list(_named_gated(merged)), parts, strict=True):
            merged.set_submodule(name, module.merged(gate_values[0]))
        return merged

    @contextmanager
    def adapted(self, condition: Condition, device: torch.device) -> Iterator[None]:
        """Within, the codec inside is opened as each image's condition asks for."""
        modules = self._gated()
        for module, gate_values in zip(modules, self._gate_values(condition, device), strict=True):
            module.gate_values = gate_values
        try:
            yield
        finally:
            for module in modules:
                module.gate_values = None

    def size(self) -> dict[str, Setting]:
        """The fields of the config, with 0 and 1 for no and yes."""
        return {k: int(v) if isinstance(v, bool) else v for k, v in asdict(self.cala).items()}

    def _gate_values(self, condition: Condition, device: torch.device) -> list[Tensor]:
        ranks = [_rank(module) for module in self._gated()]
        return list(
            self.gate(condition.features(most_snr_db=self.cala.most_snr_db).to(device)).split(ranks, dim=1)
        )

    def _gated(self) -> list[Gated]:
        return [module for _, module in _named_gated(self.codec)]


def _places(codec: AdaptableCodec, config: CalaConfig) -> list[tuple[str, Gated]]:
    """The modules of a codec that may be gated, by name, each with an update that is none yet."""
    modules, name = dict(codec.named_modules()), type(codec).__name__
    gated_names = getattr(codec, "gated_modules", None)
    if config.where == "condition":
        gated_names = getattr(codec, "condition_modules", ())
        if not gated_names:
            raise InputError(f"{name} names no condition_modules, which an update could move alone")
    ranks = ranks_of(config)
    for wanted in gated_names or ():
        if wanted not in modules or not gateable(modules[wanted]):
            raise InputError(f"gated_modules of {name} has {wanted!r}, which is none of {KINDS}")
    allowed = {k: m for k, m in modules.items() if gateable(m) and (gated_names is None or k in gated_names)}
    if not allowed:
        raise InputError(f"{name} has no module that may be gated: none of {KINDS}")
    made = {key: gated(module, ranks) for key, module in allowed.items()}
    return [(key, place) for key, place in made.items() if place is not None]


def _named_gated(codec: AdaptableCodec) -> list[tuple[str, Gated]]:
    return [(name, module) for name, module in codec.named_modules() if isinstance(module, Gated)]


def _rank(module: Gated) -> int:
    return module.lora_B.in_features


def _gate(config: CalaConfig, ranks: list[int]) -> nn.Module:
    features = Condition(uses=1, snr_db=0.0).features().shape[1]
    if config.gate == "open":
        return OpenGate(ranks)
    if config.gate == "hard":
        return HardGate(features, ranks, width=config.gate_width, experts=config.experts)
    if config.gate == "snr":
        step = (HIGHEST_SNR_DB - LOWEST_SNR_DB) / config.experts
        return SnrGroupGate(ranks, [(LOWEST_SNR_DB + step * k) / 10 for k in range(1, config.experts)])
    return SoftGate(features, ranks, width=config.gate_width, group=config.group, shared=config.shared_gate)
