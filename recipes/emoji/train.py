"""Train the whole emoji world: `python recipes/emoji/train.py --run DIR --minutes M` or `--steps N`.

Prepares the splits and the tokenizer, then trains autoencoder, judges, cloud and edge, in processes side by side.
What is finished is kept and what was interrupted goes on, so the same command again is the way to resume.
"""

import argparse
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, NoReturn

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data" / "emoji"
REHEARSAL_MINUTES = 3.0
POLL_SECONDS = 2.0


def main() -> None:
    options = read_options()
    if options.lane is not None:
        run_lane(options)
        return
    if options.rehearse and options.minutes is None and options.steps is None:
        options.minutes = REHEARSAL_MINUTES
    check(options)
    options.run.mkdir(parents=True, exist_ok=True)
    lock = lock_run(options.run)
    prepare(options)
    lanes = {"cpu": 2, "cuda": 2}[options.device]
    follow(options, [start_lane(options, number, lock) for number in range(lanes)])
    if options.results is not None:
        from stages.packing import pack_results

        for name, size in pack_results(options.run, options.results).items():
            print(f"{size / 2**20:7.2f} MiB  {options.results / name}")


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        sys.exit(f"train: {message}; see --help")


def read_options() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of the run; resumed if it exists")
    parser.add_argument(
        "--data", type=Path, default=DATA, help="what prepare.py wrote (default: %(default)s)"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        help="time of all stages together: a CPU's own, without what other processes use; a GPU's by the wall",
    )
    parser.add_argument(
        "--steps", type=read_steps, help="steps of every stage, or of each as in autoencoder=100,cloud=50,..."
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--pixels", type=int, choices=(64, 128), default=64)
    parser.add_argument(
        "--rehearse", action="store_true", help="all stages with little data, in four minutes"
    )
    parser.add_argument("--fp32", action="store_true", help="no bf16, for processors that are slower with it")
    parser.add_argument(
        "--results", type=Path, help="write the models in fp16 and the reports here as tar files"
    )
    parser.add_argument("--lane", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def read_steps(text: str) -> dict[str, int]:
    """`50` or `autoencoder=100,cloud=50`: steps by stage; stages that are not named take none."""
    names = ("autoencoder", "mini-clip", "mini-dino", "cloud", "edge")
    if text.isdecimal():
        return dict.fromkeys(names, int(text))
    given = dict(part.partition("=")[::2] for part in text.split(","))
    if unknown := sorted(given.keys() - set(names)):
        raise argparse.ArgumentTypeError(f"no stage is called {unknown[0]}; there are {', '.join(names)}")
    if wrong := [name for name, steps in given.items() if not steps.isdecimal()]:
        raise argparse.ArgumentTypeError(f"the steps of {wrong[0]} must be a number, got {given[wrong[0]]!r}")
    return {name: int(given.get(name, 0)) for name in names}


def check(options: argparse.Namespace) -> None:
    """Refuse what cannot work before anything heavy is imported."""
    if (options.minutes is None) == (options.steps is None):
        sys.exit("train: give either --minutes or --steps")
    if options.minutes is not None and not 0 < options.minutes < float("inf"):
        sys.exit(f"train: --minutes must be a positive number, got {options.minutes}")
    if options.run.exists() and not options.run.is_dir():
        sys.exit(f"train: {options.run} is not a folder")
    missing = [
        n
        for n in ("concepts.json", "fluent3d.zip", "noto.zip", "twemoji.zip")
        if not (options.data / n).exists()
    ]
    if missing:
        sys.exit(
            f"train: {options.data} has no {missing[0]}; make the data with recipes/emoji/prepare.py --out DATA"
        )


def make_run(options: argparse.Namespace):  # type: ignore[no-untyped-def]
    from stages.plan import make_plan
    from stages.run import Run

    plan = make_plan(
        options.device,
        options.pixels,
        minutes=options.minutes,
        steps=options.steps,
        rehearse=options.rehearse,
        bf16=not options.fp32,
    )
    return Run(folder=options.run, data=options.data, plan=plan)


def prepare(options: argparse.Namespace) -> None:
    """Splits and tokenizer, which every lane needs."""
    import torch
    from stages.run import prepare as write

    torch.set_num_threads(1)
    write(make_run(options))


def run_lane(options: argparse.Namespace) -> None:
    """Train the stages of one lane, one after the other, each when what it needs is there."""
    import torch
    from stages.run import NEEDS, train_stage

    threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
    torch.set_num_threads(1 if options.device == "cpu" else os.cpu_count() or 1)
    run = make_run(options)
    for name in run.plan.lanes[options.lane]:
        while not all(run.finished(needed) for needed in NEEDS.get(name, ())):
            time.sleep(POLL_SECONDS)
        train_stage(run, name)


def end_with_parent(parent: int) -> None:
    """End this lane when its parent is gone; its last checkpoint is whole."""
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def lock_run(folder: Path) -> IO[str]:
    """The run's lock, which every lane holds as well; the lanes of a parent that was killed are waited for."""
    lock = (folder / ".lock").open("w")
    for _ in range(5):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(POLL_SECONDS)
        else:
            return lock
    sys.exit(f"train: {folder} is being trained by another process; end it first, or choose another --run")


def start_lane(options: argparse.Namespace, number: int, lock: IO[str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1" if options.device == "cpu" else str(os.cpu_count())}
    return subprocess.Popen(
        [sys.executable, *sys.argv, "--lane", str(number), *given_minutes(options)],
        env=environment,
        pass_fds=(lock.fileno(),),
    )


def given_minutes(options: argparse.Namespace) -> list[str]:
    return [] if options.minutes is None else ["--minutes", str(options.minutes)]


def follow(options: argparse.Namespace, lanes: list[subprocess.Popen[bytes]]) -> None:
    """Keep RUN/progress.json up to date until every lane has ended; if one fails, end the others and say so."""
    try:
        while any(lane.poll() is None for lane in lanes):
            if any(lane.poll() for lane in lanes):
                break
            write_progress(options.run)
            time.sleep(POLL_SECONDS)
    finally:
        for lane in lanes:
            if lane.poll() is None:
                lane.terminate()
        codes = [lane.wait() for lane in lanes]
    write_progress(options.run)
    if any(codes):
        sys.exit("train: a lane failed, see above; the same command goes on from its last checkpoint")


def write_progress(folder: Path) -> None:
    """What every stage has come to, in one file."""
    from stages.loop import write_json

    stages = {}
    for path in sorted(folder.glob("*/progress.json")):
        rows = json.loads(path.read_text(encoding="utf-8"))
        stages[path.parent.name] = {"finished": (path.parent / "model").exists(), "reports": rows}
    write_json(folder / "progress.json", {"stages": stages})


if __name__ == "__main__":
    main()
