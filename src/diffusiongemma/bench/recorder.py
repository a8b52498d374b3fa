"""Moments of one generation, and what they say: one rule for every side.

::

    began   encode     draft 1 ... draft S  commit  encode     draft 1 ... draft S  commit   ended
      |     [prefill]  |                 |    |     [commit]   |                 |    |        |
      |                ^--- steps -------^    |                ^--- steps -------^             |
      ^------------- first text --------------^                                                |
      ^----------------------------------- seconds --------------------------------------------^

Steps of a canvas are timed from the end of the encoder pass before it to its last draft: the noise it begins with, the
passes, the sampler and each draft's way to the caller are all inside.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from diffusiongemma.bench.settings import Case
from diffusiongemma.errors import BenchError

__all__ = ["MEASURES", "Recorder", "Sample", "sample_of"]

MEASURES = {
    "step_ms": "a denoising step: pass, sampler and draft",
    "commit_ms": "an encoder pass over a finished canvas (causal: over a token)",
    "prefill_token_ms": "the encoder pass over the prompts, by prompt token",
    "first_text_ms": "from the call to the first final tokens (causal: the first token)",
    "tokens_per_second": "new tokens of all rows over the whole generation",
    "peak_bytes": "highest memory during the generation, above what was in use after loading and a rehearsal",
}
"""Name of a measure and what it is."""


@dataclass
class Recorder:
    """Collects moments while a side generates.

    Attributes:
        wait: waits until the device has nothing left to do.
        encodes: beginning and end of each encoder pass.
        drafts: (canvas, step) to the moment the last row's draft came.
        commits: moments at which tokens became final.
    """

    wait: Callable[[], None]
    encodes: list[tuple[float, float]] = field(default_factory=list)
    drafts: dict[tuple[int, int], float] = field(default_factory=dict)
    commits: list[float] = field(default_factory=list)
    _encoding: float = 0.0

    def now(self) -> float:
        """Seconds, once the device is idle."""
        self.wait()
        return time.perf_counter()

    def encode_began(self) -> None:
        """An encoder pass begins."""
        self._encoding = self.now()

    def encode_ended(self) -> None:
        """It is done."""
        self.encodes.append((self._encoding, self.now()))

    def draft(self, canvas: int, step: int) -> None:
        """A draft came; later rows of the same step move its moment."""
        self.drafts[canvas, step] = self.now()

    def commit(self) -> None:
        """Tokens became final."""
        self.commits.append(self.now())


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One measured generation; the measures of ``MEASURES``, None where a side has no such thing, and what was counted.

    Attributes:
        steps: denoising steps of each row.
        commits: encoder passes after the prompt, of each row.
        tokens: new tokens of all rows.
        seconds: the whole generation.
        order: place among all measurements of a run.
    """

    step_ms: float | None
    commit_ms: float | None
    prefill_token_ms: float
    first_text_ms: float
    tokens_per_second: float
    peak_bytes: int
    steps: int
    commits: int
    tokens: int
    seconds: float
    order: int = -1


def sample_of(recorder: Recorder, case: Case, began: float, ended: float, peak_bytes: int) -> Sample:
    """What the moments of a finished generation say.

    Raises:
        BenchError: an encoder pass or a commit is missing: the side has another loop than the one that is timed here.
    """
    if not recorder.encodes or not recorder.commits:
        raise BenchError("no encoder pass or no final tokens were seen: this version's loop is not the one that is timed")
    first = min([*recorder.drafts.values(), recorder.commits[0]])
    prefill = [end - start for start, end in recorder.encodes if start < first]
    commits = [end - start for start, end in recorder.encodes if start > first]
    tokens = case.new_tokens * len(case.prompts)
    return Sample(
        step_ms=_step_ms(recorder),
        commit_ms=1000 * sum(commits) / len(commits) if commits else None,
        prefill_token_ms=1000 * sum(prefill) / sum(map(len, case.prompts)),
        first_text_ms=1000 * (recorder.commits[0] - began),
        tokens_per_second=tokens / (ended - began),
        peak_bytes=peak_bytes,
        steps=len(recorder.drafts),
        commits=len(commits),
        tokens=tokens,
        seconds=ended - began,
    )


def _step_ms(recorder: Recorder) -> float | None:
    """Milliseconds a step, the mean over all canvases."""
    if not recorder.drafts:
        return None
    seconds = 0.0
    for canvas in {canvas for canvas, _ in recorder.drafts}:
        moments = [moment for (where, _), moment in recorder.drafts.items() if where == canvas]
        seconds += max(moments) - max(end for _, end in recorder.encodes if end <= min(moments))
    return 1000 * seconds / len(recorder.drafts)
