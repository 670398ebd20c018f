"""The folder of an edge: read-only but filled, and what is told where it cannot be filled."""

import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from running_service import free_port, run_command
from starlette.testclient import TestClient

from dekag.serving.edge.app import create
from dekag.serving.edge.settings import EdgeSettings
from dekag.world import load_world

READ_ONLY = """
import os, sys
folder, *words = sys.argv[1:]
mount = f"mount --bind {folder} {folder} && mount -o remount,ro,bind {folder} && exec \\"$@\\""
os.execvp("unshare", ["unshare", "-m", "sh", "-c", mount, "sh", sys.executable, "-m", "dekag", *words])
"""
"""A program that sees the folder read-only, and becomes `dekag` with the words."""
may_mount = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not may_mount, reason="this user may not mount a folder read-only")
def test_an_edge_whose_folder_is_read_only_but_filled_works(tmp_path: Path) -> None:
    """Its updates are used and its decoders found or made elsewhere; what would change the folder is refused."""
    folder, port = tmp_path / "edge", free_port()
    with TestClient(create(EdgeSettings(folder=folder), load_world("emoji")), base_url="http://127.0.0.1"):
        pass
    words = ["serve", "edge", "--folder", str(folder), "--port", str(port)]
    with (
        run_command(["-c", READ_ONLY, str(folder), *words], tmp_path / "log", port, {}) as service,
        httpx2.Client(base_url=service.url, timeout=120) as client,
    ):
        states = {s["kind"]: s for s in client.get("/v1/bundles").json()["alignment"]}
        assert {s["state"] for s in states.values()} == {"aligned"}
        asked = {"prompt": "a red apple", "steps": 2}
        assert client.post("/v1/images/generations", json=asked).status_code == 200
        assert client.post("/v1/deliveries", json=asked).status_code == 200
        told = client.get("/v1/decoders").json()
        assert len(client.get(told["codec"]["url"]).content) == told["codec"]["bytes"]
        refused = client.post(f"/v1/bundles/{states['generation']['bundle']}/pin")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "read_only")
        assert service.errors == 0
    empty = tmp_path / "empty"
    empty.mkdir()
    words[3] = str(empty)
    done = subprocess.run(
        [sys.executable, "-c", READ_ONLY, str(empty), *words], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "Read-only file system" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
