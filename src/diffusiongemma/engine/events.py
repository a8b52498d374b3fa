"""What a generation gives back while it runs and when it is done."""

import html
import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from diffusiongemma.text.replies import ToolCall

__all__ = [
    "CanvasReport",
    "Commit",
    "Done",
    "Draft",
    "Event",
    "Failed",
    "FinishReason",
    "Result",
    "TokenLogprob",
    "ToolCall",
    "Usage",
]

FinishReason = Literal["stop", "length", "invalid"]


@dataclass(frozen=True)
class CanvasReport:
    """One finished canvas of a row.

    Attributes:
        steps: denoising passes.
        tokens: tokens of it that belong to the answer (padding and what follows a stop token do not).
        tokens_per_forward: tokens / steps.
        seconds: wall time from its first pass to its commit, shared with the rest of the batch.
        halted: whether it settled before its most steps were taken.
    """

    steps: int
    tokens: int
    tokens_per_forward: float
    seconds: float
    halted: bool = True


@dataclass(frozen=True)
class Usage:
    """Counts of one generation.

    Attributes:
        prompt_tokens: tokens of the prompt.
        completion_tokens: tokens of the answer, its stop token included.
        total_tokens: both.
        denoising_steps: denoising passes, all canvases (causal mode: 0).
        commit_passes: passes that wrote a finished canvas into the cache (causal mode: one a token).
        tokens_per_forward: completion tokens / denoising passes (causal mode: / commit passes).
        tokens_per_forward_with_commits: completion tokens / all passes after the prompt.
        seconds: wall time, prompt included.
        thinking_tokens: completion tokens that are thoughts, with their marks.
        halting_rate: share of the canvases that settled before their most steps were taken; None: there is no canvas.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    denoising_steps: int
    commit_passes: int
    tokens_per_forward: float
    tokens_per_forward_with_commits: float
    seconds: float
    thinking_tokens: int = 0
    halting_rate: float | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """What the causal role thinks of one token of an answer, given all before it.

    Attributes:
        token_id: the token.
        logprob: its log-probability, in nats.
        top: the most probable tokens at its place and their log-probabilities, best first.
    """

    token_id: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass(frozen=True)
class Result:
    """A finished generation; printing it prints the text.

    Attributes:
        text: the answer's content, without thoughts, calls, special tokens and the stop string. A call that was cut, or that is
            none, stands in it as it was written.
        token_ids: the answer's tokens up to and with the first stop token.
        finish_reason: ``stop``: a stop token or stop string; ``length``: max_tokens; ``invalid``: the schema says more than a
            grammar can express, and no attempt came to a text that is valid for it.
        usage: counts.
        canvases: one report a canvas, in order (causal mode: none).
        thinking: the thoughts, where the checkpoint marks them; None where there are none.
        tool_calls: the calls, where the checkpoint marks them.
        logprobs: what the causal role thinks of each token, where ``logprobs`` or ``best_of`` asked for it.
        stop_string: the one of ``stop`` that ended it; None: none did.
        attempts: answers that were written until one was valid for its schema; 1 where a grammar holds it.
        approximated: keywords of the schema that no grammar expresses, with their places: the finished text was validated.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    usage: Usage
    canvases: list[CanvasReport] = field(default_factory=list)
    thinking: str | None = None
    tool_calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    stop_string: str | None = None
    attempts: int = 1
    approximated: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        """For notebooks: thoughts folded away, the text, calls, and what it took."""
        usage = self.usage
        took = (
            f"{usage.completion_tokens} tokens in {usage.denoising_steps or usage.commit_passes} passes, "
            f"{usage.tokens_per_forward:.1f} a pass, {usage.seconds:.2f} s, {self.finish_reason}"
        )
        thought = f"<details><summary>thoughts</summary><pre>{html.escape(self.thinking)}</pre></details>" if self.thinking else ""
        calls = "".join(f"<pre>{html.escape(f'{call.name}({call.arguments})')}</pre>" for call in self.tool_calls)
        style = 'style="white-space: pre-wrap"'
        return f"<div>{thought}<pre {style}>{html.escape(self.text)}</pre>{calls}<small>{html.escape(took)}</small></div>"

    @property
    def confidence(self) -> float | None:
        """How probable the causal role finds the answer, by token: the geometric mean of their probabilities, 0 to 1; None where
        ``logprobs`` were not asked for."""
        return math.exp(sum(one.logprob for one in self.logprobs) / len(self.logprobs)) if self.logprobs else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Draft:
    """A row's canvas after one denoising step.

    Attributes:
        row: which prompt of the batch.
        canvas: which canvas of the row, from 0.
        step: steps done on it, from 1.
        argmax_ids: most probable token of each position.
        entropy: nats, of each position.
        accepted: whether the step kept a draw there.
        text: the draft as text.
        pinned: whether the position is fixed from outside.
    """

    row: int
    canvas: int
    step: int
    argmax_ids: list[int]
    entropy: list[float]
    accepted: list[bool]
    text: str
    pinned: list[bool]


@dataclass(frozen=True)
class Commit:
    """What is new and final of a row.

    Attributes:
        row: which prompt of the batch.
        text: what it adds to the content.
        token_ids: its tokens.
        logprobs: of its tokens, where they were asked for.
        thinking: what it adds to the thoughts.
        tool_calls: the calls that end in it.
    """

    row: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] = field(default_factory=list)
    thinking: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)


@dataclass(frozen=True)
class Done:
    """A row is finished."""

    row: int
    result: Result


@dataclass(frozen=True)
class Failed:
    """A row ended with an error of its own; the others go on. Callers get it raised, not told."""

    row: int
    error: Exception


Event = Draft | Commit | Done
