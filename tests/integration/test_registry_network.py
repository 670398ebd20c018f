"""Pulls over a network that cuts, crawls and flips bits, and onto a disk that is full."""

import multiprocessing
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from fault_proxy import FaultProxy, Faults
from published_registry import RegistrySetup, check_shelf, http_server, make_bundle

from dekag.registry import RegistryClient, RegistryError
from dekag.registry.download import Patience
from dekag.registry.source import HttpSource

TEN_MB = 2_500_000
"""So many numbers in float32 are ten megabytes."""
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> RegistrySetup:
    """A registry with one bundle of ten megabytes."""
    setup = RegistrySetup(tmp_path_factory.mktemp("large"))
    setup.publish(count=TEN_MB)
    return setup


def through(
    setup: RegistrySetup, faults: Faults, name: str, patience: Patience | None = None
) -> tuple[float, int]:
    """Pull through a proxy; bytes that were delivered for each byte of the bundle, and connections."""
    with http_server(setup.registry) as server, FaultProxy(server.port, faults) as proxy:
        client = RegistryClient(
            f"http://127.0.0.1:{proxy.port}",
            setup.folder / name / "registry",
            root=setup.root,
            patience=patience or Patience(failures=5, pause_s=0.01),
        )
        shelf = setup.shelf(name)
        try:
            for listing in client.channel("stable"):
                client.fetch(listing, shelf)
        finally:
            check_shelf(shelf)
            size = 4 * TEN_MB
        return proxy.delivered / size, proxy.connections


FAULTS = {
    "none": Faults(),
    "cut every 300 kB": Faults(cut_after=300_000),
    "cut every 97 kB": Faults(cut_after=97_001),
    "reset every 500 kB": Faults(cut_after=500_000, reset=True),
    "slow": Faults(bytes_per_s=5e6),
    "slow and cut": Faults(bytes_per_s=8e6, cut_after=400_000),
}


@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS.keys())
def test_ten_megabytes_over_a_bad_network(
    large: RegistrySetup, faults: Faults, request: pytest.FixtureRequest
) -> None:
    """All of it arrives with at most 1.1 times its bytes, as each connection goes on where the last one ended."""
    ratio, connections = through(large, faults, request.node.callspec.id.replace(" ", "-"))
    print(f"{request.node.callspec.id}: {ratio:.4f} bytes a byte in {connections} connections")
    assert ratio <= 1.1
    if faults.cut_after is not None:
        assert connections > 4 * TEN_MB / faults.cut_after


def test_a_resumed_pull_asks_for_the_rest(large: RegistrySetup) -> None:
    """A pull that was given up leaves what it has; the next one, in whatever process, asks for the rest alone."""
    with http_server(large.registry) as server:
        honest = server.spoil
        server.spoil = lambda path, status, *answer: (503 if status == 206 else status, *answer)
        with FaultProxy(server.port, Faults(cut_after=6_000_000)) as proxy:
            client = large.client(f"http://127.0.0.1:{proxy.port}", name="resumed")
            (listing,) = client.channel("stable")
            with pytest.raises(RegistryError) as caught:
                client.fetch(listing, large.shelf("resumed"))
        assert caught.value.fault == "unreachable"
        (part,) = (large.folder / "resumed" / "shelf" / "incoming").iterdir()
        held = part.stat().st_size
        assert 5_990_000 < held < 6_000_000
        server.spoil = honest
        server.asked.clear()
        large.client(f"http://127.0.0.1:{server.port}", name="resumed").fetch(listing, large.shelf("resumed"))
        assert [wanted for path, wanted in server.asked if path.endswith(".tar")] == [f"bytes={held}-"]
    check_shelf(large.shelf("resumed"))
    assert not part.exists()


@pytest.mark.parametrize(("share", "seed"), [(0.02, 0), (0.02, 1), (0.0003, 2), (0.0003, 3), (0.0003, 4)])
def test_flipped_bits(large: RegistrySetup, share: float, seed: int) -> None:
    """One bit in some chunks, 2 % or few of them: refused or complete, and never another file on the shelf."""
    try:
        ratio, _ = through(large, Faults(flip=share, seed=seed), f"flipped{seed}")
        outcome = f"complete with {ratio:.2f} bytes a byte"
    except RegistryError as error:
        outcome = f"refused: {error.fault}"
        assert not large.shelf(f"flipped{seed}").bundles()
    print(f"one bit in {100 * share:g} % of chunks: {outcome}")


def test_a_trickle_is_given_up(large: RegistrySetup) -> None:
    """A server that sends a little now and then does not hold an edge for ever."""
    patience = Patience(grace_s=0.5, bytes_per_s=1e9, pause_s=0.01)
    with pytest.raises(RegistryError) as caught:
        through(large, Faults(bytes_per_s=20_000), "trickle", patience)
    assert caught.value.fault == "slow"


