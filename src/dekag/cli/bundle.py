"""`dekag bundle`: look at bundles, pack them, write them for other programs."""

from pathlib import Path
from typing import Annotated

import typer

from dekag.choices import LAYOUTS
from dekag.cli import checks
from dekag.cli.console import print_json
from dekag.cli.options import Json, Out

app = typer.Typer(no_args_is_help=True, help="Look at bundles.")

BundlePath = Annotated[
    str, typer.Argument(callback=checks.bundle, help="A shipped bundle's name, a directory or a tar.")
]


@app.command("inspect")
def bundle_inspect(path: BundlePath, as_json: Json = False) -> None:
    """Check a bundle and say what is in it."""
    from dekag.bundle.bundle import describe
    from dekag.cli.tables import bundle_lines
    from dekag.world import locate

    description = describe(locate(path, "bundle"))
    print_json(description) if as_json else print("\n".join(bundle_lines(description)))


@app.command("pack")
def bundle_pack(
    path: Annotated[
        str, typer.Argument(callback=checks.bundle, help="A shipped bundle's name or a directory.")
    ],
    out: Annotated[
        Path, typer.Option("--out", callback=checks.packed, help="File to write: .tar, .tar.gz or .tgz.")
    ],
) -> None:
    """Pack a bundle as one file, as it travels."""
    from dekag.bundle.bundle import pack
    from dekag.world import locate

    pack(locate(path, "bundle"), out)
    print(f"wrote {out} ({out.stat().st_size} bytes)")


@app.command("export")
def bundle_export(
    path: BundlePath,
    out: Out,
    to: Annotated[
        str | None,
        typer.Option(
            callback=checks.one_of(LAYOUTS),
            help="diffusers, peft, comfyui or a1111; default: diffusers, or peft where diffusers cannot load it.",
        ),
    ] = None,
) -> None:
    """Write a bundle in the layout of another program."""
    from dekag.bundle.bundle import load_bundle
    from dekag.bundle.export import export_bundle, usual_layout
    from dekag.world import locate

    bundle = load_bundle(locate(path, "bundle"))
    layout = to or usual_layout(bundle)
    files = export_bundle(bundle, out, layout=layout)
    print(f"layout {layout}")
    for file in files:
        print(f"wrote {file}")
