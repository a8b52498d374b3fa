"""Drawing a canvas as it forms: tokens coloured by entropy, the step, tokens a second."""

import math
import time
from collections.abc import Callable, Collection
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

if TYPE_CHECKING:
    from diffusiongemma.engine.events import Draft, Event

__all__ = ["LiveCanvas", "RowsCanvas", "entropy_colour", "legend", "text_canvas"]

PINNED = "dim"
CONTEXT = 12
"""Pinned tokens shown after the last open one."""
_SURE, _UNSURE = (0x4A, 0xDE, 0x80), (0xF8, 0x71, 0x71)


def entropy_colour(entropy: float) -> str:
    """Green where the model is sure, over yellow to red at two nats and more."""
    share = min(1.0, math.sqrt(max(entropy, 0.0) / 2))
    middle = (0xFA, 0xCC, 0x15)
    start, end, part = (_SURE, middle, 2 * share) if share < 0.5 else (middle, _UNSURE, 2 * share - 1)
    return "#" + "".join(f"{round(a + (b - a) * part):02x}" for a, b in zip(start, end, strict=True))


class LiveCanvas:
    """Shows drafts of one row in a terminal while they come; the last frame stays, also after Ctrl-C.

    Args:
        console: where to draw.
        draw: makes a picture of a draft.
        pace: seconds a step stays on the screen at least; a small model is too quick to watch.
    """

    def __init__(self, console: Console, draw: Callable[["Draft"], RenderableType], pace: float = 0.0) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=False)
        self._draw = draw
        self._pace = pace
        self._began = time.perf_counter()
        self._tokens = 0
        self.paused = 0.0

    def __enter__(self) -> "LiveCanvas":
        self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._live.__exit__(kind, error, trace)

    def show(self, draft: "Draft") -> None:
        """Draw a draft with its status line below."""
        spent = time.perf_counter() - self._began - self.paused
        kept = sum(draft.accepted)
        mean = sum(draft.entropy) / len(draft.entropy)
        rate = (self._tokens + kept) / spent if spent > 0 else 0.0
        status = Text(
            f"canvas {draft.canvas + 1}  step {draft.step:>2}  kept {kept}/{len(draft.argmax_ids)}  "
            f"entropy {mean:.3f}  {rate:,.0f} tokens/s",
            style="dim",
        )
        self._live.update(Group(self._draw(draft), status), refresh=True)
        if self._pace:
            time.sleep(self._pace)
            self.paused += self._pace

    def committed(self, tokens: int) -> None:
        """Count tokens that are final, for the rate."""
        self._tokens += tokens

    def clear(self) -> None:
        """Clear what was drawn."""
        self.finish(Text("", end=""))

    def finish(self, picture: RenderableType) -> None:
        """Replace the canvas by its last picture."""
        self._live.update(picture, refresh=True)


def legend() -> Text:
    """What the colours say."""
    picture = Text("each token as sure as its colour: ", style="dim")
    for entropy, said in ((0.0, "sure"), (0.5, "leaning"), (2.0, "guessing")):
        picture.append(f"{said} ", style=entropy_colour(entropy))
    return picture


def text_canvas(
    token_text: Callable[[int], str], before: Callable[[], str], stop_ids: Collection[int] = (), pad_id: int | None = None
) -> Callable[["Draft"], Text]:
    """Draws a canvas as running text, after the text that is committed.

    Args:
        token_text: text of one token id.
        before: the committed text.
        stop_ids: tokens that end an answer, drawn as a mark.
        pad_id: what fills a canvas after an answer; not drawn.
    """

    def draw(draft: "Draft") -> Text:
        picture = Text(before())
        for token, entropy in zip(draft.argmax_ids, draft.entropy, strict=True):
            if token != pad_id:
                picture.append("■" if token in stop_ids else token_text(token), style=entropy_colour(entropy))
        return picture

    return draw


class RowsCanvas:
    """Draws the rows of a batch below each other, a line each: pinned tokens dim, the others coloured by entropy.

    Args:
        token_text: text of one token id.
        title: stands above, where it is not empty.
        pad_id: what fills a canvas after an answer; not drawn.
        most: lines that there is room for; None: any number. Of more rows the first are drawn, and how many there are.
    """

    def __init__(
        self, token_text: Callable[[int], str], title: Callable[[], str], pad_id: int | None = None, most: int | None = None
    ) -> None:
        self._token_text = token_text
        self._title, self._pad, self._most = title, pad_id, most
        self._lines: dict[int, Text] = {}

    def follow(self, event: "Event", canvas: LiveCanvas) -> None:
        """Show an event, if it is a draft."""
        from diffusiongemma.engine.events import Draft

        if isinstance(event, Draft):
            canvas.show(event)

    def __call__(self, draft: "Draft") -> Group:
        """A picture of all rows with this draft in it; the first draft of a batch forgets the batch before."""
        if draft.row == 0 and draft.step == 1 and draft.canvas == 0:
            self._lines = {}
        self._lines[draft.row] = self._line(draft)
        title = [Text(self._title(), style="dim")] if self._title() else []
        rows = sorted(self._lines)
        room = len(rows) if self._most is None else max(1, self._most - len(title))
        shown = rows if len(rows) <= room else rows[: room - 1]
        rest = [Text(f"... and {len(rows) - len(shown)} more", style="dim")] if len(shown) < len(rows) else []
        return Group(*title, *(self._lines[row] for row in shown), *rest)

    def _line(self, draft: "Draft") -> Text:
        open_until = max((at for at, fixed in enumerate(draft.pinned) if not fixed), default=-1)
        picture = Text(no_wrap=True, overflow="ellipsis")
        shown = zip(draft.argmax_ids, draft.entropy, draft.pinned, strict=True)
        for at, (token, entropy, fixed) in enumerate(shown):
            if at > open_until + CONTEXT:
                break
            if token == self._pad:
                continue
            picture.append(self._token_text(token).replace("\n", "⏎"), style=PINNED if fixed else f"bold {entropy_colour(entropy)}")
        return picture
