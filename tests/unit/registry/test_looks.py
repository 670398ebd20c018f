"""What an edge knows of its registry without asking it: the last good look, and until when what it verified holds."""

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from published_registry import RegistrySetup, before

from dekag.registry import Expiry, Looked, RegistryClient, RegistryError, earliest
from dekag.registry.expiry import read_expiries
from dekag.registry.signed import now


@pytest.fixture
def setup(tmp_path: Path) -> RegistrySetup:
    return RegistrySetup(tmp_path)


def client_at(setup: RegistrySetup, moment: float) -> RegistryClient:
    """A client at some time."""
    folder = setup.folder / "edge" / "registry"
    return RegistryClient(str(setup.registry), folder, root=setup.root, clock=lambda: moment)


def test_a_good_look_is_kept(setup: RegistrySetup) -> None:
    """Another client of the folder reads it; a look that fails changes nothing of it."""
    first = setup.publish()
    assert client_at(setup, 5.0).last("stable") is None
    listed = client_at(setup, 1234.5).channel("stable")
    looked = client_at(setup, 9.0).last("stable")
    assert looked is not None
    assert (looked.checked, looked.channel) == (1234, "stable")
    assert [(one.id, one.kind, one.base_digest, one.name) for one in looked.listed] == [
        (one.id, one.kind, one.base_digest, one.name) for one in listed
    ]
    assert client_at(setup, 9.0).last("canary") is None
    (setup.registry / "metadata" / "timestamp.json").unlink()
    with pytest.raises(RegistryError):
        client_at(setup, 99.0).channel("stable")
    assert client_at(setup, 9.0).last("stable") == looked
    assert [one.id for one in looked.listed] == [first]


@pytest.mark.parametrize(
    "raw", [b"", b"{}", b"\xff", b"[" * 9000, b'{"checked":-1,"channel":"stable","listed":[]}']
)
def test_a_note_that_cannot_be_read_is_none(setup: RegistrySetup, raw: bytes) -> None:
    """It is not worth an error: the next good look writes it anew."""
    setup.publish()
    client = client_at(setup, 7.0)
    client.channel("stable")
    (client.folder / "looked.json").write_bytes(raw)
    assert client.last("stable") is None
    client.channel("stable")
    assert isinstance(client.last("stable"), Looked)
    assert json.loads((client.folder / "looked.json").read_bytes())["channel"] == "stable"


def test_the_expiries_that_an_edge_has_verified(setup: RegistrySetup) -> None:
    """Those that the publisher says; none before the first look, none of a file that is spoilt."""
    setup.publish()
    client = client_at(setup, 7.0)
    assert client.expiries() == {}
    client.channel("stable")
    roles = setup.repository.describe()["roles"]
    assert {role: moment.isoformat() for role, moment in client.expiries().items()} == {
        role: part["expires"] for role, part in roles.items()
    }
    found = read_expiries(client.metadata)
    first = earliest(found)
    assert first is not None
    assert first.role == "timestamp"
    assert earliest(()) is None
    (client.metadata / "snapshot.json").write_bytes((client.metadata / "targets.json").read_bytes())
    (client.metadata / "targets.json").write_bytes(b"{")
    assert set(client.expiries()) == {"root", "timestamp"}


def test_a_file_has_expired_from_its_second_on() -> None:
    """As for the readers of `tuf`, which refuse it then."""
    expiry = Expiry(role="root", version=1, expires=before(0)())
    assert expiry.expired(expiry.expires)
    assert not expiry.expired(expiry.expires - timedelta(seconds=1))
    assert not replace(expiry, expires=now() + timedelta(days=1)).expired(now())
