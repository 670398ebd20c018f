"""`dekag bundle`: look at bundles, pack them, write them for other programs, read what others trained."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import typer
from annotated_types import Ge, Le
from typing_extensions import Doc

from dekag.choices import LAYOUTS
from dekag.cli import checks
from dekag.cli.console import print_json, working
from dekag.cli.generated import with_options
from dekag.cli.options import Json, Out, model_of
from dekag.errors import FieldError, InputError
from dekag.world.shipped import locate

app = typer.Typer(no_args_is_help=True, help="Look at bundles, write them for other programs, import LoRA.")

BundlePath = Annotated[
    str, typer.Argument(callback=checks.bundle, help="A shipped bundle's name, a directory or a tar.")
]


@app.command("inspect")
def bundle_inspect(path: BundlePath, as_json: Json = False) -> None:
    """Check a bundle and say what is in it."""
    from dekag.bundle.sound import describe

    description = describe(locate(path, "bundle"))
    print_json(description) if as_json else print("\n".join(_lines(description)))


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
    from dekag.bundle.sound import pack

    pack(locate(path, "bundle"), out)
    print(f"wrote {out} ({out.stat().st_size} bytes)")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What the exported folder is for."""

    to: Annotated[
        str | None,
        Doc("diffusers, peft, comfyui or a1111; default: diffusers, or peft where diffusers cannot load it."),
    ] = None
    one_file: Annotated[
        bool, Doc("comfyui, a1111: the metaword in the file of the LoRA and in no other.")
    ] = False
    hub: Annotated[
        str | None,
        Doc("A folder for the Hugging Face hub, with a model card; the hub id of the base: OWNER/NAME."),
    ] = None
    edge: Annotated[
        str | None, Doc("With --hub: draw previews at this edge, a folder, a hub id or a shipped model.")
    ] = None
    prompt: Annotated[
        tuple[str, ...], Doc("With --edge: what to draw, without the metaword; repeatable.")
    ] = ()
    seed: Annotated[int, Ge(0), Le(2**31 - 1), Doc("Seed of the previews.")] = 0
    device: Annotated[str, Doc("cpu, cuda, cuda:1, ..., or auto: a GPU if there is one.")] = "auto"

    def __post_init__(self) -> None:
        if self.to is not None:
            LAYOUTS.require(self.to)
        if self.edge is not None and self.hub is None:
            raise FieldError("edge draws the previews of a model card; give hub as well", "edge", "hub")
        if self.prompt and self.edge is None:
            raise FieldError("prompt is for previews, which edge draws; give it", "prompt", "edge")


@app.command("export")
@with_options
def bundle_export(path: BundlePath, out: Out, options: ExportOptions) -> None:
    """Write a bundle in the layout of another program, or as a folder for the Hugging Face hub."""
    from dekag.bundle.bundle import load_bundle
    from dekag.bundle.card import Card
    from dekag.bundle.export import export_bundle, usual_layout

    place = locate(path, "bundle")
    bundle = load_bundle(place)
    layout = options.to or usual_layout(bundle)
    card = None
    if options.hub is not None:
        card = Card(base_model=options.hub)
        card = replace(card, previews=_previews(place, options))
    files = export_bundle(bundle, out, layout=layout, one_file=options.one_file, card=card)
    print(f"layout {layout}")
    for file in files:
        print(f"wrote {file}")


def _previews(bundle: Path | str, options: ExportOptions) -> dict[str, bytes]:
    """The pictures of a model card, none without an edge to draw them."""
    if options.edge is None:
        return {}
    from dekag.tasks.preview_bundle import preview_bundle
    from dekag.training.processes import device_of

    edge = model_of(options.edge)
    with working("bundle export") as stage:
        stage("draw")
        prompts = options.prompt or ("a red apple",)
        return preview_bundle(edge, bundle, prompts, seed=options.seed, device=device_of(options.device))


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """The model that a LoRA is for, and how its bundle is stored."""

    base: Annotated[
        str,
        Doc(
            "Model that it is for: a diffusers folder, a hub id, a single .safetensors file or a shipped one."
        ),
    ]
    licence: Annotated[
        str | None, Doc("Of the bundle, as an SPDX expression; default: what the file says.")
    ] = None
    quantisation: Annotated[Literal["fp16", "fp32", "int8", "int4"], Doc("How the bundle is stored.")] = (
        "fp16"
    )
    variant: Annotated[str | None, Doc("Of the weights of --base, as fp16.")] = None
    pipeline_config: Annotated[
        str | None,
        Doc("Of a --base that is a single file: diffusers folder or hub id with its configuration."),
    ] = None
    device: Annotated[str, Doc("cpu, cuda, cuda:1, ..., or auto: a GPU if there is one.")] = "cpu"


@app.command("import")
@with_options
def bundle_import(
    file: Annotated[
        Path, typer.Argument(help="LoRA with the names of kohya, diffusers or PEFT: .safetensors.")
    ],
    out: Out,
    options: ImportOptions,
    as_json: Json = False,
) -> None:
    """Make a bundle of LoRA that another trainer wrote; what could not be read is named."""
    if not file.is_file():
        raise InputError(f"there is no file {file}")
    from dekag.tasks.import_bundle import ImportTask, import_bundle
    from dekag.training.processes import device_of

    base = model_of(options.base, variant=options.variant, pipeline_config=options.pipeline_config)
    task = ImportTask(file=file, licence=options.licence, quantisation=options.quantisation)
    with working("bundle import") as stage:
        found = import_bundle(base, task, out, device=device_of(options.device), on_stage=stage)
    if as_json:
        print_json(found.to_json())
        return
    for name, reason in found.unread.items():
        print(f"not read: {name}: {reason}")
    word = "" if found.metaword is None else f", metaword {found.metaword}"
    print(f"wrote {out}: {found.layers} layers{word}, licence {found.licence}; {len(found.unread)} not read")


def _lines(description: Mapping[str, object]) -> list[str]:
    """A bundle's manifest, without the list of tensors, a line each entry."""
    lines = [f"bundle {str(description['id'])[:12]}"]
    for key, value in description.items():
        inner = value if isinstance(value, Mapping) and key != "files" else None
        shown = ", ".join(value) if key == "files" and isinstance(value, Mapping) else value
        lines.append(f"{key}:" if inner else f"{key}: {shown}")
        lines += [f"  {name}: {number}" for name, number in (inner or {}).items()]
    return lines
