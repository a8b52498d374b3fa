"""Texts that are cut where one does not expect it: within a character by tokens, within a line by readers; and very long ones."""

import json
import time

import openai
import pytest

from diffusiongemma.text.tokenizer import Tokenizer
from tests.server.running import Running

SPLIT = "a€b 💥é, 漢字"  # nano has no token for most of these characters: two to four tokens each
BREAKS = "a\u2028b\u2029c\u0085d"
HELD = {"model": "nano", "seed": 1, "max_tokens": 60, "num_diffusion_steps": 2}


def starts(text: str) -> dict[int, int]:
    """Byte to the character it belongs to."""
    return dict(enumerate(at for at, char in enumerate(text) for _ in char.encode()))


def test_chat_logprobs_have_the_bytes_of_each_token(client: openai.OpenAI) -> None:
    extra = {"choices": [SPLIT]} | HELD
    said = [{"role": "user", "content": "hi"}]
    answer = client.chat.completions.create(messages=said, logprobs=True, top_logprobs=3, extra_body=extra, model="nano")
    result = answer.choices[0].logprobs
    assert answer.choices[0].message.content == SPLIT and result is not None and result.content is not None
    assert bytes(byte for token in result.content for byte in token.bytes or []) == SPLIT.encode()
    broken = [token for token in result.content if token.token.startswith("\\x")]
    assert len(broken) > 5
    for token in broken:
        assert token.token == "".join(f"\\x{byte:02x}" for byte in token.bytes or [])
    whole = [token for token in result.content if token not in broken]
    assert all(bytes(token.bytes or []).decode() == token.token for token in whole)


@pytest.mark.parametrize("stop", [None, "é"])
def test_text_logprobs_begin_where_their_characters_do(server: Running, stop: str | None) -> None:
    body = {"prompt": "x", "logprobs": 2, **HELD} | ({"choices": [SPLIT]} if stop is None else {})
    if stop is not None:  # a text without rules is stopped: by what it has itself in its middle
        free = server.http.post("/v1/completions", json=body).json()["choices"][0]["text"]
        body["stop"] = free[len(free) // 2]
    result = server.http.post("/v1/completions", json=body).json()["choices"][0]
    text, logprobs = result["text"], result["logprobs"]
    assert text == SPLIT or stop is not None
    assert len({len(logprobs[name]) for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")}) == 1
    assert all(0 <= offset < len(text) for offset in logprobs["text_offset"])
    if stop is None:
        ids, place, tokenizer = result["token_ids"], 0, server.model.tokenizer
        shown = [token for token in ids if token not in server.model.stop_ids]
        for token, spelled, offset in zip(shown, logprobs["tokens"], logprobs["text_offset"], strict=True):
            data = tokenizer.token_bytes(token)
            assert offset == starts(text)[place]
            assert spelled == (data.decode() if _whole(data) else "bytes:" + "".join(f"\\x{byte:02x}" for byte in data))
            place += len(data)
    streamed: dict[str, list[object]] = {"tokens": [], "text_offset": []}
    with server.http.stream("POST", "/v1/completions", json=body | {"stream": True}) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: {")]
    for piece in (json.loads(line)["choices"][0]["logprobs"] for line in lines):
        for name in streamed if piece else ():
            streamed[name] += piece[name]
    assert streamed == {name: logprobs[name] for name in streamed}


def _whole(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.parametrize("diffusing", [False, True])
def test_no_line_of_a_stream_ends_within_its_json(server: Running, diffusing: bool) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "choices": [BREAKS], "stream": True, "diffusing": diffusing, **HELD}
    with server.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line and not line.startswith("event: ")]
    assert lines.pop() == "[DONE]"
    read = [json.loads(line) for line in lines]
    assert "".join(choice["delta"].get("content", "") for each in read for choice in each["choices"]) == BREAKS


def test_a_very_long_text_is_refused_by_its_length(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []
    monkeypatch.setattr(Tokenizer, "_encode_batch", lambda self, texts: encoded.append(sum(map(len, texts))) or ([] for _ in texts))
    long, began = "word " * 200_000, time.monotonic()
    for path, body in (
        ("completions", {"prompt": "a", "suffix": long}),
        ("completions", {"prompt": long}),
        ("fim/completions", {"prompt": long, "suffix": "b"}),
        ("edit/completions", {"input": long, "instruction": "b"}),
        ("edit/completions", {"input": long, "instruction": "b", "in_prompt": False}),
        ("chat/completions", {"messages": [{"role": "user", "content": long}]}),
        ("decisions", {"input": long, "questions": [{"type": "predicate", "instructions": "x"}]}),
    ):
        answer = server.http.post(f"/v1/{path}", json=body)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["code"] == "context_length_exceeded"
        assert len(answer.content) < 1000
    assert max(encoded, default=0) < 1000
    assert time.monotonic() - began < 20


def test_given_texts_are_encoded_once(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    own, encoded = Tokenizer.encode, list[str]()

    def encode(self: Tokenizer, text: str, *rest: object, **options: object) -> list[int]:
        encoded.append(text)
        return own(self, text, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Tokenizer, "encode", encode)
    server.model.infill("before ", " after", max_tokens=3, seed=1, num_diffusion_steps=1)
    assert encoded.count(" after") == 1
    assert encoded.count("before ") == 1
