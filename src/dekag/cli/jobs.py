"""`dekag jobs`: alignment jobs of a cloud."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from typing_extensions import Doc

from dekag.choices import require_package
from dekag.cli.checks import check_there
from dekag.cli.console import needing, print_json
from dekag.cli.generated import with_options
from dekag.cli.options import Json
from dekag.data.prompts import read_prompts

app = typer.Typer(no_args_is_help=True, help="Have a cloud train and publish updates.")

Url = Annotated[str, typer.Option("--url", envvar="DEKAG_CLOUD_URL", help="Address of the cloud.")]
Token = Annotated[
    str | None, typer.Option("--token", envvar="DEKAG_CLOUD_TOKEN", help="Bearer token of the cloud.")
]
JobId = Annotated[str, typer.Argument(help="Id of the job.")]
LOCAL = "http://127.0.0.1:8001"


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """What a job is to do."""

    world: Annotated[str | None, Doc("Name of the world it is for; a cloud of another one refuses it.")] = (
        None
    )
    prompts_file: Annotated[Path | None, Doc("One prompt a line; default: the world's.")] = None
    domain: Annotated[str | None, Doc("One group of the world's prompts.")] = None
    channel: Annotated[str, Doc("canary or stable.")] = "canary"
    method: Annotated[str, Doc("makd, textual_inversion, lora, dreambooth or lokr.")] = "makd"
    spec: Annotated[
        Path | None,
        Doc('JSON with further numbers of dekag align generation, as {"steps": 200, "rank": 8}.'),
    ] = None

    def check(self) -> None:
        """Raise InputError for a file that is not there, an unknown channel or a missing package."""
        if self.prompts_file is not None:
            read_prompts(self.prompts_file)
        check_there(self.spec, "spec", right="give a JSON file")
        require_package("httpx2", reason="jobs need further packages", extra="serve")

    def fields(self) -> dict[str, Any]:
        """The fields of the job's specification that are given; the file has the last word."""
        with needing("serve"):
            from dekag.serving.cloud.client import read_spec

        given: dict[str, Any] = {"channel": self.channel, "method": self.method}
        if self.world is not None:
            given["world"] = self.world
        if self.prompts_file is not None:
            given["prompts"] = read_prompts(self.prompts_file)
        if self.domain is not None:
            given["domain"] = self.domain
        return given if self.spec is None else given | read_spec(self.spec)


@app.command()
@with_options
def submit(
    name: Annotated[str, typer.Argument(help="Name of the update in its channel.")],
    job: JobOptions,
    url: Url = LOCAL,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Ask for an alignment, which is published when it is done; print the job's id."""
    with needing("serve"):
        from dekag.serving.cloud.client import CloudClient

    asked = {"name": name, **job.fields()}
    with CloudClient(url, token) as cloud:
        submitted = cloud.submit(asked)
    print_json(submitted) if as_json else print(submitted["id"])


@app.command("list")
def list_jobs(
    limit: Annotated[int, typer.Option(min=1, max=100, help="So many of the newest.")] = 20,
    url: Url = LOCAL,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Say how the newest jobs stand."""
    with needing("serve"):
        from dekag.serving.cloud.client import CloudClient
    with CloudClient(url, token) as cloud:
        jobs = cloud.jobs(limit)
    if as_json:
        print_json(jobs)
        return
    for job in jobs:
        print(summary(job))


@app.command()
def watch(job_id: JobId, url: Url = LOCAL, token: Token = None) -> None:
    """Print what happens to a job until it ends; exit code 1 unless it is done."""
    with needing("serve"):
        from dekag.serving.cloud.client import CloudClient
    with CloudClient(url, token) as cloud:
        for event in cloud.events(job_id):
            details = {
                name: value for name, value in event.data.items() if name != "at" and value is not None
            }
            print(event.kind, json.dumps(details) if details else "", flush=True)
        job = cloud.job(job_id)
    print(summary(job))
    raise typer.Exit(0 if job["state"] == "done" else 1)


@app.command()
def cancel(job_id: JobId, url: Url = LOCAL, token: Token = None) -> None:
    """Cancel a job that has not ended."""
    with needing("serve"):
        from dekag.serving.cloud.client import CloudClient
    with CloudClient(url, token) as cloud:
        print(summary(cloud.cancel(job_id)))


def summary(job: dict[str, Any]) -> str:
    """A job in one line."""
    steps = f" {job['stage']} {job['step']}/{job['steps']}" if job["state"] == "running" else ""
    more = job["bundle"][:12] if job["bundle"] else job["message"]
    return f"{job['id']} {job['state']}{steps} {job['name']} {more}".rstrip()
