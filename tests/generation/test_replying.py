"""Tools, thoughts and constraints of a reply, as a caller of Python asks for them; the weights are random."""

import json
from typing import Any

import pytest

from diffusiongemma.engine.events import Commit, Done, Result
from diffusiongemma.errors import ConstraintError, InputError, OptionError
from diffusiongemma.generation import DiffusionGemmaModel
from tests.constraints.test_walks import validator
from tests.native import native_model
from tests.tiny import tiny_model
from tests.unmarked import unmarked_model

WEATHER = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"]}
NOW = {"name": "now", "description": "The time."}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "weather", "description": "The weather of a city.", "parameters": WEATHER}},
    NOW,  # the function alone, and without parameters
]
ASKED = [{"role": "user", "content": "What is the weather in Paris?"}]
RECORD = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
FORMAT = {"type": "json_schema", "json_schema": {"schema": RECORD}}


@pytest.fixture(scope="module", name="models")
def _models(tmp_path_factory: pytest.TempPathFactory) -> list[DiffusionGemmaModel]:
    return [native_model(tmp_path_factory.mktemp("native"), seed, max_tokens=48) for seed in range(3)]


def check(result: Result) -> None:
    for call in result.tool_calls:
        validator(WEATHER if call.name == "weather" else {"maxProperties": 0}).validate(call.arguments)


@pytest.mark.parametrize("thinking", [False, True])
def test_choices(models: list[DiffusionGemmaModel], thinking: bool) -> None:
    options: dict[str, Any] = {"messages": ASKED, "tools": TOOLS, "enable_thinking": thinking}
    for model in models:
        for seed in range(4):
            must = model.generate(**options, tool_choice="required", seed=seed)
            check(must)
            assert must.finish_reason == "stop" and must.tool_calls and not must.text
            assert (must.token_ids[0] == model.tokenizer.markup.thought_open) == thinking
            only = {"type": "function", "function": {"name": "now"}}
            named = model.generate(**options, tool_choice=only, parallel_tool_calls=False, seed=seed)
            assert [(call.name, call.arguments) for call in named.tool_calls] == [("now", {})]
            none = model.generate(**options, tool_choice="none", seed=seed)
            assert not none.tool_calls and "<|tool_call>" not in none.text
            auto = model.generate(**options, seed=seed)
            check(auto)
            assert auto.finish_reason == "length" or auto.text or auto.tool_calls or auto.token_ids[-1] in model.stop_ids


def test_a_loop_of_calls_and_results(models: list[DiffusionGemmaModel]) -> None:
    """The example of docs/chat.md: the calls are run, and the model goes on with their results."""

    def weather(city: str) -> str:
        return f"sunny in {city}"

    functions = {"weather": weather, "now": lambda: "noon"}
    for model in models:
        messages: list[dict[str, Any]] = list(ASKED)
        result = model.generate(messages=messages, tools=TOOLS, tool_choice="required", seed=1)
        while result.tool_calls:
            calls = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in result.tool_calls
            ]
            messages.append({"role": "assistant", "content": result.text, "tool_calls": calls})
            for call in result.tool_calls:
                said = functions[call.name](**call.arguments)
                messages.append({"role": "tool", "tool_call_id": call.id, "content": said})
            choice = "required" if len(messages) < 6 else "none"
            result = model.generate(messages=messages, tools=TOOLS, tool_choice=choice, seed=len(messages))
        assert [message["role"] for message in messages[:3]] == ["user", "assistant", "tool"]
        assert sum(message["role"] == "assistant" for message in messages) >= 2
        prompt = model.tokenizer.decode(model.prompt_ids(messages=messages, tools=TOOLS)[0], skip_special=False)
        assert "<|tool_response>response:" in prompt
        assert model.prompt_ids(messages=messages, tools=TOOLS)[0].count(model.tokenizer.markup.call_open) == sum(
            len(message.get("tool_calls", ())) for message in messages
        )


