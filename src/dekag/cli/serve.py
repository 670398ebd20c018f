"""`dekag serve`: a party as a service."""

from pathlib import Path
from typing import Annotated

import typer

from dekag.cli.cloud import Database, Folder
from dekag.cli.console import needing
from dekag.cli.options import Device

app = typer.Typer(no_args_is_help=True, help="Run a party as a service.")


@app.command("cloud")
def serve_cloud(
    folder: Folder = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port to listen on; 8001.")] = None,
    tokens_file: Annotated[
        Path | None, typer.Option(help="File with a bearer token a line; needed beyond loopback.")
    ] = None,
    database: Database = None,
    registry: Annotated[
        str | None, typer.Option(help="Folder or URL of the registry; FOLDER/registry.")
    ] = None,
    keys: Annotated[Path | None, typer.Option(help="Keys that publish; FOLDER/keys.")] = None,
    preset: Annotated[str | None, typer.Option("--preset", help="Named configuration; emoji.")] = None,
    device: Device = "auto",
    job_workers: Annotated[int | None, typer.Option(min=0, help="Jobs at a time; 1.")] = None,
) -> None:
    """Serve the registry, run alignment jobs, keep the ledger and draw reference images.

    Every option, and more, can come from the environment: DEKAG_CLOUD_PORT and so on.
    """
    with needing("serve"):
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
        preset=preset,
        device=device,
        job_workers=job_workers,
    )
    serve(create(settings), settings)
