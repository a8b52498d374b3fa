"""Anthropic's protocol, through its own client: the answers are the chat's, whole and as a stream."""

from pathlib import Path

import anthropic
import pytest

from diffusiongemma.generation import DiffusionGemmaModel
from tests.native import native_model
from tests.server.running import Running, running
from tests.server.test_chat import ASKED, FREE
from tests.server.test_texts import post

NOTE = {
    "name": "note",
    "description": "Write a note.",
    "input_schema": {"type": "object", "properties": {"text": {"type": "string", "maxLength": 6}}, "required": ["text"],
                     "additionalProperties": False},
}  # fmt: skip


@pytest.fixture(scope="module")
def theirs(server: Running) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)


def test_an_answer_is_the_chats(theirs: anthropic.Anthropic, nano: DiffusionGemmaModel) -> None:
    own = nano.generate(messages=[{"role": "system", "content": "Be brief."}, *ASKED], temperature=0.5, max_tokens=100, top_k=20)
    answer = theirs.messages.create(
        model="nano", max_tokens=100, system="Be brief.", messages=ASKED, metadata={"user_id": "me"},
        extra_body={"temperature": 0.5, "top_k": 20},
    )  # fmt: skip
    assert (answer.type, answer.role, answer.stop_reason, answer.stop_sequence) == ("message", "assistant", "end_turn", None)
    [block] = answer.content
    assert block.type == "text" and block.text.startswith("{")
    assert answer.usage.input_tokens == own.usage.prompt_tokens and answer.usage.output_tokens > 0
    assert answer.model_extra["ignored"] == ["metadata"]
    count = theirs.messages.count_tokens(model="nano", system=[{"type": "text", "text": "Be brief."}], messages=ASKED)
    assert count.input_tokens == own.usage.prompt_tokens


def test_ends(theirs: anthropic.Anthropic) -> None:
    cut = theirs.messages.create(model="nano", max_tokens=3, messages=ASKED)
    assert cut.stop_reason == "max_tokens"
    stopped = theirs.messages.create(model="nano", max_tokens=60, messages=ASKED, stop_sequences=["~", ":"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", ":")
    assert ":" not in stopped.content[0].text


def test_a_stream_has_the_same_text_in_order(theirs: anthropic.Anthropic) -> None:
    kinds = []
    with theirs.messages.stream(model="nano", max_tokens=60, messages=ASKED) as stream:
        for event in stream:
            kinds.append(event.type)
        final = stream.get_final_message()
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"
    assert [kind for kind in kinds if kind.startswith("content_block_st")] == ["content_block_start", "content_block_stop"]
    assert final.content[0].text.startswith("{") and final.stop_reason == "end_turn" and final.usage.output_tokens > 0


def test_a_call_and_its_result(theirs: anthropic.Anthropic) -> None:
    """nano does not know tools: the call comes by its grammar."""
    asked = {"model": "nano", "max_tokens": 60, "tools": [NOTE], "tool_choice": {"type": "tool", "name": "note"}}
    answer = theirs.messages.create(messages=FREE, **asked)
    assert answer.stop_reason == "tool_use"
    [call] = answer.content
    assert (call.type, call.name, set(call.input)) == ("tool_use", "note", {"text"})
    with theirs.messages.stream(messages=FREE, **asked) as stream:
        streamed = stream.get_final_message()
    assert streamed.stop_reason == "tool_use" and set(streamed.content[0].input) == {"text"}
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "done"}]}
    asks = [result, {"type": "text", "text": "?"}]
    more = [*FREE, {"role": "assistant", "content": answer.content}, {"role": "user", "content": asks}]
    after = theirs.messages.create(model="nano", max_tokens=8, messages=more, tools=[NOTE], tool_choice={"type": "none"})
    assert after.usage.input_tokens > theirs.messages.count_tokens(model="nano", messages=FREE).input_tokens + 10


def test_thoughts_and_calls_in_the_models_own_markup(tmp_path: Path) -> None:
    model = native_model(tmp_path)
    with running(model) as server:
        client = anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)
        asked = {"model": "nano", "max_tokens": 120, "messages": FREE, "thinking": {"type": "enabled", "budget_tokens": 5}}
        answer = client.messages.create(tools=[NOTE], tool_choice={"type": "any"}, **asked)
        kinds = [block.type for block in answer.content]
        assert "tool_use" in kinds
        with client.messages.stream(tools=[NOTE], tool_choice={"type": "any"}, **asked) as stream:
            final = stream.get_final_message()
        assert "tool_use" in [block.type for block in final.content]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"messages": []}, "messages"),
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "image"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "a", "name": "b", "input": {}}]}]}, "tool_use"),
        ({"temperature": 7}, "temperature"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"model": "claude"}, "claude"),
    ],
)
def test_errors_have_its_shape(server: Running, change: dict, said: str) -> None:
    body = {"model": "nano", "max_tokens": 5, "messages": FREE} | change
    answer = post(server, "messages", **{name: value for name, value in body.items() if value is not None})
    assert answer.status_code in (400, 404)
    error = answer.json()
    assert error["type"] == "error" and said in error["error"]["message"]
