"""Thoughts and calls in the model's own markup, as OpenAI's client sees them; the weights are random."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from diffusiongemma.engine.threaded import ThreadedEngine
from diffusiongemma.model.cache import KVCache
from diffusiongemma.server.answers import usage
from diffusiongemma.server.endpoint import ModelEndpoint
from tests.constraints.test_walks import validator
from tests.native import native_model
from tests.server.running import Running, running

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city"],
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "description": "The weather of a city.", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now", "description": "The time."}},
]
ASKED: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
THINK = {"enable_thinking": True}


@pytest.fixture(scope="module", name="server")
def _server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(native_model(tmp_path_factory.mktemp("native"), 0, positions=1024, max_tokens=96)) as started:
        yield started


@pytest.fixture(scope="module", name="client")
def _client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as made:
        yield made


def ask(client: openai.OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(**{"model": "nano", "messages": ASKED, "max_tokens": 96, "seed": 1, **options})


def check(calls: Any) -> None:
    for call in calls:
        arguments = json.loads(call.function.arguments)
        validator(WEATHER if call.function.name == "weather" else {"maxProperties": 0}).validate(arguments)


@pytest.mark.parametrize("thinking", [False, True])
def test_a_call_that_must_be_made(client: openai.OpenAI, thinking: bool) -> None:
    for seed in range(3):
        answer = ask(client, tools=TOOLS, tool_choice="required", seed=seed, extra_body=THINK if thinking else {})
        (choice,) = answer.choices
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None and choice.message.tool_calls
        check(choice.message.tool_calls)
        assert len({call.id for call in choice.message.tool_calls}) == len(choice.message.tool_calls)
        reasoning = answer.usage.completion_tokens_details.reasoning_tokens
        assert (reasoning > 0) == thinking
        assert (choice.message.reasoning_content is None) or thinking


def test_parameters_that_say_more_than_a_grammar_are_approximated_and_reported(client: openai.OpenAI) -> None:
    tags = {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2, "uniqueItems": True}
    either = {"oneOf": [{"type": "integer", "minimum": 1, "maximum": 5}, {"type": "integer", "minimum": 3, "maximum": 9}]}
    parameters = {"type": "object", "properties": {"tags": tags, "count": either}, "required": ["tags", "count"]}
    tool = {"type": "function", "function": {"name": "tag", "parameters": parameters | {"additionalProperties": False}}}
    raw = client.chat.completions.with_raw_response.create(
        model="nano", messages=ASKED, max_tokens=96, seed=1, tools=[tool], tool_choice="required"
    )
    assert raw.headers["X-Diffusiongemma-Ignored"] == "tools.uniqueItems, tools.oneOf"
    for call in raw.parse().choices[0].message.tool_calls:
        arguments = json.loads(call.function.arguments)
        assert set(arguments) == {"tags", "count"} and set(arguments["tags"]) <= {"a", "b"} and 1 <= arguments["count"] <= 9
    tool["function"]["strict"] = True
    with pytest.raises(openai.BadRequestError, match="a tool is strict, and no grammar expresses uniqueItems"):
        ask(client, tools=[tool])


def joined(stream: Any) -> tuple[dict[str, Any], list[Any]]:
    """What a client puts together of a stream, and its chunks."""
    said: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    chunks = list(stream)
    for chunk in chunks:
        for choice in chunk.choices:
            said["finish"] = choice.finish_reason or said.get("finish")
            said["content"] += choice.delta.content or ""
            said["reasoning_content"] += getattr(choice.delta, "reasoning_content", None) or ""
            for call in choice.delta.tool_calls or []:
                if call.index == len(said["tool_calls"]):
                    assert call.id and call.type == "function" and call.function.name
                    said["tool_calls"].append({"name": call.function.name, "arguments": ""})
                said["tool_calls"][call.index]["arguments"] += call.function.arguments
    return said, chunks


@pytest.mark.parametrize(
    "options",
    [
        {"tools": TOOLS, "tool_choice": "required"},
        {"tools": TOOLS, "tool_choice": "required", "extra_body": {**THINK, "thinking_budget": 12}},
        {"tools": TOOLS, "extra_body": THINK},
        {"extra_body": THINK},
        {"extra_body": {**THINK, "choices": ["yes", "no"], "thinking_budget": 9}},
    ],
    ids=str,
)
def test_a_stream_is_the_whole_in_pieces(client: openai.OpenAI, options: dict[str, Any]) -> None:
    for seed in range(3):
        whole = ask(client, **options, seed=seed).choices[0]
        said, _ = joined(ask(client, **options, seed=seed, stream=True))
        assert said["content"] == (whole.message.content or "")
        assert said["reasoning_content"] == (whole.message.reasoning_content or "")
        assert said["finish"] == whole.finish_reason
        calls = [{"name": call.function.name, "arguments": call.function.arguments} for call in whole.message.tool_calls or []]
        assert said["tool_calls"] == calls


def test_a_call_comes_by_its_name_first(client: openai.OpenAI) -> None:
    _, chunks = joined(ask(client, tools=TOOLS, tool_choice="required", stream=True))
    parts = [call for chunk in chunks for choice in chunk.choices for call in choice.delta.tool_calls or []]
    first, second = parts[:2]
    assert first.id and first.function.name and first.function.arguments == ""
    assert second.id is None and second.function.name is None and json.loads(second.function.arguments) is not None


def test_a_conversation_with_results(client: openai.OpenAI, server: Running) -> None:
    first = ask(client, tools=TOOLS, tool_choice="required", extra_body=THINK)
    message = first.choices[0].message
    results = [{"role": "tool", "tool_call_id": call.id, "content": "18 degrees"} for call in message.tool_calls]
    history = [*ASKED, message.model_dump(exclude_none=True), *results]
    none = ask(client, tools=TOOLS, tool_choice="none", messages=history)
    assert none.choices[0].message.tool_calls is None
    second = ask(client, tools=TOOLS, messages=history)
    check(second.choices[0].message.tool_calls or [])
    assert second.usage.prompt_tokens > first.usage.prompt_tokens


def test_one_call_at_most(client: openai.OpenAI) -> None:
    for seed in range(4):
        choice = ask(client, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, seed=seed).choices[0]
        assert len(choice.message.tool_calls) == 1
        named = {"type": "function", "function": {"name": "now"}}
        choice = ask(client, tools=TOOLS, tool_choice=named, seed=seed).choices[0]
        assert {(call.function.name, call.function.arguments) for call in choice.message.tool_calls} == {("now", "{}")}


def test_a_call_that_was_cut_is_no_call(client: openai.OpenAI) -> None:
    long = [{"type": "function", "function": {"name": "note", "parameters": {
        "type": "object", "properties": {"text": {"type": "string", "minLength": 300}}, "required": ["text"]}}}]  # fmt: skip
    options: dict[str, Any] = {"tools": long, "tool_choice": "required", "max_tokens": 20}
    choice = ask(client, **options).choices[0]
    assert choice.finish_reason == "length" and choice.message.tool_calls is None
    assert choice.message.content.startswith("<|tool_call>call:note{")
    said, _ = joined(ask(client, **options, stream=True))
    assert (said["content"], said["tool_calls"], said["finish"]) == (choice.message.content, [], "length")


def test_a_format_after_the_thought(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answer = ask(client, response_format=form, extra_body={**THINK, "thinking_budget": 9})
    validator(schema).validate(json.loads(answer.choices[0].message.content))
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens_details.reasoning_tokens >= 3
    both = ask(client, response_format=form, tools=TOOLS).choices[0]
    check(both.message.tool_calls or [])
    if both.message.tool_calls is None:
        validator(schema).validate(json.loads(both.message.content))


def test_an_answer_may_fill_the_context(client: openai.OpenAI, server: Running) -> None:
    """Without max_tokens it is not the checkpoint's few; the prompt, whole canvases and the model's positions bound it."""
    answer = ask(client, max_tokens=openai.NOT_GIVEN, temperature=0)
    prompt, canvas = answer.usage.prompt_tokens, server.model.config.canvas_length
    room = (1024 - prompt) // canvas * canvas
    assert answer.usage.completion_tokens == room or answer.choices[0].finish_reason == "stop"
    assert server.state.models["nano"].room(prompt, canvas, 3) == room > server.model.defaults.max_tokens
    long = [{"role": "user", "content": "Paris " * 480}]
    assert ask(client, messages=long, max_tokens=openai.NOT_GIVEN).usage.completion_tokens <= 1024
    with pytest.raises(openai.BadRequestError) as error:
        ask(client, messages=[{"role": "user", "content": "Paris " * 600}], max_tokens=openai.NOT_GIVEN)
    assert error.value.code == "context_length_exceeded"


def test_one_answer_leaves_room_for_others(server: Running) -> None:
    """A row's share of the memory for caches, and of the steps of a client; but what the checkpoint gives there is in any case."""
    model = server.model
    slot, canvas = KVCache.bytes_of(model.config.text, 1, model.dtype), model.config.canvas_length

    def room(prompt: int, slots: int, steps: int, client_steps: int = 1 << 19) -> int:
        engine = ThreadedEngine(model.transformer, model.tokenizer, max_batch=2, kv_bytes=slots * slot, client_steps=client_steps)
        try:
            return ModelEndpoint("nano", model, engine).room(prompt, canvas, steps)
        finally:
            engine.stop()

    assert room(24, 100_000, 3) == (1024 - 24) // canvas * canvas
    assert room(24, 2 * 600, 3) == (600 - 24) // canvas * canvas
    assert room(24, 2 * 100, 3) == model.defaults.max_tokens == 96
    assert room(24, 100_000, 10, client_steps=8 * 10 * 7) == 7 * canvas
    assert room(1000, 100_000, 3) == 1  # nothing is left: the request is refused with the sizes


def test_stop_strings_beside_tools_are_of_the_content(client: openai.OpenAI) -> None:
    choice = ask(client, tools=TOOLS, tool_choice="required", stop=["call", "weather", "{"]).choices[0]
    assert choice.finish_reason == "tool_calls"
    check(choice.message.tool_calls)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "nothing"}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "required", "regex": "x"}, "tool_choice"),
        ({"tools": TOOLS, "pins": [[0, 40]]}, "pins"),
        ({"tools": TOOLS, "mode": "causal"}, "mode"),
        ({"tools": TOOLS, "regex": "("}, "regex"),
        (
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "x"}}}},
                    }
                ]
            },
            "tools",
        ),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a:b": {}}}}}]}, "tools"),
        ({"thinking_budget": 5, "mode": "causal"}, "thinking_budget"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(client: openai.OpenAI, more: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        ask(client, extra_body=more)
    assert error.value.param == param


def test_usage_counts_thoughts(server: Running) -> None:
    result = server.model.generate(messages=ASKED, tools=TOOLS, tool_choice="required", enable_thinking=True, seed=1)
    assert usage([result, result])["completion_tokens_details"] == {"reasoning_tokens": 2 * result.usage.thinking_tokens}
    assert result.usage.thinking_tokens > 0
