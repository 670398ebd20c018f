"""Options that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print the numbers as JSON on standard output.")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**31 - 1, help="Seed of everything random.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to write; it appears whole or not at all.")]
PresetName = Annotated[str, typer.Option("--preset", help="Named configuration.")]
Count = Annotated[int, typer.Option(min=1)]
Device = Annotated[
    str, typer.Option("--device", help="cpu, cuda, cuda:1, ..., or auto: a GPU if there is one.")
]
Model = Annotated[str, typer.Option(help="A shipped model, a diffusers directory or a hub id.")]
SnrDb = Annotated[float, typer.Option("--snr-db", help="SNR per complex channel use.")]
Uses = Annotated[int | None, typer.Option("--uses", help="Channel uses an image, pilots included.")]
Cbr = Annotated[float | None, typer.Option("--cbr", help="Instead of --uses: channel uses per pixel value.")]
ChannelName = Annotated[
    str, typer.Option("--channel", help="awgn, rayleigh, or OFDM over 3GPP: tdl-a to tdl-e, cdl-a to cdl-e.")
]
Blocks = Annotated[int | None, typer.Option("--blocks", help="rayleigh: fading blocks of an image; 1.")]
Correlation = Annotated[
    float | None,
    typer.Option("--correlation", help="rayleigh: correlation of neighbouring blocks, 0 to 1; 0."),
]
Pilots = Annotated[
    int | None,
    typer.Option("--pilots", help="rayleigh: pilots a block; 0, where the receiver knows the gain."),
]
DelaySpread = Annotated[
    float | None, typer.Option("--delay-spread", help="tdl, cdl: rms delay spread in nanoseconds; 100.")
]
Speed = Annotated[
    float | None, typer.Option("--speed", help="tdl, cdl: speed of the receiver in metres per second; 0.")
]
Antennas = Annotated[
    str | None,
    typer.Option(
        "--antennas", help="tdl, cdl: sending x receiving, as 1x2; each that sends is a stream; 1x1."
    ),
]
Estimation = Annotated[
    str | None,
    typer.Option("--estimation", help="tdl, cdl: lmmse or ls from pilots, or perfect without; lmmse."),
]
Ka = Annotated[bool, typer.Option("--ka/--no-ka", help="With or without both alignments.")]
Prompts = Annotated[list[str], typer.Argument(help="What to draw and send.")]
Resume = Annotated[Path | None, typer.Option(help="Folder that keeps the state of an interrupted run.")]
