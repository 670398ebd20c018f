"""The edge as a service: pictures, deliveries, bundles that are pulled, tested and switched."""

from typing import TYPE_CHECKING

from dekag.lazy import lazy

if TYPE_CHECKING:
    from dekag.serving.edge.app import create
    from dekag.serving.edge.selftest import make_canary, self_test
    from dekag.serving.edge.settings import EdgeSettings

__all__ = [
    "EdgeSettings",
    "create",
    "make_canary",
    "self_test",
]

__getattr__, __dir__ = lazy(__name__)
