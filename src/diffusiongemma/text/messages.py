"""Messages of a conversation as chat templates read them: plain values, text alone, calls as mappings."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diffusiongemma.errors import InputError

__all__ = ["REASONING", "Message", "part_text", "plain", "prepared"]

Message = Mapping[str, Any]
REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names for the thoughts of a message, in the order in which they count (transformers 5.24, utils/chat_template_utils.py)."""
_DEEPEST = 64


def prepared(messages: Sequence[Message], reads_parts: Callable[[str], bool], calls: bool) -> list[dict[str, Any]]:
    """Messages as a template reads them; what is given is not changed.

    As in transformers, fields that are None are left out, and thoughts stand under every name for them. Beyond it: arguments of
    calls that are JSON text are read, a tool's result gets the name of the call that it answers, and parts of text are joined where
    the template would show the list itself.

    Args:
        messages: mappings with a ``role``.
        reads_parts: whether the template reads content in parts, of a role.
        calls: whether the template shows calls of tools.

    Raises:
        InputError: no messages, or one that is not as it must be: with its place.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise InputError(f"messages is of type {type(messages).__name__}; give a list of {{'role': ..., 'content': ...}}")
    if not messages:
        raise InputError("messages is empty; give at least one, for example {'role': 'user', 'content': 'Hello'}")
    names: dict[str, str] = {}
    result = []
    for place, message in enumerate(messages):
        where = f"messages[{place}]"
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InputError(
                f"{where} is {str(message)[:200]!r}; a message is a mapping that needs 'role' and 'content' (or 'tool_calls')"
            )
        kept = {key: value for key, value in message.items() if value is not None}
        content = _content(kept, where)
        if isinstance(content, list) and not reads_parts(kept["role"]):
            content = "".join(part["text"] for part in content)
        ready = plain(kept if content is None else kept | {"content": content}, where)
        _thoughts(ready, where)
        if "tool_calls" in ready:
            if ready["tool_calls"] and not calls:
                raise InputError(
                    f"{where} has tool_calls, which the chat template of this checkpoint does not show; write them as text"
                )
            _calls(ready["tool_calls"], f"{where}.tool_calls", names)
        if ready["role"] == "tool" and "name" not in ready and (name := names.get(str(ready.get("tool_call_id")))) is not None:
            ready["name"] = name
        result.append(ready)
    return result


def plain(value: Any, where: str, depth: int = 0) -> Any:
    """A copy of builtin types alone, as templates may have it: an object would bring its methods.

    Raises:
        InputError: it holds something else, or is too deep.
    """
    if depth > _DEEPEST:
        raise InputError(f"{where} is nested more than {_DEEPEST} deep")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, Mapping):
        return {plain(key, where, depth + 1): plain(item, where, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, where, depth + 1) for item in value]
    raise InputError(f"{where} has a value of type {type(value).__name__}; a template takes text, numbers, lists and mappings")


def part_text(part: Any, where: str) -> str:
    """The text of a part of a message.

    Raises:
        InputError: it is a part of another kind: an image, audio, video, a file.
    """
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    given = f".type is {part['type']!r}" if isinstance(part, Mapping) and "type" in part else f" is {str(part)[:100]!r}"
    raise InputError(
        f"{where}{given}; this runtime reads text alone, no images, audio, video or files: "
        'give parts {"type": "text", "text": ...}'
    )


def _content(message: Mapping[str, Any], where: str) -> Any:
    """The content of a message; None where it has none."""
    content = message.get("content")
    if isinstance(content, list | tuple):
        for place, part in enumerate(content):
            part_text(part, f"{where}.content[{place}]")
        return list(content)
    if content is None or isinstance(content, str):
        if content is None and message["role"] in ("user", "system", "developer"):
            raise InputError(f"{where} has no content; a message of the {message['role']} needs it")
        return content
    if message["role"] == "tool":
        return content  # a result may be any value
    raise InputError(f"{where}.content is of type {type(content).__name__}; give text, or a list of parts of text")


def _thoughts(message: dict[str, Any], where: str) -> None:
    """Put the thoughts of a message under every name for them."""
    given = {name: message[name] for name in REASONING if name in message}
    for name, value in given.items():
        if not isinstance(value, str):
            raise InputError(f"{where}.{name} is of type {type(value).__name__}; give text")
    if given:
        first = next(iter(given.values()))
        message |= {name: given.get(name, first) for name in REASONING} | {REASONING[0]: first}


def _calls(calls: Any, where: str, names: dict[str, str]) -> None:
    """Read the arguments of calls, in place, and note whose they are."""
    if not isinstance(calls, list):
        raise InputError(f"{where} is of type {type(calls).__name__}; give a list of calls")
    for place, call in enumerate(calls):
        at = f"{where}[{place}]"
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InputError(f"{at} is {str(call)[:200]!r}; it must be {{'function': {{'name': ..., 'arguments': {{...}}}}}}")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            try:
                function["arguments"] = arguments = json.loads(arguments) if arguments.strip() else {}
            except ValueError as error:
                raise InputError(f"{at}: the arguments of {function['name']} are not JSON: {error}") from error
        if arguments is not None and not isinstance(arguments, dict):
            raise InputError(f"{at}: the arguments of {function['name']} are {str(arguments)[:100]}; they must be an object")
        if isinstance(call.get("id"), str):
            names[call["id"]] = function["name"]
