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
Resume = Annotated[Path | None, typer.Option(help="Folder that keeps the state of an interrupted run.")]