def test_a_constraint_begins_after_the_thought(models: list[DiffusionGemmaModel]) -> None:
    for model in models:
        for options in ({"response_format": FORMAT}, {"choices": ["yes", "no"]}, {"grammar": 'start: "(" start ")" | "x"'}):
            result = model.generate(messages=ASKED, enable_thinking=True, thinking_budget=12, seed=3, **options)
            assert result.finish_reason == "stop"
            assert result.token_ids[0] == model.tokenizer.markup.thought_open
            if "response_format" in options:
                validator(RECORD).validate(json.loads(result.text))
            else:
                assert result.text in ("yes", "no") or result.text.strip("()") == "x"
            plain = model.generate(messages=ASKED, seed=3, **options)
            assert plain.finish_reason == "stop" and plain.thinking is None
            assert plain.token_ids[0] != model.tokenizer.markup.thought_open


def test_a_format_beside_tools(models: list[DiffusionGemmaModel]) -> None:
    """As OpenAI has it: the answer is a call, or a text of the format."""
    kinds = set()
    for model in models:
        for seed in range(8):
            result = model.generate(messages=ASKED, tools=TOOLS, response_format=FORMAT, seed=seed)
            check(result)
            assert result.finish_reason == "stop"
            if not result.tool_calls:
                validator(RECORD).validate(json.loads(result.text))
            assert not (result.tool_calls and result.text)
            kinds.add(bool(result.tool_calls))
    assert False in kinds


def test_a_budget_ends_thoughts(models: list[DiffusionGemmaModel]) -> None:
    for model in models:
        header = len(model.tokenizer.encode("thought\n"))
        for budget in (0, 1, 7):
            result = model.generate(
                messages=ASKED, enable_thinking=True, thinking_budget=budget, tools=TOOLS, tool_choice="required", seed=2
            )
            assert result.usage.thinking_tokens <= budget + header + 2
            assert (result.thinking is None) == (budget == 0) or budget == 1  # one token may be half a character
        free = model.generate(messages=ASKED, thinking_budget=3, seed=2)
        assert free.usage.completion_tokens > 0


def test_a_stream_tells_calls_and_thoughts(models: list[DiffusionGemmaModel]) -> None:
    events = list(models[0].stream(messages=ASKED, tools=TOOLS, tool_choice="required", enable_thinking=True, seed=1))
    commits = [event for event in events if isinstance(event, Commit)]
    (done,) = [event for event in events if isinstance(event, Done)]
    assert "".join(commit.thinking for commit in commits) == done.result.thinking
    assert [call for commit in commits for call in commit.tool_calls] == done.result.tool_calls
    assert json.loads(json.dumps(done.result.to_dict()))["tool_calls"][0]["name"] in ("weather", "now")


def test_the_model_waits_for_results(models: list[DiffusionGemmaModel]) -> None:
    """The token that begins a result ends the reply where tools are in play, though the checkpoint does not say so."""
    model = models[0]
    waits = model.tokenizer.markup.response_open
    assert waits not in model.stop_ids
    (with_tools,) = model.requests(messages=ASKED, tools=TOOLS)
    (without,) = model.requests(messages=ASKED)
    call = {"id": "1", "type": "function", "function": {"name": "now", "arguments": {}}}
    history = [
        *ASKED,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "x"},
    ]
    (later,) = model.requests(messages=history)
    assert with_tools.stop_ids == later.stop_ids == (*model.stop_ids, waits)
    assert without.stop_ids == model.stop_ids and without.grammar is None


def test_the_stop_rule_of_skeletons(models: list[DiffusionGemmaModel]) -> None:
    """Words and thoughts are as free under a grammar as without one; a call or a text of a schema alone may stop sooner."""
    model = models[0]

    def sooner(**options: Any) -> bool:
        (request,) = model.requests(messages=ASKED, seed=1, **options)
        return request.params.confidence > model.defaults.confidence

    assert sooner(tools=TOOLS, tool_choice="required")
    assert sooner(response_format=FORMAT)
    assert not sooner(tools=TOOLS)
    assert not sooner(response_format=FORMAT, enable_thinking=True)
    assert not sooner(thinking_budget=3)


