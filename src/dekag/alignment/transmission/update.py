"""The tensors of a codec's update apart from the codec: what trains and what travels."""

import torch
from torch import Tensor, nn

from dekag.types import InputError


def update_tensors(adapted: nn.Module) -> dict[str, Tensor]:
    """What requires a gradient, by name."""
    return {name: p.detach() for name, p in adapted.named_parameters() if p.requires_grad}


def update_size(adapted: nn.Module) -> int:
    """How many numbers an update has."""
    return sum(tensor.numel() for tensor in update_tensors(adapted).values())


@torch.no_grad()
def load_update(adapted: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Take the tensors of an update; InputError if names or shapes are not those of this codec."""
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    if trained.keys() != tensors.keys():
        odd = sorted(trained.keys() ^ tensors.keys())[0]
        raise InputError(f"the update does not fit the codec: {odd} is in one and not in the other")
    for name, parameter in trained.items():
        if parameter.shape != tensors[name].shape:
            shapes = f"{list(tensors[name].shape)}, the codec needs {list(parameter.shape)}"
            raise InputError(f"the update does not fit the codec: {name} is {shapes}")
        parameter.copy_(tensors[name])
