"""Registries that live on: what is renewed in time, what is left to other keys, and that edges follow."""

import json
import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from command_line import dekag
from published_registry import RegistrySetup, before
from running_service import free_port

from dekag.registry import Lifetimes, RegistryError, Repository
from dekag.registry.expiry import Expiry, published_expiries
from dekag.registry.keys import ROLES
from dekag.registry.renewal import Renewal, require_fresh
from dekag.registry.signed import now
from dekag.serving.up import Site, prepare
from dekag.types import InputError
from dekag.world import load_world

ALL = dict.fromkeys(ROLES, "renewed")


def signed_days_ago(folder: Path, days: float) -> RegistrySetup:
    """A registry with one bundle, all of it signed so long ago."""
    setup = RegistrySetup(folder, clock=before(days))
    setup.publish()
    return setup


def today(setup: RegistrySetup) -> Repository:
    """The registry by the clock on the wall."""
    return Repository(str(setup.registry), setup.keys)


def outcomes(renewals: tuple[Renewal, ...]) -> dict[str, str]:
    return {renewal.expiry.role: renewal.outcome for renewal in renewals}


def move_keys(setup: RegistrySetup, pattern: str) -> Path:
    """Put keys into a safe."""
    safe = setup.folder / "safe"
    safe.mkdir(exist_ok=True)
    for path in setup.keys.glob(pattern):
        shutil.move(path, safe)
    return safe


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        (0, {**ALL, "root": "not due", "targets": "not due"}),
        (44, {**ALL, "root": "not due", "targets": "not due"}),
        (46, {**ALL, "root": "not due"}),
        (182, {**ALL, "root": "not due"}),
        (183, ALL),
        (4000, ALL),
    ],
)
def test_what_is_due_is_renewed(tmp_path: Path, days: int, expected: dict[str, str]) -> None:
    """Half of 90 days for targets, half of 365 for root; what expired years ago as well, while its keys are there."""
    setup = signed_days_ago(tmp_path, days)
    renewals = today(setup).refresh()
    assert outcomes(renewals) == expected
    described = today(setup).describe()["roles"]
    for renewal in renewals:
        role = renewal.expiry.role
        assert described[role]["version"] == renewal.expiry.version
        assert described[role]["expires"] == renewal.expiry.expires.isoformat()
        if expected[role] == "renewed":
            assert renewal.expiry.left(now()) > Lifetimes().of(role) - timedelta(minutes=1)
    assert setup.pull() == setup.ids
    require_fresh(renewals, now())


def test_everything_is_renewed_on_request(tmp_path: Path) -> None:
    setup = signed_days_ago(tmp_path, 0)
    assert outcomes(today(setup).refresh(everything=True)) == ALL
    assert setup.pull() == setup.ids


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("root-*", {**ALL, "root": "no key here"}),
        ("targets-*", {**ALL, "targets": "no key here"}),
        (
            "snapshot-*",
            {"root": "renewed", "targets": "no key here", "snapshot": "no key here", "timestamp": "renewed"},
        ),
        ("timestamp-*", {**dict.fromkeys(ROLES, "no key here"), "root": "renewed"}),
        ("*.pem", dict.fromkeys(ROLES, "no key here")),
    ],
)
def test_what_has_no_key_here_is_named(tmp_path: Path, keys: str, expected: dict[str, str]) -> None:
    """A new file of a role needs the keys of those that name it; what was not renewed says which keys it takes."""
    setup = signed_days_ago(tmp_path, 200)
    move_keys(setup, keys)
    renewals = today(setup).refresh()
    assert outcomes(renewals) == expected
    for renewal in renewals:
        assert (renewal.why != "") == (renewal.outcome == "no key here")
        if renewal.why:
            print(renewal.told(now()))
            assert "it takes" in renewal.told(now())
    assert today(setup).describe()["channels"][0]["bundles"][0]["id"] == setup.ids[0]


