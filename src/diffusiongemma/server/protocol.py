"""Bodies of requests. A field that is not here is answered, and reported (``ignored``).

Every list has a bound, and its first wrong item ends the check (``fail_fast``): a body of half a million wrong ones is refused as
quickly as any.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    PrivateAttr,
    Strict,
    Tag,
    ValidationError,
    WithJsonSchema,
    create_model,
    model_validator,
)  # fmt: skip

from diffusiongemma.diffusion import SamplingParams
from diffusiongemma.generation import AnyMode
from diffusiongemma.options import Option, PromptOptions, options_of
from diffusiongemma.server.errors import from_validation
from diffusiongemma.text.messages import part_text

__all__ = [
    "AssistantMessage",
    "Body",
    "ChatRequest",
    "CompletionRequest",
    "DecisionsRequest",
    "EditRequest",
    "FimRequest",
    "Generation",
    "Message",
    "OtherPart",
    "Question",
    "Tool",
    "ToolCall",
    "ToolMessage",
    "given",
    "text_of",
    "translated",
]


def _whole(value: Any) -> Any:
    """5.0 is a whole number too, in JSON."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Text = Annotated[str, Strict()]
Flag = Annotated[bool, Strict()]
Whole = Annotated[int, Strict(), BeforeValidator(_whole)]
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Label = Annotated[Text, Field(min_length=1)]
Positive = Annotated[Whole, Field(ge=1, le=1 << 24)]
Stop = Text | Annotated[list[Annotated[Text, Field(min_length=1, max_length=256)]], Field(max_length=16, fail_fast=True)]


_UNSET = {"seed": (-1,), "max_tokens": (-1,), "max_completion_tokens": (-1,), "top_k": (-1, 0)}
Pin = Annotated[list[Whole], Field(min_length=2, max_length=2)]


B = TypeVar("B", bound="Body")


class Body(BaseModel):
    """A JSON object with these fields; what else it has is kept apart.

    Attributes:
        ignored: names of what it has beside them, of a whole body.
    """

    model_config = ConfigDict(extra="allow", protected_namespaces=())
    _ignored: list[str] = PrivateAttr(default_factory=list)

    @property
    def ignored(self) -> list[str]:
        """See above."""
        return self._ignored


class TextPart(Body):
    """A part of a message."""

    type: Literal["text"]
    text: Text


def _no_text(kind: str) -> str:
    if kind in ("text", "input_text", "output_text"):
        raise ValueError(f"a part of type {kind} has a text, and nothing else")
    return kind


class OtherPart(BaseModel):
    """A part that is no text (an image, audio, a file): read as it comes, so that it can be refused with one message."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    type: Annotated[Text, AfterValidator(_no_text)]


Content = Text | Annotated[list[TextPart | OtherPart], Field(max_length=4096, fail_fast=True)]


class FunctionCall(Body):
    """What a tool was called with: JSON as text, or the object itself."""

    name: Text
    arguments: Text | dict[str, Any]


class ToolCall(Body):
    """A call that the model made earlier in the conversation."""

    id: Text
    type: Literal["function"]
    function: FunctionCall
    index: Whole | None = None


class SystemMessage(Body):
    """What the model is told beforehand."""

    role: Literal["system", "developer"]
    content: Content


class UserMessage(Body):
    """What the user says."""

    role: Literal["user"]
    content: Content


class AssistantMessage(Body):
    """What the model said, thought, or called."""

    role: Literal["assistant"]
    content: Content | None = None
    reasoning_content: Text | None = None
    reasoning: Text | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=128, fail_fast=True)] | None = None


class ToolMessage(Body):
    """The result of a call."""

    role: Literal["tool"]
    content: Content
    tool_call_id: Text
    name: Text | None = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class StreamOptions(Body):
    """How to stream."""

    include_usage: Flag | None = None


class SchemaSpec(Body):
    """A JSON schema; name and description are labels that the model does not see; strict or not, the answer is valid."""

    schema_: Annotated[dict[str, Any] | bool, Field(alias="schema")]
    name: Text | None = None
    description: Text | None = None
    strict: Flag | None = None


class ResponseFormat(Body):
    """What the answer must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaSpec | None = None


