"""From the bytes of a body to a request: strict JSON, checked against the request's model; large ones beside the event loop."""

import json
import math
import re
from collections.abc import Sequence
from typing import Any

import anyio
import anyio.to_thread
from pydantic import ValidationError

from diffusiongemma.server.errors import ApiError, from_validation
from diffusiongemma.server.ignored import note
from diffusiongemma.server.protocol import Body

__all__ = ["BodyReader", "parse"]

_HALF_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|$)', re.DOTALL)
_BESIDE_BYTES = 4096
"""Larger bodies are read in a thread: 1 MiB takes tens of milliseconds, which others would wait for."""
_MAX_NAMES = 4096
"""Of one object. Each name that is not known would be an error of its own."""
_MAX_OBJECTS = 1 << 17
"""Objects and arrays of a body, twice as many as pins may be: half a million hold the interpreter for most of a second."""


class BodyReader:
    """Reads bodies, two large ones at a time.

    Args:
        strict: whether fields that mean nothing here are refused.
    """

    def __init__(self, strict: bool = False) -> None:
        self._limiter = anyio.CapacityLimiter(2)
        self._strict = strict

    async def read(self, body: bytes, model: type[Body]) -> Body:
        """The request that a body holds; raises what ``parse`` does."""
        if len(body) <= _BESIDE_BYTES:
            return parse(body, model, self._strict)
        return await anyio.to_thread.run_sync(parse, body, model, self._strict, limiter=self._limiter)


def parse(body: bytes, model: type[Body], strict: bool = False) -> Body:
    """The request that a body holds: JSON and only JSON, without NaN, a name twice, or text that is not Unicode.

    Args:
        body: as it came.
        model: of the request.
        strict: see ``BodyReader``.

    Raises:
        ApiError: the first thing that is wrong, with its place.
    """
    data = _json(body)
    try:
        result = model.model_validate(data)
    except ValidationError as error:
        raise from_validation(error.errors(include_url=False, include_context=False), data) from None
    except RecursionError:
        raise _too_deep() from None
    note(result, strict)
    return result


def _json(body: bytes) -> Any:
    if _objects(body) > _MAX_OBJECTS and (count := _objects(_STRING.sub(b"", body))) > _MAX_OBJECTS:
        raise ApiError(400, f"the body has {count:,} objects and arrays; at most {_MAX_OBJECTS:,} are read", None, "too_large")
    try:
        result = json.loads(body.decode(), parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_object)
        if _HALF_PAIR.search(body):
            json.dumps(result, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ApiError(400, "the body has half of a surrogate pair, which no text can hold", None, "invalid_json") from error
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not UTF-8: {error.reason} at byte {error.start}", None, "invalid_json") from error
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}", None, "invalid_json") from error
    return result


def _objects(body: bytes) -> int:
    return body.count(b"[") + body.count(b"{")


def _too_deep() -> ApiError:
    return ApiError(400, "the body is nested too deeply", None, "invalid_json")


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {text[:40]} is too large")
    return number


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"the name {name[:100]!r} stands twice in one object")
            seen.add(name)
    if len(result) > _MAX_NAMES:
        raise ApiError(400, f"an object of the body has {len(result):,} names; at most {_MAX_NAMES:,} are read", None, "too_large")
    return result
