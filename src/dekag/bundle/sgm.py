"""Names of a U-Net's layers in Stability AI's own code (SGM), from those in diffusers.

Checkpoints in one file have them, and kohya's trainer uses them for the LoRA of SDXL.
"""

import re
from collections.abc import Iterable, Set

_ENDS = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_BLOCK = re.compile(
    r"(?P<side>down|mid|up)_blocks?\.(?:(?P<block>\d+)\.)?(?P<kind>resnets|attentions|downsamplers|upsamplers)"
    r"\.(?P<place>\d+)\.(?P<rest>.+)"
)
_SIDES = {"down": "input_blocks", "up": "output_blocks"}


def sgm_path(path: str, *, layers: int = 2, plain: Set[int] = frozenset()) -> str | None:
    """Path of a U-Net's layer in SGM, or None if it has none there.

    layers: resnets of a down block, two in every Stable Diffusion. plain: numbers of the up blocks without attention,
    where the upsampler follows the resnet at once; none of those of SDXL has an upsampler.
    """
    if path in _ENDS:
        return _ENDS[path]
    match = _BLOCK.fullmatch(path)
    if match is None:
        return None
    block, place = int(match["block"] or 0), int(match["place"])
    kind, side = match["kind"], match["side"]
    each = layers + 1
    if kind == "downsamplers":
        return f"input_blocks.{(block + 1) * each}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{block * each + layers}.{1 if block in plain else 2}.conv"
    attends = kind == "attentions"
    rest = match["rest"] if attends else _RESNET.get(match["rest"], match["rest"])
    if side == "mid":
        return f"middle_block.{1 if attends else 2 * place}.{rest}"
    outer = block * each + place + (1 if side == "down" else 0)
    return f"{_SIDES[side]}.{outer}.{int(attends)}.{rest}"


def plain_blocks(paths: Iterable[str]) -> frozenset[int]:
    """Numbers of a U-Net's up blocks that have no attention, given the paths of all its layers."""
    blocks: dict[int, bool] = {}
    for path in paths:
        if match := re.match(r"up_blocks\.(\d+)\.(attentions)?", path):
            number = int(match[1])
            blocks[number] = blocks.get(number, False) or match[2] is not None
    return frozenset(number for number, attends in blocks.items() if not attends)
