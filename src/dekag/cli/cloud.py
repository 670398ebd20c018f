"""`dekag cloud`: the cloud's database."""

from pathlib import Path
from typing import Annotated

import typer

from dekag.cli import checks
from dekag.cli.console import needing

app = typer.Typer(no_args_is_help=True, help="Look after the cloud's database.")

Folder = Annotated[Path | None, typer.Option("--folder", help="Folder of the cloud; cloud.")]
Database = Annotated[
    str | None,
    typer.Option(
        "--database",
        help="sqlite:///FILE or postgresql://USER@HOST/NAME; FOLDER/cloud.db. With a password in it, better"
        " DEKAG_CLOUD_DATABASE, which other users do not see.",
    ),
]


@app.command()
def migrate(folder: Folder = None, database: Database = None) -> None:
    """Make the tables, or bring them up to date. Run it once before a new version serves; twice does no harm."""
    with needing("serve"):
        from dekag.serving.cloud.database import migrate, open_database
        from dekag.serving.cloud.settings import CloudSettings
        from dekag.serving.http.settings import load_settings
    settings = load_settings(CloudSettings, folder=folder, database=database)
    engine = open_database(settings.database_address)
    migrate(engine)
    engine.dispose()
    print("the database is up to date")


@app.command()
def backup(
    out: Annotated[
        Path, typer.Argument(callback=checks.file, help="File to write; it appears whole or not at all.")
    ],
    folder: Folder = None,
    database: Database = None,
) -> None:
    """Copy the SQLite database, in use or not. To restore it, stop the cloud and put the copy in its place."""
    with needing("serve"):
        from dekag.serving.cloud.database import back_up
        from dekag.serving.cloud.settings import CloudSettings
        from dekag.serving.http.settings import load_settings
    settings = load_settings(CloudSettings, folder=folder, database=database)
    back_up(settings.database_address, out)
    print(f"wrote {out}")
