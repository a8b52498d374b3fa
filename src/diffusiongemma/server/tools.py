"""Tools: what the model is told of them, what its answer may be so that a call is valid, and how calls are read.

A call is written ``{"name": ..., "arguments": {...}}``. Where there must be one the answer is constrained to a JSON schema:
one branch a tool, with the tool's own parameters. Where the model may also answer in words (``auto``) the answer is constrained to
a grammar: either a call between two marks, or any text that does not begin with the mark.
"""

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diffusiongemma.constraints import Constraint, Gone, Vocabulary, compile_grammar
from diffusiongemma.constraints.schema import prepare
from diffusiongemma.errors import ConstraintError
from diffusiongemma.server.errors import ApiError
from diffusiongemma.server.protocol import AssistantMessage, ChatRequest, Message, NamedTool, Tool, ToolMessage, text_of
from diffusiongemma.text.messages import REASONING

__all__ = ["MARK", "Toolset", "conversation"]

MARK, END = "<tool_call>", "</tool_call>"
_RESULT, _RESULT_END = "<tool_response>", "</tool_response>"
_SPACING = {
    "item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False, "lenient": False, "coerce_one_of": False
}  # fmt: skip
_NOT_SHOWN = {"refusal", "audio", "function_call", "annotations"}
"""Fields of a message that say nothing."""
_DATA = ("const", "enum", "default", "examples")
"""Keywords whose content is no schema."""


