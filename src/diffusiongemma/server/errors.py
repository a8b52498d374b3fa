"""Errors as OpenAI's clients read them: ``{"error": {"message", "type", "param", "code"}}``."""

import json
import logging
import math
import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import CancelledError
from typing import Any

from fastapi import HTTPException
from starlette.responses import Response

from diffusiongemma.errors import DiffusionGemmaError, EngineError, OverloadedError, PromptTooLongError
from diffusiongemma.lines import json_line

__all__ = ["ApiError", "JSONAnswer", "from_exception", "from_http", "from_validation", "to_json"]

log = logging.getLogger(__name__)
_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error", 500: "server_error",
    503: "server_error",
}  # fmt: skip
_MAX_ERRORS = 256
"""Of one body, that are looked through for the one to tell."""
_MAX_CHARS = 200
"""Of a field's name, which is the client's own where it is unknown."""
_PLACE = re.compile(r"([a-z_]+)(\[\d+\]|\.[a-z_]+)*")


def to_json(content: Any) -> bytes:
    """JSON as the bytes of one line (``json_line``)."""
    return json_line(content, allow_nan=False, separators=(",", ":"))


class JSONAnswer(Response):
    """A JSON body."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """See ``to_json``."""
        return to_json(content)


class ApiError(HTTPException):
    """A request that gets no answer.

    Args:
        status: HTTP status.
        message: what was given, what is allowed, how to mend it.
        param: the field it is about.
        code: for programs; None: ``invalid_value`` where the status is 400.
        retry_after: seconds after which to try again.
    """

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, retry_after: float | None = None
    ) -> None:
        headers = None if retry_after is None else {"Retry-After": str(max(1, math.ceil(retry_after)))}
        super().__init__(status, message, headers)
        self.param = param
        self.code = "invalid_value" if code is None and status == 400 else code

    def __str__(self) -> str:
        return str(self.detail)

    @property
    def body(self) -> dict[str, Any]:
        """What is sent."""
        kind = _TYPES.get(self.status_code, "invalid_request_error")
        # "type" is for Anthropic's clients.
        return {"type": "error", "error": {"message": str(self.detail), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONAnswer:
        """The answer."""
        return JSONAnswer(self.body, self.status_code, self.headers)


def from_validation(errors: Sequence[Mapping[str, Any]], body: Any) -> ApiError:
    """What is wrong with a body, with its place.

    Args:
        errors: pydantic's, at least one.
        body: as JSON.
    """
    result = [(_place(each, body), each) for each in errors[:_MAX_ERRORS]]
    # Of a union all kinds complain: the one that got furthest was meant.
    of_first = [(place, each) for place, each in result if place[: len(result[0][0])] == result[0][0]]
    place, first = max(of_first, key=lambda pair: len(pair[0]))
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".") or None
    param = param if param is None or len(param) <= _MAX_CHARS else f"{param[:_MAX_CHARS]}..."
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"{param} is not a field of this request, or not supported here; leave it out", param, "unknown_field")
    if first["type"] == "missing":
        what = "the request has no body; send a JSON object as application/json" if param is None else f"{param} is missing"
        return ApiError(400, what, param, "missing_field")
    said = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "value_error" and said.startswith(f"{place[-1]} is "):
        return ApiError(400, said, param)  # an option's own check
    given = json.dumps(first.get("input"), default=str)[:80]
    said = " or ".join(dict.fromkeys(str(each["msg"]) for at, each in of_first if at == place))
    return ApiError(400, f"{param or 'the body'} is {given}: {said}", param)


def _place(error: Mapping[str, Any], body: Any) -> list[str | int]:
    """The way to a field. What pydantic puts between the names, the kinds of a union, is not in the body and so no part of it."""
    place: list[str | int] = []
    for part in error["loc"]:
        if (isinstance(body, dict) and part in body) or (isinstance(body, list) and isinstance(part, int) and part < len(body)):
            place.append(part)
            body = body[part]
    return [*place, error["loc"][-1]] if error["type"] == "missing" and error["loc"] else place


def from_http(error: HTTPException) -> ApiError:
    """An error of the framework: an unknown path, a method that is not allowed."""
    if isinstance(error, ApiError):
        return error
    result = ApiError(error.status_code, str(error.detail))
    result.headers = error.headers
    return result


def from_exception(error: BaseException, fields: Collection[str] = (), draining: bool = False) -> ApiError:
    """Any error as an answer. What nobody expected is logged; its answer carries nothing but the number of the log entry.

    Args:
        error: what was raised.
        fields: of the request; a message that begins with one, or with a place in it, is about that.
        draining: whether the server is about to end.
    """
    if isinstance(error, HTTPException):
        return from_http(error)
    if isinstance(error, OverloadedError):
        ending = draining or error.retry_after is None
        return ApiError(503 if ending else 429, str(error), None, "draining" if ending else "overloaded", error.retry_after or 1.0)
    if isinstance(error, PromptTooLongError):
        return ApiError(400, str(error), None, "context_length_exceeded")
    if isinstance(error, DiffusionGemmaError) and isinstance(error, ValueError):
        return ApiError(400, str(error), error.param if error.param in fields else _param(str(error), fields))
    if isinstance(error, CancelledError):
        return ApiError(503, "the server stopped before the answer was complete", None, "stopped", 1.0)
    if isinstance(error, RecursionError):
        return ApiError(400, "the request is nested too deeply", None)
    if isinstance(error, EngineError) and error.__cause__ is None:
        log.error("a request ends with: %s", error)
        return ApiError(500, str(error), None, "engine_error")
    number = secrets.token_hex(6)
    log.error("error %s", number, exc_info=error)
    return ApiError(500, f"something went wrong here; the server's log has it as error {number}", None, "internal_error")


def _param(message: str, fields: Collection[str]) -> str | None:
    place = _PLACE.match(message)
    return place[0] if place is not None and place[1] in fields else None
