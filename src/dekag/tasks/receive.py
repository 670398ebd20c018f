"""The second half of a delivery: from frames and recordings to the pictures that a user sees."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dekag import link
from dekag.channel import BlockFading, ChannelSettings, named_channel
from dekag.channel.fading import used
from dekag.codec import TrainableCodec
from dekag.tasks.arrived import Arrived, measure, require_arrived, warn_of_doubt, warn_of_fading
from dekag.tasks.send import channel_json, image_names
from dekag.training.run import OnStage
from dekag.types import ChannelState, Codec, Condition, FieldError, InputError, Received, Symbols
from dekag.units import snr_db_to_noise_power
from dekag.wire.files import staged, write_json
from dekag.wire.frame import MAX_FRAME_BYTES, SUFFIX, read_frame
from dekag.wire.png import write_images
from dekag.wire.sigmf import read_recording
from dekag.world import World, load_world, shipped_worlds

BATCH = 64
"""Images that are decoded at a time; a recording may hold any number."""


@dataclass(frozen=True, kw_only=True)
class ReceiveTask:
    """How files are decoded.

    bundles: updates in place of the world's. channel_seed: of the channel that the metadata name, which then lies
    between; without it samples are taken as they are, at unit gain and the SNR of the condition: what carrier, timing
    and gain recovery leave. received: samples come from a radio, so that the sender's checksum is not compared.
    batch: images that are decoded at a time.
    """

    bundles: Sequence[str | Path] = ()
    channel_seed: int | None = None
    received: bool = False
    batch: int = BATCH


@dataclass(frozen=True, kw_only=True)
class Incoming:
    """What lies in one file: symbols as a user has them, and what their sender said.

    arrived: what was measured of the samples of a recording; None of a frame, which says itself what was received.
    world: the sender's, None if it was not named. bundles: None if nothing was said of updates.
    channel, channel_seed: of the channel that was simulated, None if none was.
    """

    path: Path
    received: Received
    arrived: Arrived | None
    condition: Condition
    world: str | None
    bundles: dict[str, str] | None
    channel: dict[str, Any] | None
    channel_seed: int | None

    @property
    def system(self) -> tuple[str | None, bool]:
        """What the receiver that it needs depends on."""
        return self.world, self.bundles != {}


@dataclass(frozen=True, kw_only=True)
class Receiver:
    """A system that decodes, and the name of its world."""

    world: str
    link: link.Link


def receive(
    path: Path, out: Path, *, world: World | None, task: ReceiveTask, on_stage: OnStage
) -> dict[str, Any]:
    """Decode a recording to a folder of pictures; returns what index.json says.

    world: the sender's; if None, it has to be one that ships, by the name that the recording tells.
    Raises InputError, before anything is written, if an image was not received (`tasks.arrived`).
    """
    incoming = _from_recording(path, task)
    on_stage("load")
    receiver = _receiver(incoming, world, task.bundles)
    _check_fits(incoming, receiver.link)
    with staged(out) as folder:
        on_stage("decode")
        decoded = _decode(incoming, receiver, folder, 0, task.batch)
        index = {"recording": path.name, **decoded}
        write_json(folder / "index.json", index)
    return index


def receive_files(
    paths: list[Path], out: Path, *, world: World | None, task: ReceiveTask, on_stage: OnStage
) -> dict[str, Any]:
    """Decode frames and recordings to one folder of pictures, numbered throughout; returns what index.json says.

    world: as in `receive`, and so are recordings that were not received.
    """
    on_stage("read")
    found = [_incoming(path, task) for path in paths]
    on_stage("load")
    receivers: dict[tuple[str | None, bool], Receiver] = {}
    for incoming in found:
        if incoming.system not in receivers:
            receivers[incoming.system] = _receiver(incoming, world, task.bundles)
        _check_fits(incoming, receivers[incoming.system].link)
    with staged(out) as folder:
        on_stage("decode")
        number, files = 0, []
        for incoming in found:
            decoded = _decode(incoming, receivers[incoming.system], folder, number, task.batch)
            files.append({"file": incoming.path.name, **decoded})
            number += len(incoming.condition)
        index = {"files": files}
        write_json(folder / "index.json", index)
    return index


def _images_json(
    names: list[str], codec: Codec, condition: Condition, erased: torch.Tensor
) -> list[dict[str, Any]]:
    rows = zip(names, condition.uses.tolist(), condition.snr_db.tolist(), erased.tolist(), strict=True)
    return [
        {
            "file": name,
            "uses": uses,
            **link.uses_of(codec, condition[row : row + 1]),
            "snr_db": round(snr, 3),
            "erased_uses": lost,
        }
        for row, (name, uses, snr, lost) in enumerate(rows)
    ]


def _incoming(path: Path, task: ReceiveTask) -> Incoming:
    """What lies in a file of either kind."""
    return _from_frame(path, task.channel_seed) if path.suffix == SUFFIX else _from_recording(path, task)


def _from_recording(path: Path, task: ReceiveTask) -> Incoming:
    recording, channel_seed = read_recording(path, received=task.received), task.channel_seed
    return Incoming(
        path=path,
        arrived=measure(recording.symbols, recording.condition),
        received=_received(recording.symbols, recording.condition, recording.channel, channel_seed),
        condition=recording.condition,
        world=recording.world,
        bundles=recording.bundles,
        channel=None if channel_seed is None else channel_json(recording.channel),
        channel_seed=channel_seed,
    )


def _from_frame(path: Path, channel_seed: int | None) -> Incoming:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FRAME_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    try:
        frame = read_frame(raw)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if frame.gain is None or frame.noise_power is None:
        received = _received(frame.symbols, frame.condition, None, channel_seed)
    elif channel_seed is None:
        state = ChannelState(gain=frame.gain, noise_power=frame.noise_power)
        received = Received(symbols=frame.symbols, state=state)
    else:
        raise FieldError(
            f"{path} holds symbols as received, so no channel is simulated; leave out channel_seed",
            "channel_seed",
        )
    seed = frame.channel_seed if channel_seed is None else channel_seed
    return Incoming(
        path=path,
        received=received,
        arrived=None,
        condition=frame.condition,
        world=frame.world,
        bundles=frame.bundles,
        channel=None if seed is None else channel_json(None),
        channel_seed=seed,
    )


def _receiver(incoming: Incoming, world: World | None, bundles: Sequence[str | Path] = ()) -> Receiver:
    """The system that decodes; what says nothing of updates is taken to come from the system as it ships."""
    sender = (_named_world(incoming) if world is None else world).with_bundles(bundles)
    return Receiver(world=sender.name, link=sender.system(align=incoming.bundles != {}).link)


def _named_world(incoming: Incoming) -> World:
    """The shipped world that a sender names; a file says a name, never where something lies."""
    if incoming.world is None:
        raise InputError(f"{incoming.path} does not name the world that sent it; name the world")
    if incoming.world not in shipped_worlds():
        known = ", ".join(shipped_worlds())
        raise InputError(
            f"{incoming.path} is of the world {incoming.world!r}, which does not ship ({known} do); name its folder"
        )
    return load_world(incoming.world)


def _decode(
    incoming: Incoming, receiver: Receiver, folder: Path, first: int, batch: int = BATCH
) -> dict[str, Any]:
    """Write the pictures of one file, the first of which has that number; returns what index.json says of it."""
    condition = incoming.condition
    link.warn_outside(receiver.link, condition)
    images, names = [], image_names(first + len(condition))[first:]
    for start in range(0, len(names), batch):
        rows = slice(start, start + batch)
        arrived = link.receive(receiver.link, _rows(incoming.received, rows), condition[rows])
        write_images(folder, names[rows], arrived.image)
        images += _images_json(names[rows], receiver.link.codec, condition[rows], arrived.erased_uses)
    return {
        "world": receiver.world,
        "bundles": dict(receiver.link.bundles),
        "channel": incoming.channel,
        "channel_seed": incoming.channel_seed,
        "images": images,
    }


def _check_fits(incoming: Incoming, receiving: link.Link) -> None:
    """InputError if the receiver's codec cannot decode what came, or an image of a recording did not come."""
    path, condition = incoming.path, incoming.condition
    sent_with = None if incoming.bundles is None else incoming.bundles.get("transmission")
    held = receiving.bundles.get("transmission")
    if sent_with is not None and sent_with != held:
        here = "none" if held is None else held[:12]
        raise InputError(
            f"{path} was encoded with the transmission update {sent_with[:12]}, and here is {here}; use the sender's"
        )
    codec, longest = receiving.codec, int(condition.payload.max())
    if isinstance(codec, TrainableCodec) and longest > codec.max_uses:
        raise InputError(
            f"{path} has images of {longest} symbols, and the codec decodes at most {codec.max_uses}"
        )
    if incoming.arrived is not None:
        require_arrived(path, incoming.arrived, condition, codec)
        if incoming.channel_seed is None:
            warn_of_fading(path, incoming.arrived, condition)
            warn_of_doubt(path, incoming.arrived, condition, codec)


@torch.no_grad()
def _received(
    symbols: Symbols, condition: Condition, channel: ChannelSettings | None, channel_seed: int | None
) -> Received:
    """Symbols as they are, or over the channel that the sender named."""
    if channel_seed is None:
        gain = used(condition, symbols.shape[1]).to(symbols.dtype)
        state = ChannelState(gain=gain, noise_power=snr_db_to_noise_power(condition.snr_db))
        return Received(symbols=symbols, state=state)
    medium = BlockFading() if channel is None else named_channel(channel).channel
    return medium(symbols, condition, rng=torch.Generator().manual_seed(channel_seed))


def _rows(received: Received, rows: slice) -> Received:
    state = received.state
    return Received(
        symbols=received.symbols[rows],
        state=ChannelState(gain=state.gain[rows], noise_power=state.noise_power[rows]),
    )
