"""`dekag radio`: deliveries as SigMF recordings, out of the program and back."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dekag.cli.console import print_json, working
from dekag.cli.options import (
    Antennas,
    Blocks,
    Cbr,
    ChannelName,
    Correlation,
    DelaySpread,
    Estimation,
    Json,
    Ka,
    Out,
    Pilots,
    PresetName,
    Prompts,
    Seed,
    SnrDb,
    Speed,
    Uses,
)

app = typer.Typer(no_args_is_help=True, help="Send and receive over a radio, through SigMF recordings.")

RecordingPath = Annotated[Path, typer.Argument(help="A recording, with or without its suffix.")]


@app.command()
def send(
    prompts: Prompts,
    out: Annotated[
        Path, typer.Option("--out", help="Recording to write: NAME.sigmf-data and NAME.sigmf-meta.")
    ],
    snr_db: SnrDb = 10.0,
    uses: Uses = None,
    cbr: Cbr = None,
    channel: ChannelName = "awgn",
    blocks: Blocks = None,
    correlation: Correlation = None,
    pilots: Pilots = None,
    delay_spread: DelaySpread = None,
    speed: Speed = None,
    antennas: Antennas = None,
    estimation: Estimation = None,
    ofdm: Annotated[bool, typer.Option("--ofdm", help="Record an OFDM waveform instead of symbols.")] = False,
    subcarriers: Annotated[int | None, typer.Option(min=2, help="Of the OFDM waveform; 72.")] = None,
    clip: Annotated[float | None, typer.Option(help="Clip peaks at so many dB over the mean power.")] = None,
    sample_rate: Annotated[float | None, typer.Option(help="Samples per second, for the metadata.")] = None,
    drawn: Annotated[Path | None, typer.Option(help="Folder for the pictures as they were drawn.")] = None,
    ka: Ka = True,
    preset: PresetName = "emoji",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Draw prompts at the edge and record what it sends; print its peaks beside those of Gaussian samples.

    The metadata hold all that the receiver must know: condition, order, waveform, preset, ids of the updates.
    """
    from dekag import commands, radio_link
    from dekag.channel import ChannelSettings

    settings = ChannelSettings(
        name=channel,
        blocks=blocks,
        correlation=correlation,
        pilots=pilots,
        delay_spread_ns=delay_spread,
        speed_m_s=speed,
        antennas=antennas,
        estimation=estimation,
    )
    with working("radio send") as stage:
        waveform = radio_link.waveform_of(ofdm, subcarriers)
        chosen = commands.named_link(preset, settings, uses=uses, cbr=cbr, snr_db=snr_db)
        report = radio_link.send(
            preset,
            prompts,
            chosen.condition,
            settings,
            out,
            ka=ka,
            seed=seed,
            waveform=waveform,
            clip_db=clip,
            sample_rate_hz=sample_rate,
            drawn=drawn,
            on_stage=stage,
        )
    if as_json:
        print_json(report)
        return
    print_papr(report["papr"])
    print(
        f"air {report['payload_uses'] + report['pilot_uses']} channel uses, {report['payload_uses']} payload and"
        f" {report['pilot_uses']} pilots; {report['samples']} samples of payload"
    )
    print(f"wrote {' and '.join(report['files'])}")


@app.command()
def receive(
    recording: RecordingPath,
    out: Out,
    channel_seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**31 - 1, help="Simulate the channel of the metadata, with this seed."),
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Named configuration; default: the metadata's.")] = None,
    as_json: Json = False,
) -> None:
    """Decode a recording: OUT/0000.png, ... and OUT/index.json.

    Without --channel-seed the samples are taken as they are, at unit gain and the SNR of the metadata: what
    carrier, timing and gain recovery leave. Samples that are no numbers count as not received.
    """
    from dekag import radio_link

    with working("radio receive") as stage:
        index = radio_link.receive(recording, out, preset=preset, channel_seed=channel_seed, on_stage=stage)
    if as_json:
        print_json(index)
        return
    erased = sum(row["erased_uses"] for row in index["images"])
    print(f"wrote {len(index['images'])} images and index.json to {out}; {erased} uses erased")


@app.command()
def papr(recording: RecordingPath, as_json: Json = False) -> None:
    """Say how high the peaks of a recording are."""
    from dekag import radio_link

    report = radio_link.papr(recording)
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
