"""A service against its own description: requests that fit it and requests that do not, to every route."""

from typing import Any

import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from hypothesis.errors import Unsatisfiable
from running_service import RunningService
from schemathesis import Case, GenerationMode
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import positive_data_acceptance, unsupported_method

DRAWING = {"/v1/images/generations", "/", "/models/{name}", "/v1/deliveries"}
LIMIT_SECONDS = 1.0
QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
slowest: dict[str, float] = {}


def check(case: Case[Any]) -> None:
    """One request; its answer must have a status, a type and a body that are described, and come soon."""
    if case.operation.path in DRAWING:
        lighten(case.body)
    # HEAD is not described, and the page answers GET at the root; what fits the description can still be
    # refused for what it means, as two images in one stream
    answer = case.call_and_validate(
        excluded_checks=[unsupported_method, positive_data_acceptance], timeout=60
    )
    if case.operation.path not in DRAWING:
        taken = answer.elapsed
        slowest[case.operation.label] = max(taken, slowest.get(case.operation.label, 0.0))
        assert taken < LIMIT_SECONDS


def lighten(body: Any) -> None:
    """Ask for fewer steps and images where the number is a right one: what is tested is not the drawing."""
    if not isinstance(body, dict):
        return
    lighten(body.get("parameters"))
    for name in ("steps", "num_inference_steps", "n"):
        if type(body.get(name)) is int and 1 < body[name] <= 10:
            body[name] = 1
    if type(body.get("steps")) is int and 10 < body["steps"] <= 100:
        body["steps"] = 2


def fuzz(edge: RunningService, examples: int, *, without: frozenset[str] = frozenset()) -> None:
    """So many requests to every route, one half of them as described and one half not."""
    description = schemathesis.openapi.from_url(f"{edge.url}/openapi.json")
    results = list(description.get_all_operations())
    operations = [result.ok() for result in results if isinstance(result, Ok)]
    assert len(operations) == len(results)
    routes = [operation for operation in operations if operation.path not in without]
    errors = edge.errors
    for route in routes:
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            try:
                run(route.as_strategy(generation_mode=mode), examples // 2)
            except Unsatisfiable:
                assert mode is GenerationMode.NEGATIVE  # a route without parameters
    assert edge.errors == errors
    label, taken = max(slowest.items(), key=lambda pair: pair[1])
    print(
        f"{len(routes)} routes, {examples} cases each: nothing that is not described; slowest answer but for"
        f" drawing: {label} in {1000 * taken:.0f} ms"
    )


def run(cases: Any, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, suppress_health_check=QUIET, database=None)
    @seed(1)
    @given(cases)
    def each(case: Case[Any]) -> None:
        check(case)

    each()
