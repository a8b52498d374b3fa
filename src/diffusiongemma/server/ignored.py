"""Fields of a request that mean nothing here: answered and reported, or refused (``serve --strict``)."""

import difflib
import re
from typing import Any

from pydantic import BaseModel
from starlette.responses import Response

from diffusiongemma.server.errors import ApiError
from diffusiongemma.server.protocol import Body

__all__ = ["IGNORED", "as_field", "note", "report", "safe_name"]

IGNORED = "X-Diffusiongemma-Ignored"
"""Header of an answer with the names of fields of the request that were not followed."""
_NEUTRAL: dict[str, Any] = {
    "frequency_penalty": 0, "presence_penalty": 0, "repetition_penalty": 1, "repeat_penalty": 1, "store": False, "best_of": 1,
    "service_tier": "auto", "ignore_eos": False, "skip_special_tokens": True, "min_tokens": 0,
    "use_beam_search": False,
}  # fmt: skip
"""Values of fields of others that ask for what is done anyway."""
_MOST = 32
"""Names that are reported."""
_ALIKE = 0.9
"""How alike a name must be to a field's to be taken for it, misspelled."""
_NAME = re.compile(r"[^\w.\[\]-]", re.ASCII)


def note(body: Body, strict: bool) -> None:
    """Take out of a body what no field of ours is, so that nothing of it reaches the model; the names are in ``body.ignored``.

    Raises:
        ApiError: there is something, and ``strict`` says to refuse it; or its name is nearly a field's.
    """
    fields = type(body).model_fields
    for name in list(body.model_extra or ())[:_MOST]:
        for meant in difflib.get_close_matches(name, fields, 1, _ALIKE):
            raise ApiError(400, f"{name} is not a field of this request; did you mean {meant}?", name, "unknown_field")
    _collect(body, "", body.ignored)
    if strict and body.ignored:
        name = body.ignored[0]
        raise ApiError(
            400, f"{name} is not a field of this request, or not supported here, and this server is strict; leave it out", name,
            "unknown_field",
        )  # fmt: skip


def report(response: Response, body: Body) -> None:
    """Name in a header what was not followed."""
    if body.ignored:
        response.headers[IGNORED] = ", ".join(body.ignored)


def as_field(body: Body) -> dict[str, Any]:
    """The same as a field of an answer; nothing where all was followed."""
    return {"ignored": body.ignored} if body.ignored else {}


def safe_name(name: str) -> str:
    """A name as it may stand in a header."""
    return _NAME.sub("?", name)[:64]


def _collect(value: Any, place: str, found: list[str]) -> None:
    if isinstance(value, Body):
        for name, given in (value.model_extra or {}).items():
            if given is None or given in ([], {}) or (name in _NEUTRAL and given == _NEUTRAL[name]):
                continue
            if len(found) < _MOST:
                found.append(safe_name(f"{place}{name or '?'}"))
        (value.model_extra or {}).clear()
        for name in type(value).model_fields:
            _collect(getattr(value, name), f"{place}{name}.", found)
    elif isinstance(value, list) and value and isinstance(value[0], BaseModel):
        for at, each in enumerate(value):
            _collect(each, f"{place.removesuffix('.')}[{at}].", found)
