"""The interface against its own description: whatever fits it or does not, the edge answers as it says, and soon."""

import httpx2
import pytest
from route_fuzz import fuzz
from running_service import RunningService


@pytest.mark.alone
def test_every_route_does_what_its_description_says(edge: RunningService) -> None:
    """`test_every_route_a_thousand_times` is the long one."""
    fuzz(edge, 8, without=frozenset({"/v1/decoders", "/v1/decoders/{sha256}.onnx"}))


@pytest.mark.slow
def test_every_route_a_thousand_times(edge: RunningService) -> None:
    # made when they are first asked for, in seconds
    assert httpx2.get(f"{edge.url}/v1/decoders", timeout=120).status_code == 200
    plain = f"{edge.url}/v1/decoders/{'0' * 64}.onnx?transmission=none"
    assert httpx2.get(plain, timeout=120).status_code == 404
    fuzz(edge, 1000)
