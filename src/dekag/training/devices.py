"""Names of devices; without torch, so that a wrong one is refused at once."""

from dekag.errors import InputError


def check_device(name: str) -> None:
    """Raise InputError unless a device could have this name: auto, cpu, cuda or one GPU as cuda:1."""
    kind, colon, number = name.partition(":")
    if name not in ("auto", "cpu", "cuda") and not (kind == "cuda" and colon and number.isdecimal()):
        raise InputError(f"device must be auto, cpu, cuda or one GPU as cuda:1, got {name!r}")
