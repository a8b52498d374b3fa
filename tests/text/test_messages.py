"""What a conversation may be, what becomes of it before the template sees it, and what is refused with its place."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest

from diffusiongemma.errors import InputError
from diffusiongemma.text.chat import ChatTemplate
from tests.chat import PLAIN_TEMPLATE, TEMPLATE
from tests.text.conversations import call, part, result, said, user

NATIVE = ChatTemplate(TEMPLATE, {"bos_token": "<bos>"})
PLAIN = ChatTemplate(PLAIN_TEMPLATE, {"bos_token": "<bos>"})


@pytest.mark.parametrize(
    "given",
    [{"type": kind, kind: {"url": "file:///x"}} for kind in ("image", "image_url", "video", "audio", "input_audio", "file")],
)
@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool", "narrator"])
@pytest.mark.parametrize("template", [NATIVE, PLAIN], ids=["native", "plain"])
def test_what_is_no_text_is_refused_everywhere(template: ChatTemplate, role: str, given: dict[str, Any]) -> None:
    with pytest.raises(InputError) as raised:
        template.render([user("x"), {"role": role, "content": [part("a"), given]}])
    assert str(raised.value) == (
        f"messages[1].content[1].type is {given['type']!r}; this runtime reads text alone, no images, audio, video or files: "
        'give parts {"type": "text", "text": ...}'
    )


@pytest.mark.parametrize("given", ["a", 5, {"text": "a"}, {"type": "text"}, {"type": "text", "text": 5}, [part("a")]])
def test_a_part_that_is_none(given: Any) -> None:
    with pytest.raises(InputError, match=r"messages\[0\]\.content\[0\].* this runtime reads text alone"):
        NATIVE.render([user([given])])


@pytest.mark.parametrize(
    ("message", "needle"),
    [
        (user(None), r"messages\[0\] has no content; a message of the user needs it"),
        ({"role": "system"}, "a message of the system needs it"),
        (user(5), r"messages\[0\]\.content is of type int; give text, or a list of parts"),
        (user(part("a")), r"messages\[0\]\.content is of type dict"),
        (said("a", reasoning_content=5), r"messages\[0\]\.reasoning_content is of type int; give text"),
        (said(tool_calls="f"), r"messages\[0\]\.tool_calls is of type str; give a list of calls"),
        (said(tool_calls=["f"]), r"messages\[0\]\.tool_calls\[0\] is 'f'; it must be"),
        (said(tool_calls=[{"name": "f"}]), r"tool_calls\[0\] .* it must be"),
        (said(tool_calls=[{"function": {"name": "f", "arguments": "{"}}]), r"tool_calls\[0\]: the arguments of f are not JSON"),
        (said(tool_calls=[{"function": {"name": "f", "arguments": "[1]"}}]), "the arguments of f are .* they must be an object"),
        (said(tool_calls=[{"function": {"name": "f", "arguments": 7}}]), "the arguments of f are 7; they must be an object"),
        (user("x") | {"extra": object()}, r"messages\[0\] has a value of type object; a template takes text"),
    ],
)
def test_a_message_that_is_wrong_is_named(message: dict[str, Any], needle: str) -> None:
    with pytest.raises(InputError, match=needle):
        NATIVE.render([message])


def test_depth_is_bounded() -> None:
    deep: Any = []
    deep.append(deep)
    with pytest.raises(InputError, match="nested more than 64 deep"):
        NATIVE.render([user("x") | {"extra": deep}])


def test_arguments_in_json_are_read() -> None:
    def shown(arguments: Any) -> str:
        return NATIVE.render([user("x"), said(tool_calls=[{"id": "1", "function": {"name": "f", "arguments": arguments}}])])

    assert 'call:f{a:1,b:<|"|>é<|"|>}<tool_call|>' in shown('{"b": "é", "a": 1}')
    assert shown('{"b": "é", "a": 1}') == shown({"b": "é", "a": 1})
    assert "call:f{}<tool_call|>" in shown("") and shown("") == shown("{}") == shown({}) == shown(None)


def test_thoughts_stand_under_every_name() -> None:
    (message,) = NATIVE.prepared([said("a", reasoning="b")])
    assert message == {"role": "assistant", "content": "a", "reasoning": "b", "reasoning_content": "b", "thinking": "b"}
    (message,) = NATIVE.prepared([said("a", reasoning="b", thinking="c")])
    assert message["reasoning_content"] == message["thinking"] == "c" and message["reasoning"] == "b"


def test_a_result_gets_the_name_of_its_call() -> None:
    calls = said(tool_calls=[call("f", 1), call("g", 2)])
    prepared = NATIVE.prepared([user("x"), calls, result("b", 2), result("a", 1), result("c", 3), result("d", 1, name="h")])
    assert [message.get("name") for message in prepared[2:]] == ["g", "f", None, "h"]


def test_a_template_without_calls_drops_none() -> None:
    with pytest.raises(InputError, match=r"messages\[1\] has tool_calls, which the chat template of this checkpoint does not show"):
        PLAIN.render([user("x"), said(tool_calls=[call("f")])])
    assert "<|turn>assistant\n<turn|>" in PLAIN.render([user("x"), said(tool_calls=[])])


def test_parts_are_joined_where_a_template_reads_none() -> None:
    assert "<|turn>user\n a b<turn|>" in PLAIN.render([user([part(" a "), part("b")])])
    assert not PLAIN.reads_parts("user")
    assert all(NATIVE.reads_parts(role) for role in ("user", "assistant", "system", "tool", "model"))
    each = "{% for p in m.content %}({{ p.text }}){% endfor %}"
    shown = "{% if m.content is string %}{{ m.content }}{% elif m.role == 'user' %}" + each + "{% else %}{{ m.content }}{% endif %}"
    source = "{% for m in messages %}" + shown + "{% endfor %}"
    mixed = ChatTemplate(source, {})
    assert mixed.render([{"role": "system", "content": [part("a"), part("b")]}, user([part("c"), part("d")])]) == "ab(c)(d)"


def test_values_become_plain() -> None:
    """A template gets no object whose methods it could call."""

    class Kind(StrEnum):
        USER = "user"

    @dataclass
    class Thing:
        x: int = 1

    class Text(str):
        def secret(self) -> str:
            return "secret"

    (message,) = NATIVE.prepared([{"role": Kind.USER, "content": Text("a"), "extra": (True, 1.5, None)}])
    assert [type(value) for value in message.values()] == [str, str, list] and message["extra"] == [True, 1.5, None]
    with pytest.raises(InputError, match="of type Thing"):
        NATIVE.prepared([user("x") | {"extra": Thing()}])
    with pytest.raises(InputError, match="tools has a value of type PosixPath"):
        NATIVE.rendered(NATIVE.prepared([user("x")]), tools=[{"name": Path("f")}])
