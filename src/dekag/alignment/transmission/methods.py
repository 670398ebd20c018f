"""What a user would pick instead of CALA: other updates of the same codec, made to be trained in the same way.

Each takes the codec and CALA's size, and returns a codec of which the update alone requires a gradient. Those
of low rank have at most the numbers of CALA's update.
"""

import copy
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

from dekag.alignment.config import CalaConfig
from dekag.alignment.transmission.adapted import AdaptedCodec
from dekag.alignment.transmission.attention import SnrAttentionCodec
from dekag.alignment.transmission.cala import CalaCodec
from dekag.alignment.transmission.train import TransmissionData, check_data, fit
from dekag.alignment.transmission.update import update_size
from dekag.codec import AdaptableCodec, check_codec, require_adaptable
from dekag.codec.check import check_transmission
from dekag.training.loop import Progress, TrainConfig
from dekag.training.state import StateFile, state_file
from dekag.types import InputError

TrainedCodec = AdaptedCodec | AdaptableCodec
"""A codec with its update, or after `full` the codec with other weights."""
Method = Callable[[AdaptableCodec, CalaConfig], TrainedCodec]


def cala(codec: AdaptableCodec, size: CalaConfig) -> CalaCodec:
    """The method itself."""
    return CalaCodec(codec, size)


def shared_lora(codec: AdaptableCodec, size: CalaConfig) -> CalaCodec:
    """One LoRA for all conditions; what CALA spends on gates and on several openings goes into its rank."""
    limit = update_size(CalaCodec(codec, size))
    whole = replace(size, gate="open", norm_rank=min(size.norm_rank, 1), gain_rank=min(size.gain_rank, 1))
    ranks = range(size.rank, 4 * size.rank + 1)
    sizes = [replace(whole, rank=rank, group=1) for rank in ranks]
    fitting = [one for one in sizes if update_size(CalaCodec(codec, one)) <= limit]
    return CalaCodec(codec, fitting[-1])


def hard_gate(codec: AdaptableCodec, size: CalaConfig) -> CalaCodec:
    """A gate that opens one expert, an equal part of the rank channels, and shuts the others."""
    return CalaCodec(codec, replace(size, gate="hard", group=1))


def snr_groups(codec: AdaptableCodec, size: CalaConfig) -> CalaCodec:
    """A part of the rank channels for each range of the SNR, after VGSA (Hu and Li 2025, version 1)."""
    return CalaCodec(codec, replace(size, gate="snr", group=1))


def snr_attention(codec: AdaptableCodec, size: CalaConfig) -> AdaptedCodec:
    """Attention to channels by condition and content, after ADJSCC, as wide as CALA's numbers allow."""
    return _attention(codec, size, content=True)


def scaling(codec: AdaptableCodec, size: CalaConfig) -> AdaptedCodec:
    """Scaling of channels by the condition and nothing else, after Hyper-AJSCC, as wide as CALA's numbers allow."""
    return _attention(codec, size, content=False)


def appended(codec: AdaptableCodec, size: CalaConfig) -> CalaCodec:
    """The condition appended to what the codec is told, as MambaJSCC has it: the layers that read it, and no others."""
    told = replace(size, where="condition", gate="open", group=1, norm_rank=0, gain_rank=0, biases=False)
    names = getattr(codec, "condition_modules", ())
    readers = [m for n, m in codec.named_modules() if n in names and isinstance(m, nn.Linear)]
    # of a rank that leaves nothing out
    return CalaCodec(codec, replace(told, rank=max((min(m.weight.shape) for m in readers), default=1)))


def content_gate(codec: AdaptableCodec, size: CalaConfig) -> CalaCodec:
    """CALA with a gate that sees the image as well, of as many ranks as CALA's numbers allow."""
    limit = update_size(CalaCodec(codec, size))
    sizes = [replace(size, gate="content", group=1, rank=rank) for rank in range(size.rank, 0, -1)]
    fitting = [one for one in sizes if update_size(CalaCodec(codec, one)) <= limit]
    return CalaCodec(codec, (fitting or sizes[-1:])[0])


def _attention(codec: AdaptableCodec, size: CalaConfig, *, content: bool) -> SnrAttentionCodec:
    limit = update_size(CalaCodec(codec, size))
    made = [SnrAttentionCodec(codec, hidden, content=content) for hidden in (1, 2)]
    first, second = map(update_size, made)
    hidden = 1 + (limit - first) // (second - first)
    if hidden < 1:
        raise InputError("the update is too small for SNR attention: take a larger rank")
    return SnrAttentionCodec(codec, hidden, content=content)


def full(codec: AdaptableCodec, size: CalaConfig) -> AdaptableCodec:
    """All weights of the codec."""
    return copy.deepcopy(codec).requires_grad_(True)


METHODS: dict[str, Method] = {
    "cala": cala,
    "shared_lora": shared_lora,
    "hard_gate": hard_gate,
    "snr_groups": snr_groups,
    "snr_attention": snr_attention,
    "scaling": scaling,
    "appended": appended,
    "content_gate": content_gate,
    "full": full,
}


def adapted_codec(name: str, codec: AdaptableCodec | nn.Module, size: CalaConfig) -> TrainedCodec:
    """The codec of a method before training.

    Raises InputError, which lists the known methods, for another name, and if the codec lacks what the method needs.
    """
    if name not in METHODS:
        raise InputError(f"unknown method {name!r}; known are {', '.join(METHODS)}")
    return METHODS[name](require_adaptable(codec), size)


def adapt(
    method: str,
    codec: AdaptableCodec | nn.Module,
    data: TransmissionData,
    size: CalaConfig,
    training: TrainConfig,
    *,
    checkpoint: Path | StateFile | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> TrainedCodec:
    """Train a method's update of a codec over a channel and a range of conditions; the codec is left as it was.

    With `checkpoint`, an interrupted run goes on where it was.
    Raises InputError, before the first step, for an unknown method, a codec that does not keep the contract of
    `codec.AdaptableCodec` or lacks what the method needs, or data that do not fit it.
    """
    check_data(check_codec(codec), data)
    with torch.random.fork_rng():
        torch.manual_seed(training.seed)
        adapted = adapted_codec(method, codec, size)
    check_transmission(adapted)
    assert isinstance(adapted, nn.Module)
    kept = state_file(checkpoint)
    if kept is not None:
        kept = kept.depending_on(method=method, base=codec, **asdict(size))
    fit(adapted, data, training, checkpoint=kept, on_step=on_step)
    return adapted
