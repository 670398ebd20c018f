"""Low-rank updates in 8 or 4 bits a number: whole numbers times one fp16 scale for each vector.

A rank vector is a row of `lora_A` or a column of `lora_B`, kernels laid flat; of any other matrix the vectors
are the slices along dim 0. Quantisation is symmetric, to -127 .. 127 or -7 .. 7. In 8 bits a vector has one
scale; in 4 bits each run of 64 of its numbers has one, searched for the least squared error.

NAME         int8, in the matrix's own shape; or uint8, two numbers in a byte along the first dimension inside
             a vector, the earlier one in the low half. A vector of odd length there ends in the unused number
             -8, so the shape can be read back.
NAME.scale   fp16 [vectors, scales of a vector], at least 0.

Tensors of fewer than two dimensions stay fp16.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from dekag.bundle.coded import GROUP, PAD, SCALE, Bits, check_coded, numbers, vector_dim
from dekag.bundle.container import plain_text
from dekag.types import InputError

_LIMIT = {8: 127, 4: 7}
_CLIPS = {8: (1.0,), 4: (1.0, 0.95, 0.9, 0.85, 0.8)}
"""Shares of the largest magnitude that may become the largest number; in 8 bits clipping gains nothing."""


def quantise(tensors: Mapping[str, Tensor], *, bits: Bits = 8) -> dict[str, Tensor]:
    """Whole numbers and scales of floating-point tensors, on their device.

    The relative Frobenius error of a Gaussian B A is about 1 % in 8 bits and 14 to 15 % in 4 bits. Scales below
    6e-8, the least of fp16, are rounded up to it. Raises InputError if `bits` is another number, a tensor is
    empty, not of floating point, not finite or too large, or bears the name of another one's scale.
    """
    if bits not in _LIMIT:
        raise InputError(f"a tensor is quantised to 8 or 4 bits, got {bits}")
    coded: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        values = tensor.detach().float()
        if not tensor.is_floating_point() or not tensor.numel() or not bool(values.isfinite().all()):
            raise InputError(f"'{plain_text(name)}' must hold finite floating-point numbers to be quantised")
        if tensor.dim() < 2:
            coded[name] = to_fp16(name, values)
        elif name + SCALE in tensors:
            raise InputError(f"'{plain_text(name + SCALE)}' must have another name: it is that of a scale")
        else:
            coded[name], coded[name + SCALE] = _encode(name, values, bits)
    return coded


def dequantise(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The float32 tensors that `quantise` coded, to within its rounding.

    Raises InputError as `check_quantised`.
    """
    check_quantised(tensors)
    scales = {name + SCALE for name, tensor in tensors.items() if _is_coded(tensor)}
    return {
        name: _decode(name, tensor, tensors[name + SCALE]) if _is_coded(tensor) else tensor.float()
        for name, tensor in tensors.items()
        if name not in scales
    }


def check_quantised(tensors: Mapping[str, Tensor]) -> None:
    """Raise InputError unless each matrix has its scale of the right shape and nothing is left over."""
    check_coded({name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()})


def to_fp16(name: str, tensor: Tensor) -> Tensor:
    """The tensor in float16; InputError if it holds finite numbers that are too large for that."""
    half = tensor.detach().half()
    if not torch.equal(half.isfinite(), tensor.isfinite()):
        raise InputError(f"'{plain_text(name)}' is too large for fp16, whose largest number is 65504")
    return half


def _is_coded(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.int8, torch.uint8)


def _vectors(name: str, matrix: Tensor) -> Shaped[Tensor, "vectors length"]:
    return matrix.movedim(vector_dim(name), 0).flatten(1)


def _matrix(name: str, vectors: Shaped[Tensor, "vectors length"], like: Tensor) -> Tensor:
    """The inverse of `_vectors`, in the shape of `like`."""
    shape = like.movedim(vector_dim(name), 0).shape
    return vectors.reshape(shape).movedim(0, vector_dim(name)).contiguous()


def _encode(name: str, matrix: Tensor, bits: Bits) -> tuple[Tensor, Tensor]:
    vectors = _vectors(name, matrix)
    limit, length = _LIMIT[bits], vectors.shape[1]
    size = length if bits == 8 else GROUP
    groups = F.pad(vectors, (0, -length % size)).unflatten(1, (-1, size))
    scale = _best_scale(name, groups, limit, _CLIPS[bits])
    numbers = _rounded(groups, scale, limit).flatten(1)[:, :length].to(torch.int8)
    coded = _matrix(name, numbers, matrix)
    return coded if bits == 8 else _pack(coded, 1 - vector_dim(name)), scale


def _best_scale(
    name: str, groups: Float[Tensor, "vectors groups size"], limit: int, clips: tuple[float, ...]
) -> Float[Tensor, "vectors groups"]:
    """The scale of each group whose rounding has the least squared error."""
    scales = torch.stack([_fp16_above(name, groups.abs().amax(-1) * clip / limit) for clip in clips])
    errors = [(groups - s.float()[..., None] * _rounded(groups, s, limit)).square().sum(-1) for s in scales]
    return scales.gather(0, torch.stack(errors).argmin(0, keepdim=True))[0]


def _rounded(
    groups: Float[Tensor, "vectors groups size"], scale: Float[Tensor, "vectors groups"], limit: int
) -> Float[Tensor, "vectors groups size"]:
    divisor = scale.float().where(scale > 0, 1.0)[..., None]
    return (groups / divisor).round().clamp(-limit, limit)


def _fp16_above(name: str, values: Tensor) -> Tensor:
    """The least fp16 numbers that are not below `values`, which are positive or zero."""
    half = values.half()
    following = (half.view(torch.int16) + 1).view(torch.float16)
    above = following.where(half < values, half)
    if not bool(above.isfinite().all()):
        raise InputError(
            f"'{plain_text(name)}' is too large for scales in fp16, whose largest number is 65504"
        )
    return above


def _decode(name: str, tensor: Tensor, scale: Tensor) -> Tensor:
    numbers = _numbers(name, tensor)
    vectors = _vectors(name, numbers)
    length = vectors.shape[1]
    size = length if tensor.dtype == torch.int8 else GROUP
    return _matrix(name, vectors * scale.float().repeat_interleave(size, dim=1)[:, :length], numbers)


def _numbers(name: str, tensor: Tensor) -> Tensor:
    """The whole numbers of a coded matrix in its own shape, int8."""
    return torch.from_numpy(numbers(name, tensor.cpu().numpy())).to(tensor.device)


def _pack(numbers: Tensor, dim: int) -> Tensor:
    if numbers.shape[dim] % 2:
        numbers = torch.cat((numbers, torch.full_like(numbers.narrow(dim, 0, 1), PAD)), dim)
    low, high = (numbers & 15).to(torch.uint8).unflatten(dim, (-1, 2)).unbind(dim + 1)
    packed: Tensor = low | high << 4
    return packed
