"""The native markup of a reply: the tokens that mark its parts, and the spelling of values and calls between them.

::

    <|channel>thought\\n...\\n<channel|>Let me look.<|tool_call>call:name{key:<|"|>text<|"|>,n:1}<tool_call|><|tool_response>

Keys are bare and sorted without regard to case, as the chat template's ``dictsort`` has them; strings stand between two quote marks
and have no escapes; numbers, ``true``, ``false`` and ``null`` are JSON's.

Source: tokenizer_config.json (the names of the tokens) and chat_template.jinja of google/diffusiongemma-26B-A4B-it.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from tokenizers import Tokenizer as Backend

from diffusiongemma.errors import InputError

__all__ = ["HEADER", "NAME", "QUOTE", "Markup", "is_key", "read_call", "read_value", "spell_call", "spell_value"]

QUOTE = '<|"|>'
HEADER = "thought\n"
"""What a thought's channel begins with; it names the channel."""
NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
"""The name of a tool, as OpenAI's API has it."""
_LITERALS = {
    "thought_open": ("soc_token", "<|channel>"),
    "thought_close": ("eoc_token", "<channel|>"),
    "call_open": ("stc_token", "<|tool_call>"),
    "call_close": ("etc_token", "<tool_call|>"),
    "response_open": ("str_token", "<|tool_response>"),
    "response_close": ("etr_token", "<tool_response|>"),
    "quote": ("escape_token", QUOTE),
    "think": ("think_token", "<|think|>"),
    "turn_open": ("sot_token", "<|turn>"),
}
"""Field of ``Markup`` -> its name in tokenizer_config.json and its usual text."""
_KEY = re.compile(r'[^\s:{}\[\],"](?:[^:{}\[\],"]*[^\s:{}\[\],"])?')
_OUTSIDE = re.compile(rf'(?P<text>"(?:[^"\\]|\\.)*")|(?P<key>{_KEY.pattern})(?=\s*:)|\b(?P<word>None|True|False)\b')
_PYTHON = {"None": "null", "True": "true", "False": "false"}
_CALL = re.compile(r"\s*call:([^\s{}]+)\s*(?=\{)")