def test_room_where_max_tokens_is_not_given(models: list[DiffusionGemmaModel]) -> None:
    model = models[0]
    asked: list[tuple[int, int, int]] = []

    def room(prompt: int, canvas: int, steps: int) -> int:
        asked.append((prompt, canvas, steps))
        return 64

    (default,) = model.requests(messages=ASKED)
    assert default.params.max_tokens == 48
    (filled,) = model.requests(messages=ASKED, room=room)
    assert filled.params.max_tokens == 64
    model.requests(messages=ASKED, room=room, mode="causal")
    assert asked == [(len(filled.prompt), model.config.canvas_length, 3), (len(filled.prompt), 1, 1)]
    (given,) = model.requests(messages=ASKED, room=room, max_tokens=9)
    assert given.params.max_tokens == 9


def test_causal_replies_are_split_too(models: list[DiffusionGemmaModel]) -> None:
    result = models[0].generate(messages=ASKED, tools=TOOLS, mode="causal", max_tokens=8)
    assert result.usage.completion_tokens <= 8


@pytest.mark.parametrize(
    ("options", "error", "needle"),
    [
        ({"tools": TOOLS, "tool_choice": "always"}, OptionError, "tool_choice is 'always'"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, OptionError, "tool_choice is"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}},
            OptionError,
            "the tools are weather, now",
        ),
        ({"tools": TOOLS, "parallel_tool_calls": 1}, OptionError, "parallel_tool_calls is 1"),
        ({"tool_choice": "required"}, OptionError, "without tools"),
        ({"parallel_tool_calls": True}, OptionError, "without tools"),
        ({"tools": [NOW, NOW]}, InputError, "two have the name 'now'"),
        ({"tools": [{"name": "a b"}]}, InputError, r"tools\[0\] has the name 'a b'"),
        ({"tools": [{"description": "x"}]}, InputError, r"tools\[0\]"),
        ({"tools": ["now"]}, InputError, r"tools\[0\]"),
        ({"tools": [{"name": "f", "parameters": "x"}]}, InputError, "JSON schema"),
        ({"tools": [{"name": "f", "parameters": {"type": "x"}}]}, ConstraintError, "parameters of f cannot be expressed: #/type"),
        ({"tools": TOOLS, "tool_choice": "required", "regex": "a"}, OptionError, "give one"),
        ({"tools": TOOLS, "tool_choice": "required", "mode": "causal"}, OptionError, "diffusion"),
        ({"thinking_budget": 3, "mode": "causal"}, OptionError, "diffusion"),
        ({"tools": TOOLS, "pins": [40]}, ConstraintError, "pins may not be combined with tools"),
        ({"thinking_budget": -1}, OptionError, "thinking_budget is -1"),
        ({"thinking_budget": True}, OptionError, "thinking_budget is True"),
    ],
)
def test_what_is_refused(models: list[DiffusionGemmaModel], options: dict[str, Any], error: type[Exception], needle: str) -> None:
    with pytest.raises(error, match=needle):
        models[0].generate(messages=ASKED, **options)


def test_checkpoints_without_marks(tmp_path_factory: pytest.TempPathFactory) -> None:
    plain = tiny_model(tmp_path_factory.mktemp("plain"), stop_ids=(1,), max_tokens=4)
    with pytest.raises(OptionError, match="marks no thoughts"):
        plain.generate("a", thinking_budget=3)
    with pytest.raises(OptionError, match="tools"):
        plain.generate("a", tools=TOOLS)
    with pytest.raises(OptionError, match="tools"):
        unmarked_model(tmp_path_factory.mktemp("unmarked")).generate("a", tools=TOOLS)
