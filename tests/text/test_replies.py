"""A reply's ids become thoughts, calls and content, however they come; transformers reads the same where it reads right."""

import json
import random
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusiongemma.text.markup import spell_call
from diffusiongemma.text.replies import ReplyParts, ToolCall
from diffusiongemma.text.tokenizer import Tokenizer
from tests.text.test_deltas import NANO

Reply = tuple[str, str, list[tuple[str, dict[str, Any]]]]
"""Thoughts, content, calls."""


def split(tokenizer: Tokenizer, ids: Sequence[int], cuts: Sequence[int] = (), opening: Sequence[int] = ()) -> Reply:
    parts, result, at = ReplyParts(tokenizer, opening), [], 0
    for size in cuts:
        result += parts.push(ids[at : at + size])
        at += size
    result += parts.push(ids[at:], last=True)
    calls = [part.call for part in result if part.call is not None]
    return (
        "".join(part.text for part in result if part.kind == "thinking"),
        "".join(part.text for part in result if part.kind in ("text", "markup")),
        [(call.name, call.arguments) for call in calls],
    )


def read(tokenizer: Tokenizer, text: str, prompt: str = "") -> Reply:
    return split(tokenizer, tokenizer.encode(text), opening=tokenizer.markup.opening(tokenizer.encode(prompt)))


CALL = 'call:f{a:<|"|>x<|"|>,n:1}'
SAID = ("f", {"a": "x", "n": 1})


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("Hello.", ("", "Hello.", [])),
        ("", ("", "", [])),
        ("<|channel>thought\nI see.\n<channel|>Hello.", ("I see.", "Hello.", [])),
        ("<|channel>thought\nI see.<channel|> Hello.\n", ("I see.", " Hello.\n", [])),
        ("<|channel>thought\n<channel|>Hello.", ("", "Hello.", [])),
        ("<|channel>thought<channel|>Hello.", ("", "Hello.", [])),
        ("<|channel><channel|>Hello.", ("", "Hello.", [])),
        ("<|channel>thoughtful<channel|>Hello.", ("thoughtful", "Hello.", [])),
        ("<|channel>tho<channel|>Hello.", ("tho", "Hello.", [])),
        ("<|channel>other\nI see.<channel|>Hello.", ("other\nI see.", "Hello.", [])),
        ("<|channel>thought\n\na\n\n<channel|>", ("\na\n", "", [])),
        (f"<|tool_call>{CALL}<tool_call|>", ("", "", [SAID])),
        (f"<|tool_call>{CALL}<tool_call|><|tool_call>call:g{{}}<tool_call|>", ("", "", [SAID, ("g", {})])),
        (f"<|channel>thought\na<channel|>b<|tool_call>{CALL}<tool_call|>c<|channel>thought\nd<channel|>e", ("a\nd", "bce", [SAID])),
        (f"<|channel>thought\na<|tool_call>{CALL}<tool_call|>", ("a", "", [SAID])),  # a call ends an open thought
        ("<|channel>thought\na<|channel>thought\nb<channel|>c", ("a\nb", "c", [])),
        ("<|channel>thought\na<channel|><|channel>thought\n<channel|>c", ("a", "c", [])),
        ("<|channel>thought\na\n", ("a", "", [])),  # cut
        ("<|channel>thought", ("", "", [])),
        ('x<|tool_call>call:f{a:<|"|>1', ("", 'x<|tool_call>call:f{a:<|"|>1', [])),
        ("<|tool_call>call:f{a:Paris}<tool_call|>y", ("", "<|tool_call>call:f{a:Paris}<tool_call|>y", [])),
        (f"<|tool_call>call:f{{<|tool_call>{CALL}<tool_call|>", ("", "<|tool_call>call:f{", [SAID])),
        ("a<|tool_response>response:f{}<tool_response|>b", ("", "a<|tool_response>response:f{}<tool_response|>b", [])),
        ("a<tool_call|>b<|\"|>c<channel|>d<|turn>e<pad>", ("", "abcde", [])),  # marks that mark nothing are no text
        ("thought\n<channel|>Hello.", ("", "Hello.", [])),
        ("thought\n", ("", "thought\n", [])),
        ("thought\nful", ("", "thought\nful", [])),
        ('<|tool_call>call:f{a:<|"|><turn|>b<|"|>}<tool_call|>', ("", "", [("f", {"a": "b"})])),
    ],
)  # fmt: skip
def test_replies(native: Tokenizer, text: str, reply: Reply) -> None:
    assert read(native, text) == reply