@dataclass(frozen=True)
class Markup:
    """Ids of the tokens that mark the parts of a reply; None where a checkpoint has no such token.

    Attributes:
        thought_open, thought_close: around a thought.
        call_open, call_close: around a call.
        response_open, response_close: around the result of a call, which the caller writes.
        quote: on both sides of a string in a call.
        think: in a system turn: thoughts are asked for.
        turn_open: begins a turn.
    """

    thought_open: int | None = None
    thought_close: int | None = None
    call_open: int | None = None
    call_close: int | None = None
    response_open: int | None = None
    response_close: int | None = None
    quote: int | None = None
    think: int | None = None
    turn_open: int | None = None

    @classmethod
    def of(cls, backend: Backend, settings: Mapping[str, Any]) -> "Markup":
        """Find the tokens by their texts.

        Args:
            backend: the tokenizer.
            settings: content of tokenizer_config.json; it may give the tokens other texts than the usual ones.
        """
        special = {token.content: index for index, token in backend.get_added_tokens_decoder().items() if token.special}
        named = settings.get("model_specific_special_tokens")
        named = named if isinstance(named, Mapping) else {}
        result: dict[str, int | None] = {}
        for field, (name, usual) in _LITERALS.items():
            text = settings.get(name, named.get(name, usual))
            text = text.get("content") if isinstance(text, Mapping) else text
            result[field] = special.get(text) if isinstance(text, str) else None
        return cls(**result)

    @property
    def thoughts(self) -> bool:
        """Whether a reply can have thoughts."""
        return self.thought_open is not None and self.thought_close is not None

    @property
    def calls(self) -> bool:
        """Whether a reply can have calls."""
        return self.call_open is not None and self.call_close is not None and self.quote is not None

    @property
    def ids(self) -> frozenset[int]:
        """All of the tokens."""
        return frozenset(index for one in fields(self) if (index := getattr(self, one.name)) is not None)

    def opening(self, prompt: Sequence[int]) -> list[int]:
        """What of a prompt belongs to the reply: the last thought from its opening token on, where the prompt leaves it open."""
        for at in range(len(prompt) - 1, -1, -1):
            if prompt[at] in (self.thought_close, self.turn_open, self.call_open):
                break
            if prompt[at] == self.thought_open and self.thoughts:
                return list(prompt[at:])
        return []

    def thinks(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt asks for thoughts."""
        return self.thoughts and self.think is not None and self.think in prompt


def is_key(key: object) -> bool:
    """Whether the markup can hold a key: it stands bare, so it has none of ``: , { } [ ] "`` and no blank at its ends."""
    return isinstance(key, str) and _KEY.fullmatch(key) is not None and QUOTE not in key


def spell_value(value: Any) -> str:
    """A JSON value as the chat template writes it in a call.

    Raises:
        InputError: a string with the quote mark in it, a key that cannot stand bare, a number that is not finite, or what is no
            JSON value.
    """
    if isinstance(value, str):
        if QUOTE in value:
            raise InputError(f"a string of a call holds {QUOTE}, which ends strings in this model's markup; leave it out")
        return f"{QUOTE}{value}{QUOTE}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return repr(value)
    if isinstance(value, Mapping):
        return f"{{{_spell_fields(value)}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(spell_value, value))}]"
    raise InputError(f"{value!r:.100} is no JSON value that a call can hold")


def _spell_fields(given: Mapping[str, Any]) -> str:
    for key in given:
        if not is_key(key):
            raise InputError(
                f"the key {key!r} cannot be written in a call of this model: keys stand bare there, so they hold none of "
                ': , { } [ ] " and no blank at their ends; rename it'
            )
    return ",".join(f"{key}:{spell_value(value)}" for key, value in sorted(given.items(), key=lambda item: item[0].lower()))


def spell_call(name: str, arguments: Mapping[str, Any]) -> str:
    """What stands between the two marks of a call.

    Raises:
        InputError: a name or arguments that the markup cannot hold.
    """
    if not NAME.fullmatch(name):
        raise InputError(f"a tool has the name {name!r}; up to 64 letters, digits, and _ . - are allowed")
    return f"call:{name}{{{_spell_fields(arguments)}}}"


def read_call(pieces: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a call.

    Args:
        pieces: what stands between its marks, cut at the quote marks: every second piece is a string.

    Raises:
        ValueError: it is no call.
    """
    begun = _CALL.match(pieces[0])
    if begun is None:
        raise ValueError(f"a call begins with call:name{{, this with {pieces[0][:40]!r}")
    arguments = read_value([pieces[0][begun.end() :], *pieces[1:]])
    if not isinstance(arguments, dict):
        raise ValueError("the arguments of a call are no object")  # noqa: TRY004 - it is a text that is wrong
    return begun[1], arguments


def read_value(pieces: Sequence[str]) -> Any:
    """The JSON value of a text of the markup, cut at the quote marks.

    Blanks between its parts, JSON's own strings, and Python's ``None``, ``True`` and ``False``, which some templates write, are
    read too.

    Raises:
        ValueError: it is no value.
    """
    if len(pieces) % 2 == 0:
        raise ValueError("a string has no end")
    spelled = [json.dumps(piece) if n % 2 else _OUTSIDE.sub(_as_json, piece) for n, piece in enumerate(pieces)]
    try:
        return json.loads("".join(spelled), parse_constant=_no_number, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _as_json(result: re.Match[str]) -> str:
    if result["key"] is not None:
        return json.dumps(result["key"])
    return _PYTHON.get(result[0], result[0])


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text:.40} is too large for a number")
    return number
