"""`dekag serve`: a party as a service."""

from pathlib import Path
from typing import Annotated

import typer

from dekag.cli.cloud import Database, Folder
from dekag.cli.console import needing, quiet_loading, starting
from dekag.cli.options import chosen_name

app = typer.Typer(no_args_is_help=True, help="Run a party as a service.")

Host = Annotated[str | None, typer.Option(help="Address to listen on; 127.0.0.1.")]
TokensFile = Annotated[
    Path | None, typer.Option(help="File with a bearer token a line; needed beyond loopback.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; a GPU if there is one.")]
World = Annotated[str | None, typer.Option("--world", help="A shipped world or the folder of one; emoji.")]
Preset = Annotated[str | None, typer.Option("--preset", hidden=True)]


@app.command("edge")
def serve_edge(
    folder: Annotated[Path | None, typer.Option(help="What the edge keeps; dekag-edge.")] = None,
    host: Host = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port to listen on; 8000.")] = None,
    tokens_file: TokensFile = None,
    registry: Annotated[
        str | None, typer.Option(help="Address or folder to pull updates from; else the shipped ones.")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="The registry's root.json; needed once.")] = None,
    channel: Annotated[str | None, typer.Option(help="Channel of the registry; stable.")] = None,
    cloud: Annotated[str | None, typer.Option(help="Address of the cloud, for reports and the page.")] = None,
    world: World = None,
    preset: Preset = None,
    device: Device = None,
) -> None:
    """Draw images for the clients of OpenAI and Hugging Face, deliver them over the air, and serve the page.

    Every option, and more, can come from the environment: DEKAG_EDGE_PORT and so on.
    """
    with starting(), needing("serve"):
        from dekag.serving.edge.app import create
        from dekag.serving.edge.settings import EdgeSettings
        from dekag.serving.http.server import serve
        from dekag.serving.http.settings import load_settings
    settings = load_settings(
        EdgeSettings,
        folder=folder,
        host=host,
        port=port,
        tokens_file=None if tokens_file is None else str(tokens_file),
        registry=registry,
        root=root,
        channel=channel,
        cloud_url=cloud,
        world=chosen_name(world, preset),
        device=device,
    )
    quiet_loading()
    with starting():
        service = create(settings)
    serve(service, settings)


@app.command("cloud")
def serve_cloud(
    folder: Folder = None,
    host: Host = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port to listen on; 8001.")] = None,
    tokens_file: TokensFile = None,
    database: Database = None,
    registry: Annotated[
        str | None, typer.Option(help="Folder or URL of the registry; FOLDER/registry.")
    ] = None,
    keys: Annotated[Path | None, typer.Option(help="Keys that publish; FOLDER/keys.")] = None,
    world: World = None,
    preset: Preset = None,
    device: Device = None,
    job_workers: Annotated[int | None, typer.Option(min=0, help="Jobs at a time; 1.")] = None,
) -> None:
    """Serve the registry, run alignment jobs, keep the ledger and draw reference images.

    Every option, and more, can come from the environment: DEKAG_CLOUD_PORT and so on.
    """
    with starting(), needing("serve"):
        from dekag.serving.cloud.app import create
        from dekag.serving.cloud.settings import CloudSettings
        from dekag.serving.http.server import serve
        from dekag.serving.http.settings import load_settings
    settings = load_settings(
        CloudSettings,
        folder=folder,
        host=host,
        port=port,
        tokens_file=None if tokens_file is None else str(tokens_file),
        database=database,
        registry=registry,
        keys=keys,
        world=chosen_name(world, preset),
        device=device,
        job_workers=job_workers,
    )
    quiet_loading()
    with starting():
        service = create(settings)
    serve(service, settings)
