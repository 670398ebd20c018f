"""What can be wrong with a registry, each under one name."""

from typing import Literal

from dekag.errors import InputError

Fault = Literal[
    "unreachable",
    "redirect",
    "length",
    "slow",
    "damaged",
    "signature",
    "rollback",
    "expired",
    "mixed",
    "missing",
]
"""unreachable: no answer. redirect: it points elsewhere. length: other bytes than announced, or too many.
slow: less than the least rate. damaged: a hash or the form is wrong. signature: too few valid signatures.
rollback: older than what was seen before. expired: nothing new in time, by a freeze or a publisher who sleeps.
mixed: files of different moments together. missing: what was asked for is not published."""


class RegistryError(InputError):
    """A registry, or what it sent, cannot be trusted or used; nothing on the shelf has changed.

    fault: which of the attacks or failures it is.
    """

    def __init__(self, fault: Fault, message: str) -> None:
        super().__init__(message)
        self.fault = fault