def test_a_root_takes_as_many_keys_as_its_threshold(tmp_path: Path) -> None:
    setup = signed_days_ago(tmp_path, 300)
    (first, *_) = sorted(setup.keys.glob("root-*.pem"))
    first.unlink()
    assert outcomes(today(setup).refresh())["root"] == "renewed"
    setup = signed_days_ago(tmp_path / "other", 300)
    for path in sorted(setup.keys.glob("root-*.pem"))[:2]:
        path.unlink()
    root = today(setup).refresh()[0]
    assert (root.outcome, root.expiry.version) == ("no key here", 1)
    assert "takes 2 keys of root and here is 1" in root.told(now())


def test_a_key_that_cannot_be_read_does_not_hold_up_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root keys under another passphrase: what needs them not is signed. Without that of the rest, it is an error."""
    monkeypatch.setenv("DEKAG_KEY_PASSPHRASE", "correct horse")
    setup = signed_days_ago(tmp_path, 200)
    for path in setup.keys.glob("root-*.pem"):
        path.write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\nnone\n-----END ENCRYPTED PRIVATE KEY-----\n")
    renewals = today(setup).refresh()
    assert outcomes(renewals) == {**ALL, "root": "no key here"}
    assert "DEKAG_KEY_PASSPHRASE" in renewals[0].told(now())
    monkeypatch.setenv("DEKAG_KEY_PASSPHRASE", "")
    with pytest.raises(InputError, match="must hold its passphrase"):
        today(setup).refresh()


def test_an_edge_that_slept_follows_renewed_roots(tmp_path: Path) -> None:
    """Its root expired long ago; three more followed, each signed by the keys of the one before."""
    days = [1000.0]

    def clock() -> datetime:
        return now() - timedelta(days=days[0])

    setup = RegistrySetup(tmp_path, clock=clock)
    setup.publish()
    for days[0] in (800.0, 600.0, 300.0):
        assert outcomes(setup.repository.refresh())["root"] == "renewed"
    days[0] = 0.0
    assert outcomes(setup.repository.refresh()) == ALL
    client = setup.client()
    assert [listing.id for listing in client.channel("stable")] == setup.ids
    assert client.expiries()["root"] > now() + timedelta(days=364)


@pytest.mark.parametrize(
    ("days", "standings"),
    [
        (0, ["good"] * 4),
        (5.5, ["good", "good", "good", "renew soon"]),
        (20, ["good", "good", "expired", "expired"]),
        (70, ["good", "renew soon", "expired", "expired"]),
        (300, ["renew soon", "expired", "expired", "expired"]),
        (400, ["expired"] * 4),
    ],
)
def test_how_it_is_with_each_role_is_told(
    tmp_path: Path, days: float, standings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """From a quarter of the lifetime on it is time to renew; in the list and in its JSON."""
    setup = signed_days_ago(tmp_path, days)
    options = ("--registry", setup.registry, "--keys", setup.keys)
    listed = dekag(capsys, "registry", "list", *options)
    told = json.loads(dekag(capsys, "registry", "list", *options, "--json").out)["roles"]
    assert [told[role]["standing"] for role in ROLES] == standings
    for line, role, standing in zip(listed.out.splitlines(), ROLES, standings, strict=False):
        assert line.startswith(role)
        assert ("EXPIRED" in line, "renew soon" in line) == (standing == "expired", standing == "renew soon")
        lifetime = Lifetimes().of(role) / timedelta(days=1)
        assert told[role]["days_left"] == pytest.approx(lifetime - days, abs=0.05)


def test_lifetimes_of_the_keys_count(tmp_path: Path) -> None:
    """Soon is a quarter of what the registry was made with; of an expiry alone, of what is usual."""
    Repository.init(str(tmp_path / "r"), tmp_path / "k", lifetimes=Lifetimes(timestamp=40), clock=before(5.5))
    assert (
        Repository(str(tmp_path / "r"), tmp_path / "k").describe()["roles"]["timestamp"]["standing"] == "good"
    )
    expiry = Expiry(role="timestamp", version=1, expires=now() + timedelta(days=2))
    assert expiry.standing(now(), Lifetimes().of("timestamp")) == "good"
    assert expiry.standing(now(), timedelta(days=8)) == "renew soon"


def test_refresh_says_what_it_did_and_what_it_could_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A warning names the keys; what has expired and stays so is one line and not 0."""
    setup = signed_days_ago(tmp_path, 200)
    safe = move_keys(setup, "root-*")
    options = ("--registry", setup.registry, "--keys", setup.keys)
    done = dekag(capsys, "registry", "refresh", *options)
    assert done.code == 0
    assert done.out.splitlines()[0].endswith(": no key here")
    assert done.out.splitlines()[1].endswith("(90 days left): renewed")
    assert "root expires on" in done.err
    assert "it takes 2 keys of root and here are 0" in done.err
    for path in safe.iterdir():
        shutil.move(path, setup.keys)
    done = dekag(capsys, "registry", "refresh", *options)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[0].endswith(": renewed")
    assert done.out.splitlines()[1].endswith(": not due")


