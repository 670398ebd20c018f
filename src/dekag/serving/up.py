"""Cloud, one edge and the page on this machine, in one folder: what `dekag up` starts.

FOLDER/cloud/    registry, keys and database        FOLDER/cloud.log    what the cloud logged
FOLDER/edge/     what the edge keeps                FOLDER/edge.log     what the edge logged
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from dekag.errors import InputError
from dekag.registry.renewal import require_fresh
from dekag.registry.repository import Repository
from dekag.registry.signed import now
from dekag.serving.canaries import canary_of
from dekag.serving.cloud.database import migrate, open_database
from dekag.serving.cloud.settings import CloudSettings
from dekag.training.run import OnStage
from dekag.world import UPDATE_NAMES, load_world
from dekag.world.shipped import DEFAULT_WORLD

HOST = "127.0.0.1"
CHANNEL = "stable"
START_SECONDS = 120.0
STOP_SECONDS = 20.0
CANARY_PROMPTS = 2


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where everything is and listens.

    Raises InputError if both are to listen on one port.
    """

    folder: Path
    port: int = 8000
    cloud_port: int = 8001
    world: str = DEFAULT_WORLD
    """A shipped world or the folder of one, as the services are told it."""

    def __post_init__(self) -> None:
        if self.port == self.cloud_port:
            raise InputError(f"the edge and the cloud need a port each, got {self.port} for both")

    @property
    def edge_url(self) -> str:
        """Address of the edge, and of the page."""
        return f"http://{HOST}:{self.port}"

    @property
    def cloud_url(self) -> str:
        """Address of the cloud, whose registry is below it."""
        return f"http://{HOST}:{self.cloud_port}"

    @property
    def cloud(self) -> CloudSettings:
        """The cloud's settings, but for what the environment says."""
        folder = self.folder / "cloud"
        return CloudSettings(folder=folder, port=self.cloud_port, world=self.world)

    @property
    def root(self) -> Path:
        """What edges trust first."""
        return self.cloud.keys_folder / "root.json"


def prepare(site: Site, *, on_stage: OnStage = lambda _: None) -> None:
    """Make registry and database where there are none, and publish the world's updates where they are not.

    What a registry from before has signed is signed anew in time.
    Raises InputError if the world has no update of a kind, a port is taken, or the registry has expired and the keys
    that renew it are elsewhere.
    """
    world = load_world(site.world)
    sources = {name: world.update(kind) for kind, name in UPDATE_NAMES.items()}
    for port in (site.port, site.cloud_port):
        _require_free(port)
    cloud = site.cloud
    cloud.folder.mkdir(parents=True, exist_ok=True)
    on_stage("database")
    engine = open_database(cloud.database_address)
    migrate(engine)
    engine.dispose()
    on_stage("registry")
    if not Path(cloud.registry_address, "metadata", "timestamp.json").exists():
        Repository.init(cloud.registry_address, cloud.keys_folder)
    repository = Repository(cloud.registry_address, cloud.keys_folder)
    require_fresh(repository.refresh(), now())
    if missing := _unpublished(repository, sources):
        prompts = world.prompts("validation")[:CANARY_PROMPTS]
        for name in missing:
            on_stage(f"publish {name}")
            canary = canary_of(world, sources[name], prompts)
            repository.publish(sources[name], channel=CHANNEL, name=name, canary=canary)


@contextmanager
def running(site: Site, *, on_stage: OnStage = lambda _: None) -> Iterator[Sequence[subprocess.Popen[bytes]]]:
    """The cloud and the edge, each in a process of its own and ready; both are stopped afterwards.

    Raises InputError with what it said last if one of them does not start.
    """
    pages = [site.edge_url, f"http://localhost:{site.port}"]
    cloud_options = ["--folder", str(site.folder / "cloud"), "--port", str(site.cloud_port)]
    edge_options = [
        *("--folder", str(site.folder / "edge"), "--port", str(site.port), "--cloud", site.cloud_url),
        *("--registry", f"{site.cloud_url}/registry", "--root", str(site.root), "--channel", CHANNEL),
    ]
    with ExitStack() as stack:
        on_stage("cloud")
        allowed = {"DEKAG_CLOUD_ALLOWED_ORIGINS": json.dumps(pages)}
        cloud = stack.enter_context(_process(site, "cloud", cloud_options, allowed))
        _wait_ready(cloud, site.cloud_url, site.folder / "cloud.log")
        on_stage("edge")
        edge = stack.enter_context(_process(site, "edge", edge_options, {}))
        _wait_ready(edge, site.edge_url, site.folder / "edge.log")
        yield (cloud, edge)


@contextmanager
def until_stopped() -> Iterator[None]:
    """What is within ends in order, and the program with 0, at SIGINT or SIGTERM; a second one changes nothing."""
    numbers = (signal.SIGINT, signal.SIGTERM)

    def stop(*_: object) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise SystemExit(0)

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def alignment_lines(site: Site) -> list[str]:
    """What the edge says of its updates, a line for each kind."""
    with httpx2.Client(timeout=10.0, trust_env=False) as client:
        states = client.get(f"{site.edge_url}/v1/bundles").json()["alignment"]
    return [
        f"{state['kind']:14} {state['state']}"
        + (f" with {state['bundle'][:12]}" if state["bundle"] else "")
        + (f": {state['reason']}" if state["reason"] else "")
        for state in states
    ]


def wait(site: Site, processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait until somebody interrupts. Raises InputError if a process ends by itself."""
    while True:
        for process, name in zip(processes, ("cloud", "edge"), strict=True):
            if process.poll() is not None:
                raise InputError(_last_words(name, site.folder / f"{name}.log"))
        time.sleep(0.5)


def _unpublished(repository: Repository, sources: Mapping[str, Path]) -> list[str]:
    """Names of the updates that were never published; one that somebody replaced stays replaced."""
    listed = {
        bundle["name"]
        for channel in repository.describe()["channels"]
        for bundle in channel["bundles"]
        if channel["channel"] == CHANNEL
    }
    return [name for name in sources if name not in listed]


@contextmanager
def _process(
    site: Site, party: str, options: Sequence[str], environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """`dekag serve PARTY`, with its log in a file; asked to stop afterwards, then made to.

    It stops by itself if this process is killed: nobody holds the other end of its standard input then.
    """
    command = [sys.executable, "-m", "dekag", "serve", party, "--world", site.world, *options]
    prefix = f"DEKAG_{party.upper()}_"
    # nobody is in front of it who has to be told before it stops
    defaults = {f"{prefix}DRAIN_SECONDS": "0", f"{prefix}STOP_WITH_INPUT": "1"}
    with (site.folder / f"{party}.log").open("ab") as log:
        # a session of its own: an interrupt from the terminal is for us, and we stop it in order
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env={**defaults, **os.environ, **environment},
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdin is not None
        process.stdin.close()


def _wait_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait until the service says that it can work."""
    deadline, reason = time.monotonic() + START_SECONDS, "it does not answer"
    with httpx2.Client(timeout=2.0, trust_env=False) as client:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise InputError(_last_words(log.stem, log))
            try:
                answer = client.get(f"{url}/readyz")
            except httpx2.TransportError:
                pass  # it does not listen yet
            else:
                if answer.status_code == 200:
                    return
                reason = answer.json()["error"]["message"]
            time.sleep(0.1)
    raise InputError(f"{url} was not ready within {START_SECONDS:g} s: {reason}; {log} says more")


def _last_words(name: str, log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"the {name} has stopped: {lines[-1][:300] if lines else 'it said nothing'}; {log} has all of it"


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise InputError(f"port {port} is taken ({error.strerror}); choose others") from error
