"""Tools of a model that knows none: calls that are valid by construction, and the way back into the conversation."""

import json
import re
from collections.abc import Iterator

import openai
import pytest
from jsonschema import Draft202012Validator

from diffusiongemma.constraints import Constraint, compile_grammar
from diffusiongemma.engine.events import Commit, Result, Usage
from diffusiongemma.generation import DiffusionGemmaModel
from diffusiongemma.server.chat import ChatFormatter
from diffusiongemma.server.errors import ApiError
from diffusiongemma.server.protocol import ChatRequest
from diffusiongemma.server.tools import MARK, Toolset, conversation
from tests.server.running import Running, running
from tests.unmarked import unmarked_model

ASKED = [{"role": "user", "content": "What is the weather in Paris?"}]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "unit": {"$ref": "#/$defs/unit"}},
    "required": ["city", "unit"],
    "additionalProperties": False,
    "$defs": {"unit": {"enum": ["celsius", "fahrenheit"]}},
}
SUM = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
PARAMETERS = {"weather": CITY, "add": SUM}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": f"Does {name}.", "parameters": parameters}}
    for name, parameters in PARAMETERS.items()
]


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> DiffusionGemmaModel:
    return unmarked_model(tmp_path_factory.mktemp("unmarked"))


@pytest.fixture(scope="module")
def server(nano: DiffusionGemmaModel) -> Iterator[Running]:
    with running(nano) as started:
        yield started


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as made:
        yield made


def check(call: object) -> None:
    assert call.type == "function"
    Draft202012Validator(PARAMETERS[call.function.name]).validate(json.loads(call.function.arguments))


def toolset(**more: object) -> Toolset:
    result = Toolset.of(ChatRequest.model_validate({"messages": ASKED, "tools": TOOLS, **more}))
    assert result is not None
    return result


@pytest.mark.parametrize("seed", [1, 2])
def test_a_required_call_is_valid(client: openai.OpenAI, seed: int) -> None:
    answer = client.chat.completions.create(model="nano", messages=ASKED, tools=TOOLS, tool_choice="required", seed=seed)
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls
    check(call)


def test_a_named_call_streams(client: openai.OpenAI) -> None:
    chosen = {"type": "function", "function": {"name": "add"}}
    stream = client.chat.completions.create(model="nano", messages=ASKED, tools=TOOLS, tool_choice=chosen, seed=1, stream=True)
    chunks = [chunk.choices[0] for chunk in stream]
    assert not any(chunk.delta.content for chunk in chunks)
    (call,) = (call for chunk in chunks for call in chunk.delta.tool_calls or ())
    assert call.index == 0
    assert call.function.name == "add"
    check(call)
    assert chunks[-1].finish_reason == "tool_calls"


