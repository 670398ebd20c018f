"""A registry of real bundles in a folder, and edges that pull from it."""

import json
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
from running_service import RunningService, run_service
from starlette.testclient import TestClient

from dekag.bundle.bundle import Contents, load_bundle, save_bundle
from dekag.registry import Canary, Repository
from dekag.serving.edge.app import create
from dekag.serving.edge.settings import EdgeSettings
from dekag.world import shipped

FAMILY = ("food", "animals", "faces", "makd")


@dataclass(frozen=True, kw_only=True)
class RegistryWithEdges:
    """A publisher and the folder of its edges."""

    folder: Path
    repository: Repository

    def publish(self, bundle: Path, *, name: str, canary: Canary | None = None) -> str:
        """List a bundle in stable."""
        return self.repository.publish(bundle, channel="stable", name=name, canary=canary)

    @property
    def root(self) -> Path:
        """The registry's root.json, as an edge is given it."""
        path = self.folder / "root.json"
        path.write_bytes(self.repository.root)
        return path

    def edge(self, **settings: object) -> AbstractContextManager[RunningService]:
        """An edge that follows makd and cala, and looks at the registry when it starts and is told to."""
        given = {"poll_seconds": 3600, "threads": 1, "follow": json.dumps(["makd", "cala"])} | settings
        url, root = self.repository.url, str(self.root)
        return run_service("edge", self.folder, "--registry", url, "--root", root, **given)

    def edge_inside(self) -> TestClient:
        """Such an edge in this process."""
        settings = EdgeSettings(
            folder=self.folder / "inside",
            registry=self.repository.url,
            root=self.root,
            poll_seconds=3600,
            follow=("makd", "cala"),
        )
        return TestClient(create(settings), base_url="http://127.0.0.1", raise_server_exceptions=False)


def new_registry_with_edges(folder: Path) -> RegistryWithEdges:
    """A registry without bundles."""
    url = str(folder / "registry")
    return RegistryWithEdges(folder=folder, repository=Repository.init(url, folder / "keys"))


def variant(folder: Path, number: int, *, strength: float = 1.0, base_digest: str | None = None) -> Path:
    """The shipped MAKD under another id; with `strength`, all but its matrices multiplied by that.

    base_digest: of the model that it says it is for, its own if None.
    """
    bundle = load_bundle(shipped("emoji/makd"))
    manifest = bundle.manifest
    tensors = {
        file: {name: tensor if "quantised" in file else tensor * strength for name, tensor in part.items()}
        for file, part in bundle.tensors.items()
    }
    path = folder / f"variant-{number}-{strength:g}"
    save_bundle(
        path,
        Contents(
            kind=manifest.kind,
            base_digest=base_digest or manifest.base_digest,
            tokenizer_digest=manifest.tokenizer_digest,
            tensors=tensors,
            metadata=bundle.metadata,
            metaword=manifest.metaword,
            licence=manifest.licence,
            settings={**manifest.settings, "number": number},
            training_digest=manifest.training_digest,
        ),
    )
    return path


def bundles(client: httpx2.Client) -> dict[str, dict[str, Any]]:
    """What an edge has on its shelf, by id."""
    return {bundle["id"]: bundle for bundle in client.get("/v1/bundles").json()["bundles"]}


def other(canary: Canary, references: tuple[bytes, ...]) -> Canary:
    """The canary with other pictures."""
    return replace(canary, references=references)
