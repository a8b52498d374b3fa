"""Replies with thoughts and calls out of the engine: whatever the weights are, a call that must be made is made, and is valid."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusiongemma.constraints import Constraint, ReplyGrammar, compile_grammar
from diffusiongemma.diffusion import SamplingParams
from diffusiongemma.engine.answer import Answer
from diffusiongemma.engine.events import Commit, Done, Result
from diffusiongemma.engine.request import Request
from diffusiongemma.errors import ConstraintError, InputError
from diffusiongemma.generation import DiffusionGemmaModel
from tests.constraints.schemas import own
from tests.constraints.test_native import NOT_HELD, inner, objects, tool
from tests.constraints.test_reply import TOOLS
from tests.constraints.test_walks import validator
from tests.native import native_model

OWN = {name: schema for name, schema in own().items() if name not in NOT_HELD}


@pytest.fixture(scope="module", name="models")
def _models(tmp_path_factory: pytest.TempPathFactory) -> list[DiffusionGemmaModel]:
    """Models whose marks, words and stop tokens come out in different places."""
    return [native_model(tmp_path_factory.mktemp("native"), seed, canvas=canvas) for seed, canvas in enumerate((32, 8, 64, 16))]


def run(model: DiffusionGemmaModel, grammar: ReplyGrammar | None, prompt: str = "<bos><|turn>model\n", **options: Any) -> Result:
    """A reply; its commits join to its result."""
    params = model.defaults.replaced(**options)
    ids = model.tokenizer.encode(prompt)
    commits, result = list[Commit](), None
    for event in model.engine.run([Request(prompt=ids, params=params, stop_ids=model.stop_ids, grammar=grammar)]):
        if isinstance(event, Commit):
            commits.append(event)
        elif isinstance(event, Done):
            result = event.result
    assert result is not None
    assert "".join(commit.text for commit in commits) == result.text
    assert "".join(commit.thinking for commit in commits) == (result.thinking or "")
    assert [call for commit in commits for call in commit.tool_calls] == result.tool_calls
    return result


def calls_of(model: DiffusionGemmaModel, tools: dict[str, Any], **more: Any) -> ReplyGrammar:
    calls = compile_grammar(Constraint.calls(list(tools.items())), model.vocabulary)
    return ReplyGrammar(model.vocabulary, model.tokenizer.markup, calls=calls, **more)


@pytest.mark.parametrize("name", list(OWN)[::2])
def test_a_call_that_must_be_made_is_valid(models: list[DiffusionGemmaModel], name: str) -> None:
    parameters = tool(OWN[name])
    model = models[len(name) % len(models)]
    grammar = calls_of(model, {"f": parameters}, must_call=True, parallel=False)
    least = grammar.start().ending(10_000)
    assert least is not None
    for spare in (0, 7):
        result = run(model, grammar, max_tokens=len(least) + spare, seed=spare)
        assert result.finish_reason == "stop"
        assert not result.text
        (call,) = result.tool_calls
        validator(parameters).validate(call.arguments)
        json.dumps(call.arguments, allow_nan=False)


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["f", "look.up", "a-b"]), objects(inner), min_size=1, max_size=3),
    st.integers(0, 3),
    st.integers(0, 2**32),
    st.sampled_from(["none", "may", "must"]),
    st.booleans(),
    st.integers(1, 90),
    st.sampled_from(["", "<|channel>thought\n"]),
)
def test_any_tools_and_weights(
    models: list[DiffusionGemmaModel],
    tools: dict[str, Any],
    which: int,
    seed: int,
    thoughts: Any,
    must: bool,
    most: int,
    begun: str,
) -> None:
    tree = {"type": "object", "properties": {"left": {"$ref": "#/$defs/tree"}}, "additionalProperties": False}
    tools = {name: {**parameters, "$defs": {"tree": tree}} for name, parameters in tools.items()}
    model = models[which]
    opening = tuple(model.tokenizer.encode(begun))
    grammar = calls_of(model, tools, must_call=must, thoughts=thoughts, opening=opening)
    result = run(model, grammar, f"<bos><|turn>model\n{begun}", max_tokens=most, seed=seed)
    for call in result.tool_calls:
        validator(tools[call.name]).validate(call.arguments)
    if result.finish_reason == "stop":
        assert "<|tool_call>" not in result.text
        if must:
            assert result.tool_calls and not result.text
    if must and grammar.start().ending(most) is not None:
        assert result.finish_reason == "stop"


def test_a_text_of_a_grammar_begins_after_the_thought(models: list[DiffusionGemmaModel]) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
    for model in models:
        body = compile_grammar(Constraint.json_schema(schema), model.vocabulary)
        for begun, thoughts in (("", "must"), ("<|channel>thought\n", "none")):
            opening = tuple(model.tokenizer.encode(begun))
            grammar = ReplyGrammar(model.vocabulary, model.tokenizer.markup, body, thoughts=thoughts, opening=opening, budget=9)  # type: ignore[arg-type]
            result = run(model, grammar, f"<bos><|turn>model\n{begun}", max_tokens=60)
            assert result.finish_reason == "stop"
            validator(schema).validate(json.loads(result.text))
            assert result.thinking is not None
            assert 0 < result.usage.thinking_tokens <= 9 + 2 + len(grammar.header)


def test_words_that_were_cut_say_so(models: list[DiffusionGemmaModel]) -> None:
    """Words could always go on; a call at the end of the room is whole."""
    model = models[0]
    result = run(model, calls_of(model, TOOLS), max_tokens=16)
    assert (result.finish_reason, len(result.token_ids)) == ("length", 16)
    must = calls_of(model, TOOLS, must_call=True)
    result = run(model, must, max_tokens=len(must.start().ending(99) or []))
    assert result.finish_reason == "stop" and result.tool_calls


def test_what_does_not_go_together(models: list[DiffusionGemmaModel]) -> None:
    model = models[0]
    grammar = calls_of(model, TOOLS, must_call=True)
    request = Request(prompt=[2], params=model.defaults, stop_ids=model.stop_ids, grammar=grammar, pins=[40])
    with pytest.raises(ConstraintError, match="pins may not be combined with tools"):
        list(model.engine.run([request]))
    body = ReplyGrammar(model.vocabulary, model.tokenizer.markup, compile_grammar(Constraint.regex("a"), model.vocabulary))
    with pytest.raises(InputError, match="stop strings"):
        run(model, body, stop=("a",))


def answered(model: DiffusionGemmaModel, text: str, cuts: Sequence[int], stop: Sequence[str], most: int = 500) -> Result | None:
    answer = Answer(model.tokenizer, SamplingParams(max_tokens=most, stop=tuple(stop)), model.stop_ids, 1)
    answer.began = 0.0
    ids, at = model.tokenizer.encode(text), 0
    for size in [*cuts, len(ids)]:
        if size and answer.finish is None:
            answer.add(0, ids[at : at + size])
            at += size
    return answer.result() if answer.finish else None


CALL = '<|tool_call>call:f{a:<|"|>stop<|"|>}<tool_call|>'


@given(st.lists(st.integers(0, 6), max_size=20))
def test_stop_strings_are_of_the_content(models: list[DiffusionGemmaModel], cuts: list[int]) -> None:
    said = f"<|channel>thought\nI stop.\n<channel|>Do {CALL}not stop here.<turn|>"
    result = answered(models[0], said, cuts, ["stop"])
    assert result is not None
    assert (result.thinking, result.text, result.finish_reason) == ("I stop.", "Do not ", "stop")
    assert [call.arguments for call in result.tool_calls] == [{"a": "stop"}]


@given(st.lists(st.integers(0, 6), max_size=20))
def test_nothing_follows_a_stop_string(models: list[DiffusionGemmaModel], cuts: list[int]) -> None:
    result = answered(models[0], f"Please stop.{CALL}<|channel>thought\nmore<channel|><turn|>", cuts, ["top"])
    assert result is not None
    assert (result.text, result.thinking, result.tool_calls) == ("Please s", None, [])


def test_a_call_that_was_cut_is_text(models: list[DiffusionGemmaModel]) -> None:
    """And a stop string in it is none."""
    model = models[0]
    for most in range(1, len(model.tokenizer.encode(CALL)) + 2):
        result = answered(model, f"{CALL}<turn|>", [], ["a"], most)
        assert result is not None
        is_complete = most >= len(model.tokenizer.encode(CALL))
        assert bool(result.tool_calls) == is_complete
        assert result.text == (
            "" if is_complete else model.tokenizer.decode(model.tokenizer.encode(CALL)[:most], skip_special=False)
        )
