"""What every service has: settings, tokens, limits, errors, logs, metrics, a server."""

from typing import TYPE_CHECKING

from dekag.lazy import lazy

if TYPE_CHECKING:
    from dekag.serving.http.app import create_app
    from dekag.serving.http.errors import ApiError
    from dekag.serving.http.server import serve
    from dekag.serving.http.settings import ServiceSettings, load_settings

__all__ = [
    "ApiError",
    "ServiceSettings",
    "create_app",
    "load_settings",
    "serve",
]

__getattr__, __dir__ = lazy(__name__)
