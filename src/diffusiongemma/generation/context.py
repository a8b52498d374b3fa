"""What a text stands in while parts of it are written, and the one way to write them: rows of pins through an engine."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from diffusiongemma.diffusion import SamplingParams
from diffusiongemma.engine.events import Done, Event, Result
from diffusiongemma.engine.request import Request, canvas_length
from diffusiongemma.model.transformer import Transformer
from diffusiongemma.text.tokenizer import Tokenizer

__all__ = ["EditContext", "Executor", "OnEvent", "span_text", "write_rows"]

T = TypeVar("T")
OnEvent = Callable[[Event], None]


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
