"""Bytes that depend on contents alone, and the digests that name files, models and configurations.

Every digest is a sha256 in 64 lower-case hexadecimal digits.
"""

import hashlib
import json
from collections.abc import Mapping

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from dekag.bundle.canonical import digest_json
from dekag.types import InputError


def canonical_safetensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file of these tensors; strided, shared and device tensors are copied to the CPU first.

    Raises InputError if safetensors cannot hold them.
    """
    held = {n: t.detach().cpu().clone(memory_format=torch.contiguous_format) for n, t in tensors.items()}
    try:
        raw = safetensors.torch.save(held, dict(metadata) or None)
    except (TypeError, ValueError, safetensors.SafetensorError) as err:
        raise InputError(f"safetensors cannot hold these tensors: {' '.join(str(err).split())}") from err
    # safetensors orders the metadata anew in each call
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + raw[8 + length :]


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Digest of named tensors, over name, dtype, shape and values, in whatever order they come.

    Floating-point tensors count as fp16, so that a model loaded from an fp16 file has the same digest whether
    it is held in fp16 or in fp32; two fp32 models that round to the same fp16 values share a digest.
    """
    return digest_json({name: _describe(tensor) for name, tensor in tensors.items()})


def _describe(tensor: Tensor) -> list[object]:
    held = tensor.detach().cpu()
    # cast on the CPU, so that the rounding does not depend on the device that holds the model
    canonical = held.half() if held.is_floating_point() else held
    raw = canonical.contiguous().reshape(-1).view(torch.uint8).numpy().data
    dtype = str(canonical.dtype).removeprefix("torch.")
    return [dtype, list(canonical.shape), hashlib.sha256(raw).hexdigest()]
