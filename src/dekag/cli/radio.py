"""`dekag radio`: deliveries as SigMF recordings, out of the program and back."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from annotated_types import Ge
from typing_extensions import Doc

from dekag.choices import require_package
from dekag.cli import checks
from dekag.cli.console import print_json, uses_text, working
from dekag.cli.generated import Options, with_options
from dekag.cli.options import (
    ChannelOptions,
    DeliveryOptions,
    FromRadio,
    Json,
    Out,
    Prompts,
    ReceiverOptions,
    WorldOptions,
)
from dekag.wire.places import check_file, check_folder

app = typer.Typer(no_args_is_help=True, help="Send and receive over a radio, through SigMF recordings.")

RecordingPath = Annotated[
    Path, typer.Argument(callback=checks.recording, help="A recording, with or without its suffix.")
]


@app.callback()
def needed() -> None:
    """Send and receive over a radio, through SigMF recordings."""
    require_package("sigmf", reason="radio files need the sigmf package", extra="radio")


@dataclass(frozen=True, kw_only=True)
class RecordingOptions:
    """How what is sent becomes a recording."""

    out: Annotated[Path, Doc("Recording to write: NAME.sigmf-data and NAME.sigmf-meta.")]
    ofdm: Annotated[bool, Doc("Record an OFDM waveform instead of symbols.")] = False
    subcarriers: Annotated[int | None, Ge(2), Doc("Of the OFDM waveform; 72.")] = None
    clip: Annotated[float | None, Doc("Clip peaks at so many dB over the mean power.")] = None
    sample_rate: Annotated[float | None, Doc("Samples per second, for the metadata.")] = None
    drawn: Annotated[Path | None, Doc("Folder for the pictures as they were drawn.")] = None

    def check(self) -> None:
        """Raise InputError for places that cannot be written to."""
        check_file(self.out)
        if self.drawn is not None:
            check_folder(self.drawn)

    def values(self) -> dict[str, Any]:
        """The fields of `dekag.tasks.send.SendTask` that they are."""
        from dekag.tasks.send import waveform_of

        return {
            "waveform": waveform_of(self.ofdm, self.subcarriers),
            "clip_db": self.clip,
            "sample_rate_hz": self.sample_rate,
            "drawn": self.drawn,
        }


@app.command()
@with_options
def send(
    prompts: Prompts,
    channel: ChannelOptions,
    recording: RecordingOptions,
    world: WorldOptions,
    drawing: Annotated[DeliveryOptions, Options(only=("ka", "seed", "engine"))],
    as_json: Json = False,
) -> None:
    """Draw prompts at the edge and record what it sends; print its peaks beside those of Gaussian samples.

    The metadata hold all that the receiver must know: condition, order, waveform, world, ids of the updates.
    """
    from dekag.tasks.send import SendTask
    from dekag.tasks.send import send as carry_out

    with working("radio send") as stage:
        loaded, settings = drawing.put_on(world.load()), channel.load()
        task = SendTask(
            prompts=prompts,
            condition=settings.for_world(loaded).condition,
            channel=settings.channel,
            align=drawing.ka,
            seed=drawing.seed,
            **recording.values(),
        )
        report = carry_out(loaded, task, recording.out, on_stage=stage)
    if as_json:
        print_json(report)
        return
    print_papr(report["papr"])
    print(
        f"air {uses_text(report)}; {report['samples']} samples of all but the pilots"
        f"{', the pilots are left to the radio' if report['pilot_uses'] else ''}"
    )
    print(f"wrote {' and '.join(report['files'])}")


@app.command()
@with_options
def receive(
    recording: RecordingPath,
    out: Out,
    world: ReceiverOptions,
    channel_seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**31 - 1, help="Simulate the channel of the metadata, with this seed."),
    ] = None,
    received: FromRadio = False,
    as_json: Json = False,
) -> None:
    """Decode a recording: OUT/0000.png, ... and OUT/index.json.

    Without --channel-seed the samples are taken as they are, at unit gain and the SNR of the metadata: what
    carrier, timing and gain recovery leave. Samples that are NaN or infinite count as not received. A recording
    that holds no picture is refused: silence, noise alone, a power that the metadata do not allow.
    """
    from dekag.tasks.receive import ReceiveTask
    from dekag.tasks.receive import receive as carry_out

    with working("radio receive") as stage:
        index = carry_out(
            recording,
            out,
            world=world.load(),
            task=ReceiveTask(bundles=world.bundle, channel_seed=channel_seed, received=received),
            on_stage=stage,
        )
    if as_json:
        print_json(index)
        return
    erased = sum(row["erased_uses"] for row in index["images"])
    print(f"wrote {len(index['images'])} images and index.json to {out}; {erased} uses erased")


@app.command()
def papr(recording: RecordingPath, received: FromRadio = False, as_json: Json = False) -> None:
    """Say how high the peaks of a recording are."""
    from dekag.tasks.papr import papr as measure

    report = measure(recording, received=received)
    print_json(report) if as_json else print_papr(report)


def print_papr(report: dict[str, Any]) -> None:
    """A few lines on peaks: those of blocks, and the power of samples."""
    print(
        f"PAPR at most {report['highest_db']:.2f} dB in {report['blocks']} blocks of {report['samples']} samples"
    )
    for row in report["ccdf"]:
        print(
            f"  above {row['level_db']:4.1f} dB: {100 * row['share']:6.2f} % of blocks"
            f" (Gaussian {100 * row['gaussian']:6.2f} %)"
        )
    for row in report["power"]:
        level = "too few samples" if row["level_db"] is None else f"{row['level_db']:.2f} dB"
        print(
            f"  power of 1 in {round(1 / row['share'])} samples: {level} (Gaussian {row['gaussian_db']:.2f} dB)"
        )
