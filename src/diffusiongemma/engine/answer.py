"""The growing answer of one row: where it ends, what of it is text, what it cost."""

import time
from collections.abc import Sequence

from diffusiongemma.engine.events import CanvasReport, Commit, FinishReason, Result, Usage
from diffusiongemma.engine.held import Held
from diffusiongemma.sampler import SamplingParams
from diffusiongemma.text.tokenizer import TextDeltas, Tokenizer

__all__ = ["Answer"]


class Answer:
    """Collects committed tokens of a row until a stop token, a stop string or max_tokens ends it.

    Nothing ends it before its last pin: a stop token there is left out of the text, a stop string is text.

    Args:
        tokenizer: for the text.
        params: ``max_tokens`` and ``stop``.
        stop_ids: token ids that end the answer.
        prompt_tokens: for the usage.
        fixed: tokens up to and with the last pin.
    """

    def __init__(
        self, tokenizer: Tokenizer, params: SamplingParams, stop_ids: Sequence[int], prompt_tokens: int, fixed: int = 0
    ) -> None:
        self._deltas = TextDeltas(tokenizer)
        self._params = params
        self._stop_ids = frozenset(stop_ids)
        self._prompt_tokens = prompt_tokens
        self._fixed, self._fixed_text = fixed, 0
        self._began = time.perf_counter()
        self._sent = ""
        self.ids: list[int] = []
        self.canvases: list[CanvasReport] = []
        self.commit_passes = 0
        self.finish: FinishReason | None = None

    def add(self, row: int, ids: Sequence[int], held: Held | None = None) -> Commit:
        """Take committed tokens up to the end of the answer; returns what became final.

        An answer that fills its last token and is a whole text of its grammar has stopped, not been cut.
        """
        taken: list[int] = []
        for token in ids:
            taken.append(token)
            if token in self._stop_ids and len(self.ids) + len(taken) >= self._fixed:
                self.finish = "stop"
            elif len(self.ids) + len(taken) >= self._params.max_tokens:
                self.finish = "stop" if held is not None and held.whole else "length"
            if self.finish:
                break
        first = max(0, self._fixed - len(self.ids))
        self.ids.extend(taken)
        if first:
            self._deltas.push(self._shown(taken[:first]))
            self._fixed_text = len(self._deltas.text)
        self._deltas.push(self._shown(taken[first:]), last=self.finish is not None)
        return Commit(row=row, text=self._release(), token_ids=taken)

    def report(self, steps: int, tokens: int, seconds: float) -> None:
        """Note a finished canvas."""
        self.canvases.append(CanvasReport(steps, tokens, tokens / steps, seconds))

    def result(self) -> Result:
        """The finished answer."""
        assert self.finish is not None
        tokens, steps = len(self.ids), sum(canvas.steps for canvas in self.canvases)
        return Result(
            text=self._sent,
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
                seconds=time.perf_counter() - self._began,
            ),
            canvases=self.canvases,
        )

    def _shown(self, ids: Sequence[int]) -> list[int]:
        return [token for token in ids if token not in self._stop_ids]

    def _release(self) -> str:
        """Text that no stop string can take back any more."""
        text = self._deltas.text
        stops = self._params.stop if len(self.ids) >= self._fixed else ()
        found = [at for stop in stops if (at := text.find(stop, self._fixed_text)) >= 0]
        if found:
            self.finish = "stop"
            end = min(found)
        elif self.finish:
            end = len(text)
        else:
            # A stop string may have begun at the end of the text: hold back as much of it as could be its start.
            tail = text[self._fixed_text :]
            held = max((n for stop in stops for n in range(1, len(stop)) if tail.endswith(stop[:n])), default=0)
            end = len(text) - held
        delta = text[len(self._sent) : end]
        self._sent += delta
        return delta
