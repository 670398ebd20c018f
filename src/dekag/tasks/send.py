"""The first half of a delivery, for a radio: from prompts to a recording of what the edge sends."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dekag import link
from dekag.channel import ChannelSettings
from dekag.codec.papr import OFDM, SINGLE_CARRIER, Waveform, clip_waveform, papr_report
from dekag.tasks.papr import papr_json
from dekag.training.run import OnStage
from dekag.types import Codec, Condition, InputError
from dekag.wire.files import staged, write_json
from dekag.wire.png import write_images
from dekag.wire.sigmf import Recording, recording_files, require_free, write_recording
from dekag.world import World


def waveform_of(ofdm: bool, subcarriers: int | None) -> Waveform:
    """The waveform that a user asks for."""
    if subcarriers is not None and not ofdm:
        raise InputError("subcarriers are of the OFDM waveform; ask for OFDM as well")
    if not ofdm:
        return SINGLE_CARRIER
    return OFDM if subcarriers is None else replace(OFDM, subcarriers=subcarriers)


@dataclass(frozen=True, kw_only=True)
class SendTask:
    """Prompts to draw with seeds counted from `seed`, and how what is sent is recorded.

    channel: what the receiver is told to reckon with. clip_db: peaks over the mean power; None leaves them.
    sample_rate_hz: for the metadata. drawn: folder for the pictures as they were drawn.
    """

    prompts: Sequence[str]
    condition: Condition
    channel: ChannelSettings
    align: bool = True
    seed: int = 0
    waveform: Waveform = SINGLE_CARRIER
    clip_db: float | None = None
    sample_rate_hz: float | None = None
    drawn: Path | None = None


def send(world: World, task: SendTask, out: Path, *, on_stage: OnStage) -> dict[str, Any]:
    """Draw prompts at the edge and record what it sends; returns the recording's numbers.

    With `drawn`, the pictures go to that folder, by the names that `receive` gives them.
    """
    require_free(out)
    on_stage("load")
    system, prompts = world.system(align=task.align), task.prompts
    whole = task.condition.expand(len(prompts))
    on_stage("draw and encode")
    seeds = [task.seed + number for number in range(len(prompts))]
    sent = link.send(system.link, prompts, whole, seeds=seeds)
    link.warn_outside(system.link, whole)  # of what can be sent at all
    symbols = sent.symbols
    if task.clip_db is not None:
        symbols = clip_waveform(symbols, whole.payload, task.waveform, ratio_db=task.clip_db)
    recording = Recording(
        symbols=symbols,
        condition=whole,
        seed=task.seed,
        sample_rate_hz=task.sample_rate_hz,
        waveform=task.waveform,
        clip_db=task.clip_db,
        world=world.name,
        bundles=dict(system.link.bundles),
        channel=task.channel,
    )
    on_stage("write")
    with nullcontext() if task.drawn is None else staged(task.drawn) as folder:
        if folder is not None:
            names = image_names(len(prompts))
            write_images(folder, names, link.picture(system.link, sent.latent))
            images = [{"file": name, "prompt": text} for name, text in zip(names, prompts, strict=True)]
            write_json(folder / "index.json", {"images": images})
        write_recording(out, recording)
    return {
        "files": [str(file) for file in recording_files(out)],
        "world": world.name,
        **_sent_json(recording, system.link.codec),
    }


def image_names(count: int) -> list[str]:
    """File names of so many pictures, as senders and receivers number them."""
    return [f"{number:04d}.png" for number in range(count)]


def channel_json(channel: ChannelSettings | None) -> dict[str, Any]:
    """A channel as JSON values; None is the block fading of the condition."""
    return {"name": "rayleigh or awgn as the condition says"} if channel is None else channel.given()


def _sent_json(recording: Recording, codec: Codec) -> dict[str, Any]:
    condition = recording.condition
    payload = condition.payload
    return {
        "images": len(condition),
        "samples": int(recording.waveform.samples(payload).sum()),
        **link.uses_of(codec, condition),
        "waveform": asdict(recording.waveform),
        "clip_db": recording.clip_db,
        "bundles": recording.bundles,
        "channel": channel_json(recording.channel),
        "papr": papr_json(papr_report(recording.symbols, payload, recording.waveform)),
    }