@dataclass(frozen=True)
class Toolset:
    """The tools of a request that may be called.

    Attributes:
        tools: not empty.
        required: whether the answer must be a call.
    """

    tools: tuple[Tool, ...]
    required: bool

    @classmethod
    def of(cls, body: ChatRequest, native: bool = False) -> "Toolset | None":
        """The tools a request offers; None where the answer is text.

        Args:
            body: of the request.
            native: calls come in the model's own markup, which goes together with more.

        Raises:
            ApiError: two tools of one name, a choice without tools or of a tool that is not there, or what cannot be combined
                with a call.
        """
        chosen, tools = body.tool_choice, body.tools or []
        names = [tool.function.name for tool in tools]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ApiError(400, f"two tools have the name {twice[0]!r}; names must differ", "tools")
        if chosen not in (None, "none", "auto") and not tools:
            raise ApiError(400, "tool_choice is given without tools", "tool_choice")
        if isinstance(chosen, NamedTool):
            if (name := chosen.function.name) not in names:
                raise ApiError(400, f"tool_choice is {name!r}; the tools are {names}", "tool_choice")
            tools = [tools[names.index(name)]]
        if not tools or chosen == "none":
            return None
        for name in ("pins",) if native else ("response_format", "regex", "choices", "grammar", "pins", "stop", "logprobs"):
            value = getattr(body, name)
            if value and not (name == "response_format" and body.response_format and body.response_format.type == "text"):
                raise ApiError(400, f"{name} cannot be combined with tools; say tool_choice: none", name)
        if body.mode == "causal":
            raise ApiError(400, "tools need mode 'diffusion': a call is constrained to its schema on the canvas", "mode")
        return cls(tuple(tools), required=chosen not in (None, "auto"))

    def required_schema(self, vocabulary: Vocabulary, gone: Gone | None = None) -> dict[str, Any]:
        """What holds the answer, as ``DiffusionGemmaModel.requests`` takes it.

        Args:
            vocabulary: of the model.
            gone: see ``compile_grammar``.

        Raises:
            ConstraintError: parameters that cannot be expressed.
        """
        schema = self.schema()
        if self.required:
            return {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}
        ready = json.loads(prepare(json.dumps(schema)).text) | {"x-guidance": _SPACING}
        call = f'call: "{MARK}" json "{END}"\njson: %json {json.dumps(ready)}\n'
        try:
            # Words are always a way out, so that a call which no text completes would not be noticed.
            compile_grammar(Constraint.grammar(f"start: call\n{call}"), vocabulary, gone)
        except ConstraintError as error:
            raise ConstraintError(f"tools: {error} (tool_choice 'auto'; with 'required' more can be expressed)") from error
        return {"grammar": f"start: call | TEXT\n{call}TEXT: /{_not_beginning(MARK)}/\n"}

    def schema(self) -> dict[str, Any]:
        """The schema of a call of any of the tools."""
        branches = []
        for place, tool in enumerate(self.tools):
            where = ("" if len(self.tools) == 1 else f"/anyOf/{place}") + "/properties/arguments"
            parameters = tool.function.parameters or {"type": "object", "properties": {}, "additionalProperties": False}
            branches.append(
                {
                    "type": "object",
                    "properties": {"name": {"const": tool.function.name}, "arguments": _moved(parameters, where)},
                    "required": ["name", "arguments"],
                    "additionalProperties": False,
                }
            )
        return branches[0] if len(branches) == 1 else {"anyOf": branches}

    def declared(self) -> list[dict[str, Any]]:
        """The tools as a template that knows tools declares them."""
        return [tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in self.tools]

    def described(self) -> str:
        """What the model is told where the template knows no tools."""
        lines = [
            json.dumps(tool.function.model_dump(exclude_none=True, exclude={"strict"}), ensure_ascii=False) for tool in self.tools
        ]
        form = '{"name": ..., "arguments": {...}}'
        how = f"Answer with a call: {form}" if self.required else f"To call one, answer only {MARK}{form}{END}"
        return "\n".join(("You can call these functions:", *lines, how))

    def read(self, text: str) -> list[dict[str, Any]] | None:
        """The calls of a finished answer in OpenAI's shape; None where it is words."""
        if not self.required:
            if not text.startswith(MARK):
                return None
            text = text.removeprefix(MARK).removesuffix(END)
        call = json.loads(text)
        arguments = json.dumps(call["arguments"], ensure_ascii=False)
        return [
            {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": {"name": call["name"], "arguments": arguments}}
        ]


def conversation(messages: Sequence[Message], tools: Toolset | None, native: bool = False) -> list[dict[str, Any]]:
    """Messages for a chat template.

    Args:
        messages: of a request.
        tools: what may be called.
        native: whether the template knows tools: calls and results stay as they are, and it declares the tools itself. Else all
            of it becomes text, the tools in the system message.

    Raises:
        ApiError: a message of nothing, or a result of no call.
        InputError: a part that is no text.
    """
    result: list[dict[str, Any]] = []
    calls: set[str] = set()
    for place, message in enumerate(messages):
        where = f"messages[{place}]"
        text = text_of(message.content, f"{where}.content")
        made = (message.tool_calls or []) if isinstance(message, AssistantMessage) else []
        if isinstance(message, ToolMessage) and message.tool_call_id not in calls:
            raise ApiError(400, f"{where} answers a call that is not there", f"{where}.tool_call_id")
        if message.content is None and not made:
            raise ApiError(400, f"{where} has neither content nor calls", f"{where}.content", "missing_field")
        calls |= {call.id for call in made}
        if native:
            result.append(message.model_dump(exclude_none=True, exclude=_NOT_SHOWN))
        elif isinstance(message, ToolMessage):
            result.append({"role": "user", "content": f"{_RESULT}{text}{_RESULT_END}"})
        else:
            marked = tools is None or not tools.required
            text += "".join(_spelled(call.function.name, call.function.arguments, where, marked) for call in made)
            thoughts = message.model_dump(include=set(REASONING), exclude_none=True)
            result.append({"role": message.role, "content": text, **thoughts})
    if tools is not None and not native:
        if result[0]["role"] in ("system", "developer"):
            result[0] = result[0] | {"content": f"{result[0]['content']}\n\n{tools.described()}"}
        else:
            result.insert(0, {"role": "system", "content": tools.described()})
    return result


def _spelled(name: str, arguments: str | dict[str, Any], where: str, marked: bool) -> str:
    try:
        read = json.loads(arguments) if isinstance(arguments, str) else arguments
        call = json.dumps({"name": name, "arguments": read}, ensure_ascii=False)
    except ValueError as error:
        raise ApiError(
            400, f"{where}: the arguments of {name} are not JSON: {error}", f"{where}.tool_calls", "invalid_value"
        ) from error
    return f"{MARK}{call}{END}" if marked else call


def _moved(schema: Any, where: str) -> Any:
    """A schema with its references to itself changed to what they are from where it stands now."""
    if isinstance(schema, list):
        return [_moved(part, where) for part in schema]
    if not isinstance(schema, dict):
        return schema
    result = {}
    for word, part in schema.items():
        if word == "$ref" and isinstance(part, str) and (part == "#" or part.startswith("#/")):
            result[word] = f"#{where}{part[1:]}"
        else:
            result[word] = part if word in _DATA else _moved(part, where)
    return result


def _not_beginning(mark: str) -> str:
    """A regex for all texts that do not begin with a mark, the empty one among them."""
    return "|".join(f"{mark[:place]}([^{letter}](.|\\n)*)?" for place, letter in enumerate(mark))
