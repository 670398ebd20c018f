"""`dekag serve`: a party as a service."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer
from annotated_types import Ge, Le
from typing_extensions import Doc

from dekag.cli.checks import check_there
from dekag.cli.console import needing, quiet_loading, starting
from dekag.cli.generated import Options, with_options
from dekag.cli.options import chosen_name, read_world
from dekag.serving.supported import check_service
from dekag.training.devices import check_device
from dekag.wire.places import check_folder
from dekag.world.shipped import DEFAULT_WORLD

app = typer.Typer(no_args_is_help=True, help="Run a party as a service.")


@dataclass(frozen=True, kw_only=True)
class ServiceOptions:
    """What every service is told; what is None comes from the environment."""

    HIDDEN: ClassVar[tuple[str, ...]] = ("preset",)
    folder: Annotated[Path | None, Doc("What the service keeps.")] = None
    host: Annotated[str | None, Doc("Address to listen on; 127.0.0.1.")] = None
    tokens_file: Annotated[str | None, Doc("File with a bearer token a line; needed beyond loopback.")] = None
    world: Annotated[str | None, Doc(f"A shipped world or the folder of one; {DEFAULT_WORLD}.")] = None
    preset: Annotated[str | None, Doc("The old name of --world.")] = None
    device: Annotated[str | None, Doc("cpu, cuda, cuda:1, ...; a GPU if there is one.")] = None

    def check(self) -> None:
        """Raise InputError where no service runs, and for what is not there or has a wrong name."""
        check_service()
        if (name := self.world if self.preset is None else self.preset) is not None:
            read_world(name)
        if self.device is not None:
            check_device(self.device)
        if self.folder is not None:
            check_folder(self.folder)
        if self.tokens_file is not None:
            check_there(Path(self.tokens_file), "tokens_file", right="give a file with a token a line")

    def settings(self) -> dict[str, Any]:
        """The settings of the service that are given, by name."""
        given = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "preset"}
        return {**given, "world": chosen_name(self.world, self.preset)}


@dataclass(frozen=True, kw_only=True)
class EdgeOptions(ServiceOptions):
    """What an edge is told."""

    folder: Annotated[Path | None, Doc("What the edge keeps; dekag-edge.")] = None
    port: Annotated[int | None, Ge(1), Le(65535), Doc("Port to listen on; 8000.")] = None
    registry: Annotated[str | None, Doc("Address or folder to pull updates from; else the shipped ones.")] = (
        None
    )
    root: Annotated[Path | None, Doc("The registry's root.json; needed once.")] = None
    channel: Annotated[str | None, Doc("Channel of the registry; stable.")] = None
    cloud_url: Annotated[str | None, Doc("Address of the cloud, for reports and the page.")] = None

    def check(self) -> None:
        """As of every service, and for a root that is not there."""
        super().check()
        check_there(self.root, "root", right="give that of the registry")


@dataclass(frozen=True, kw_only=True)
class CloudOptions(ServiceOptions):
    """What a cloud is told."""

    folder: Annotated[Path | None, Doc("Folder of the cloud; cloud.")] = None
    port: Annotated[int | None, Ge(1), Le(65535), Doc("Port to listen on; 8001.")] = None
    database: Annotated[
        str | None,
        Doc(
            "sqlite:///FILE or postgresql://USER@HOST/NAME; FOLDER/cloud.db. With a password in it, better"
            " DEKAG_CLOUD_DATABASE, which other users do not see."
        ),
    ] = None
    registry: Annotated[str | None, Doc("Folder or URL of the registry; FOLDER/registry.")] = None
    keys: Annotated[Path | None, Doc("Keys that publish; FOLDER/keys.")] = None
    job_workers: Annotated[int | None, Ge(0), Doc("Jobs at a time; 1.")] = None


@app.command("edge")
@with_options
def serve_edge(options: Annotated[EdgeOptions, Options(names={"cloud_url": "cloud"})]) -> None:
    """Draw images for the clients of OpenAI and Hugging Face, deliver them over the air, and serve the page.

    Every option, and more, can come from the environment: DEKAG_EDGE_PORT and so on.
    """
    with starting(), needing("serve"):
        from dekag.serving.edge.app import create
        from dekag.serving.edge.settings import EdgeSettings
        from dekag.serving.http.server import leave, serve
        from dekag.serving.http.settings import load_settings
    settings = load_settings(EdgeSettings, **options.settings())
    quiet_loading()
    with starting():
        service = create(settings)
    serve(service, settings)
    leave()


@app.command("cloud")
@with_options
def serve_cloud(options: CloudOptions) -> None:
    """Serve the registry, run alignment jobs, keep the ledger and draw reference images.

    Every option, and more, can come from the environment: DEKAG_CLOUD_PORT and so on.
    """
    with starting(), needing("serve"):
        from dekag.serving.cloud.app import create
        from dekag.serving.cloud.settings import CloudSettings
        from dekag.serving.http.server import leave, serve
        from dekag.serving.http.settings import load_settings
    settings = load_settings(CloudSettings, **options.settings())
    quiet_loading()
    with starting():
        service = create(settings)
    serve(service, settings)
    leave()
