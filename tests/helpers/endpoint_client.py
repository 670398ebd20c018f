"""Processes that buy of an endpoint and may be killed: forked from one that has imported everything already.

Each line of standard input is a run as JSON; its process and its exit code are lines of standard output.
"""

import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai  # noqa: F401
import torch

from dekag.data.bought import EndpointCloud
from dekag.data.endpoint import ImageEndpoint
from dekag.data.orders import Account
from dekag.types import InputError

FAILED, INTERRUPTED = 3, 4


def run(task: Mapping[str, Any]) -> int:
    """Draw a list of prompts into a folder."""
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    endpoint = ImageEndpoint(**task["endpoint"], account=Account(budget=task.get("budget")))
    try:
        EndpointCloud(endpoint=endpoint, folder=Path(task["folder"])).pictures(task["prompts"])
    except InputError as error:
        print(error, file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def main() -> None:
    """Fork for every line."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = run(json.loads(line))
            finally:
                os._exit(code)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


Buy = Callable[[Mapping[str, Any], Callable[[int], None]], int]
"""Runs a task, tells its process, and returns its exit code."""


@contextmanager
def buyers(log: Path) -> Iterator[Buy]:
    """What runs tasks in processes of their own, whose complaints are written to a file."""
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as parent,
    ):
        assert parent.stdin is not None
        assert parent.stdout is not None
        stdin, stdout = parent.stdin, parent.stdout

        def buy(task: Mapping[str, Any], tell: Callable[[int], None]) -> int:
            stdin.write(json.dumps(task) + "\n")
            stdin.flush()
            tell(int(stdout.readline()))
            return int(stdout.readline())

        yield buy
        stdin.close()


if __name__ == "__main__":
    main()
