"""`dekag world`: make a world of one's own models, and look at one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from annotated_types import Ge
from typing_extensions import Doc

from dekag.cli import checks
from dekag.cli.checks import check_images, check_part
from dekag.cli.console import print_json, working
from dekag.cli.generated import with_options
from dekag.cli.options import Device, Json, Seed, read_world
from dekag.data.prompts import read_prompts
from dekag.errors import InputError
from dekag.world.shipped import DEFAULT_WORLD

app = typer.Typer(no_args_is_help=True, help="Make a world of your own models, and look at one.")


@dataclass(frozen=True, kw_only=True)
class NewWorldOptions:
    """What a world is to be made of."""

    edge: Annotated[
        str, Doc("Edge: a diffusers folder, a hub id, a single .safetensors file or a shipped model.")
    ]
    cloud: Annotated[str | None, Doc("Cloud: as --edge.")] = None
    images: Annotated[
        Path | None, Doc("Instead of a cloud: a folder of its pictures with their prompts.")
    ] = None
    endpoint: Annotated[str | None, Doc("Instead of a cloud: an OpenAI-compatible image API.")] = None
    endpoint_model: Annotated[str, Doc("Model to ask the endpoint for.")] = ""
    endpoint_size: Annotated[str, Doc("Image size to ask for.")] = "512x512"
    prompts: Annotated[Path | None, Doc("One prompt a line; a folder of images brings its own.")] = None
    steps: Annotated[int | None, Ge(1), Doc("Denoising steps of the edge; default: the pipeline's.")] = None
    guidance: Annotated[float | None, Ge(0), Doc("Its guidance scale; default: the pipeline's.")] = None
    batch: Annotated[int, Ge(1), Doc("Pictures that it draws at a time.")] = 32
    pixels: Annotated[int | None, Ge(8), Doc("Side of its pictures; default: the pipeline's.")] = None
    cloud_steps: Annotated[
        int | None, Ge(1), Doc("Denoising steps of the cloud; default: the pipeline's.")
    ] = None
    cloud_guidance: Annotated[float | None, Ge(0), Doc("Its guidance scale; default: the pipeline's.")] = None
    cloud_pixels: Annotated[int | None, Ge(8), Doc("Side of its pictures; default: the pipeline's.")] = None
    name: Annotated[str, Doc("Name of the world; default: the folder's.")] = ""
    licence: Annotated[str, Doc("Licence of the whole, as an SPDX expression.")] = ""
    variant: Annotated[
        str | None, Doc("Of the weights, as fp16 where files are called *.fp16.safetensors.")
    ] = None
    pipeline_config: Annotated[
        str | None, Doc("Of a single file: diffusers folder or hub id with its configuration.")
    ] = None

    def check(self) -> None:
        """Raise InputError for a part that is not there."""
        from dekag.world.entry import check_sources

        check_sources(self.cloud, self.images, self.endpoint, prompts_file=self.prompts)
        for name in ("cloud_steps", "cloud_guidance", "cloud_pixels"):
            if self.cloud is None and getattr(self, name) is not None:
                raise InputError(
                    f"--{name.replace('_', '-')} is of a cloud that draws; give its model as --cloud"
                )
        check_part(self.edge, "pipeline")
        check_part(self.cloud, "pipeline")
        check_images(self.images)
        if self.prompts is not None:
            read_prompts(self.prompts)


@app.command()
@with_options
def new(
    folder: Annotated[Path, typer.Argument(callback=checks.new_folder, help="New folder for the world.")],
    options: NewWorldOptions,
    as_json: Json = False,
) -> None:
    """Make a world: look at its edge, split its prompts, and say what is still to be trained.

    Models and pictures are copied into the folder, so that it can be moved; a hub id stays one.
    """
    with working("world new") as stage:
        stage("load the edge")
        from dekag.generation.diffusers import Sampling
        from dekag.world.new import NewWorld, describe_world, new_world

        world = new_world(
            folder,
            NewWorld(
                edge=options.edge,
                name=options.name,
                cloud=options.cloud,
                images=options.images,
                endpoint=options.endpoint,
                endpoint_model=options.endpoint_model,
                endpoint_size=options.endpoint_size,
                prompts_file=options.prompts,
                sampling=Sampling(steps=options.steps, guidance=options.guidance, batch=options.batch),
                pixels=options.pixels,
                cloud_sampling=Sampling(steps=options.cloud_steps, guidance=options.cloud_guidance),
                cloud_pixels=options.cloud_pixels,
                licence=options.licence,
                variant=options.variant,
                pipeline_config=options.pipeline_config,
            ),
        )
    _print(describe_world(world), as_json)


@app.command()
def show(
    world: Annotated[str, typer.Argument(help="A shipped world or the folder of one.")] = DEFAULT_WORLD,
    as_json: Json = False,
) -> None:
    """Say what a world has and lacks, and the command that fills each gap. Nothing is loaded."""
    read_world(world)
    from dekag.world import load_world
    from dekag.world.new import describe_world

    _print(describe_world(load_world(world)), as_json)


@app.command()
def draw(
    out: Annotated[
        Path, typer.Option("--out", callback=checks.drawings, help="File to write, as drawings.zip.")
    ],
    world: Annotated[str, typer.Option(help="A shipped world or the folder of one.")] = DEFAULT_WORLD,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts of each reported split.")] = 48,
    seeds: Annotated[int, typer.Option(min=1, help="Drawings of each prompt.")] = 2,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Let the cloud draw the references of demo and evaluate generation into a file.

    A world whose world.json names it as "drawings" spares every evaluation that drawing; it counts for that cloud only.
    """
    read_world(world)
    from dekag.tasks.draw_references import ReferencesTask, draw_references
    from dekag.training.processes import device_of
    from dekag.world import load_world

    task = ReferencesTask(prompts=prompts, seeds=seeds, seed=seed)
    with working("world draw") as stage:
        count = draw_references(load_world(world), task, out, device=device_of(device), on_stage=stage)
    print(f"wrote {count} drawings to {out} ({out.stat().st_size} bytes)")


def _print(described: dict[str, Any], as_json: bool) -> None:
    described["lacks"] = {part: remedy(part, described) for part in described["lacks"]}
    if as_json:
        print_json(described)
        return
    from dekag.cli.tables import world_lines

    for line in world_lines(described):
        print(line)


def remedy(part: str, described: dict[str, Any]) -> str:
    """What to do about a part that a world lacks."""
    folder = described["folder"]
    if folder is None and part not in ("ceiling", "judges"):
        return "it ships so; make a world of your own with dekag world new"
    remedies = {
        "cloud": "name a cloud, an endpoint or a folder of images in world.json; without, nothing can be distilled",
        "ceiling": "its pictures are the reference; without a model there is no ceiling and no gap closed",
        "prompts": 'write prompts.json, {"distill": [...], "validation": [...], "heldout": [...]}, and name it',
        "judges": "give --judge dino=facebook/dinov2-small, or put image encoders into its folder judges/NAME; without,"
        " settings are chosen by the held-out denoising loss, and nothing can be evaluated",
        "codec": f"dekag train codec --world {folder} --out {folder}/codec",
        "generation": f"dekag align generation --world {folder} --out {folder}/generation",
        "transmission": f"dekag align transmission --world {folder} --out {folder}/transmission",
    }
    return remedies[part]
