"""Backups of the cloud's database are checked before they replace one, and what is damaged is not migrated."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from command_line import dekag
from damaged_files import SPOILS, garbage

from dekag.serving.cloud.database import migrate, open_database, require_sound
from dekag.serving.cloud.settings import CloudSettings
from dekag.serving.cloud.store import JobStore


@pytest.fixture
def settings(tmp_path: Path) -> CloudSettings:
    """Of a cloud with some jobs."""
    settings = CloudSettings(folder=tmp_path / "cloud")
    engine = open_database(settings.database_address)
    migrate(engine)
    store = JobStore(engine)
    for number in range(12):
        store.submit(f"job{number}", {"name": "fruit", "note": "x" * 400}, most=99)
    engine.dispose()
    return settings


@pytest.fixture
def file(settings: CloudSettings) -> Path:
    return settings.folder / "cloud.db"


def test_a_backup_is_checked_before_it_replaces_one(
    settings: CloudSettings, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A damaged source is one line and exit code 1, and the backup of yesterday stays as it was."""
    out = tmp_path / "backup.db"
    words = ("cloud", "backup", out, "--folder", settings.folder)
    assert dekag(capsys, *words).code == 0
    require_sound(out, check="integrity_check")
    kept = out.read_bytes()
    for spoil in SPOILS:
        good = file.read_bytes()
        spoil(file)
        done = dekag(capsys, *words)
        assert done.code == 1, done
        assert done.out == ""
        assert len(done.err.strip().splitlines()) == 1
        assert "backup.db was not written and is as it was" in done.err
        assert "cloud.db" in done.err
        assert "restore a backup of it" in done.err
        assert out.read_bytes() == kept
        file.write_bytes(good)
    assert dekag(capsys, *words).code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"cloud", "backup.db"}


def test_a_backup_of_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sound, but of no cloud."""
    with closing(sqlite3.connect(tmp_path / "other.db")) as database:
        database.execute("CREATE TABLE recipes (name)")
    done = dekag(capsys, "cloud", "backup", tmp_path / "b.db", "--database", f"sqlite:///{tmp_path}/other.db")
    assert done.code == 1
    assert "other.db holds no tables of a cloud" in done.err
    assert not (tmp_path / "b.db").exists()


def test_a_damaged_database_is_not_migrated(
    settings: CloudSettings, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    garbage(file)
    done = dekag(capsys, "cloud", "migrate", "--folder", settings.folder)
    assert done.code == 2
    assert len(done.err.strip().splitlines()) == 1
    assert "the database is damaged; restore a backup of it" in done.err
