"""`dekag jobs`: alignment jobs of a cloud."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from dekag.cli.console import needing, print_json
from dekag.cli.options import Json

app = typer.Typer(no_args_is_help=True, help="Have a cloud train and publish updates.")

Url = Annotated[str, typer.Option("--url", envvar="DEKAG_CLOUD_URL", help="Address of the cloud.")]
Token = Annotated[
    str | None, typer.Option("--token", envvar="DEKAG_CLOUD_TOKEN", help="Bearer token of the cloud.")
]
JobId = Annotated[str, typer.Argument(help="Id of the job.")]
LOCAL = "http://127.0.0.1:8001"


@app.command()
def submit(
    name: Annotated[str, typer.Argument(help="Name of the update in its channel.")],
    prompts_file: Annotated[
        Path | None, typer.Option(help="One prompt a line; default: the world's.")
    ] = None,
    domain: Annotated[str | None, typer.Option(help="One group of the world's prompts.")] = None,
    channel: Annotated[str, typer.Option(help="canary or stable.")] = "canary",
    method: Annotated[str, typer.Option(help="makd, textual_inversion, lora, dreambooth or lokr.")] = "makd",
    spec: Annotated[
        Path | None,
        typer.Option(
            help='JSON with further numbers of dekag align generation, as {"steps": 200, "rank": 8}.'
        ),
    ] = None,
    url: Url = LOCAL,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Ask for an alignment, which is published when it is done; print the job's id."""
    with needing("serve"):
        from dekag.serving.cloud.client import CloudClient, read_spec
    from dekag.data.prompts import read_prompts

    asked: dict[str, Any] = {"name": name, "channel": channel, "method": method}
    if prompts_file is not None:
        asked["prompts"] = read_prompts(prompts_file)
    if domain is not None:
        asked["domain"] = domain
    if spec is not None:
        asked |= read_spec(spec)
    with CloudClient(url, token) as cloud:
        job = cloud.submit(asked)
    print_json(job) if as_json else print(job["id"])


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
            told = {name: value for name, value in event.data.items() if name != "at" and value is not None}
            print(event.kind, json.dumps(told) if told else "", flush=True)
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
