"""How a prompt is written: what a caller may choose about it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from diffusiongemma.errors import OptionError
from diffusiongemma.options.option import check_options, documented, given, option, options_of, unknown_option

__all__ = ["REASONING_EFFORTS", "PromptKeywords", "PromptOptions"]

ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
REASONING_EFFORTS = {"none": False, "minimal": False, "low": True, "medium": True, "high": True, "xhigh": True}
"""Values of ``reasoning_effort`` (OpenAI's), and whether the model thinks."""
Tool = Mapping[str, Any]


class PromptKeywords(TypedDict, total=False):
    """The keywords of ``PromptOptions``; None is the same as leaving one out."""

    tools: Sequence[Tool] | None
    enable_thinking: bool | None
    preserve_thinking: bool | None
    reasoning_effort: ReasoningEffort | None
    thinking_budget: int | None
    chat_template_kwargs: Mapping[str, Any] | None
    allow_special: bool | None
    raw: bool | None


@documented
@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """How a prompt is written."""

    tools: Sequence[Tool] | None = option(
        None, "Functions that the model may call: OpenAI's {'type': 'function', 'function': {...}}, or what is in 'function'."
    )
    enable_thinking: bool | None = option(
        None, "Think before the answer, or not; unset: as the chat template has it.", flags=("--think/--no-think",)
    )
    preserve_thinking: bool | None = option(
        None, "Whether thoughts of earlier turns with calls stay in the prompt; unset: as the chat template has it."
    )
    reasoning_effort: ReasoningEffort | None = option(
        None,
        "OpenAI's: none and minimal are enable_thinking off, the others on. A template that reads reasoning_effort itself gets it "
        "too.",
    )
    thinking_budget: int | None = option(
        None, "Most tokens of the thoughts of a reply, without their marks; then they end.", ge=0, le=1 << 24
    )
    chat_template_kwargs: Mapping[str, Any] | None = option(None, "Other variables of the template, by name.")
    allow_special: bool = option(False, "Texts of control tokens in what you write become control tokens.")
    raw: bool = option(False, "The prompt is a text that is gone on with, outside any conversation.")

    def __post_init__(self) -> None:
        check_options(self)
        if self.tools is not None and (not isinstance(self.tools, Sequence) or isinstance(self.tools, str | bytes)):
            raise OptionError(f"tools is of type {type(self.tools).__name__}; give a list of functions", "tools")
        if self.chat_template_kwargs is not None and not isinstance(self.chat_template_kwargs, Mapping):
            said = f"chat_template_kwargs is {self.chat_template_kwargs!r:.100}; give a mapping of names to values"
            raise OptionError(said, "chat_template_kwargs")

    @classmethod
    def split(cls, options: Mapping[str, Any]) -> tuple["PromptOptions", dict[str, Any]]:
        """Those of these options that are about the prompt, and the others."""
        ours = options_of(cls)
        return cls(**given(cls, options)), {name: value for name, value in options.items() if name not in ours}

    @classmethod
    def only(cls, options: Mapping[str, Any]) -> "PromptOptions":
        """These options, of what generates no reply.

        Raises:
            OptionError: one that is not about the prompt.
        """
        ours, others = cls.split(options)
        if ours.thinking_budget is not None:
            raise OptionError("thinking_budget bounds the thoughts of a reply, and here is none; leave it out", "thinking_budget")
        if others:
            raise unknown_option(others, *options_of(cls))
        return ours