def test_auto_may_answer_in_words(client: openai.OpenAI) -> None:
    options = {"model": "nano", "messages": ASKED, "tools": TOOLS, "seed": 1, "max_tokens": 64}
    choice = client.chat.completions.create(**options).choices[0]  # tools without a choice: auto
    assert choice.message.tool_calls is None
    assert choice.finish_reason in ("stop", "length")
    streamed = client.chat.completions.create(**options, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == choice.message.content


def test_auto_takes_words_or_a_whole_call(nano: DiffusionGemmaModel) -> None:
    tools = toolset()
    grammar = compile_grammar(Constraint.grammar(tools.required_schema(nano.vocabulary)["grammar"]), nano.vocabulary)

    def fits(text: str) -> bool:
        cursor, tokens = grammar.start(), nano.vocabulary.encode(text)
        if cursor.validate(tokens) < len(tokens):
            return False
        for token in tokens:
            cursor.advance(token)
        return cursor.accepting

    call = '{"name": "weather", "arguments": {"city": "Paris", "unit": "celsius"}}'
    for text in (f"{MARK}{call}</tool_call>", "words", "", "a {MARK} inside <tool_call>", "<tool_cal", call, "two\nlines", "é"):
        assert fits(text), text
    for text in (f"{MARK}{call}", f"{MARK}words</tool_call>", f"{MARK}{call.replace('celsius', 'kelvin')}</tool_call>"):
        assert not fits(text), text
    assert tools.read("words") is None
    (read,) = tools.read(f"{MARK}{call}</tool_call>") or ()
    assert read["function"] == {"name": "weather", "arguments": '{"city": "Paris", "unit": "celsius"}'}


def test_a_stream_holds_back_what_may_become_a_call(server: Running) -> None:
    def streamed(*pieces: str, finish: str = "stop") -> list[dict]:
        formatter = ChatFormatter(server.state.models["nano"], tools=toolset())
        deltas = [choice for piece in pieces for choice in formatter.delta(0, Commit(0, piece, [7]))]
        result = Result("".join(pieces), [7], finish, Usage(1, 1, 2, 1, 0, 1.0, 1.0, 0.1))
        results = [*deltas, *formatter.closing(0, result)]
        assert results[-1]["delta"] == {}
        return [choice["delta"] for choice in results[:-1]] + [results[-1]["finish_reason"]]

    call = '{"name": "add", "arguments": {"a": 1, "b": 2}}'
    assert streamed("<tool", "box> is", " it") == [{"content": "<toolbox> is"}, {"content": " it"}, "stop"]
    assert streamed("<tool_c") == [{"content": "<tool_c"}, "stop"]
    called, reason = streamed("<tool", "_call>" + call[:9], call[9:] + "</tool_call>")
    assert reason == "tool_calls"
    assert called["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": 1, "b": 2}'}
    assert streamed(MARK, call[:9], finish="length") == [{"content": MARK + call[:9]}, "length"]


def test_a_call_that_was_cut_is_no_call(client: openai.OpenAI) -> None:
    long = [{"type": "function", "function": {"name": "note", "parameters": {"type": "object", "properties": {
        "text": {"type": "string", "minLength": 200}}, "required": ["text"]}}}]  # fmt: skip
    options = {"model": "nano", "messages": ASKED, "tools": long, "tool_choice": "required", "max_tokens": 10, "seed": 1}
    choice = client.chat.completions.create(**options).choices[0]
    assert choice.message.tool_calls is None
    assert choice.finish_reason == "length"
    assert choice.message.content.startswith('{"name": "note", ')
    *_, text, end = (chunk.choices[0] for chunk in client.chat.completions.create(**options, stream=True))
    assert text.delta.content == choice.message.content
    assert end.finish_reason == "length"


def test_a_result_goes_back(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(model="nano", messages=ASKED, tools=TOOLS, tool_choice="required", seed=1)
    message = first.choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "18 degrees"}
    second = client.chat.completions.create(
        model="nano", messages=[*ASKED, message, result], tools=TOOLS, tool_choice="none", seed=1, max_tokens=8
    )
    assert second.choices[0].message.tool_calls is None
    without = client.chat.completions.create(model="nano", messages=ASKED, seed=1, max_tokens=8)
    assert second.usage.prompt_tokens > without.usage.prompt_tokens


def test_a_conversation_with_tools_is_plain_text() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1,"b":2}'}}
    messages = [
        {"role": "user", "content": "1 and 2?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
    ]
    body = ChatRequest.model_validate({"messages": messages, "tools": TOOLS})
    system, user, assistant, tool = conversation(body.messages, toolset())
    assert system["role"] == "system"
    for part in ("weather", "Does add.", MARK):
        assert part in system["content"]
    assert user["content"] == "1 and 2?"
    assert assistant == {"role": "assistant", "content": f'{MARK}{{"name": "add", "arguments": {{"a": 1, "b": 2}}}}</tool_call>'}
    assert tool == {"role": "user", "content": "<tool_response>3</tool_response>"}
    for place, wrong in ((2, {"role": "tool", "tool_call_id": "c2", "content": "3"}), (1, {"role": "assistant", "content": None})):
        broken = ChatRequest.model_validate({"messages": [*messages[:place], wrong]})
        with pytest.raises(ApiError, match=re.escape(f"messages[{place}]")):
            conversation(broken.messages, None)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "nothing"}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "stop": "x"}, "stop"),
        ({"tools": TOOLS, "regex": "x"}, "regex"),
        ({"tools": TOOLS, "logprobs": True}, "logprobs"),
        ({"tools": TOOLS, "mode": "causal"}, "mode"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "not": {}}}}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "no such name"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "code_interpreter"}]}, "tools[0].type"),
    ],
)
def test_what_does_not_go_together_is_refused(client: openai.OpenAI, more: dict, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="nano", messages=ASKED, extra_body=more)
    assert error.value.param == param
