"""Nothing of dekag needs POSIX to be imported, and its locks are those of the system on every platform."""

import ast
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import dekag
from dekag.errors import InputError
from dekag.serving import supported
from dekag.wire.lock import locked

SOURCE = Path(dekag.__file__).parent
POSIX = ("fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty")
"""Modules that Windows has not."""
NAMES = {
    "O_CLOEXEC",
    "O_DIRECTORY",
    "O_NOFOLLOW",
    "O_NONBLOCK",
    "fork",
    "geteuid",
    "getuid",
    "killpg",
    "mkfifo",
    "setsid",
    "sync",
}
"""What `os` has on POSIX alone."""
SIGNALS = {"SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGUSR1", "SIGUSR2"}


@pytest.mark.parametrize("module", sorted(str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*.py")))
def test_a_module_is_imported_without_posix(module: str) -> None:
    """What POSIX alone has is imported in the function that uses it, and nothing of `os` is used that it alone has."""
    tree = ast.parse((SOURCE / module).read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and id(node) not in inside:
            assert not {name.name for name in node.names} & set(POSIX)
        if isinstance(node, ast.ImportFrom) and id(node) not in inside:
            assert node.module not in POSIX
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert node.value.id != "os" or node.attr not in NAMES
            assert node.value.id != "signal" or node.attr not in SIGNALS


@pytest.mark.slow
def test_every_module_is_imported_where_posix_is_missing() -> None:
    """What other packages import is their own business: here they are those of POSIX."""
    program = f"""
import builtins, importlib, pkgutil
import_ = builtins.__import__

def on_windows(name, globals=None, *more, **options):
    if name in {POSIX!r} and (globals or {{}}).get("__name__", "").startswith("dekag"):
        raise ModuleNotFoundError(name)
    return import_(name, globals, *more, **options)

builtins.__import__ = on_windows
import dekag
for found in pkgutil.walk_packages(dekag.__path__, "dekag."):
    if found.name not in ("dekag.__main__", "dekag.baseline.__main__", "dekag.serving.cloud.migrations.env"):
        importlib.import_module(found.name)
        print(found.name)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.split()) > 200


def holder(path: Path) -> "subprocess.Popen[str]":
    """A process that holds a lock until it is killed."""
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom dekag.wire.lock import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_lock_is_another_processes_until_it_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "new" / ".lock"
    process = holder(path)
    try:
        with pytest.raises(InputError, match="another run"), locked(path, taken="another run is at it"):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        began = time.monotonic()
        with locked(path):
            pass
        assert time.monotonic() - began < 1
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_a_lock_that_cannot_be_made_says_where(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(OSError, match=r"\.lock cannot be locked: Is a directory"), locked(tmp_path / ".lock"):
        pass


AS_ON_WINDOWS = """
import sys
from pathlib import Path
from dekag.errors import InputError
from dekag.serving import supported
from dekag.wire import files

opened = []
sys.addaudithook(lambda event, args: event == "open" and opened.append(args[0]))
folder = Path(sys.argv[1])
files.sync(folder)
print(len(opened), "folder opened")
files.WINDOWS = supported.WINDOWS = True
files.sync(folder)
print(len(opened), "folder opened")
files.write_bytes(folder / "a", b"a")
files.write_folder(folder / "b", {"c": b"c"}, is_own=lambda _: True, noun="ours")
with files.staged(folder / "d") as stage:
    (stage / "e").write_bytes(b"e")
try:
    supported.check_service()
except InputError as error:
    print(error)
"""


def test_folders_are_written_and_services_refused_as_on_windows(tmp_path: Path) -> None:
    """In a process of its own; there no folder can be opened, so that none is synced."""
    supported.check_service()
    done = subprocess.run(
        [sys.executable, "-c", AS_ON_WINDOWS, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "1 folder opened",
        "1 folder opened",
        "the services run on Linux and macOS; on Windows start them in WSL",
    ]
    assert [(tmp_path / name).read_bytes() for name in ("a", "b/c", "d/e")] == [b"a", b"c", b"e"]
