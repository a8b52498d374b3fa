"""The growing answer of one row: where it ends, what of it is thought, call and content, what it cost."""

import time
from collections.abc import Sequence
from dataclasses import replace

from diffusiongemma.diffusion import SamplingParams
from diffusiongemma.engine.constraint import ConstraintState
from diffusiongemma.engine.events import CanvasReport, Commit, FinishReason, Result, TokenLogprob, Usage
from diffusiongemma.text.deltas import StopStrings
from diffusiongemma.text.replies import Part, ReplyParts, ToolCall
from diffusiongemma.text.tokenizer import Tokenizer

__all__ = ["Answer"]


class Answer:
    """Collects committed tokens of a row until a stop token, a stop string or max_tokens ends it.

    Nothing ends it before its last pin: a stop token there is left out of the text, a stop string is text. Stop strings are looked
    for in the content alone, not in thoughts and calls.

    Args:
        tokenizer: for the text.
        params: ``max_tokens`` and ``stop``.
        stop_ids: token ids that end the answer.
        prompt_tokens: for the usage.
        pinned: tokens up to and with the last pin.
        opening: what of the prompt belongs to the answer: see ``Markup.opening``.

    Attributes:
        began: when its request got a place, on ``time.perf_counter``'s clock.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        params: SamplingParams,
        stop_ids: Sequence[int],
        prompt_tokens: int,
        pinned: int = 0,
        opening: Sequence[int] = (),
    ) -> None:
        self._parts = ReplyParts(tokenizer, opening)
        self._stops = StopStrings(params.stop)
        self._params = params
        self._stop_ids = frozenset(stop_ids)
        self._prompt_tokens = prompt_tokens
        self._pinned = pinned
        self.began: float | None = None
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._calls: list[ToolCall] = []
        self.ids: list[int] = []
        self.canvases: list[CanvasReport] = []
        self.commit_passes = self._earlier_steps = 0
        self.logprobs: list[TokenLogprob] = []
        self.finish: FinishReason | None = None

    def add(self, row: int, ids: Sequence[int], constraint: ConstraintState | None = None) -> Commit:
        """Take committed tokens up to the end of the answer; returns what became final.

        An answer that fills its last token and is a whole text of its grammar has stopped, not been cut.
        """
        taken = list(ids[: self.taken(ids)])
        if self._ends(taken[-1], len(taken)):
            self.finish = "stop"
        elif len(self.ids) + len(taken) >= self._params.max_tokens:
            self.finish = "stop" if constraint is not None and constraint.is_complete else "length"
        first = max(0, self._pinned - len(self.ids))
        self.ids.extend(taken)
        commit = Commit(row=row, text="", token_ids=taken)
        pinned = self._parts.push(self._shown(taken[:first]))
        # Up to the last pin a stop string is text, and it is not the beginning of one either.
        commit = self._said(commit, [Part("markup", part.text) if part.kind == "text" else part for part in pinned])
        commit = self._said(commit, self._parts.push(self._shown(taken[first:]), last=self.finish is not None))
        if self.finish:
            commit = replace(commit, text=commit.text + self._stops.push("", last=True))
            self.finish = "stop" if self._stops.matched else self.finish
        self._text.append(commit.text)
        self._thinking.append(commit.thinking)
        self._calls.extend(commit.tool_calls)
        return commit

    def taken(self, ids: Sequence[int]) -> int:
        """How many of some tokens, at least one, the answer would take: those up to its end."""
        most = min(len(ids), self._params.max_tokens - len(self.ids))
        return next((count for count, token in enumerate(ids[:most], 1) if self._ends(token, count)), most)

    def _ends(self, token: int, count: int) -> bool:
        """Whether a token, so many after those that are there, is a stop token; up to the last pin there are none."""
        return token in self._stop_ids and len(self.ids) + count >= self._pinned

    def _said(self, commit: Commit, parts: Sequence[Part]) -> Commit:
        """What parts add to a commit, up to the first stop string."""
        text, thinking, calls = [commit.text], [commit.thinking], [*commit.tool_calls]
        for part in parts:
            if self._stops.matched:
                break
            if part.kind == "text":
                text.append(self._stops.push(part.text))
            elif part.kind == "markup":
                text.append(self._stops.push("", last=True))
                text.append("" if self._stops.matched else part.text)
            elif part.call is not None:
                calls.append(part.call)
            else:
                thinking.append(part.text)
        if self._stops.matched:
            self.finish = "stop"
        return replace(commit, text="".join(text), thinking="".join(thinking), tool_calls=calls)

    def after(self, other: "Answer") -> None:
        """Count what an attempt before this one took."""
        self.began, self.commit_passes = other.began, other.commit_passes
        self._earlier_steps = other.steps

    @property
    def steps(self) -> int:
        """Denoising steps of all canvases, those of earlier attempts too."""
        return self._earlier_steps + sum(canvas.steps for canvas in self.canvases)

    def report(self, steps: int, tokens: int, seconds: float, halted: bool) -> None:
        """Note a finished canvas; see ``CanvasReport``."""
        self.canvases.append(CanvasReport(steps, tokens, tokens / steps, seconds, halted))

    def result(self) -> Result:
        """The finished answer."""
        assert self.finish is not None and self.began is not None
        tokens, steps = len(self.ids), self.steps
        return Result(
            text="".join(self._text),
            token_ids=self.ids,
            finish_reason=self.finish,
            usage=Usage(
                prompt_tokens=self._prompt_tokens,
                completion_tokens=tokens,
                total_tokens=self._prompt_tokens + tokens,
                denoising_steps=steps,
                commit_passes=self.commit_passes,
                tokens_per_forward=tokens / (steps or max(self.commit_passes, 1)),
                tokens_per_forward_with_commits=tokens / max(steps + self.commit_passes, 1),
                seconds=time.perf_counter() - self.began,
                thinking_tokens=self._parts.thinking_tokens,
                halting_rate=sum(canvas.halted for canvas in self.canvases) / len(self.canvases) if self.canvases else None,
            ),
            canvases=self.canvases,
            thinking="".join(self._thinking) or None,
            tool_calls=self._calls,
            logprobs=self.logprobs,
            stop_string=self._stops.found,
        )

    def _shown(self, ids: Sequence[int]) -> list[int]:
        return [token for token in ids if token not in self._stop_ids]
