"""What every test relies on: no network, few threads, and the helpers and recipes on the path."""

import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
# not the user's, whose exports would choose another engine; those of all processes share one
if "PYTEST_XDIST_WORKER" not in os.environ:
    CACHE = tempfile.TemporaryDirectory(prefix="dekag-tests-")
    os.environ["DEKAG_CACHE"] = CACHE.name

import pytest
import torch

ROOT = Path(__file__).parents[1]
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

sys.path[:0] = [str(ROOT / "tests" / "helpers"), str(ROOT / "recipes" / "emoji")]
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Make every connection to another machine fail at once."""
    connect, connect_ex, getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def guarded_connect(self: socket.socket, address: Any) -> None:
        refuse(self.family, address)
        connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        refuse(self.family, address)
        return connect_ex(self, address)

    def guarded_getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        refuse(socket.AF_INET, (host,))
        return getaddrinfo(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded_connect)
        patch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
        patch.setattr(socket, "getaddrinfo", guarded_getaddrinfo)
        yield


@pytest.fixture(scope="session")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where decoders as ONNX are kept for all tests: they take seconds to make and are named by their contents."""
    return tmp_path_factory.mktemp("decoders")


def refuse(family: int, address: Any) -> None:
    """Raise unless the address is on this machine."""
    if family in {socket.AF_INET, socket.AF_INET6} and address[0] not in LOOPBACK | {None, ""}:
        raise RuntimeError(f"a test tried to reach {address[0]}; tests run without a network")
