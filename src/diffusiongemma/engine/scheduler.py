"""What to compute next: who has a place among those that step, who gives memory up, which tokens are encoded. It computes nothing.

Memory is given as it is needed: a sequence is let in where its text so far and a canvas after it have room beside the others. Where
their answers outgrow the memory together, the last that came in gives its cache up, waits in front of all, and is encoded again;
those that are parked give theirs first. An answer does not depend on it.
"""

import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch

from diffusiongemma.engine.sequence import Phase, SequenceState
from diffusiongemma.engine.turns import displaced, first_in_turn
from diffusiongemma.model.cache import BLOCK

__all__ = ["Batch", "Scheduler", "default_kv_bytes"]


@dataclass(frozen=True)
class Batch:
    """What a step computes.

    Attributes:
        encode: sequences and the tokens that each gains.
        denoise: sequences that stand on a canvas, or will after that.
    """

    encode: list[tuple[SequenceState, list[int]]]
    denoise: list[SequenceState]


class Scheduler:
    """Decides for an engine.

    Args:
        cache_bytes: from a sequence and a number of tokens to the most memory that its cache takes with so many.
        chunk: tokens of a prompt that are encoded in a pass.
        max_rows: most sequences that step at a time; None: all.
        kv_bytes: most memory of all caches together, but that a sequence alone always has what it needs; None: no bound.
        prefill_rows: prompts that are encoded, a chunk each, in a step: the others wait for no more than that; None: all.

    Attributes:
        waiting: those without a place, who has waited longest first; some are parked: they have a cache.
        running: those with one, who got it first first.
        preempted: how often a cache was given up.
    """

    def __init__(
        self,
        cache_bytes: Callable[[SequenceState, int], int],
        chunk: int,
        *,
        max_rows: int | None = None,
        kv_bytes: int | None = None,
        prefill_rows: int | None = None,
    ) -> None:
        self._cache_bytes, self._chunk = cache_bytes, chunk
        self._max_rows, self._kv_bytes, self._prefill_rows = max_rows, kv_bytes, prefill_rows
        self.waiting: deque[SequenceState] = deque()
        self.running: list[SequenceState] = []
        self.preempted = 0

    @property
    def live(self) -> int:
        """How many there are."""
        return len(self.waiting) + len(self.running)

    def add(self, sequence: SequenceState) -> None:
        """Let a sequence wait."""
        self.waiting.append(sequence)

    def cancel(self, key: object) -> None:
        """Drop all sequences of a key; their places and their memory are free at once."""
        self.waiting = deque(one for one in self.waiting if one.key is not key)
        self.running = [one for one in self.running if one.key is not key]

    def place(self, now: float) -> None:
        """Give the places and the memory that are free to those that wait, in fair turns (``engine.turns``).

        Args:
            now: seconds; one for all, so that nobody loses a place that was given here.
        """
        while self.waiting:
            fitting, blocked = self._fitting()
            one = first_in_turn(fitting, self.running) or blocked
            assert one is not None
            if one is blocked or (self._max_rows is not None and len(self.running) >= self._max_rows):
                gives = displaced(one, [each for each in self.running if each.phase is not Phase.CONSTRAIN], now)
                if gives is None:
                    break
                self.running.remove(gives)
                self.waiting.append(gives)
                if one not in self._fitting()[0]:
                    continue
            self.waiting.remove(one)
            one.placed = now
            self.running.append(one)
        self._make_room()

    def schedule(self) -> Batch:
        """What those with a place and a cache compute in this step."""
        encode, denoise, prompts = [], [], 0
        for one in self.running:
            if one.phase is Phase.DENOISE:
                denoise.append(one)
            elif one.phase is Phase.ENCODE:
                prompts += one.in_prompt
                if one.in_prompt and self._prefill_rows is not None and prompts > self._prefill_rows:
                    continue
                tokens = one.segment(self._chunk)
                encode.append((one, tokens))
                ready = one.encoded + len(tokens) == one.length and one.form is None
                if one.judging or (ready and one.answer.finish is None and one.drafts):
                    denoise.append(one)
        return Batch(encode, denoise)

    def _needed(self, one: SequenceState) -> int:
        """The most memory that its text so far takes with what it writes next."""
        tokens = -(-(one.length + one.unit) // BLOCK) * BLOCK
        return self._cache_bytes(one, min(tokens, one.max_length))

    def _fitting(self) -> tuple[list[SequenceState], SequenceState | None]:
        """Those that wait and have room beside those that run; and the first that has none. Memory is given in order."""
        if self._kv_bytes is None or not self.running:
            return list(self.waiting), None
        free = self._kv_bytes - sum(map(self._needed, self.running))
        fits = [self._needed(one) <= free for one in self.waiting]
        first = next((at for at, fit in enumerate(fits) if not fit), len(fits))
        able = [one for at, one in enumerate(self.waiting) if fits[at] and (at < first or one.cache is not None)]
        return able, self.waiting[first] if first < len(fits) else None

    def _make_room(self) -> None:
        """Where the caches do not go together any more: parked ones give theirs up, then who came last."""
        if self._kv_bytes is None:
            return
        parked = [one for one in self.waiting if one.cache is not None]
        victims = [*self.running[:1], *(one for one in self.running[1:] if one.phase is not Phase.CONSTRAIN), *parked]
        needed = sum(map(self._needed, (*self.running, *parked)))
        while needed > self._kv_bytes and len(victims) > 1:
            one = victims.pop()
            needed -= self._needed(one)
            one.drop_cache()
            self.preempted += 1
            if one in self.running:
                self.running.remove(one)
                self.waiting.appendleft(one)


def default_kv_bytes(device: torch.device) -> int:
    """Memory for caches where nobody says: half of what is free on a GPU, a quarter of all there is beside a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // 2
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
