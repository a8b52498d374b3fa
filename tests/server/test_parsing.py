"""Bodies: strict JSON, the first error, and no size that takes long."""

import json
import time
from typing import Any

import pytest
from pydantic import BaseModel

from diffusiongemma.server import parsing
from diffusiongemma.server.errors import ApiError
from diffusiongemma.server.parsing import parse
from diffusiongemma.server.protocol import ChatRequest, CompletionRequest, DecisionsRequest
from tests.server.running import Running

SECONDS = 5.0
"""All of these take up to 0.3 s on an idle machine; before, they took 7 to 49."""


def refused(body: bytes, model: type[BaseModel] = ChatRequest) -> ApiError:
    began = time.monotonic()
    with pytest.raises(ApiError) as raised:
        parse(body, model)
    assert time.monotonic() - began < SECONDS
    assert raised.value.status_code == 400
    assert len(str(raised.value)) < 1000
    return raised.value


def chat(field: str, items: bytes, count: int) -> bytes:
    return b'{"messages":[{"role":"user","content":"a"}],"%s":[%s]}' % (field.encode(), b",".join([items] * count))


def test_a_name_twice_among_many() -> None:
    names = ",".join(f'"name{number}":1' for number in range(60_000))
    assert "'name7' stands twice" in str(refused(f'{{{names},"name7":2}}'.encode()))
    assert "60,000 names; at most 4,096" in str(refused(f"{{{names}}}".encode()))
    assert "'a' stands twice" in str(refused(b'{"metadata": {"a": "1", "b": "2", "a": "3"}}'))
    error = refused(b'{"%s":1,"%s":2}' % (b"x" * 200_000, b"x" * 200_000))
    assert len(str(error)) < 300


@pytest.mark.parametrize(
    ("body", "model", "param"),
    [
        (b'{"messages":[{"role":"user","content":[%s]}]}' % b",".join([b"1"] * 500_000), ChatRequest, "messages[0].content[0]"),
        (b'{"messages":[%s]}' % b",".join([b"1"] * 500_000), ChatRequest, "messages[0]"),
        (chat("choices", b"1", 500_000), ChatRequest, "choices[0]"),
        (chat("choices", b'"a"', 240_000), ChatRequest, "choices"),
        (chat("stop", b'""', 240_000), ChatRequest, "stop[0]"),
        (chat("pins", b"[]", 130_000), ChatRequest, "pins[0]"),
        (chat("pins", b"[1,2]", 120_000), ChatRequest, "pins"),
        (chat("tools", b"{}", 130_000), ChatRequest, "tools[0].type"),
        (b'{"prompt":[%s]}' % b",".join([b"1"] * 500_000), CompletionRequest, "prompt"),
        (b'{"input":"a","questions":[%s]}' % b",".join([b"1"] * 500_000), DecisionsRequest, "questions[0]"),
    ],
)
def test_the_first_of_many_wrong_things_is_told_at_once(body: bytes, model: type[BaseModel], param: str) -> None:
    assert refused(body, model).param == param


@pytest.mark.parametrize(
    ("more", "names"),
    [
        (b'"%s":1' % (b"x" * 900_000), ["x" * 64]),
        (b",".join(b'"n%d":1' % n for n in range(4000)), [f"n{n}" for n in range(32)]),
        (b'"a\\r\\nSet-Cookie: b\\u00e9":1,"__proto__":{"x":1},"":5', ["a??Set-Cookie??b?", "__proto__", "?"]),
        (b'"unknown":null,"tags":[],"frequency_penalty":0,"service_tier":"auto"', []),
        (b'"frequency_penalty":0.5,"service_tier":"flex","store":true', ["frequency_penalty", "service_tier", "store"]),
    ],
)
def test_fields_that_mean_nothing_are_found(more: bytes, names: list[str]) -> None:
    body = b'{"messages":[{"role":"user","content":"a"}],%s}' % more
    began = time.monotonic()
    assert parse(body, ChatRequest).ignored == names
    assert time.monotonic() - began < SECONDS
    if names:
        with pytest.raises(ApiError, match="this server is strict"):
            parse(body, ChatRequest, strict=True)


def test_fields_inside_are_found_with_their_place() -> None:
    messages = [
        {"role": "system", "content": "a", "name": "b"},
        {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": "a", "refusal": None, "annotations": [], "reasoning_details": [1]},
    ]
    body = json.dumps({"messages": messages, "stream_options": {"include_obfuscation": False}}).encode()
    parsed = parse(body, ChatRequest)
    assert "cache_control" not in parsed.model_dump_json() and "reasoning_details" not in parsed.model_dump_json()
    assert parsed.ignored == [
        "stream_options.include_obfuscation", "messages[0].name", "messages[1].content[0].cache_control",
        "messages[2].reasoning_details",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 900_000,
        b'{"a":' * 150_000,
        b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"seed": 1e999}',
        b'{"seed": ' + b"9" * 500_000 + b"}",
        b'{"seed": -Infinity}',
        b"\xef\xbb\xbf{}",
        b'{"a": "\\ud800"}',
        b'"' + b"\\u0061" * 100_000,
    ],
)
def test_what_is_no_json_of_ours(body: bytes) -> None:
    assert refused(body).code in ("invalid_json", "missing_field", "too_large")


def test_the_number_of_objects_is_bounded_before_they_are_made() -> None:
    for item, count in ((b"[]", 300_000), (b"{}", 300_000), (b'{"a":[[]]}', 80_000)):
        assert refused(chat("pins", item, count)).code == "too_large"
    for text in ("[{" * 200_000, '\\"[' * 200_000, '"' + '\\"[' * 200_000):  # in a text they are characters
        body = b'{"messages":[{"role":"user","content":%s}]}' % json.dumps(text).encode()
        assert parse(body, ChatRequest).model_dump()["messages"][0]["content"] == text
    assert refused(b'{"a":"' + b'\\"[' * 300_000).code == "invalid_json"


def test_large_bodies_are_read_beside_the_event_loop(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    read = parsing.parse

    def noted(*args: Any) -> BaseModel:
        import threading

        threads.append(threading.get_ident())
        return read(*args)

    monkeypatch.setattr(parsing, "parse", noted)
    for size in (10, 100_000):
        body = {"messages": [{"role": "user", "content": "hi"}], "metadata": {"a": "x" * size}, "max_tokens": 1}
        assert server.http.post("/v1/chat/completions", json=body).status_code == 200
    assert len(set(threads)) == 2


def test_the_description_still_has_the_bodies(server: Running) -> None:
    described = server.http.get("/openapi.json").json()
    body = described["paths"]["/v1/chat/completions"]["post"]["requestBody"]
    assert body["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/ChatRequest"}
    assert "messages" in described["components"]["schemas"]["ChatRequest"]["properties"]
