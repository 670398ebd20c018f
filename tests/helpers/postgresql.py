"""A PostgreSQL of a test's own, from Debian's package, that listens on a socket in a folder and nowhere else."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

INSTALLED = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
USER = "postgres"


@contextmanager
def postgresql() -> Iterator[str]:
    """The address of a running server, which is gone afterwards; its user may make databases."""
    # not below pytest's folder, which only its owner can enter: the server refuses to run as root
    folder = Path(tempfile.mkdtemp(prefix="dekag-pg-"))
    data = folder / "data"
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, USER)
        run("initdb", "-D", data, "-U", USER, "-A", "trust", "-N", "--no-locale", "-E", "UTF8")
        options = f"-c listen_addresses='' -k {folder} -c fsync=off"
        run("pg_ctl", "-D", data, "-l", folder / "log", "-o", options, "-w", "start")
        try:
            yield f"postgresql://{USER}@/{{database}}?host={folder}"
        finally:
            run("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(program: str, *words: object) -> None:
    """Run one of PostgreSQL's programs as a user that it accepts; its output is shown if it fails."""
    command = [str(INSTALLED[-1] / program), *map(str, words)]
    if os.geteuid() == 0:
        command = ["runuser", "-u", USER, "--", *command]
    # to a file: a server that is started holds what it inherits, and a pipe would never end
    with tempfile.TemporaryFile("w+") as said:
        done = subprocess.run(command, stdout=said, stderr=said, cwd="/", check=False)
        said.seek(0)
        assert done.returncode == 0, f"{program}: {said.read()}"
