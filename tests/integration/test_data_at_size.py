"""`align generation` on more pictures than memory should hold: what it takes, and how long until the first step."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tiny_pipelines
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from PIL import Image

SIDE = 256
GIVEN_BACK = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Has the C library give freed memory back at once: what it keeps differs by 20 MiB from run to run."""
RUN = """
import sys, time
from pathlib import Path
started = time.monotonic()
from dekag.alignment.config import MakdConfig
from dekag.tasks.align_generation import GenerationTask, align_generation
from dekag.tasks.material import ImageSource, material
from dekag.tasks.validate import Extras
from dekag.training.run import Run
from dekag.world import load_world

def stepped(stage, progress):
    if progress.step == 1:
        print(stage, time.monotonic() - started, flush=True)

world, folder, out = load_world(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
run = Run(on_step=stepped)
config = MakdConfig(metaword_steps=2, joint_steps=2, frozen_steps=2, batch=2, rank=2)
task = GenerationTask(config=config, extras=Extras(strengths=()))
align_generation(world, material(world, ImageSource(folder=folder), run), task, out, run)
"""


@dataclass(frozen=True)
class Taken:
    """Most anonymous memory in bytes, and seconds until the first step, of one alignment."""

    anonymous: int
    first_step_s: float


def tiny_world(folder: Path) -> Path:
    """A world of an edge that draws 256 x 256 pixels, and of nothing else."""
    parts = tiny_pipelines.stable_diffusion(channels=4, pixels=2 * SIDE // 8).components
    parts["vae"] = AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        num_encoder_blocks=(1,) * 4,
        num_decoder_blocks=(1,) * 4,
    )
    tiny_pipelines.save(StableDiffusionPipeline(**parts, requires_safety_checker=False), folder / "edge")
    content = {"format": 1, "name": "tiny", "pixels": SIDE, "edge": {"source": "edge", "steps": 2}}
    (folder / "world.json").write_text(json.dumps(content))
    return folder


def pictures(folder: Path, count: int) -> Path:
    """Photographs in all but meaning: smooth, in colour, of 256 x 256 pixels, with a caption each."""
    folder.mkdir()
    rng, lines = np.random.default_rng(0), []
    for number in range(count):
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / f"{number:06d}.jpg", quality=85)
        row = {
            "file_name": f"{number:06d}.jpg",
            "text": f"a photograph of thing {number} on a table by a window",
        }
        lines.append(json.dumps(row) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines))
    return folder


def alignment(world: Path, images: Path, out: Path) -> Taken:
    """Align in a process of its own, whose memory is read every tenth of a second."""
    command = [sys.executable, "-c", RUN, str(world), str(images), str(out)]
    most = 0
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **GIVEN_BACK},
    ) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            rows = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
            most = max(most, 1024 * int(rows.get("RssAnon", "0 kB").split()[0]))
            time.sleep(0.1)
        assert process.stdout is not None
        assert process.stderr is not None
        said = process.stdout.read()
        assert process.returncode == 0, process.stderr.read()
    assert (out / "bundle.json").exists()
    return Taken(anonymous=most, first_step_s=float(said.splitlines()[0].split()[-1]))


def growth(folder: Path, counts: tuple[int, ...]) -> float:
    """Bytes of anonymous memory that a further picture takes, between the fewest and the most."""
    world, taken = tiny_world(folder), {}
    for count in counts:
        taken[count] = alignment(world, pictures(folder / str(count), count), folder / f"bundle-{count}")
        print(
            f"{count} pictures of {SIDE} px: {taken[count].anonymous / 2**20:.1f} MiB of anonymous memory,"
            f" first step after {taken[count].first_step_s:.1f} s",
            flush=True,
        )
    few, many = min(counts), max(counts)
    grown = (taken[many].anonymous - taken[few].anonymous) / (many - few)
    print(f"{grown:.0f} bytes a picture")
    return grown


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.slow
def test_memory_does_not_grow_with_the_pictures(tmp_path: Path) -> None:
    assert growth(tmp_path, (500, 2000, 8000)) < 1000