@contextmanager
def dripping(prefix: bytes, rate: float) -> Iterator[str]:
    """The address of a server that sends so many bytes at once, then one at a time, for ever."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                connection.recv(1 << 16)
                connection.sendall(prefix)
                while True:
                    connection.sendall(b"x")
                    time.sleep(1 / rate)

        def listen() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=drip, args=listener.accept()[:1], daemon=True).start()

        threading.Thread(target=listen, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


WITH_LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 4000000\r\n\r\n"


@pytest.mark.parametrize("prefix", [WITH_LENGTH, b"HTTP/1.1 200 OK\r\n\r\n", WITH_LENGTH + b"x" * 400])
def test_a_drip_is_refused_after_the_grace(large: RegistrySetup, tmp_path: Path, prefix: bytes) -> None:
    """Twenty bytes a second of a file that may have megabytes: the grace counts, not the largest length."""
    patience = Patience(grace_s=0.5, bytes_per_s=2048.0, pause_s=0.01)
    with dripping(prefix, 20) as url:
        client = RegistryClient(url, tmp_path / "registry", root=large.root, patience=patience)
        started = time.monotonic()
        with pytest.raises(RegistryError, match="at least 2048 a second are needed") as caught:
            client.channel("stable")
    assert caught.value.fault == "slow"
    assert 0.5 < time.monotonic() - started < 1.5


def test_a_head_that_drips_is_refused(large: RegistrySetup, tmp_path: Path) -> None:
    """No body has begun, and no silence is long."""
    with dripping(b"HTTP/1.1 200 OK\r\nX-Long: ", 20) as url:
        client = RegistryClient(HttpSource(url, head_s=0.5), tmp_path / "registry", root=large.root)
        started = time.monotonic()
        with pytest.raises(RegistryError, match=r"no answer began within 0\.5 s") as caught:
            client.channel("stable")
    assert caught.value.fault == "slow"
    assert 0.5 < time.monotonic() - started < 1.5


def test_a_slow_network_that_suffices(tmp_path: Path) -> None:
    """Six times the least rate, and the time is many times the grace: all of it arrives, in breaks too."""
    setup = RegistrySetup(tmp_path)
    setup.publish(count=40_000)
    patience = Patience(grace_s=0.1, bytes_per_s=2e4, pause_s=0.01)
    for number, faults in enumerate((Faults(bytes_per_s=1.2e5), Faults(bytes_per_s=1.2e5, cut_after=30_000))):
        with http_server(setup.registry) as server, FaultProxy(server.port, faults) as proxy:
            url, started = f"http://127.0.0.1:{proxy.port}", time.monotonic()
            folder = setup.folder / str(number) / "registry"
            client = RegistryClient(url, folder, root=setup.root, patience=patience)
            for listing in client.channel("stable"):
                client.fetch(listing, setup.shelf(str(number)))
        assert [bundle.id for bundle in setup.shelf(str(number)).bundles()] == setup.ids
        assert time.monotonic() - started > 1


def test_silence_is_given_up(large: RegistrySetup) -> None:
    """Nobody listens, or whoever does closes at once."""
    with pytest.raises(RegistryError) as caught:
        through(large, Faults(cut_after=0), "silent", Patience(failures=2, pause_s=0.01))
    assert caught.value.fault == "unreachable"


# --- a full disk


def limited(act: Callable[[], object], limit: int, results: Connection) -> None:
    """In a process of its own: no file may pass a size, which is how the system spells a full disk here."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        act()
        results.send("done")
    except OSError as error:
        results.send(str(error))


def on_a_full_disk(act: Callable[[], object], limit: int) -> str:
    results, sender = FORK.Pipe(duplex=False)
    process = FORK.Process(target=limited, args=(act, limit, sender))
    process.start()
    process.join()
    assert process.exitcode == 0
    return str(results.recv())


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_pull_onto_a_full_disk(large: RegistrySetup) -> None:
    """One line that names the file; what was on the shelf is there, the room is given back, and later it succeeds."""
    make_bundle(large.folder / "small", seed=5)
    small = large.repository.publish(large.folder / "small", channel="little", name="a")
    client, shelf = large.client(name="disk"), large.shelf("disk")
    (listing,) = client.channel("little")
    client.fetch(listing, shelf)
    shelf.activate(small)
    (listing,) = client.channel("stable")
    for limit in (4 << 20, 100_000, 4096):
        said = on_a_full_disk(lambda: client.fetch(listing, shelf), limit)
        print(f"full after {limit} bytes: {said}")
        assert said.isprintable()
        assert "was not written" in said
        assert "File too large" in said
        assert not list((shelf.folder / "incoming").iterdir())
        assert shelf.active("transmission") == small
        check_shelf(shelf)
    client.fetch(listing, shelf)
    shelf.activate(listing.id)
    check_shelf(shelf)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_other_writes_to_a_full_disk(large: RegistrySetup) -> None:
    """The state of the shelf, what the client remembers, and what a publisher writes: whole old or whole new."""
    setup = RegistrySetup(large.folder / "other")
    first = setup.publish()
    setup.pull()
    make_bundle(setup.folder / "next", seed=3, count=4000)

    def publish() -> object:
        return setup.repository.publish(setup.folder / "next", channel="stable", name="cala")

    for limit in (0, 200, 600, 5000):
        said = on_a_full_disk(publish, limit)
        assert "File too large" in said, said
        assert setup.pull(name=f"fresh{limit}") == [first]
        assert not list(setup.registry.rglob(".part-*"))
    second = setup.repository.publish(setup.folder / "next", channel="stable", name="cala")
    for limit in (0, 100, 400):
        said = on_a_full_disk(lambda: setup.pull(), limit)
        assert "File too large" in said, said
        assert setup.shelf().active("transmission") == first
    assert setup.pull() == [second]
    assert "File too large" in on_a_full_disk(lambda: setup.shelf().pin(second), 50)
    assert not [bundle for bundle in setup.shelf().bundles() if bundle.pinned]
    check_shelf(setup.shelf())


def test_a_pull_leaves_nothing_beside_the_bundle(large: RegistrySetup, tmp_path: Path) -> None:
    """No part, no temporary file: the shelf holds state, lock, bundle and canary."""
    setup = RegistrySetup(tmp_path)
    bundle = setup.publish()
    setup.pull()
    shelf = setup.shelf().folder
    names = {str(path.relative_to(shelf)) for path in shelf.rglob("*")}
    assert names == {"state.json", ".lock", "incoming", f"{bundle}.tar", f"{bundle}.canary.json"}
