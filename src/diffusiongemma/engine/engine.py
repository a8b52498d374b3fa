"""The engine: rows join, encode, denoise, commit and leave at step boundaries.

``add -> join -> encode -> ((denoise -> step)* -> commit -> encode)* -> done``. Rows share the passes whatever phase, length,
sampling parameters, pins or grammar they have; each has its own cache, canvas and random numbers, so that an answer does not
depend on its neighbours (decision 0007).

Shapes: B rows, T tokens, L canvas, D hidden, V vocabulary.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import TypeVar

import torch
from torch import Tensor

from diffusiongemma.diffusion import COLDEST, BatchParams, Canvas, committed, new_canvas, step, temperature
from diffusiongemma.engine.answer import Answer
from diffusiongemma.engine.constraint import GuardedState, apply_constraints
from diffusiongemma.engine.events import Commit, Done, Draft, Event, Failed, TokenLogprob
from diffusiongemma.engine.logprobs import alternatives
from diffusiongemma.engine.pinned import constraint_state
from diffusiongemma.engine.pins import last_set
from diffusiongemma.engine.prefix import PrefixCache
from diffusiongemma.engine.request import Request, canvas_length, check
from diffusiongemma.engine.row import Row, canvas_slice
from diffusiongemma.engine.turns import Waiting, displaced, first_in_turn
from diffusiongemma.errors import EngineError, PromptTooLongError, as_error
from diffusiongemma.kernels import RngPurpose, draw, position_keys
from diffusiongemma.model.cache import KVCache, RowCache, prefill_chunk
from diffusiongemma.model.transformer import Transformer
from diffusiongemma.text.tokenizer import Tokenizer

__all__ = ["Counts", "Engine", "OfflineEngine"]

T = TypeVar("T")
PREFILL_ROWS = 4
"""Prompts that are encoded, a chunk each, in one step of an engine with a bound on its rows: others wait for no more than that."""


@dataclass
class Counts:
    """What an engine has done since it was made.

    Attributes:
        prompt_tokens: encoded or found in the prefix cache.
        completion_tokens: of finished answers.
        denoising_steps: of rows.
        passes: of the stack, of any number of rows.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    denoising_steps: int = 0
    passes: int = 0


