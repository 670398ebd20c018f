"""Time and memory of the services, for sizing: one cloud and one edge on this machine, as `dekag up` starts them.

    python benchmarks/services.py

One picture alone, as many as the queue takes from eight clients, a delivery of a picture that is drawn already, and
resident memory before and after. Every number is a median or a total of one run on one machine: measure yours.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx2
import psutil

from dekag.serving.up import Site, prepare, running

PROMPT = "a red apple on a blue background"
CONDITION = {"uses": 256, "snr_db": 10.0, "channel": "rayleigh", "blocks": 4}


def main() -> None:
    args = _arguments()
    with (
        tempfile.TemporaryDirectory(prefix="dekag-services-") as folder,
        httpx2.Client(timeout=120) as client,
    ):
        site = Site(folder=Path(folder), port=args.port, cloud_port=args.port + 1)
        prepared = _seconds(lambda: prepare(site))
        started = time.perf_counter()
        with running(site) as (cloud, edge):
            found = {"prepare_s": prepared, "start_s": time.perf_counter() - started}
            found |= {"cloud_mib": _resident(cloud.pid), "edge_mib": _resident(edge.pid)}
            found |= _alone(client, site, args.pictures)
            found |= _together(client, site, args.pictures)
            found |= _deliveries(client, site, args.pictures)
            found |= {"edge_mib_after": _resident(edge.pid)}
            found |= _folders(site)
    print(json.dumps({name: round(value, 3) for name, value in found.items()}))


def _alone(client: httpx2.Client, site: Site, pictures: int) -> dict[str, float]:
    """Milliseconds from request to picture, one at a time."""
    _draw(client, site, 0)  # warms up
    times = [_seconds(partial(_draw, client, site, seed)) for seed in range(1, pictures + 1)]
    return {"picture_ms": 1000 * statistics.median(times), "picture_ms_p95": 1000 * _p95(times)}


def _together(client: httpx2.Client, site: Site, pictures: int) -> dict[str, float]:
    """Pictures a second for eight clients, each of which waits for its own."""
    with ThreadPoolExecutor(8) as pool:
        started = time.perf_counter()
        times = list(
            pool.map(lambda seed: _seconds(lambda: _draw(client, site, seed)), range(100, 100 + 4 * pictures))
        )
    whole = time.perf_counter() - started
    return {"pictures_per_s": len(times) / whole, "picture_ms_of_8": 1000 * statistics.median(times)}


def _deliveries(client: httpx2.Client, site: Site, pictures: int) -> dict[str, float]:
    """Milliseconds of a frame, and of what a user sees of it, where the picture is drawn already."""
    frames, images = [], []
    for seed in range(pictures + 1):
        body = {"prompt": PROMPT, "seed": 1, "condition": CONDITION, "channel_seed": seed}
        started = time.perf_counter()
        answer = client.post(f"{site.edge_url}/v1/deliveries", json=body).raise_for_status()
        frames.append(time.perf_counter() - started)
        url = f"{site.edge_url}/v1/deliveries/{answer.headers['x-delivery-id']}/image"
        started = time.perf_counter()
        client.post(url, json={"channel_seed": seed}).raise_for_status()
        images.append(time.perf_counter() - started)
    return {
        "frame_ms": 1000 * statistics.median(frames[1:]),
        "frame_bytes": len(answer.content),
        "received_ms": 1000 * statistics.median(images[1:]),
    }


def _folders(site: Site) -> dict[str, float]:
    return {f"{party}_folder_mib": _size(site.folder / party) / 2**20 for party in ("cloud", "edge")}


def _draw(client: httpx2.Client, site: Site, seed: int) -> None:
    body = {"prompt": PROMPT, "seed": seed}
    client.post(f"{site.edge_url}/v1/images/generations", json=body).raise_for_status()


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _p95(times: Sequence[float]) -> float:
    return sorted(times)[int(0.95 * (len(times) - 1))]


def _resident(process: int) -> float:
    return float(psutil.Process(process).memory_info().rss) / 2**20


def _size(folder: Path) -> float:
    return float(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=20, help="of each kind, four times as many together")
    parser.add_argument("--port", type=int, default=8050, help="of the edge; the cloud has the next")
    return parser.parse_args()


if __name__ == "__main__":
    main()