@pytest.mark.parametrize(
    ("prompt", "text", "reply"),
    [
        ("<|turn>model\n<|channel>thought\n<channel|>", "Hello.", ("", "Hello.", [])),
        ("<|turn>model\n<|channel>thought\n<channel|>", "<|channel>thought\n<channel|>Hello.", ("", "Hello.", [])),
        ("<|turn>model\n<|channel>thought\n<channel|>", "thought\n<channel|>Hello.", ("", "Hello.", [])),
        ("<|turn>model\n<|channel>thought\n", "I see.\n<channel|>Hello.", ("I see.", "Hello.", [])),
        ("<|turn>model\n<|channel>thought\n", "<channel|>Hello.", ("", "Hello.", [])),
        ("<|turn>model\n<|channel>", "thought\nI see.<channel|>Hello.", ("I see.", "Hello.", [])),
        ("<|turn>model\n<|channel>thought", "\nI see.<channel|>Hello.", ("I see.", "Hello.", [])),
        ("<|turn>model\n<|channel>thought\nFirst,", " I see.<channel|>Hello.", (" I see.", "Hello.", [])),
        ("<|turn>model\n<|channel>thought\n", "<|channel>thought\nI see.<channel|>Hello.", ("I see.", "Hello.", [])),
        ("<|turn>model\n<|channel>thought\n", f"<|tool_call>{CALL}<tool_call|>", ("", "", [SAID])),
    ],
)
def test_what_the_prompt_has_begun(native: Tokenizer, prompt: str, text: str, reply: Reply) -> None:
    assert read(native, text, prompt) == reply


def test_a_string_may_look_like_a_mark(native: Tokenizer) -> None:
    """The parts are told apart by tokens: these characters are written in tokens of their own."""
    look = native.encode("<|tool_call") + native.encode(">") + native.encode("<tool_call|") + native.encode(">")
    assert not set(look) & native.markup.ids
    assert split(native, look) == ("", "<|tool_call><tool_call|>", [])
    quote = native.markup.quote
    assert quote is not None
    ids = [*native.encode("<|tool_call>call:f{a:"), quote, *look, quote, *native.encode("}<tool_call|>")]
    assert split(native, ids) == ("", "", [("f", {"a": "<|tool_call><tool_call|>"})])