def test_refresh_of_what_has_expired_and_stays_so_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup = signed_days_ago(tmp_path, 400)
    move_keys(setup, "root-*")
    done = dekag(capsys, "registry", "refresh", "--registry", setup.registry, "--keys", setup.keys)
    assert done.code == 2
    assert len(done.err.strip().splitlines()) == 1
    assert "root expired on" in done.err
    assert [line.rpartition(": ")[2] for line in done.out.splitlines()] == [
        "no key here",
        *["renewed"] * 3,
    ]


def test_what_is_published_can_be_read_without_keys(tmp_path: Path) -> None:
    """As a cloud does that has none: the same as who has them says."""
    setup = signed_days_ago(tmp_path, 10)
    setup.repository.rotate_keys("root")

    def read(path: str) -> bytes | None:
        file = setup.registry / path
        return file.read_bytes() if file.exists() else None

    roles = setup.repository.describe()["roles"]
    for first in (1, 2):
        found = published_expiries(read, first_root=first)
        assert [(each.role, each.version, each.expires.isoformat()) for each in found] == [
            (role, part["version"], part["expires"]) for role, part in roles.items()
        ]
    (setup.registry / "metadata" / "timestamp.json").write_bytes(b"{")
    with pytest.raises(RegistryError, match=r"timestamp\.json is damaged"):
        published_expiries(read)
    (setup.registry / "metadata" / "timestamp.json").unlink()
    with pytest.raises(RegistryError, match=r"has no metadata/timestamp\.json"):
        published_expiries(read)


def prepared_days_ago(site: Site, clock: Callable[[], datetime]) -> Repository:
    """What `dekag up` left behind some time ago."""
    cloud = site.cloud
    cloud.folder.mkdir(parents=True)
    repository = Repository.init(cloud.registry_address, cloud.keys_folder, clock=clock)
    world = load_world(site.world)
    for kind, name in (("generation", "makd"), ("transmission", "cala")):
        repository.publish(world.update(kind), channel="stable", name=name)  # type: ignore[arg-type]
    return Repository(cloud.registry_address, cloud.keys_folder)


def test_up_renews_the_registry_that_it_finds(tmp_path: Path) -> None:
    """400 days old with all keys: good again. Without the root keys: one line that names root."""
    site = Site(folder=tmp_path / "site", port=free_port(), cloud_port=free_port())
    repository = prepared_days_ago(site, before(400))
    prepare(site)
    assert {part["standing"] for part in repository.describe()["roles"].values()} == {"good"}
    site = Site(folder=tmp_path / "other", port=free_port(), cloud_port=free_port())
    prepared_days_ago(site, before(400))
    for path in site.cloud.keys_folder.glob("root-*"):
        path.unlink()
    with pytest.raises(InputError, match="root expired on"):
        prepare(site)
