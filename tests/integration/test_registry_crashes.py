"""kill -9 in the middle of a publish and of a pull: readers and the next start find whole states only."""

import itertools
import multiprocessing
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from published_registry import RegistrySetup, check_shelf, http_server, make_bundle

from dekag.bundle.bundle import load_bundle
from dekag.registry.archive import export_archive, import_archive

FORK = multiprocessing.get_context("fork")
pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


def started(act: Callable[[], object]) -> multiprocessing.process.BaseProcess:
    """A process that is about to do something."""
    begun, began = FORK.Pipe(duplex=False)

    def run() -> None:
        torch.set_num_threads(1)
        began.send(None)
        act()

    process = FORK.Process(target=run)
    process.start()
    begun.recv()
    begun.close()
    began.close()
    return process


def killed(act: Callable[[], object], after_s: float) -> bool:
    """Do something in a process that is killed after a while; whether it was still at it."""
    process = started(act)
    time.sleep(after_s)
    process.kill()
    process.join()
    return process.exitcode == -9


def length_of(act: Callable[[], object]) -> float:
    """Seconds that it takes in a process of its own."""
    process, start = started(act), time.monotonic()
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - start


def check_publish(setup: RegistrySetup, cycles: int) -> None:
    """Kill a publisher at random moments; after each a reader pulls one of its bundles, and it is whole."""
    paths = [setup.folder / f"next{number}" for number in range(4)]
    ids = [make_bundle(path, seed=100 + number, count=20_000) for number, path in enumerate(paths)]

    def publish(path: Path) -> str:
        return setup.repository.publish(path, channel="stable", name="cala")

    def publisher() -> None:
        for path in itertools.cycle(paths):
            publish(path)

    publish(paths[0])
    length = length_of(lambda: publish(paths[1]))
    rng, cut, changed, last = random.Random(0), 0, 0, ids[1]
    for number in range(cycles):
        cut += killed(publisher, rng.uniform(0, 2 * length))
        (seen,) = setup.pull(name="edge" if number % 10 else f"fresh{number}")
        assert seen in ids
        changed += seen != last
        last = seen
        check_shelf(setup.shelf())
    assert setup.pull() == [last]
    assert publish(paths[0]) == setup.pull()[0]
    print(
        f"{cycles} publishers, {cut} of them killed, {changed} got a bundle through: no half-visible bundle"
    )
    assert cut == cycles


def check_pull(setup: RegistrySetup, cycles: int) -> None:
    """Kill an edge at random moments; after each it starts on whole bundles, at once, and goes on pulling."""
    ids = [setup.publish(count=30_000, name=name) for name in ("one", "two")]
    rng, cut, longest = random.Random(0), 0, 0.0
    with http_server(setup.registry) as server:
        url = f"http://127.0.0.1:{server.port}"

        def edge() -> None:
            client, shelf = setup.client(url), setup.shelf()
            while True:
                for listing in client.channel("stable"):
                    client.fetch(listing, shelf)
                    shelf.activate(listing.id)
                    for other in shelf.bundles():
                        if not other.active:
                            shelf.remove(other.id)

        setup.pull(url)
        length = length_of(lambda: setup.pull(url, name="measure"))
        for _ in range(cycles):
            cut += killed(edge, rng.uniform(0, 1.5 * length))
            start = time.monotonic()
            shelf = setup.shelf()
            active = shelf.active("transmission")
            assert active in ids
            assert load_bundle(shelf.path(active)).id == active
            longest = max(longest, time.monotonic() - start)
            check_shelf(shelf)
        assert set(setup.pull(url)) == set(ids)
    check_shelf(setup.shelf())
    parts = list((setup.shelf().folder / "incoming").iterdir())
    print(
        f"{cycles} edges, {cut} of them killed: every bundle whole, the last good one loaded within {longest:.2f} s"
    )
    assert cut == cycles
    assert longest < 5
    assert not parts
    assert not list((setup.folder / "edge" / "registry" / "metadata").glob("tmp*"))


def check_import(setup: RegistrySetup, cycles: int) -> None:
    """Kill an import at random moments; readers of the folder see the old archive or the new one."""
    air, archives, ids = setup.folder / "air", [], []
    for number in range(2):
        ids.append(setup.publish(count=20_000 + number))
        archives.append(setup.folder / f"{number}.tar")
        export_archive(str(setup.registry), archives[-1], root=setup.root)
    import_archive(archives[0], air, root=setup.root)
    length = length_of(lambda: import_archive(archives[0], air))
    rng = random.Random(0)
    for number in range(cycles):
        name = f"reader{number}"
        killed(lambda: import_archive(archives[1], air), rng.uniform(0, length))
        assert set(setup.pull(air, name=name)) <= set(ids)
    import_archive(archives[1], air)
    assert setup.pull(air) == [ids[1]]
    assert not list(air.glob(".import-*"))


def test_publishers_wait_for_each_other(tmp_path: Path) -> None:
    """Two at once, eight bundles each: all are listed, and a reader meanwhile never meets half a moment."""
    setup = RegistrySetup(tmp_path)
    setup.publish()
    for number in range(2):
        make_bundle(tmp_path / f"b{number}", seed=50 + number)

    def publish(number: int) -> None:
        for count in range(8):
            setup.repository.publish(tmp_path / f"b{number}", channel="stable", name=f"{number}-{count}")

    first, second = (started(partial(publish, number)) for number in range(2))
    looks = 0
    while first.is_alive() or second.is_alive():
        setup.client().channel("stable")
        looks += 1
    first.join()
    second.join()
    assert first.exitcode == second.exitcode == 0
    listed = {listing.name for listing in setup.client().channel("stable")}
    assert listed == {"cala", *(f"{number}-{count}" for number in range(2) for count in range(8))}
    print(f"16 bundles by two publishers, {looks} looks meanwhile")


def test_kills_in_publish(tmp_path: Path) -> None:
    """2 of the 500 below."""
    check_publish(RegistrySetup(tmp_path), 2)


def test_kills_in_pull(tmp_path: Path) -> None:
    """2 of the 500 below."""
    check_pull(RegistrySetup(tmp_path), 2)


def test_kills_in_import(tmp_path: Path) -> None:
    check_import(RegistrySetup(tmp_path), 4)


@pytest.mark.slow
def test_many_kills_in_publish(tmp_path: Path) -> None:
    """500 publishers killed at random moments: a reader sees the old bundle or the new one, always whole."""
    check_publish(RegistrySetup(tmp_path), 500)


@pytest.mark.slow
def test_many_kills_in_pull(tmp_path: Path) -> None:
    """500 edges killed at random moments: all that is on the shelf is whole, and the last good one loads in 5 s."""
    check_pull(RegistrySetup(tmp_path), 500)
