"""Text comes back whole: no character cut in two, no template that runs code, no word dropped."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from diffusiongemma.errors import CheckpointError, InputError
from diffusiongemma.text.chat import ChatTemplate
from diffusiongemma.text.deltas import TextDeltas
from diffusiongemma.text.tokenizer import Tokenizer


def byte_level() -> Tokenizer:
    """One token a byte, so that every character beyond ASCII is cut in pieces."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend, None, Path())


BYTES = byte_level()


@given(st.text(max_size=30).filter(lambda text: "\ufffd" not in text), st.integers(1, 5))
def test_deltas_join_to_the_text_and_never_hold_half_a_character(text: str, size: int) -> None:
    ids = BYTES.encode(text)
    assert len(ids) == len(text.encode())
    deltas = TextDeltas(BYTES)
    parts = [deltas.push(ids[i : i + size]) for i in range(0, len(ids), size)]
    parts.append(deltas.push([], last=True))
    assert "".join(parts) == text
    assert not any("\ufffd" in part for part in parts)


def test_a_character_that_never_ends_is_shown_as_broken_at_the_end() -> None:
    deltas = TextDeltas(BYTES)
    assert deltas.push(BYTES.encode("a€")[:2]) == "a"
    assert deltas.push([], last=True) == "\ufffd"


def test_text_that_has_no_tokens_is_refused(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("ab") == [0, 1]
    with pytest.raises(InputError, match="cannot represent the text"):
        tokenizer.encode("ab!c?")


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, {"bos_token": "<bos>"})


def test_a_template_sees_messages_and_special_tokens() -> None:
    each = "{% for m in messages %}[{{ m.role }}]{{ m['content'] }}{% endfor %}"
    source = "{{ bos_token }}" + each + "{% if add_generation_prompt %}>{% endif %}"
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    assert template(source).render(messages) == "<bos>[user]hi[assistant]yo>"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception('not like this') }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_template_cannot_reach_out(source: str) -> None:
    with pytest.raises(InputError, match="template refuses"):
        template(source).render([{"role": "user", "content": "x"}])


def test_a_template_that_does_not_compile() -> None:
    with pytest.raises(CheckpointError, match="cannot be compiled"):
        template("{% for %}")


@pytest.mark.parametrize(
    ("messages", "needle"),
    [
        ([], "messages is empty"),
        ([{"role": "user"}], r"messages\[0\]"),
        (["hello"], "needs 'role' and 'content'"),
        ([{"content": "x"}], "needs 'role' and 'content'"),
        ([{"role": 1, "content": "x"}], "needs 'role' and 'content'"),
        ({"role": "user", "content": "x"}, "of type dict; give a list"),
    ],
)
def test_broken_messages_are_named(messages: list[object], needle: str) -> None:
    with pytest.raises(InputError, match=needle):
        template("x").render(messages)  # type: ignore[arg-type]
