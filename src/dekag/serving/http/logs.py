"""Logs: a line of JSON for each event, with the id of the request that it belongs to. Never a token or a prompt."""

import json
import logging
import logging.config
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Of the request that is being answered."""


class JsonLines(logging.Formatter):
    """A record as one line; what is in `extra={"facts": {...}}` is added to it."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        if (identity := request_id.get()) is not None:
            line["request_id"] = identity
        line |= getattr(record, "facts", {})
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def facts(**values: Any) -> dict[str, dict[str, Any]]:
    """The `extra` of a log record with these facts."""
    return {"facts": values}


def configure_logs(level: str) -> dict[str, Any]:
    """Log to standard error; returns the same as a configuration for Granian, which makes its own."""
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"lines": {"()": JsonLines}},
        "handlers": {"lines": {"class": "logging.StreamHandler", "formatter": "lines", "stream": sys.stderr}},
        "loggers": {
            "dekag": {"handlers": ["lines"], "level": level.upper(), "propagate": False},
            "_granian": {"handlers": ["lines"], "level": "ERROR", "propagate": False},
        },
    }
    logging.config.dictConfig(config)
    return config
