"""What a text stands in while parts of it are written, and the one way to write them: rows of pins through an engine."""

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from diffusiongemma.diffusion import SamplingParams
from diffusiongemma.engine.events import Done, Event, Result
from diffusiongemma.engine.request import Request, canvas_length
from diffusiongemma.errors import OptionError
from diffusiongemma.generation.checkpoint import Checkpoint
from diffusiongemma.model.transformer import Transformer
from diffusiongemma.options import DenoisingOptions, PromptKeywords, PromptOptions, SamplingOptions
from diffusiongemma.text.messages import Message
from diffusiongemma.text.tokenizer import Tokenizer

__all__ = ["EditContext", "EditOptions", "Executor", "OnEvent", "WriteOptions", "context_of", "span_text", "write_rows"]

T = TypeVar("T")
OnEvent = Callable[[Event], None]


class WriteOptions(DenoisingOptions, PromptKeywords, total=False):
    """The keywords of ``infill``, ``fill`` and ``vary``: sampling parameters but for ``max_tokens`` and ``stop``, since the texts
    say where all ends; and how the prompt is written, if there is one. ``allow_special`` counts for the texts too."""


class EditOptions(SamplingOptions, PromptKeywords, total=False):
    """The keywords of ``edit``."""


class Executor(Protocol):
    """Where requests are run: an engine of one's own, or one that many share."""

    def run(self, requests: Iterable[Request]) -> Iterator[Event]:
        """Events of requests; ``row`` is their index."""

    def call(self, work: Callable[[], T]) -> T:
        """Do something with the model that is no request."""


@dataclass(frozen=True)
class EditContext:
    """What a text stands in.

    Attributes:
        model: the stack.
        engine: where its passes are made.
        tokenizer: of the checkpoint.
        prompt: token ids before the text; not empty.
        ending: the stop token after the text; None: the checkpoint has none.
        stop_ids: token ids that end an answer.
        params: sampling parameters.
        allow_special: whether texts of control tokens in the text become control tokens.
    """

    model: Transformer
    engine: Executor
    tokenizer: Tokenizer
    prompt: list[int]
    ending: int | None
    stop_ids: tuple[int, ...]
    params: SamplingParams
    allow_special: bool = False

    def encode(self, text: str) -> list[int]:
        """Tokens of a text that a user wrote.

        Raises:
            PromptTooLongError: it is certain to have more than the model has positions.
        """
        return self.tokenizer.encode(text, self.allow_special, self.model.config.text.max_position_embeddings)

    @property
    def canvas(self) -> int:
        """Positions of a canvas."""
        return canvas_length(self.model, self.params)

    def closed(self, tokens: Sequence[int], length: int) -> list[int]:
        """Tokens cut to a length, or ended and padded to it: after an answer the model has seen padding, never noise."""
        if self.ending is None or len(tokens) >= length:
            return list(tokens[:length])
        pad = self.model.config.text.pad_token_id
        return [*tokens, self.ending, *[pad] * (length - len(tokens) - 1)]


def context_of(
    checkpoint: Checkpoint,
    engine: Executor,
    prompt: str | None,
    messages: Sequence[Message] | None,
    options: Mapping[str, Any],
    ends: bool = False,
) -> EditContext:
    """What a text stands in: after a conversation, or plain after the first token.

    Args:
        checkpoint: of the model.
        engine: where its passes are made.
        prompt: a user's message.
        messages: a conversation instead; neither: plain text.
        options: sampling parameters, and how the prompt is written.
        ends: whether the answer may end where it likes, and ``max_tokens`` and ``stop`` mean something.
    """
    written, sampling = PromptOptions.split(options)
    if written.raw:
        raise OptionError(
            "raw means nothing here: a text without prompt and messages stands outside any conversation already", "raw"
        )
    if written.thinking_budget is not None:
        raise OptionError("thinking_budget bounds the thoughts of a reply, and here is none; leave it out", "thinking_budget")
    for name in () if ends else ("max_tokens", "stop"):
        if sampling.get(name) is not None:
            raise OptionError(
                f"{name} may not be combined with here: what is given around the spans says where the text ends; leave it out", name
            )
    seed = secrets.randbits(32) if sampling.get("seed") is None else sampling["seed"]
    # What stands around a span should be on its canvas, so the longest is taken, whatever the checkpoint's default is.
    longest = {} if ends else {"canvas_length": checkpoint.config.canvas_length}
    params = checkpoint.defaults.replaced(**{**longest, **sampling, "seed": seed}).on_canvas()
    bos = checkpoint.config.text.bos_token_id
    ids, ending = [] if bos is None else [bos], checkpoint.stop_ids[:1]
    if prompt is not None or messages is not None:
        (ids,), ending = checkpoint.prompt_ids(prompt, messages, written), checkpoint.turn_end
    elif written != PromptOptions(allow_special=written.allow_special):
        raise OptionError("there is no prompt that these options could be about; give prompt or messages, or leave them out")
    return EditContext(
        checkpoint.transformer, engine, checkpoint.tokenizer, ids, ending[0] if ending else None, checkpoint.stop_ids, params,
        written.allow_special,
    )  # fmt: skip


def write_rows(
    context: EditContext,
    prompts: list[list[int]],
    pins: list[list[int]] | None,
    seeds: Sequence[int],
    init_tokens: list[list[int]] | None,
    limits: list[int],
    on_event: OnEvent | None,
) -> list[Result]:
    """Denoise rows; returns their results in order.

    Args:
        context: what the texts stand in.
        prompts: token ids, a row each.
        pins: a row each, -1 where open; None: none.
        seeds: one a row.
        init_tokens: what open positions begin with, -1 where noise; None: all is noise.
        limits: most tokens a row.
        on_event: called with each event.
    """
    requests = [
        Request(
            prompt=prompts[row],
            params=replace(context.params, seed=seeds[row], max_tokens=limits[row]),
            stop_ids=context.stop_ids,
            pins=None if pins is None else pins[row],
            init_tokens=None if init_tokens is None else init_tokens[row],
            drafts=on_event is not None,
        )
        for row in range(len(prompts))
    ]
    results: dict[int, Result] = {}
    for event in context.engine.run(requests):
        if on_event is not None:
            on_event(event)
        if isinstance(event, Done):
            results[event.row] = event.result
    return [results[row] for row in range(len(limits))]


def span_text(context: EditContext, ids: Sequence[int]) -> str:
    """Text of a span: up to its first stop token, without special tokens and without bytes that make no character."""
    end = next((at for at, token in enumerate(ids) if token in context.stop_ids), len(ids))
    return context.tokenizer.decode(ids[:end]).replace("\ufffd", "")
