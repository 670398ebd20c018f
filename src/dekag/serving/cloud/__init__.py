"""The cloud as a service: registry, alignment jobs, ledger, reference pictures."""

from typing import TYPE_CHECKING

from dekag.lazy import lazy

if TYPE_CHECKING:
    from dekag.serving.cloud.app import Cloud, create
    from dekag.serving.cloud.client import CloudClient
    from dekag.serving.cloud.database import migrate, open_database
    from dekag.serving.cloud.settings import CloudSettings

__all__ = [
    "Cloud",
    "CloudClient",
    "CloudSettings",
    "create",
    "migrate",
    "open_database",
]

__getattr__, __dir__ = lazy(__name__)