class Engine:
    """Rows of requests on one model.

    Args:
        model: the stack.
        tokenizer: for texts of events.
        max_rows: most rows at a time; None: all that are added.
        kv_bytes: most memory of their caches together; None: no bound.
        prefix_bytes: most memory of the prefix cache; 0: none.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        *,
        max_rows: int | None = None,
        kv_bytes: int | None = None,
        prefix_bytes: int = 0,
    ) -> None:
        self.model, self._tokenizer = model, tokenizer
        self._max_rows, self._kv_bytes = max_rows, kv_bytes
        self._chunk = prefill_chunk(model.device)
        self.prefix = PrefixCache(model.config.text, model.dtype, self._chunk, prefix_bytes)
        self.line: deque[Waiting | Row] = deque()
        self.rows: list[Row] = []
        self.counts = Counts()

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.rows or self.line)

    @property
    def kv_bytes(self) -> int:
        """Memory of the rows' caches so far, with those of the parked ones."""
        return sum(row.cache.bytes for row in self._cached_rows())

    @property
    def promised_bytes(self) -> int:
        """The most that these caches can grow to."""
        return sum(self.cache_bytes(row.request, row.cache.max_length) for row in self._cached_rows())

    def _cached_rows(self) -> list[Row]:
        return [row for row in (*self.rows, *self.line) if isinstance(row, Row)]

    def cache_bytes(self, request: Request, tokens: int) -> int:
        """The most memory that the cache of a request takes which may hold so many tokens."""
        canvas = canvas_length(self.model, request.params) if request.mode == "diffusion" else 1
        return KVCache.bytes_of(self.model.config.text, tokens, self.model.dtype, canvas=canvas, chunk=self._chunk)

    def check(self, request: Request, number: int = 0) -> int:
        """Refuse what can never run; returns the tokens that its cache must hold.

        Raises:
            InputError, PromptTooLongError, OptionError: see ``request.check``; PromptTooLongError also where the memory for
                caches is too small for it.
        """
        slots = check(self.model, request, number)
        needed = self.cache_bytes(request, slots)
        if self._kv_bytes is not None and needed > self._kv_bytes:
            raise PromptTooLongError(
                f"prompt and answer are {slots} tokens, whose cache takes {needed >> 20} MiB; this server gives all requests "
                f"together {self._kv_bytes >> 20} MiB. Shorten the prompt or lower max_tokens"
            )
        return slots

    def add(self, request: Request, key: object = None, number: int = 0, slots: int | None = None) -> None:
        """Let a request wait for a row; raises what ``check`` does, unless its result is given.

        Args:
            request: what is asked.
            key: comes back with its events; hashable.
            number: the row number in them.
            slots: what ``check`` returned for it; None: it is checked here.
        """
        slots = self.check(request, number) if slots is None else slots
        self.line.append(Waiting(key, number, request, slots, self.cache_bytes(request, slots)))

    def cancel(self, key: object) -> None:
        """Drop all requests of a key; their rows are free at once."""
        self.line = deque(one for one in self.line if one.key is not key)
        self.rows = [row for row in self.rows if row.key is not key]

    @torch.inference_mode()
    def step(self) -> Iterator[tuple[object, Event | Failed]]:
        """Advance every row by one pass of each kind it needs.

        Steps:
            1. requests that wait take the rows and the memory that are free, in fair turns (``engine.turns``);
            2. encode: a chunk of a prompt, a committed canvas, a token of a causal row;
            3. denoise the rows that stand on a canvas, and step;
            4. commit the canvases that stopped.

        Yields:
            The key and the event: a Draft a row and step, a Commit a row and canvas (or token), a Done a row, or a Failed
            instead, where the row could not join, or what it is constrained to failed.
        """
        # 1.
        yield from self._place()
        # 2.
        for row, event in self._encode():
            yield row.key, event
        # 3.
        alike = attrgetter("batch_key")
        on_canvas = [row for row in self.rows if row.canvas is not None]
        for row, hidden_LD in zip(on_canvas, self._denoise(on_canvas), strict=True):
            row.hidden_LD = hidden_LD
        for _, group in groupby(sorted(on_canvas, key=alike), key=alike):
            # 4.
            for row, event in self._advance(list(group)):
                yield row.key, event
        for row in self.rows:
            if row.failed is not None:
                yield row.key, Failed(row.number, row.failed)
        self.rows = [row for row in self.rows if row.failed is None and (row.answer.finish is None or row.commit is not None)]

    # -- join --------------------------------------------------------------------------------------------------------

    def _place(self) -> Iterator[tuple[object, Failed]]:
        """Give places to those that wait; a request that cannot join fails alone."""
        now = time.perf_counter()  # one for all: nobody loses a place that was given here
        while self.line:
            one = first_in_turn(self._able(), self.rows)
            if one is None:
                return
            if self._max_rows is not None and len(self.rows) >= self._max_rows:
                gives = displaced(one, self.rows, now)
                if gives is None:
                    return
                self.rows.remove(gives)
                self.line.append(gives)
            self.line.remove(one)
            try:
                row = one if isinstance(one, Row) else self._join(one)
            except BaseException as error:  # a native library's panic too
                yield one.key, Failed(one.number, as_error(error))
                continue
            row.placed = now
            self.rows.append(row)

    def _able(self) -> Iterator[Waiting | Row]:
        """Those that wait and have memory, or get it; where it is short, requests get it in order."""
        free = None if self._kv_bytes is None else self._kv_bytes - self.promised_bytes
        for one in self.line:
            if isinstance(one, Waiting) and free is not None and one.kv_bytes > free:
                free = -1
                continue
            yield one

    def _join(self, one: Waiting) -> Row:
        key, number, request = one.key, one.number, one.request
        cache = RowCache(self.model.config.text, one.slots, self.model.dtype, self.model.device)
        pinned = 0 if request.pins is None else last_set(request.pins)
        opening = self._tokenizer.markup.opening(request.prompt)
        answer = Answer(self._tokenizer, request.params, request.stop_ids, len(request.prompt), pinned, opening)
        constraint = constraint_state(request.grammar, request.params.max_tokens, request.stop_ids, request.pins, number)
        blocks = self.prefix.names(request.prompt)
        statistics = self.prefix.load(blocks, cache, len(request.prompt) - 1)
        self.counts.prompt_tokens += len(request.prompt)
        guarded = None if constraint is None else GuardedState(constraint)
        return Row(key, number, request, answer, cache, guarded, request.prompt[statistics:], blocks, self._batch_key(request))

    def _batch_key(self, request: Request) -> str:
        length = canvas_length(self.model, request.params)
        params = replace(request.params, seed=0, max_tokens=1, stop=(), temperature=0.0, canvas_length=length)
        return repr((params, request.stop_ids if params.stop_rule == "answer" else ()))

    # -- encode ------------------------------------------------------------------------------------------------------

    def _encode(self) -> Iterator[tuple[Row, Event]]:
        rows, chunks, prompts = [], [], 0
        for row in self.rows:
            in_prompt = row.cache.length < len(row.request.prompt)
            if row.pending and not (in_prompt and self._max_rows is not None and prompts >= PREFILL_ROWS):
                rows.append(row)
                chunks.append(row.pending[: self._chunk] if in_prompt else list(row.pending))
                prompts += in_prompt
        if not rows:
            return
        self.counts.passes += 1
        for row, chunk, hidden_TD in zip(rows, chunks, self.model.encode_rows(chunks, [row.cache for row in rows]), strict=True):
            del row.pending[: len(chunk)]
            if row.commit is not None:
                row.commit.logprobs.extend(self._logprobs(row, chunk, hidden_TD))
            row.last_1D = hidden_TD[-1:]
            if row.cache.length <= len(row.request.prompt):
                self.prefix.store(row.blocks, row.cache)
        ready = [row for row in rows if not row.pending]
        for row in ready:
            if row.commit is not None:
                commit, row.commit = row.commit, None
                yield from _alone(row, self._emitted(row, commit))
        going = [row for row in ready if row.answer.finish is None]
        for row in going:
            if row.request.mode == "diffusion":
                self._begin(row)
        yield from self._say([row for row in going if row.request.mode == "causal"])

    def _logprobs(self, row: Row, ids: Sequence[int], hidden_TD: Tensor) -> list[TokenLogprob]:
        """Of committed tokens; each is predicted by the state before it."""
        assert row.last_1D is not None and row.request.logprobs is not None
        before_TD = torch.cat((row.last_1D, hidden_TD[:-1]))
        return alternatives(self.model, before_TD, ids, row.request.logprobs)

    def _say(self, rows: Sequence[Row]) -> Iterator[tuple[Row, Event]]:
        """The next token of causal rows: the most probable at temperature 0, else a draw."""
        if not rows:
            return
        hidden_BD = torch.cat([row.last_1D for row in rows if row.last_1D is not None])
        logits_BV = self.model.logits(hidden_BD)
        chosen_B, finite_B = logits_BV.argmax(-1), logits_BV.isfinite().all(-1).tolist()
        temperature_B = torch.tensor([row.request.params.temperature for row in rows], device=logits_BV.device)
        if bool((temperature_B > 0).any()):
            seeds = torch.tensor([row.request.params.seed for row in rows], device=logits_BV.device)
            index = torch.tensor([len(row.answer.ids) for row in rows], device=logits_BV.device)
            keys = position_keys(seeds, index, torch.zeros_like(seeds), RngPurpose.DRAW, 1)
            drawn_B = draw(logits_BV / temperature_B.clamp(min=COLDEST)[:, None], keys[:, 0])
            chosen_B = torch.where(temperature_B > 0, drawn_B, chosen_B)
        for place, (row, token) in enumerate(zip(rows, chosen_B.tolist(), strict=True)):
            if not finite_B[place]:
                row.error = _not_finite(f"token {len(row.answer.ids)} of the answer")
                continue
            row.answer.commit_passes += 1
            commit = row.answer.add(row.number, [token])
            if row.request.logprobs is not None:
                predicted = alternatives(self.model, hidden_BD[place : place + 1], [token], row.request.logprobs)
                commit.logprobs.extend(predicted)
            row.pending = [token] if row.answer.finish is None else []
            yield from _alone(row, self._emitted(row, commit))

    # -- denoise -----------------------------------------------------------------------------------------------------

    def _begin(self, row: Row) -> None:
        """The row's next canvas: noise, but for pins, what a grammar forces, and what there is to start from."""
        request, length = row.request, canvas_length(self.model, row.request.params)
        device = self.model.device
        pins = canvas_slice(request.pins, row.index, length) if row.constraint is None else row.constraint.forced_tokens(length)
        init_tokens = canvas_slice(request.init_tokens, row.index, length)
        row.canvas = new_canvas(
            torch.tensor([request.params.seed], device=device),
            torch.tensor([row.index], device=device),
            length,
            self.model.process,
            request.params.stability,
            *(None if given is None else torch.tensor([given], device=device) for given in (pins, init_tokens)),
        )
        row.soft_1LD, row.began = None, time.perf_counter()
        row.metadata = self.model.canvas_metadata(row.cache, length, request.params.canvas_window)

    def _denoise(self, rows: Sequence[Row]) -> list[Tensor]:
        """One pass over all canvases; final hidden states ``[L, D]`` of each."""
        if not rows:
            return []
        self.counts.passes += 1
        self.counts.denoising_steps += len(rows)
        tokens = [row.canvas.noisy_ids_BL for row in rows if row.canvas is not None]
        metadata = [row.metadata for row in rows if row.metadata is not None]
        return self.model.denoise_rows(tokens, [row.cache for row in rows], [row.soft_1LD for row in rows], metadata)

    def _advance(self, rows: Sequence[Row]) -> Iterator[tuple[Row, Event]]:
        """Step canvases of one length and one set of sampling parameters; commit those that stopped."""
        params = rows[0].request.params
        each = BatchParams.of([row.request.params for row in rows], self.model.device, [row.request.stop_ids for row in rows])
        canvas = Canvas.cat([row.canvas for row in rows if row.canvas is not None])
        hidden = torch.stack([row.hidden_LD for row in rows if row.hidden_LD is not None])
        temperature_, keys = temperature(canvas.step_B, each), canvas.keys(RngPurpose.DRAW)
        statistics = self.model.canvas_head(
            hidden, temperature_, keys, canvas.noisy_ids_BL, soft=params.self_conditioning, soft_top_k=params.soft_top_k
        )
        finite_B, certain_BL, soft = statistics.entropy_BL.isfinite().all(-1), canvas.kept_BL, statistics.soft_BLD
        if any(row.constraint is not None for row in rows):
            statistics, constrained_BL, broken_B = apply_constraints(
                statistics, canvas, [row.constraint for row in rows], partial(self.model.best_of, hidden)
            )
            # A grammar's token takes the place of one that the process kept.
            canvas = replace(canvas, kept_BL=canvas.kept_BL & (canvas.pinned_BL | ~constrained_BL))
            canvas = step(canvas, statistics, each, self.model.process)
            canvas = replace(canvas, done_B=canvas.done_B & ~(broken_B & (canvas.step_B < each.num_diffusion_steps_B)))
            certain_BL = certain_BL | constrained_BL
        else:
            canvas = step(canvas, statistics, each, self.model.process)
        certain = self.model.process.keeps or any(row.constraint is not None or row.request.pins is not None for row in rows)
        if soft is not None and certain:
            soft = torch.where(certain_BL[..., None], self.model.embed(canvas.noisy_ids_BL), soft)
        canvas = replace(canvas, done_B=canvas.done_B | ~finite_B)
        done = canvas.done_B.tolist()
        finals = committed(canvas, each).tolist() if any(done) else []
        steps = canvas.step_B.tolist() if any(done) else []
        for at, finite in enumerate(finite_B.tolist() if any(done) else []):
            if not finite:
                rows[at].error = _not_finite(f"step {steps[at]} of canvas {rows[at].index}")
        yield from self._drafts(rows, canvas)
        for at, row in enumerate(rows):
            if not done[at]:
                row.canvas = canvas if len(rows) == 1 else canvas.select([at])
                row.soft_1LD = None if soft is None else soft[at : at + 1]
                continue
            if row.failed is not None:
                continue
            final = (
                finals[at] if row.constraint is None else row.constraint.commit(finals[at], partial(self.model.best_of, hidden, at))
            )
            row.canvas = row.soft_1LD = row.metadata = None
            if row.failed is None:
                yield from _alone(row, self._commit(row, final, steps[at]))

    def _commit(self, row: Row, final: list[int], steps: int) -> Iterator[tuple[Row, Event]]:
        answer = row.answer
        before = len(answer.ids)
        commit = answer.add(row.number, final, row.constraint)
        answer.report(steps, len(answer.ids) - before, time.perf_counter() - row.began)
        row.index += 1
        wanted = row.request.logprobs is not None
        if answer.finish is None or wanted:
            answer.commit_passes += 1
            row.pending = list(final if answer.finish is None else commit.token_ids)
        if wanted:
            row.commit = commit
            return
        yield from self._emitted(row, commit)

    def _emitted(self, row: Row, commit: Commit) -> Iterator[tuple[Row, Event]]:
        yield row, commit
        if row.answer.finish is not None:
            self.counts.completion_tokens += len(row.answer.ids)
            yield row, Done(row.number, row.answer.result())

    def _drafts(self, rows: Sequence[Row], canvas: Canvas) -> Iterator[tuple[Row, Event]]:
        wanted = [at for at, row in enumerate(rows) if row.request.drafts and row.error is None]
        if not wanted:
            return
        states = (canvas.step_B, canvas.argmax_ids_BL, canvas.entropy_BL, canvas.accepted_BL, canvas.pinned_BL)
        shown = zip(*(state[wanted].tolist() for state in states), strict=True)
        for at, state in zip(wanted, shown, strict=True):
            yield from _alone(rows[at], self._draft(rows[at], *state))

    def _draft(
        self, row: Row, taken: int, best: list[int], entropy: list[float], accepted: list[bool], pinned: list[bool]
    ) -> Iterator[tuple[Row, Event]]:
        yield row, Draft(row.number, row.index, taken, best, entropy, accepted, self._tokenizer.decode(best), pinned)


def _alone(row: Row, events: Iterator[T]) -> Iterator[T]:
    """Events of one row; what fails here, a native library's panic too, ends the row and not the step of all."""
    try:
        yield from events
    except GeneratorExit:
        raise
    except BaseException as error:
        row.error = as_error(error)


def _not_finite(where: str) -> EngineError:
    return EngineError(
        f"the model computed numbers that are not finite at {where}; its weights are damaged, or too large for its dtype: load it "
        "with dtype float32"
    )


class OfflineEngine:
    """An engine a call: what a model uses that nobody shares.

    Args:
        model: the stack.
        tokenizer: for texts of events.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer) -> None:
        self._model, self._tokenizer = model, tokenizer

    def run(self, requests: Sequence[Request]) -> Iterator[Event]:
        """Events of the requests, ``row`` being their index; raises what ``request.check`` does."""
        engine = Engine(self._model, self._tokenizer)
        for number, request in enumerate(requests):
            engine.add(request, number=number)
        while engine.busy:
            for _, event in engine.step():
                if isinstance(event, Failed):
                    raise event.error
                yield event

    def call(self, work: Callable[[], T]) -> T:
        """Do something with the model."""
        return work()
