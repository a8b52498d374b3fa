"""Constraints that nobody should send: the answer is 400 with the place, never 500, and the others do not wait."""

from typing import Any

import pytest

from tests.constraints.test_hostile import WRONG
from tests.server.running import Running

CHAT = "/v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "num_diffusion_steps": 2}


def formatted(schema: Any, strict: bool = False) -> dict[str, Any]:
    return HI | {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": strict}}}


def tool(schema: Any, choice: str) -> dict[str, Any]:
    return HI | {"tool_choice": choice, "tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]}


@pytest.mark.parametrize(("schema", "place"), WRONG, ids=lambda value: str(value)[:40])
def test_a_keyword_of_the_wrong_type_is_named(server: Running, schema: Any, place: str) -> None:
    word = place.split("/")[-1].split(" ")[0].replace("\\", "")
    for field, body in (
        ("response_format", formatted(schema)),
        ("tools", tool(schema, "required")),
        ("tools", tool(schema, "auto")),
    ):
        answer = server.http.post(CHAT, json=body)
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert error["param"] == field and word in error["message"], error
