"""Chat messages -> prompt text, through the checkpoint's own jinja template, in a sandbox with bounds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffusiongemma.errors import CheckpointError, InputError, OptionError
from diffusiongemma.text.messages import Message, plain, prepared
from diffusiongemma.text.render import MEMORY, compile_template, render_template, seconds_for

__all__ = ["ChatTemplate", "Message", "Rendered"]

_OURS = {"messages", "tools", "add_generation_prompt"}
_PROBE = "probe-d41d8cd9"


@dataclass(frozen=True)
class Rendered:
    """A prompt text.

    Attributes:
        text: the whole text.
        generated: begin and end of its ``{% generation %}`` blocks, which a model is trained to write.
    """

    text: str
    generated: tuple[tuple[int, int], ...] = ()


class ChatTemplate:
    """A chat template; it runs sandboxed and bounded, so that a checkpoint's file cannot run code, hang or take all memory.

    What a template may use is what transformers gives it: ``generation`` blocks, loop controls, ``tojson`` without HTML escapes,
    ``raise_exception``, ``strftime_now``.

    Args:
        source: the jinja text.
        special_tokens: names (``bos_token`` ...) and texts that the template may use.

    Attributes:
        source: the jinja text.
        variables: names that the template takes from outside, ``messages`` and special tokens among them.

    Raises:
        CheckpointError: the template cannot be compiled.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self._special_tokens = dict(special_tokens)
        self._reads_parts: dict[str, bool] = {}
        reply = compile_template(source)
        if "error" in reply:
            why = reply["message"] if reply["error"] == "compile" else "it takes too much time or memory"
            raise CheckpointError(f"the checkpoint's chat template cannot be compiled: {why}")
        self.variables = frozenset(reply["variables"])

    @property
    def knows_tools(self) -> bool:
        """Whether declarations of tools reach the model through the template, in the markup it was trained with."""
        return "tools" in self.variables

    @property
    def options(self) -> frozenset[str]:
        """Variables that a caller may set."""
        return self.variables - _OURS - self._special_tokens.keys()

    def render(self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] | None = None, **options: Any) -> str:
        """The prompt text, ready for the model's turn.

        Args:
            messages: not empty (docs/chat.md).
            tools: declarations in OpenAI's form.
            **options: of this template (``options``); ``add_generation_prompt=False`` leaves out the beginning of the model's turn.

        Raises:
            InputError: no messages, one that is not as it must be or has parts other than text, or what the template refuses.
            OptionError: an option that the template does not take.
        """
        return self.rendered(self.prepared(messages), tools=tools, **options).text

    def prepared(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Messages as the template reads them; see ``text.messages.prepared``."""
        return prepared(messages, self.reads_parts, calls="tool_calls" in self.source)

    def rendered(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **options: Any,
    ) -> Rendered:
        """The same of messages that are prepared, with the places of what a model is trained to write."""
        self.check_options(options)
        if tools and not self.knows_tools:
            raise OptionError("tools are given, and the chat template of this checkpoint takes none")
        given = {
            "messages": messages,
            "tools": None if tools is None else plain(tools, "tools"),
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **self._special_tokens,
            **{name: plain(value, name) for name, value in options.items()},
        }
        reply = render_template(self.source, given)
        if reply.get("error") == "limit":
            raise InputError(
                f"the chat template takes more than {seconds_for(len(messages)):.1f} s of computing or {MEMORY >> 20} MiB for "
                f"{len(messages)} messages, or writes far more than they hold; give fewer, or mend the template"
            )
        if "error" in reply:
            raise InputError(f"the chat template refuses these messages: {reply['message']}")
        return Rendered(reply["text"], tuple((begin, end) for begin, end in reply["generated"]))

    def check_options(self, names: Mapping[str, Any], where: str = "") -> None:
        """Refuse options that the template does not take.

        Args:
            names: of the options.
            where: what stands before them in the message.

        Raises:
            OptionError: with those it does take.
        """
        if unknown := sorted(names.keys() - self.options):
            known = ", ".join(sorted(self.options)) or "none"
            raise OptionError(f"{where}{', '.join(unknown)}: not an option of this checkpoint's chat template; it takes: {known}")

    def reads_parts(self, role: str) -> bool:
        """Whether the template reads content in parts, in messages of a role; if not, it would show the list itself."""
        if role not in self._reads_parts:
            parts = [{"type": "text", "text": _PROBE}]
            user: Message = {"role": "user", "content": "x"}
            shown: dict[str, Any] = {"role": role, "content": parts}
            call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {}}}
            asked: list[Message] = [user, {"role": "assistant", "content": "", "tool_calls": [call]}, shown | {"tool_call_id": "1"}]
            # A place where a message of this role may stand.
            tried: dict[str, list[Message]] = {"user": [shown], "tool": asked, "system": [shown, user], "developer": [shown, user]}
            try:
                text = self.rendered(tried.get(role, [user, shown, user])).text
            except InputError:
                text = ""
            self._reads_parts[role] = _PROBE in text and "'type'" not in text and '"type"' not in text
        return self._reads_parts[role]
