"""OpenAI's responses, through its own client: the answers are the chat's, whole and as a stream."""

from pathlib import Path

import openai
import pytest
from pydantic import BaseModel

from tests.native import native_model
from tests.server.running import Running, running
from tests.server.test_chat import ASKED, FREE, QUESTION
from tests.server.test_texts import post

NOTE = {
    "type": "function", "name": "note", "description": "Write a note.", "strict": True,
    "parameters": {"type": "object", "properties": {"text": {"type": "string", "maxLength": 6}}, "required": ["text"],
                   "additionalProperties": False},
}  # fmt: skip


def test_an_answer_is_the_chats(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(
        model="nano", messages=[{"role": "system", "content": "Be brief."}, *ASKED], seed=1, temperature=0.5
    )
    answer = client.responses.create(
        model="nano", input=QUESTION, instructions="Be brief.", temperature=0.5, extra_body={"seed": 1}, metadata={"a": "b"}
    )
    assert (answer.object, answer.status, answer.error, answer.store) == ("response", "completed", None, False)
    assert answer.output_text == chat.choices[0].message.content
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (chat.usage.prompt_tokens, chat.usage.completion_tokens)
    assert answer.model_extra["ignored"] == ["metadata"]
    parts = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": QUESTION}]}]
    listed = client.responses.create(model="nano", input=parts, instructions="Be brief.", temperature=0.5, extra_body={"seed": 1})
    assert listed.output_text == answer.output_text


def test_a_stream_has_the_same_text_in_order(client: openai.OpenAI) -> None:
    events, text = [], ""
    with client.responses.stream(model="nano", input=QUESTION, temperature=0) as stream:
        for event in stream:
            events.append(event)
            text += event.delta if event.type == "response.output_text.delta" else ""
        final = stream.get_final_response()
    assert [event.type for event in events][:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert [event.type for event in events][-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed",
    ]  # fmt: skip
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert text == final.output_text and text.startswith("{")


def test_a_cut_answer_is_incomplete(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="nano", input=QUESTION, max_output_tokens=3)
    assert answer.status == "incomplete" and answer.incomplete_details.reason == "max_output_tokens"
    *_, last = client.responses.create(model="nano", input=QUESTION, max_output_tokens=3, stream=True)
    assert last.type == "response.incomplete"


class Person(BaseModel):
    name: str
    age: int


def test_a_schema_is_obeyed(client: openai.OpenAI) -> None:
    question = "Extract as JSON: name (string), age (integer)\nKalrin is 31."
    answer = client.responses.parse(model="nano", input=question, text_format=Person)
    assert isinstance(answer.output_parsed, Person)
    plain = client.responses.create(model="nano", input=question, text={"format": {"type": "json_object"}})
    assert plain.output_text.startswith("{")


def test_a_call_and_its_result(client: openai.OpenAI) -> None:
    asked = {"model": "nano", "input": "Say something about the sea.", "tools": [NOTE], "tool_choice": "required"}
    answer = client.responses.create(**asked)
    [call] = answer.output
    assert (call.type, call.name) == ("function_call", "note") and '"text"' in call.arguments
    events = list(client.responses.create(stream=True, **asked))
    [done] = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert "".join(event.delta for event in events if event.type == "response.function_call_arguments.delta") == done.arguments
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "done"}
    said = [{"role": "user", "content": asked["input"]}, call.model_dump(), result]
    after, before = (client.responses.create(model="nano", input=each, max_output_tokens=8) for each in (said, asked["input"]))
    assert after.usage.input_tokens > before.usage.input_tokens


def test_thoughts_of_a_model_that_thinks(tmp_path: Path) -> None:
    with running(native_model(tmp_path)) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        asked = {"model": "nano", "input": "hi", "reasoning": {"effort": "low"}, "max_output_tokens": 60, "extra_body": {"seed": 1}}
        answer = client.responses.create(**asked, tools=[NOTE], tool_choice="required")
        kinds = [item.type for item in answer.output]
        assert kinds[-1] == "function_call"
        *_, last = client.responses.create(**asked, tools=[NOTE], tool_choice="required", stream=True)
        assert [item.type for item in last.response.output] == kinds
        said = [{"role": "user", "content": "hi"}, *[item.model_dump() for item in answer.output],
                {"type": "function_call_output", "call_id": answer.output[-1].call_id, "output": "done"}]  # fmt: skip
        assert client.responses.create(model="nano", input=said, max_output_tokens=8).status in ("incomplete", "completed")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "messages[0].content[0].type"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
    ],
)
def test_what_is_not_here_is_refused(server: Running, change: dict, param: str) -> None:
    answer = post(server, "responses", **{"model": "nano", "input": FREE[0]["content"]} | change)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text
