"""The interface against its own description: whatever fits it or not, the edge answers as it says, and soon."""

import time
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok  # noqa: F401
from served import Served

DRAWING = {"/v1/images/generations", "/", "/models/{name}", "/v1/deliveries"}


@pytest.fixture(scope="session")
def description(edge: Served) -> Any:
    return schemathesis.openapi.from_url(f"{edge.url}/openapi.json")
