"""An answer with every step of its canvases, to look at in a notebook."""

import html
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from diffusiongemma.engine.events import Commit, Done, Draft, Event, Result

__all__ = ["Frame", "Recording", "record"]

_HOTTEST = 3.0
"""Nats from which a token is drawn in the hottest colour."""
_PAGE = """\
<div class="dg-recording" style="font-family: ui-monospace, monospace; max-width: 100ch">
<div class="dg-canvas" style="white-space: pre-wrap; line-height: 1.6; padding: 0.6em; border: 1px solid #8884"></div>
<label style="display: flex; gap: 0.8em; align-items: center">
<input type="range" min="0" max="{last}" value="{last}" style="flex: 1" aria-label="step">
<span class="dg-step" style="min-width: 24ch"></span></label>
<script>
(() => {{
  const root = document.currentScript.parentElement, frames = {frames};
  const canvas = root.querySelector(".dg-canvas"), said = root.querySelector(".dg-step"), ruler = root.querySelector("input");
  const show = () => {{
    const frame = frames[ruler.value];
    canvas.replaceChildren(...frame.tokens.map(([text, heat, kept, nats]) => {{
      const token = document.createElement("span");
      token.textContent = text;
      token.title = `${{nats}} nats${{kept ? "" : ", noise again"}}`;
      token.style.background = heat ? `hsl(${{(1 - heat) * 50}} 90% 60% / ${{0.15 + 0.5 * heat}})` : "";
      token.style.opacity = kept ? 1 : 0.55;
      return token;
    }}));
    said.textContent = frame.label;
  }};
  ruler.addEventListener("input", show);
  show();
}})();
</script>
<noscript><pre>{text}</pre></noscript>
</div>"""


@dataclass(frozen=True)
class Frame:
    """A canvas after one step, or what was committed of it.

    Attributes:
        canvas: which of the answer, from 0.
        step: from 1; 0 of what was committed.
        texts: of each token, the most probable ones; of one that fills the canvas after the answer ``·``.
        token_ids: of them.
        entropy: nats, of each position.
        accepted: whether the step kept a draw there.
    """

    canvas: int
    step: int
    texts: list[str]
    token_ids: list[int]
    entropy: list[float]
    accepted: list[bool]


@dataclass(frozen=True)
class Recording:
    """An answer and its steps; a notebook shows it with a slider, hot where the model was unsure.

    Attributes:
        result: the answer.
        frames: in order, at least one.
    """

    result: Result
    frames: list[Frame]

    def __str__(self) -> str:
        return str(self.result)

    def rows(self) -> list[dict[str, Any]]:
        """A row for each position of each step, for a table (``pandas.DataFrame(recording.rows())``)."""
        return [
            {
                "canvas": frame.canvas, "step": frame.step, "position": at, "token_id": token, "text": text, "entropy": nats,
                "accepted": kept,
            }
            for frame in self.frames
            for at, (token, text, nats, kept) in enumerate(
                zip(frame.token_ids, frame.texts, frame.entropy, frame.accepted, strict=True)
            )
        ]  # fmt: skip

    def _repr_html_(self) -> str:
        frames = [{"label": _label(frame), "tokens": _drawn(frame)} for frame in self.frames]
        # Within a script no text may end it.
        data = json.dumps(frames, ensure_ascii=True).replace("<", "\\u003c")
        return _PAGE.format(last=len(frames) - 1, frames=data, text=html.escape(self.result.text))


def record(events: Iterable[Event], token_text: Callable[[int], str], pad: int | None) -> Recording:
    """Keep the events of one answer.

    Args:
        events: of a stream of one prompt, with its drafts.
        token_text: a token's text.
        pad: the token that fills a canvas after the answer; None: there is none.
    """
    frames: list[Frame] = []
    result: Result | None = None
    canvas = 0
    for event in events:
        if isinstance(event, Draft):
            frames.append(_frame(event.canvas, event.step, event.argmax_ids, event.entropy, event.accepted, token_text, pad))
        elif isinstance(event, Commit):
            count = len(event.token_ids)
            frames.append(_frame(canvas, 0, event.token_ids, [0.0] * count, [True] * count, token_text, pad))
            canvas += 1
        elif isinstance(event, Done):
            result = event.result
    assert result is not None
    return Recording(result, frames)


def _frame(
    canvas: int,
    step: int,
    ids: list[int],
    entropy: list[float],
    accepted: list[bool],
    token_text: Callable[[int], str],
    pad: int | None,
) -> Frame:
    count = next((at for at in range(len(ids), 0, -1) if ids[at - 1] != pad), 0)
    shown = ids[:count]
    return Frame(
        canvas, step, ["·" if token == pad else token_text(token) for token in shown], shown, entropy[:count], accepted[:count]
    )


def _label(frame: Frame) -> str:
    mean = sum(frame.entropy) / max(len(frame.entropy), 1)
    what = f"step {frame.step}, {mean:.3f} nats" if frame.step else "committed"
    return f"canvas {frame.canvas + 1}, {what}"


def _drawn(frame: Frame) -> list[tuple[str, float, int, float]]:
    parts = zip(frame.texts, frame.entropy, frame.accepted, strict=True)
    return [(text, round(min(nats / _HOTTEST, 1.0), 3), int(kept), round(nats, 3)) for text, nats, kept in parts]
