"""`dekag registry`: publish updates that edges can trust, and carry them where no network reaches."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from annotated_types import Ge, Le

from dekag.choices import require_package
from dekag.cli import checks
from dekag.cli.console import needing, print_json, warn, working
from dekag.cli.generated import Options, with_options
from dekag.cli.options import Json, WorldOptions

app = typer.Typer(no_args_is_help=True, help="Publish updates, signed, for edges to pull.")

_REGISTRY: dict[str, Any] = {
    "envvar": "DEKAG_REGISTRY",
    "help": "Folder or URL of the registry, as s3://bucket/registry.",
}
_KEYS: dict[str, Any] = {"envvar": "DEKAG_KEYS", "help": "Folder of the publisher's keys and root.json."}
NewRegistryUrl = Annotated[str, typer.Option("--registry", **_REGISTRY)]
RegistryUrl = Annotated[str, typer.Option("--registry", callback=checks.registry, **_REGISTRY)]
NewKeysFolder = Annotated[Path, typer.Option("--keys", callback=checks.new_folder, **_KEYS)]
KeysFolder = Annotated[Path, typer.Option("--keys", callback=checks.keys, **_KEYS)]
ChannelName = Annotated[str, typer.Option("--channel", help="Channel, as canary or stable.")]
BundlePath = Annotated[
    str, typer.Argument(callback=checks.bundle, help="A shipped bundle's name, a directory or a tar.")
]
BundleId = Annotated[str, typer.Argument(help="Id of a published bundle, or how it begins.")]
Days = Annotated[int, Ge(1), Le(3650)]


@app.callback()
def needed() -> None:
    """Publish updates, signed, for edges to pull."""
    require_package("tuf", reason="a registry needs further packages", extra="serve")


@dataclass(frozen=True, kw_only=True)
class LifetimeOptions:
    """How long the signatures of each role last, in days."""

    root_days: Days = 365
    targets_days: Days = 90
    snapshot_days: Days = 14
    timestamp_days: Days = 7

    def days(self) -> dict[str, int]:
        """Days by role."""
        return {field.name.removesuffix("_days"): getattr(self, field.name) for field in fields(self)}


@app.command()
@with_options
def init(
    registry: NewRegistryUrl,
    keys: NewKeysFolder,
    lifetime: LifetimeOptions,
    threshold: Annotated[int, typer.Option(min=1, help="Root keys that a new root needs.")] = 2,
    root_keys: Annotated[int, typer.Option(min=1, max=16, help="Root keys to make.")] = 3,
) -> None:
    """Make keys and a registry without bundles. Keys are encrypted if DEKAG_KEY_PASSPHRASE is set.

    Signatures of each role last so many days; dekag registry refresh renews them. Edges get KEYS/root.json. Keep
    the root keys elsewhere afterwards: only a new root, once a year, and rotate-keys need them.
    """
    from dekag.registry import Lifetimes, Repository

    lifetimes = Lifetimes(**lifetime.days())
    Repository.init(registry, keys, threshold=threshold, root_keys=root_keys, lifetimes=lifetimes)
    print(f"wrote a registry to {registry} and keys to {keys}; edges need {keys / 'root.json'}")


@app.command()
def publish(
    bundle: BundlePath,
    registry: RegistryUrl,
    keys: KeysFolder,
    name: Annotated[str, typer.Option(help="Name in the channel; one bundle of a name replaces another.")],
    channel: ChannelName = "canary",
    canary: Annotated[
        Path | None, typer.Option(exists=True, help="File of prompts and references for edges' own test.")
    ] = None,
) -> None:
    """Publish a bundle and list it in a channel."""
    from dekag.registry import Canary, Repository
    from dekag.world import locate

    test = None if canary is None else Canary.from_json(canary.read_bytes())
    path = locate(bundle, "bundle")
    bundle_id = Repository(registry, keys).publish(path, channel=channel, name=name, canary=test)
    print(f"published bundle {bundle_id[:12]} in channel {channel}")


@app.command("canary")
@with_options
def make_canary(
    bundle: BundlePath,
    prompts: Annotated[
        list[str], typer.Argument(callback=checks.prompts, help="What to draw; two or three prompts do.")
    ],
    out: Annotated[
        Path, typer.Option("--out", callback=checks.file, help="File to write, for publish --canary.")
    ],
    world: Annotated[WorldOptions, Options(only=("world", "edge", "codec", "preset"))],
    floor_db: Annotated[float, typer.Option(help="Least mean PSNR that an edge must reach.")] = 30.0,
) -> None:
    """Draw what every edge must be able to draw again before it uses a bundle."""
    with needing("serve"):
        from dekag.serving.canaries import canary_of
    from dekag.wire.files import write_bytes
    from dekag.world import locate

    with working("registry canary"):
        raw = canary_of(world.load(), locate(bundle, "bundle"), prompts, floor_db=floor_db).to_json()
    write_bytes(out, raw)
    print(f"wrote {out} ({len(raw)} bytes)")


@app.command()
def promote(
    bundle: BundleId, registry: RegistryUrl, keys: KeysFolder, to: Annotated[str, typer.Option()] = "stable"
) -> None:
    """List a published bundle in another channel; an older one, to go back to it."""
    from dekag.registry import Repository

    bundle_id = Repository(registry, keys).promote(bundle, to=to)
    print(f"channel {to} lists bundle {bundle_id[:12]}")


@app.command()
def withdraw(bundle: BundleId, registry: RegistryUrl, keys: KeysFolder, channel: ChannelName) -> None:
    """List a bundle no more in a channel. Edges keep what they have; it can be promoted again."""
    from dekag.registry import Repository

    bundle_id = Repository(registry, keys).withdraw(channel, bundle)
    print(f"channel {channel} lists bundle {bundle_id[:12]} no more")


@app.command("list")
def list_published(registry: RegistryUrl, keys: KeysFolder, as_json: Json = False) -> None:
    """Say what each channel lists and until when everything is signed. Of the keys it needs root.json alone."""
    from dekag.registry import Repository

    description = Repository(registry, keys).describe()
    if as_json:
        print_json(description)
        return
    print_roles(description["roles"])
    for channel in description["channels"]:
        print(f"channel {channel['channel']}, version {channel['version']}")
        for bundle in channel["bundles"]:
            print(f"  {bundle['id'][:12]}  {bundle['kind']:12}  {bundle['name']}")


@app.command()
def refresh(
    registry: RegistryUrl,
    keys: KeysFolder,
    everything: Annotated[bool, typer.Option("--all", help="All four roles, due or not.")] = False,
) -> None:
    """Sign anew before it expires: snapshot and timestamp always, targets and root in the second half of their time.

    What has no key here is named, and is an error once it has expired. Once a day does.
    """
    from dekag.registry import Repository
    from dekag.registry.renewal import require_fresh
    from dekag.registry.signed import now

    repository = Repository(registry, keys)
    if everything:
        repository.renew()
        print_roles(repository.describe()["roles"])
        return
    renewals = repository.refresh()
    print_roles(repository.describe()["roles"], {each.expiry.role: each.outcome for each in renewals})
    for renewal in renewals:
        if renewal.why and not renewal.expiry.expired(now()):
            warn(renewal.told(now()))
    require_fresh(renewals, now())


@app.command("rotate-keys")
def rotate_keys(
    role: Annotated[
        Literal["root", "targets", "snapshot", "timestamp"], typer.Argument(help="Whose keys to replace.")
    ],
    registry: RegistryUrl,
    keys: KeysFolder,
) -> None:
    """Replace the keys of a role; edges follow by themselves. The old ones move to KEYS/retired."""
    from dekag.registry import Repository

    Repository(registry, keys).rotate_keys(role)
    print(f"{role} has new keys in {keys}")


@app.command("export")
def export_registry(
    registry: RegistryUrl,
    root: Annotated[Path, typer.Option(exists=True, help="The registry's root.json.")],
    out: Annotated[Path, typer.Option("--out", callback=checks.file, help="File to write, a .tar.")],
    channel: Annotated[list[str] | None, typer.Option(help="Channels to export; default: all.")] = None,
) -> None:
    """Write a registry as one tar, to carry where no network reaches."""
    from dekag.registry.archive import export_archive

    listings = export_archive(registry, out, root=root.read_bytes(), channels=channel or ())
    print(f"wrote {out} ({len(listings)} listings, {out.stat().st_size} bytes)")


@app.command("import")
def import_registry(
    folder: Annotated[
        Path, typer.Argument(callback=checks.folder, help="Folder that edges use as their registry.")
    ],
    archive: Annotated[Path, typer.Option("--from", exists=True, help="The tar that was exported.")],
    root: Annotated[
        Path | None, typer.Option(exists=True, help="The registry's root.json, for the first import.")
    ] = None,
) -> None:
    """Verify an exported tar and put what it holds into a folder; anything older than that is refused."""
    from dekag.registry.archive import import_archive

    listings = import_archive(archive, folder, root=None if root is None else root.read_bytes())
    print(f"imported {len(listings)} listings to {folder}")


@app.command()
def pull(
    folder: Annotated[
        Path,
        typer.Argument(callback=checks.folder, help="Folder of an edge: FOLDER/bundles and FOLDER/registry."),
    ],
    registry: RegistryUrl,
    channel: ChannelName = "stable",
    root: Annotated[
        Path | None, typer.Option(exists=True, help="The registry's root.json, for the first pull.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Pull what a channel lists onto an edge's shelf, verified; a broken pull is taken up by the next one.

    The address is http://, https://, file:// or a folder.
    """
    from dekag.registry import RegistryClient, Shelf

    shelf = Shelf(folder / "bundles")
    client = RegistryClient(registry, folder / "registry", root=None if root is None else root.read_bytes())
    listings = client.channel(channel)
    for listing in listings:
        client.fetch(listing, shelf)
    if as_json:
        print_json([vars(bundle) for bundle in shelf.bundles()])
        return
    for listing in listings:
        print(f"{listing.id[:12]}  {listing.kind:12}  {listing.name}  {listing.tar.bytes} bytes")


def print_roles(roles: dict[str, Any], outcomes: Mapping[str, str] | None = None) -> None:
    """A line for each signed file: until when, how that is, and what was done about it."""
    for role, part in roles.items():
        days, standing = part["days_left"], part["standing"]
        left = f"{days:.0f} days left" if days >= 2 else f"{24 * days:.0f} hours left"
        marks = {"good": left, "renew soon": f"{left}, renew soon", "expired": "EXPIRED"}
        done = f": {outcomes[role]}" if outcomes else ""
        print(f"{role:9}  version {part['version']}, expires {part['expires']} ({marks[standing]}){done}")
