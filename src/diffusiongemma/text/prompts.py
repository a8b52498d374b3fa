"""The one way from a prompt or messages to token ids: generation, infilling, decisions, the server and training all take it."""

from collections.abc import Mapping, Sequence
from typing import Any

from diffusiongemma.errors import InputError, OptionError
from diffusiongemma.options import REASONING_EFFORTS, PromptOptions
from diffusiongemma.text.chat import ChatTemplate
from diffusiongemma.text.control import Disguise, Segment
from diffusiongemma.text.messages import Message
from diffusiongemma.text.tokenizer import Tokenizer

__all__ = ["Prompts", "conversations", "prompt_ids", "thinks", "variables", "with_text"]

_MODEL_ROLES = ("assistant", "model")
Prompts = str | Sequence[str] | None


def variables(options: PromptOptions, template: ChatTemplate | None) -> dict[str, Any]:
    """What the template is rendered with beside the messages.

    Raises:
        OptionError: what the template does not take, or options that contradict each other.
    """
    given = dict(options.chat_template_kwargs or {})
    thinks = None if options.reasoning_effort is None else REASONING_EFFORTS[options.reasoning_effort]
    for name, value in (
        ("enable_thinking", options.enable_thinking),
        ("enable_thinking", thinks),
        ("preserve_thinking", options.preserve_thinking),
    ):
        if value is not None and given.setdefault(name, value) != value:
            raise OptionError(f"{name} is asked to be {given[name]!r} and {value!r}; give it once (reasoning_effort sets it too)")
    known = frozenset[str]() if template is None else template.options
    for name in ("enable_thinking", "preserve_thinking"):
        if given.get(name) is False and name not in known:
            del given[name]  # a template that cannot do it does not
    if options.reasoning_effort is not None and "reasoning_effort" in known:
        given["reasoning_effort"] = options.reasoning_effort
    tools = [_declared(tool, place) for place, tool in enumerate(options.tools or ())]
    if template is None:
        if given or tools:
            names = ", ".join([*given, *(["tools"] if tools else [])])
            raise OptionError(f"{names}: {'this prompt' if options.raw else 'this checkpoint'} has no chat template")
        return {}
    template.check_options({name: None for name in given if name not in (options.chat_template_kwargs or {})})
    template.check_options(given, "chat_template_kwargs: ")
    return given | ({"tools": tools} if tools else {})


def thinks(options: PromptOptions, template: ChatTemplate | None) -> bool:
    """Whether the model is asked to think before it answers; raises what ``variables`` does."""
    return variables(options, template).get("enable_thinking") is True


def conversations(prompt: Prompts, messages: Sequence[Message] | None, raw: bool = False) -> list[Sequence[Message]]:
    """What is to be answered, as conversations: one a prompt.

    Raises:
        InputError: no prompt, an empty one, or both prompt and messages.
    """
    if (prompt is None) == (messages is None):
        raise InputError("give either prompt or messages, not both and not neither")
    if messages is not None:
        if raw:
            raise InputError("messages are given with raw=True, which is for a prompt that stands outside any conversation")
        return [messages]
    if not isinstance(prompt, Sequence):
        raise InputError(f"the prompt is of type {type(prompt).__name__}; give a string, or a list of strings")
    texts = [prompt] if isinstance(prompt, str) else list(prompt)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"prompt {i} is of type {type(text).__name__}; give a string, or a list of strings")
        if not text.strip():
            raise InputError(f"prompt {i} is empty; give it at least one character that is not a space")
    return [[{"role": "user", "content": text}] for text in texts]


def with_text(prompt: str | None, messages: Sequence[Message] | None, text: str) -> tuple[str | None, Sequence[Message] | None]:
    """A prompt, or messages, with a text of the user after it; an empty one changes nothing."""
    if not text or (prompt is None) == (messages is None):
        return prompt, messages
    if prompt is not None:
        return f"{prompt}\n\n{text}", None
    return None, [*(messages or ()), {"role": "user", "content": text}]


def prompt_ids(
    tokenizer: Tokenizer,
    prompt: Prompts,
    messages: Sequence[Message] | None = None,
    options: PromptOptions | None = None,
    bos: int | None = None,
    most: int | None = None,
) -> list[list[int]]:
    """Token ids of prompts, each ready for the model's answer.

    What users wrote (all but the content of the model's own messages) cannot become a control token, unless ``allow_special``.

    Args:
        tokenizer: with the template.
        prompt: a user's message, or a list of them: a prompt each.
        messages: a whole conversation instead.
        options: how it is written.
        bos: the first token of a raw prompt, and where no template writes it of any, if the tokenizer adds it (``adds_bos``).
        most: tokens of a prompt that are of any use (``Tokenizer.encode``).

    Raises:
        PromptTooLongError: a prompt is certain to have more than ``most`` tokens.
        InputError: no prompt, an empty one, both prompt and messages, messages the template refuses, or text the tokenizer cannot
            represent.
        OptionError: what the template does not take.
    """
    options = options or PromptOptions()
    asked = conversations(prompt, messages, options.raw)
    shown = variables(options, None if options.raw else tokenizer.template)
    if options.raw or tokenizer.template is None:
        if messages is not None:
            raise InputError("this checkpoint has no chat template; give prompt instead of messages")
        texts = [conversation[0]["content"] for conversation in asked]
        first = [bos] if bos is not None and (options.raw or tokenizer.adds_bos) else []
        whole = [[Segment(text, literal=False)] if options.allow_special else tokenizer.control.segments(text) for text in texts]
        return [[*first, *ids] for ids in tokenizer.encode_segments(whole, most)]
    return tokenizer.encode_segments([_segments(tokenizer, tokenizer.template, each, shown, options) for each in asked], most)


def _segments(
    tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[Message], variables: Mapping[str, Any], options: PromptOptions
) -> list[Segment]:
    """A rendered conversation, with what users wrote set apart where it looks like a control token."""
    prepared = template.prepared(messages)
    if options.allow_special:
        return [Segment(template.rendered(prepared, **variables).text, literal=False)]
    disguise = Disguise(tokenizer.control, given=[prepared, variables, template.source])
    hidden = [_hidden(disguise, message) for message in prepared]
    shown = template.rendered(hidden, **disguise.hide(variables))
    return disguise.segments(shown.text)


def _hidden(disguise: Disguise, message: Mapping[str, Any]) -> dict[str, Any]:
    """A message disguised, but for what the model said: its markup is its own, and a template may look for it there."""
    result: dict[str, Any] = disguise.hide(message)
    return result | {"content": message["content"]} if message["role"] in _MODEL_ROLES and "content" in message else result


def _declared(tool: Any, place: int) -> dict[str, Any]:
    """A tool in OpenAI's form."""
    function = tool.get("function") if isinstance(tool, Mapping) and "function" in tool else tool
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise InputError(
            f"tools[{place}] is {str(tool)[:200]!r}; give {{'type': 'function', 'function': {{'name': ..., 'description': ..., "
            "'parameters': {...}}}, or the function alone"
        )
    return {**tool} if "function" in tool else {"type": "function", "function": dict(tool)}