class FunctionSpec(Body):
    """A function that the model may call."""

    name: Annotated[Text, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: Flag | None = None


class Tool(Body):
    """A tool; there are only functions."""

    type: Literal["function"]
    function: FunctionSpec


class NamedFunction(Body):
    """The name of a function."""

    name: Text


class NamedTool(Body):
    """A call of one tool and no other."""

    type: Literal["function"]
    function: NamedFunction


def _field(option: Option) -> Any:
    """A field of a body for an option: checked as it is everywhere, and described for ``/openapi.json``."""
    bounds = {"minimum": option.ge, "exclusiveMinimum": option.gt, "maximum": option.le, "enum": option.choices or None}
    kind = {int: "integer", float: "number", bool: "boolean", str: "string"}.get(option.kind, "object")
    described = {"type": kind, **{name: bound for name, bound in bounds.items() if bound is not None}}

    def checked(value: Any) -> Any:
        value = _whole(value) if option.kind is int else value
        option.check(value)
        return value

    as_json = WithJsonSchema(described | {"description": option.help})
    return Annotated[Any, PlainValidator(checked), as_json] | None, None


def _options(name: str, options: Mapping[str, Option], *but: str) -> Any:
    """A body with a field for each option but for some."""
    return create_model(name, __base__=Body, **{each: _field(one) for each, one in options.items() if each not in but})


class Generation(_options("Sampling", options_of(SamplingParams), "stop")):  # type: ignore[misc]
    """What all generating requests take: the model, and fields of ``SamplingParams`` (docs/api.md has a line for each)."""

    model: Text | None = None
    stream: Flag | None = None
    stream_options: StreamOptions | None = None
    diffusing: Flag | None = None
    n: Annotated[Whole, Field(ge=1, le=128)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _unset(cls, data: Any) -> Any:
        """Other servers' ways to say that a field is not set."""
        if not isinstance(data, dict):
            return data
        return {name: None if name in _UNSET and value in _UNSET[name] else value for name, value in data.items()}


class Answering(Generation):
    """What chat and completions take beyond that."""

    stop: Stop | None = None
    mode: AnyMode | None = None
    pins: Annotated[list[Pin], Field(max_length=1 << 16, fail_fast=True)] | None = None
    response_format: ResponseFormat | None = None
    regex: Text | None = None
    choices: Annotated[list[Text], Field(max_length=1 << 14, fail_fast=True)] | None = None
    grammar: Text | None = None
    allow_special: Flag | None = None


class ChatRequest(_options("Prompt", options_of(PromptOptions), "tools", "allow_special", "raw"), Answering):  # type: ignore[misc]
    """``/v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=4096, fail_fast=True)]
    max_completion_tokens: Positive | None = None
    tools: Annotated[list[Tool], Field(max_length=128, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: Flag | None = None
    logprobs: Flag | None = None
    top_logprobs: Annotated[Whole, Field(ge=0, le=20)] | None = None


TokenIds = Annotated[list[Whole], Field(min_length=1, max_length=1 << 18, fail_fast=True)]
_PROMPTS = Field(min_length=1, max_length=128, fail_fast=True)


def _kind_of_prompt(value: Any) -> str:
    """Which of the kinds of a prompt is meant; its first item tells."""
    if not isinstance(value, list) or not value:
        return "text"
    return "many" if isinstance(value[0], list) else "texts" if isinstance(value[0], str) else "ids"


Prompt = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[TokenIds, Tag("ids")]
    | Annotated[list[Text], _PROMPTS, Tag("texts")]
    | Annotated[list[TokenIds], _PROMPTS, Tag("many")],
    Discriminator(_kind_of_prompt),
]


class CompletionRequest(Answering):
    """``/v1/completions``."""

    prompt: Prompt
    suffix: Text | None = None
    logprobs: Annotated[Whole, Field(ge=0, le=20)] | None = None
    echo: Flag | None = None


class FimRequest(Generation):
    """``/v1/fim/completions``."""

    prompt: Text
    suffix: Text | None = None
    stop: Stop | None = None


class EditRequest(Generation):
    """``/v1/edit/completions``: one user message in Mercury's shape, or ``input`` and ``instruction``."""

    messages: Annotated[list[UserMessage], Field(min_length=1, max_length=1)] | None = None
    input: Text | None = None
    instruction: Text | None = None
    in_prompt: Flag | None = None
    stop: Stop | None = None
    max_completion_tokens: Positive | None = None


class InputPart(Body):
    """A part of a decision's input."""

    type: Literal["input_text"]
    text: Text


class OutputPart(Body):
    """A part of what an assistant said."""

    type: Literal["output_text"]
    text: Text


class DecisionMessage(Body):
    """A turn of a decision's input."""

    type: Literal["message"] | None = None
    role: Literal["user", "developer", "system", "assistant"]
    content: Text | Annotated[list[InputPart | OutputPart | OtherPart], Field(max_length=4096, fail_fast=True)]


class ChoiceOption(Body):
    """An option; its description is shown to the model."""

    value: Label | Flag
    description: Text | None = None


class Level(Body):
    """A level of a score, the lowest first; its description is shown to the model."""

    label: Label
    description: Text | None = None


class Asked(Body):
    """What every question has."""

    instructions: Text | Annotated[list[InputPart], Field(max_length=4096, fail_fast=True)]
    name: Text | None = None


class PredicateQuestion(Asked):
    """How likely it is that a statement holds."""

    type: Literal["predicate"]


class ChoiceQuestion(Asked):
    """One of several options."""

    type: Literal["choice"]
    choices: Annotated[list[ChoiceOption], Field(min_length=2, max_length=255, fail_fast=True)]


class ScoreQuestion(Asked):
    """One of several levels, in order."""

    type: Literal["score"]
    levels: Annotated[list[Level], Field(min_length=2, max_length=255, fail_fast=True)]


Question = Annotated[PredicateQuestion | ChoiceQuestion | ScoreQuestion, Field(discriminator="type")]


class DecisionsRequest(Body):
    """``/v1/decisions``."""

    model: Text | None = None
    input: Text | Annotated[list[DecisionMessage], Field(min_length=1, max_length=4096, fail_fast=True)]
    questions: Annotated[list[Question], Field(min_length=1, max_length=400, fail_fast=True)]
    joint: Flag | None = None
    threshold: Annotated[Number, Field(ge=0, le=1)] | None = None
    draws: Annotated[Whole, Field(ge=1, le=64)] | None = None
    seed: Annotated[Whole, Field(ge=0, le=2**63 - 1)] | None = None


def given(body: BaseModel, cls: type) -> dict[str, Any]:
    """The options of a class that a body gives."""
    return {name: value for name in options_of(cls) if (value := getattr(body, name, None)) is not None}


def text_of(content: str | list[Any] | None, where: str = "content") -> str:
    """Text of a message whose parts, if it has any, are texts.

    Args:
        content: of a message.
        where: its name, for errors.

    Raises:
        InputError: a part that is no text.
    """
    if isinstance(content, str):
        return content
    return "".join(part_text(_as_text(part), f"{where}[{place}]") for place, part in enumerate(content or ()))


def _as_text(part: Any) -> dict[str, Any]:
    """A part of a message; OpenAI's names for text in what goes in and out mean the same."""
    return {"type": part.type} if isinstance(part, OtherPart) else {"type": "text", "text": part.text}


def translated(model: type[B], data: dict[str, Any], body: Body) -> B:
    """A request of ours for one of another protocol; what that ignored, this one reports.

    Raises:
        ApiError: what both are given and ours does not take.
    """
    try:
        result = model.model_validate({name: value for name, value in data.items() if value is not None})
    except ValidationError as error:
        raise from_validation(error.errors(include_url=False, include_context=False), data) from None
    result._ignored = body.ignored
    return result
