"""Every kind of module that can be gated: merged equals gated, image by image, and a new update is none."""

import pytest
import torch
from torch import nn

from dekag.alignment.transmission.gated import Ranks, gateable, gated
from dekag.types import InputError

RANKS = Ranks(weights=3, norms=2, gains=0, biases=True)
MODULES = {
    "linear of a vector": (nn.Linear(8, 5), (8,)),
    "linear of cells": (nn.Linear(8, 5), (6, 8)),
    "linear of a grid, no bias": (nn.Linear(8, 5, bias=False), (3, 2, 8)),
    "convolution": (nn.Conv2d(8, 6, 3, padding=1), (8, 5, 4)),
    "strided, no bias": (nn.Conv2d(8, 6, (3, 5), stride=2, padding=(1, 2), bias=False), (8, 8, 8)),
    "dilated and reflected": (nn.Conv2d(8, 6, 3, dilation=2, padding=2, padding_mode="reflect"), (8, 6, 6)),
    "same size": (nn.Conv2d(8, 6, 5, padding="same"), (8, 5, 5)),
    "groups": (nn.Conv2d(8, 6, 3, groups=2), (8, 5, 5)),
    "depthwise": (nn.Conv2d(8, 16, 3, padding=1, groups=8), (8, 5, 5)),
    "transposed": (nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1), (8, 3, 3)),
    "transposed, groups": (
        nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1, dilation=2, groups=2, bias=False),
        (8, 3, 3),
    ),
    "layer norm of cells": (nn.LayerNorm(8), (6, 8)),
    "layer norm, no bias": (nn.LayerNorm(8, bias=False), (8,)),
    "group norm": (nn.GroupNorm(4, 8), (8, 3, 3)),
}


@torch.no_grad()
@pytest.mark.parametrize("name", MODULES)
def test_merged_equals_gated_for_each_image(name: str) -> None:
    """In fp64: two images of a batch, each with an opening of its own, against two merged modules."""
    base, shape = MODULES[name]
    torch.manual_seed(0)
    x = torch.randn(2, *shape, dtype=torch.float64)
    module = gated(base, RANKS)
    assert module is not None
    module.double()
    rank = module.lora_B.in_features
    module.gate_values = torch.rand(2, rank, dtype=torch.float64)
    torch.testing.assert_close(module(x), module.base(x))
    for parameter in module.parameters():
        parameter.normal_()
    both = module(x)
    assert not torch.allclose(both, module.base(x))
    for row, opening in enumerate(module.gate_values):
        torch.testing.assert_close(module.merged(opening)(x[row : row + 1]), both[row : row + 1])
    module.gate_values = torch.zeros(2, rank, dtype=torch.float64)
    torch.testing.assert_close(module(x), module.base(x))


def test_kinds_are_exact() -> None:
    """The output layer of torch's attention derives from nn.Linear and is read, not called."""
    attention = nn.MultiheadAttention(8, 2)
    assert gateable(nn.Linear(8, 8))
    for module in (
        attention.out_proj,
        nn.LayerNorm((2, 8)),
        nn.GroupNorm(2, 8, affine=False),
        nn.BatchNorm2d(8),
    ):
        assert not gateable(module)


def test_rows_that_are_no_images_are_refused() -> None:
    module = gated(nn.Linear(8, 5), RANKS)
    assert module is not None
    module.gate_values = torch.ones(2, 3)
    with pytest.raises(
        InputError, match="was given 12 rows of 2 images; the first dimension must be the image"
    ):
        module(torch.zeros(12, 8))
