"""The methods of a model that work on text which is there already: infill, fill, edit, vary."""

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from diffusiongemma.engine.events import Result
from diffusiongemma.errors import InputError, OptionError
from diffusiongemma.generation.context import EditContext, OnEvent
from diffusiongemma.generation.edit import edit_text
from diffusiongemma.generation.fill import TRIES, Filled, Rank, fill_template
from diffusiongemma.generation.loaded import Loaded
from diffusiongemma.generation.template import DEFAULT_MAX_TOKENS, Template
from diffusiongemma.generation.vary import check_vary, vary_text
from diffusiongemma.text.messages import Message
from diffusiongemma.text.prompts import PromptOptions

__all__ = ["Rewriting"]


class Rewriting(Loaded):
    """The part of ``DiffusionGemmaModel`` that writes between, into and over texts."""

    def infill(
        self,
        prefix: str,
        suffix: str,
        *,
        min_tokens: int = 1,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        prompt: str | None = None,
        messages: Sequence[Message] | None = None,
        rank: Rank = "total",
        tries: int = TRIES,
        on_event: OnEvent | None = None,
        **options: Any,
    ) -> Filled:
        """Write what stands between two texts; several lengths are tried at once.

        Args:
            prefix: text before the span; the encoder reads it.
            suffix: text after it, pinned on the canvas.
            min_tokens: tokens of the span, >= 1.
            max_tokens: tokens of the span.
            prompt: a user's message that the whole text answers; None: it is plain text.
            messages: a conversation instead of a prompt.
            rank: which candidate is best (``generation.fill.fill_template``).
            tries: most rows of a batch, half of them with open borders (``generation.fill``).
            on_event: called with each event.
            **options: sampling parameters but for ``max_tokens`` and ``stop``, since the texts say where all ends; and how the
                prompt is written (``stream``). ``allow_special`` counts for the texts too.

        Returns:
            The best text (prefix and suffix in it unchanged), the span's (``spans["span"]``), and all that were tried.

        Raises:
            InputError: a span of length zero, or texts the tokenizer cannot represent.
            PromptTooLongError, OptionError: see ``stream``.
        """
        template = Template.around(prefix, suffix, min_tokens, max_tokens)
        return fill_template(self._context(prompt, messages, options), template, rank, tries, on_event)

    def fill(
        self,
        template: str,
        *,
        prompt: str | None = None,
        messages: Sequence[Message] | None = None,
        rank: Rank = "total",
        tries: int = TRIES,
        on_event: OnEvent | None = None,
        **options: Any,
    ) -> Filled:
        """Write all spans of a template together.

        Args:
            template: ``"Dear {{name:1-6}}, ... {{reason}}"``: a name, and fewest and most tokens (``generation.template``).
            prompt, messages, rank, tries, on_event, **options: see ``infill``.

        Returns:
            The best text and its spans by name, and all that were tried.

        Raises:
            InputError: a template without spans, a span of length zero or without a name, a name used twice.
            PromptTooLongError, OptionError: see ``stream``.
        """
        parsed = Template.parse(template)
        return fill_template(self._context(prompt, messages, options), parsed, rank, tries, on_event)

    def edit(
        self, text: str, instruction: str, *, in_prompt: bool = True, on_event: OnEvent | None = None, **options: Any
    ) -> Result:
        """Rewrite a text: the canvas begins with it instead of noise, so that what stays converges at once.

        Args:
            text: what is there.
            instruction: what is to become of it.
            in_prompt: show the text in the user's message, below the instruction; False: the message is the instruction alone.
            on_event: called with each event.
            **options: as of ``stream``; ``max_tokens`` unset: the checkpoint's own, or room for the text and a
                canvas more, if that is more.

        Raises:
            InputError: an empty text or instruction.
            PromptTooLongError, OptionError: see ``stream``.
        """
        for what, given in (("text to edit", text), ("instruction", instruction)):
            if not isinstance(given, str) or not given:
                raise InputError(f"the {what} is {given!r:.100}; give at least one character")
        message = f"{instruction}\n\n{text}" if in_prompt and instruction.strip() else instruction
        context = self._context(message, None, options, ends=True)
        return edit_text(context, text, grow=options.get("max_tokens") is None, on_event=on_event)

    def vary(
        self,
        text: str,
        strength: float,
        n: int = 1,
        seed: int | None = None,
        *,
        prompt: str | None = None,
        messages: Sequence[Message] | None = None,
        on_event: OnEvent | None = None,
        **options: Any,
    ) -> list[str]:
        """Variants of a text: a share of its tokens is noise again and denoised, the rest is pinned.

        Args:
            text: not empty.
            strength: 0 (the text itself) to 1 (all is written anew, in as many tokens).
            n: variants, one batch.
            seed: None: a random one.
            prompt, messages, on_event, **options: see ``infill``.

        Returns:
            n texts; some may be alike.

        Raises:
            InputError: an empty text, or one the tokenizer cannot represent.
            PromptTooLongError, OptionError: a strength outside 0 to 1, n below 1; see ``stream``.
        """
        check_vary(text, strength, n)
        return vary_text(self._context(prompt, messages, {**options, "seed": seed}), text, strength, n, on_event)

    def _context(
        self, prompt: str | None, messages: Sequence[Message] | None, options: Mapping[str, Any], ends: bool = False
    ) -> EditContext:
        """What a text stands in: after a conversation, or plain after the first token.

        Args:
            prompt: a user's message.
            messages: a conversation instead; neither: plain text.
            options: sampling parameters, and how the prompt is written.
            ends: whether the answer may end where it likes, and ``max_tokens`` and ``stop`` mean something.
        """
        written, options = PromptOptions.split(options)
        if written.raw:
            raise OptionError("raw means nothing here: a text without prompt and messages stands outside any conversation already")
        if written.thinking_budget is not None:
            raise OptionError("thinking_budget bounds the thoughts of a reply, and here is none; leave it out")
        for name in () if ends else ("max_tokens", "stop"):
            if options.get(name) is not None:
                raise OptionError(
                    f"{name} may not be combined with here: what is given around the spans says where the text ends; leave it out"
                )
        seed = secrets.randbits(32) if options.get("seed") is None else options["seed"]
        # What stands around a span should be on its canvas, so the longest is taken, whatever the checkpoint's default is.
        longest = {} if ends else {"canvas_length": self.transformer.config.canvas_length}
        params = self.defaults.replaced(**{**longest, **options, "seed": seed})
        bos = self.transformer.config.text.bos_token_id
        ids, ending = [] if bos is None else [bos], self.stop_ids[:1]
        if prompt is not None or messages is not None:
            (ids,), ending = self._prompt_ids(prompt, messages, written), self._turn_end()
        elif written != PromptOptions(allow_special=written.allow_special):
            raise OptionError("there is no prompt that these options could be about; give prompt or messages, or leave them out")
        last = ending[0] if ending else None
        return EditContext(self.transformer, self.engine, self.tokenizer, ids, last, self.stop_ids, params, written.allow_special)