pieces = st.sampled_from(
    ["<|channel>", "<channel|>", "thought\n", "thought", "\n", "I see.", "é😀", "<|tool_call>", "<tool_call|>", CALL, "call:f{",
     "}", '<|"|>', "<|tool_response>", "<tool_response|>", "<|turn>", "<pad>", " ", f"<|tool_call>{CALL}<tool_call|>"]
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(
    st.lists(pieces, max_size=14),
    st.lists(st.integers(0, 5), max_size=60),
    st.lists(st.integers(0, 544), max_size=4),
    st.sampled_from(["", "<|channel>", "<|channel>thought\n"]),
)
def test_however_the_ids_come(native: Tokenizer, texts: list[str], cuts: list[int], odd: list[int], prompt: str) -> None:
    ids = [*native.encode("".join(texts)), *odd]
    opening = native.encode(prompt)
    assert split(native, ids, cuts, opening) == split(native, ids, (), opening)


@settings(deadline=None)
@given(st.lists(st.integers(0, NANO.vocab_size - 1), max_size=60), st.lists(st.integers(0, 5), max_size=30))
def test_without_marks_all_is_content(ids: list[int], cuts: list[int]) -> None:
    assert split(NANO, ids, cuts) == ("", NANO.decode(ids), [])


def test_tokens_of_thoughts_are_counted(native: Tokenizer) -> None:
    parts = ReplyParts(native, native.encode("<|channel>thought\n"))
    parts.push(native.encode("ab"))
    assert parts.thinking_tokens == len(native.encode("ab"))
    thought = native.encode("<channel|>x<|channel>thought\na<channel|>")
    parts.push([*thought, *native.encode("yy")], last=True)
    assert parts.thinking_tokens == len(native.encode("ab")) + len(thought) - 1


def test_calls_have_ids_of_their_own() -> None:
    assert ToolCall("f", {}).id != ToolCall("f", {}).id


# -- transformers ------------------------------------------------------------------------------------------------------

SCHEMA = {
    "thinking": r"(\<\|channel\>thought\n(?P<thinking>.*?)\<channel\|\>)?(?P<tool_calls>\<\|tool_call\>.*\<tool_call\|\>)?"
    r"(?P<content>(?:(?!\<turn\|\>)(?!\<\|tool_response\>).)+)?(?:\<turn\|\>|\<\|tool_response\>)?",
    "calls": r"<\|tool_call>(.*?)<tool_call\|>",
    "call": r"call\:(?P<name>\w+)(?P<arguments>\{.*\})",
}
"""The expressions of the released tokenizer_config.json's ``response_schema``."""
LAX = {"unquoted_keys": True, "string_delims": [['<|"|>', '<|"|>']]}
TEMPLATE = {
    "start_anchor": "<|turn>model\n",
    "fields": {
        "thinking": {"open": "<|channel>thought\n", "close": "<channel|>"},
        "tool_calls": {
            "open_pattern": r"<\|tool_call>call:(?P<name>\w+)", "close": "<tool_call|>", "repeats": True, "content": "json",
            "content_args": LAX, "transform": {"name": "{name}", "arguments": "{content}"},
        },
        "content": {"close_pattern": r"<turn\|>|<\|tool_response>|\Z", "content_args": {"strip": False}},
    },
}  # fmt: skip
"""The same markup as a response template, transformers' way since it dropped response schemas."""


def by_schema(text: str) -> Reply:
    """As the released ``response_schema`` reads a reply; arguments by transformers' reader of lax JSON."""
    parser = pytest.importorskip("transformers.utils.chat_parsing.content_parsers")
    result = re.search(SCHEMA["thinking"], text, re.DOTALL)
    assert result is not None
    calls = []
    for body in re.findall(SCHEMA["calls"], result["tool_calls"] or "", re.DOTALL):
        call = re.search(SCHEMA["call"], body, re.DOTALL)
        assert call is not None
        calls.append((call["name"], parser.parse_content(call["arguments"], "json", LAX)))
    return result["thinking"] or "", result["content"] or "", calls


def by_template(text: str) -> Reply:
    parsing = pytest.importorskip("transformers.utils.chat_parsing")
    message = parsing.parse_response(text, TEMPLATE, prefix="<|turn>model\n")
    calls = [(call["name"], call["arguments"]) for call in message.get("tool_calls", [])]
    return message.get("thinking", ""), message.get("content", ""), calls


def replies(count: int) -> list[str]:
    """Replies of the shapes that the released schema reads: a thought or none, then calls or content."""
    rng, made = random.Random(7), []
    words = ["sunny", "Paris, France", 'say "hi"', "{x}", "a:b", "é😀", "1", "null", "[1,2]", "\n\n", " ", "thought\n", "C:\\x"]

    def value(depth: int) -> Any:
        kinds = [lambda: rng.choice(words), lambda: rng.randint(-99, 99), lambda: rng.random() * 10 ** rng.randint(-9, 9)]
        kinds += [lambda: None, lambda: True, lambda: False]
        if depth:
            kinds += [lambda: [value(depth - 1) for _ in range(rng.randint(0, 3))]]
            kinds += [lambda: {rng.choice("abc_") + str(n): value(depth - 1) for n in range(rng.randint(0, 3))}]
        return rng.choice(kinds)()

    for _ in range(count):
        thought = rng.choice(
            ["", "", f"<|channel>thought\n{' '.join(rng.choices(words, k=3))}<channel|>", "<|channel>thought\n<channel|>"]
        )
        if rng.random() < 0.5:
            calls = (spell_call(f"f{n}", {f"k{m}": value(2) for m in range(rng.randint(0, 3))}) for n in range(rng.randint(1, 3)))
            made.append(thought + "".join(f"<|tool_call>{call}<tool_call|>" for call in calls) + "<|tool_response>")
        else:
            made.append(thought + "".join(rng.choices(words, k=rng.randint(1, 5))) + rng.choice(["<turn|>", ""]))
    return made


def test_transformers_reads_the_same(native: Tokenizer) -> None:
    ends = set(native.encode("<turn|><|tool_response>"))
    corpus = replies(300)
    assert sum("<|tool_call>" in text for text in corpus) > 100
    assert sum("<|channel>" in text for text in corpus) > 100
    for text in corpus:
        thinking, content, calls = split(native, [token for token in native.encode(text) if token not in ends])
        # The line break at a thought's end is the chat template's; the schema keeps it, a response template strips all blanks.
        schema = by_schema(text)
        assert (thinking, content, calls) == (schema[0].removesuffix("\n"), *schema[1:])
        assert json.dumps(calls) == json.dumps(schema[2])
        template = by_template(text)
        assert (thinking.strip(), content, calls) == template


@pytest.mark.parametrize(
    ("text", "ours", "theirs"),
    [
        # Words before a call: the schema takes the call for content.
        (f"Look.<|tool_call>{CALL}<tool_call|>", ("", "Look.", [SAID]), ("", f"Look.<|tool_call>{CALL}<tool_call|>", [])),
        # Words between two calls are lost.
        (f"<|tool_call>{CALL}<tool_call|>and<|tool_call>{CALL}<tool_call|>", ("", "and", [SAID, SAID]), ("", "", [SAID, SAID])),
        # A blank before a thought makes all of it content.
        ("\n<|channel>thought\na<channel|>b", ("a", "\nb", []), ("", "\n<|channel>thought\na<channel|>b", [])),
        # A thought without its line break, and one that was cut.
        ("<|channel>thought<channel|>b", ("", "b", []), ("", "<|channel>thought<channel|>b", [])),
        ("<|channel>thought\na", ("a", "", []), ("", "<|channel>thought\na", [])),
    ],
)  # fmt: skip
def test_where_the_released_schema_reads_wrong(native: Tokenizer, text: str, ours: Reply, theirs: Reply) -> None:
    assert read(native, text) == ours
    assert by_schema(text) == theirs
