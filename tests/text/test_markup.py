"""The native markup: what is spelled is what a template writes, and what is read again."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusiongemma.errors import InputError
from diffusiongemma.text.chat import ChatTemplate
from diffusiongemma.text.markup import QUOTE, Markup, is_key, read_call, read_value, spell_call, spell_value
from diffusiongemma.text.tokenizer import Tokenizer
from tests.native import CONTROL, TEMPLATE, native_tokenizer
from tests.unmarked import unmarked_tokenizer

texts = st.text(st.characters(codec="utf-8"), max_size=12).filter(lambda text: QUOTE not in text)
hard = st.sampled_from(
    ['"', '\\"', "}", "{", "[1]", "a:b", ",", "\n", "None", "null", "1", " ", "", "é😀", "<tool_call|>", '|"|', "\\"]
)
keys = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(is_key) | st.sampled_from(
    ["a", "B", "b", "None", "x-y", "$f", "a b"]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts | hard
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=12)


@settings(max_examples=400, deadline=None)
@given(values)
def test_what_is_spelled_is_read_again(value: Any) -> None:
    again = read_value(spell_value(value).split(QUOTE))
    assert again == value
    assert json.dumps(again, sort_keys=True) == json.dumps(value, sort_keys=True)  # 1 is not 1.0, and True is not 1


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(keys, values, max_size=4))
def test_what_is_spelled_is_what_the_template_writes(arguments: dict[str, Any]) -> None:
    call = {"function": {"name": "f", "arguments": arguments}}
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    assert f"<|tool_call>{spell_call('f', arguments)}<tool_call|>" in ChatTemplate(TEMPLATE, {}).render(messages)
    assert read_call(spell_call("f", arguments).split(QUOTE)) == ("f", arguments)


def test_keys_are_sorted_as_the_template_sorts() -> None:
    assert spell_call("f.g-1", {"b": 1, "A": [True, None, 1e-5], "a": {"z": "x", "Y": {}}}) == (
        'call:f.g-1{A:[true,null,1e-05],a:{Y:{},z:<|"|>x<|"|>},b:1}'
    )


@pytest.mark.parametrize(
    ("value", "needle"),
    [
        (f"a{QUOTE}b", "ends strings"), ({"a:b": 1}, "'a:b' cannot be written"), ({" a": 1}, "blank at their ends"),
        ({"": 1}, "rename"), ({"a,b": 1}, "stand bare"), ({1: 1}, "rename"), (float("nan"), "no JSON value"),
        (float("inf"), "no JSON value"), ({1, 2}, "no JSON"), ({'x"': 1}, "stand bare"), ({QUOTE: 1}, "stand bare"),
        ([{"a}": 1}], "stand bare"), (b"x", "no JSON value"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_refused(value: Any, needle: str) -> None:
    with pytest.raises(InputError, match=needle):
        spell_value(value)


@pytest.mark.parametrize("name", ["", "a b", "a{", "x" * 65, "é"])
def test_names_of_tools(name: str) -> None:
    with pytest.raises(InputError, match="name"):
        spell_call(name, {})


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("call:f{}", {}),
        (" call:f { a : 1 , b :[ 1 , true ] } ", {"a": 1, "b": [1, True]}),
        ('call:f{a:"x\\n}",b:None,c:[True,False]}', {"a": "x\n}", "b": None, "c": [True, False]}),
        ('call:f{<|"|>a b<|"|>:1,<|"|>c:d<|"|>:<|"|><|"|>}', {"a b": 1, "c:d": ""}),
        ("call:f{a:-1.5e3,b:0}", {"a": -1500.0, "b": 0}),
        ("call:f{None:None,a.b:{true:true}}", {"None": None, "a.b": {"true": True}}),
    ],
)
def test_calls_as_models_write_them(text: str, arguments: dict[str, Any]) -> None:
    assert read_call(text.split(QUOTE)) == ("f", arguments)


@pytest.mark.parametrize(
    "text",
    [
        "call:f", "f{}", "call:{}", "call:f[]", "call:f{a}", "call:f{a:}", "call:f{a:1", "call:f{a:1}}", "call:f{a:Paris}",
        "call:f{a:1,}", 'call:f{a:<|"|>x}', "call:f{a:NaN}", "call:f{a:1e999}", "call:f{a:Infinity}",
        "call:f{} and more", "call:f{a:01}", "", 'call:f{a:<|"|>x<|"|>y}', "call:f{a:" + "[" * 100_000,
        "call:f{a:" + "9" * 5000 + "}",
    ],
)  # fmt: skip
def test_what_is_no_call(text: str) -> None:
    with pytest.raises(ValueError):
        read_call(text.split(QUOTE))


def test_the_marks_are_found(tmp_path: Path) -> None:
    native = native_tokenizer(tmp_path)
    marks = native.markup
    assert marks.thoughts and marks.calls
    assert [marks.thought_open, marks.quote, marks.response_open] == native.encode('<|channel><|"|><|tool_response>')
    (tmp_path / "unmarked").mkdir()
    unmarked = unmarked_tokenizer(tmp_path / "unmarked").markup
    assert not unmarked.thoughts and not unmarked.calls


def test_marks_by_other_texts(tmp_path: Path) -> None:
    """A checkpoint's own names come first, written either way; a name of a token that is not there is no mark."""
    native = native_tokenizer(tmp_path)
    turn = native.encode("<turn|>")[0]
    for own in (
        {"soc_token": "<turn|>"},
        {"soc_token": {"content": "<turn|>"}},
        {"model_specific_special_tokens": {"soc_token": "<turn|>"}},
    ):
        assert Markup.of(native._backend, own).thought_open == turn
    assert Markup.of(native._backend, {}).calls  # the usual texts
    gone = Markup.of(native._backend, {"model_specific_special_tokens": CONTROL | {"soc_token": "thought"}})
    assert not gone.thoughts and gone.calls


def test_where_a_thought_is_open(native: Tokenizer) -> None:
    def opening(prompt: str) -> str:
        return native.decode(native.markup.opening(native.encode(prompt)), skip_special=False)

    assert opening("<|turn>model\n<|channel>thought\n") == "<|channel>thought\n"
    assert opening("<|turn>model\n<|channel>thought\n<channel|><|tool_response>x<tool_response|><|channel>") == "<|channel>"
    for closed in ("<|turn>model\n<|channel>thought\n<channel|>", "<|channel>thought\n<|turn>model\n", "", "<|turn>model\n"):
        assert opening(closed) == ""
