"""Where the services run; looked at before anything of theirs is imported."""

import os

from dekag.choices import require_package
from dekag.errors import InputError

WINDOWS = os.name == "nt"


def check_service() -> None:
    """Raise InputError on Windows, whose event loop has none of the signals that a service is stopped with."""
    if WINDOWS:
        raise InputError("the services run on Linux and macOS; on Windows start them in WSL")
    require_package("granian", "fastapi", reason="a service needs further packages", extra="serve")
