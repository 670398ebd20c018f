"""Errors as OpenAI's clients read them: {"error": {"message", "type", "param", "code"}}."""

import errno
import json
import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

from dekag.errors import InputError

log = logging.getLogger("dekag.serving")
NAMES = {
    401: ("authentication_error", "invalid_api_key"),
    404: ("not_found_error", "not_found"),
    405: ("invalid_request_error", "method_not_allowed"),
    408: ("timeout_error", "request_timeout"),
    413: ("invalid_request_error", "request_too_large"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
    507: ("server_error", "disk_full"),
}
"""Type and code of a status, unless the error says its own."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
CODES = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}
"""Code of what can be wrong with a field; else it is an invalid value."""


class ApiError(HTTPException):
    """An answer that is an error; `type` and `code` are those of the status if left out."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str | None = None,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        named = NAMES.get(status, ("server_error" if status >= 500 else "invalid_request_error", None))
        super().__init__(status, message, dict(headers or {}))
        self.type = type or named[0]
        self.code = code or named[1]
        self.param = param

    def response(self) -> Response:
        """The error as it is sent."""
        return json_response(self.body(), self.status_code, self.headers)

    def body(self) -> dict[str, dict[str, str | None]]:
        """What it says."""
        detail = {"message": self.detail, "type": self.type, "param": self.param, "code": self.code}
        return {"error": detail}


class ErrorDetail(BaseModel):
    """What went wrong, in words and by name."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer that is an error."""

    error: ErrorDetail


RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request cannot be done as it is."},
    "5XX": {"model": ErrorBody, "description": "The service failed."},
}
"""Errors of every route, for its description."""


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON in ASCII: it can hold any text that a request can."""
    return Response(json.dumps(content, allow_nan=False), status, headers, "application/json")


def install_errors(app: FastAPI) -> None:
    """Have every error answered in this form."""
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(InputError, _input)
    app.add_exception_handler(OSError, _disk)


def as_api_error(error: Exception) -> ApiError:
    """What a caller is told of an exception; nothing but its existence, where it is none of ours."""
    if isinstance(error, ApiError):
        return error
    if _from_a_full_disk(error):
        return ApiError(507, "the service's disk is full; nothing was changed")
    if isinstance(error, InputError):
        return ApiError(400, " ".join(str(error).split()), code="invalid_input")
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return ApiError(409, "the service's folder is read-only; nothing was changed", code="read_only")
    return ApiError(
        500, "the service failed; its log has more under this request's id", code="internal_error"
    )


def _from_a_full_disk(error: BaseException | None) -> bool:
    """Whether that is what an exception comes from; what tells of it in other words still has it as its cause."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        error = error.__cause__ or error.__context__
    return False


async def _http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if not isinstance(error, ApiError):
        error = ApiError(error.status_code, str(error.detail), headers=error.headers)
    return error.response()


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return ApiError(400, "the body must be JSON", code="invalid_json").response()
    param = ".".join(str(part) for part in first["loc"][1:]) or None
    code = CODES.get(first["type"], "invalid_value")
    message = f"{param}: {first['msg']}" if param else str(first["msg"])
    return ApiError(400, message, code=code, param=param).response()


async def _input(_: Request, error: Exception) -> Response:
    return as_api_error(error).response()


async def _disk(_: Request, error: Exception) -> Response:
    answer = as_api_error(error)
    if answer.status_code >= 500:
        log.error("the operating system refused", exc_info=error)
    return answer.response()
