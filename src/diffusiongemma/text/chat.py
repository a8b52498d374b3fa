"""Chat messages -> prompt text, through the checkpoint's own jinja template, in a sandbox."""

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import BaseLoader, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from diffusiongemma.errors import CheckpointError, InputError
from diffusiongemma.text.variables import free_variables

__all__ = ["ChatTemplate", "Message"]

Message = Mapping[str, Any]
_ROLES = ("system", "developer", "user", "assistant", "tool")


class ChatTemplate:
    """A compiled chat template; it runs sandboxed, so that a checkpoint's file cannot run code.

    Args:
        source: the jinja text.
        special_tokens: names (``bos_token`` ...) and texts that the template may use.

    Attributes:
        variables: names that the template takes from outside, ``messages`` and special tokens among them.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            loader=BaseLoader(), trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _raise
        try:
            self._template = environment.from_string(source)
            self.variables = free_variables(environment.parse(source)) - set(environment.globals)
        except TemplateError as error:
            raise CheckpointError(f"the checkpoint's chat template cannot be compiled: {error}") from error
        self._special_tokens = dict(special_tokens)

    @property
    def knows_tools(self) -> bool:
        """Whether declarations of tools reach the model through the template, in the markup it was trained with."""
        return "tools" in self.variables

    def render(self, messages: Sequence[Message], **options: Any) -> str:
        """The prompt text, ready for the model's turn.

        Raises:
            InputError: no messages, a message without role or content, an unknown role, or one the template refuses.
        """
        if not messages:
            raise InputError("messages is empty; give at least one, for example {'role': 'user', 'content': 'Hello'}")
        for i, message in enumerate(messages):
            if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
                raise InputError(f"messages[{i}] is {message!r}; it needs 'role' and 'content'")
            if message["role"] not in _ROLES:
                raise InputError(f"messages[{i}] has role {message['role']!r}; allowed: {', '.join(_ROLES)}")
        try:
            return self._template.render(
                messages=[dict(m) for m in messages], add_generation_prompt=True, **self._special_tokens, **options
            )
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise InputError(f"the chat template refuses these messages: {error}") from error


def _raise(message: str) -> None:
    raise TemplateError(message)
