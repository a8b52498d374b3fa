"""The engine: requests join, encode, denoise, commit and leave at step boundaries.

``add -> place -> encode -> ((denoise -> step)* -> commit -> encode)* -> done``. The ``Scheduler`` decides who computes what, the
``ModelRunner`` computes it; here is what it means for each sequence. They share the passes whatever phase, length, settings, pins
or grammar they have; each has its own cache, canvas and random numbers, so that an answer does not depend on its neighbours
(decision 0007).

Shapes: T tokens, L canvas, D hidden.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TypeVar

import torch
from torch import Tensor

from diffusiongemma.engine.answer import Answer
from diffusiongemma.engine.constraint import GuardedState, Reading, approximated, confined
from diffusiongemma.engine.events import Commit, Done, Draft, Event, Failed, TokenLogprob
from diffusiongemma.engine.logprobs import alternatives
from diffusiongemma.engine.pins import last_set
from diffusiongemma.engine.prefix import PrefixCache
from diffusiongemma.engine.request import ATTEMPTS, Request, check, later_seed, unit_of
from diffusiongemma.engine.runner import CanvasBatch, ModelRunner, Stepped
from diffusiongemma.engine.scheduler import Scheduler
from diffusiongemma.engine.sequence import Asked, Form, Phase, Repair, SequenceState, canvas_slice
from diffusiongemma.errors import EngineError, as_error
from diffusiongemma.model.cache import KVCache, RowCache, prefill_chunk
from diffusiongemma.model.transformer import Transformer
from diffusiongemma.text.tokenizer import Tokenizer

__all__ = ["Counts", "Engine"]

T = TypeVar("T")
Events = Iterator[tuple[SequenceState, Event]]
_IDLE = 0.02
"""Seconds that a step waits for another process where there is nothing else to do."""
_ATTEMPT = 1_000_000_007
"""Between the seeds of attempts at a valid answer."""
_ASKED_AT_ONCE = 16
"""Processes of grammars that there may be (``constraints.process``)."""


@dataclass
class Counts:
    """What an engine has done since it was made.

    Attributes:
        prompt_tokens: encoded or found in the prefix cache.
        completion_tokens: of finished answers.
        denoising_steps: of rows.
        passes: of the stack, of any number of rows.
        canvases, canvases_halted: that were finished, and those of them that settled before their most steps were taken.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    denoising_steps: int = 0
    passes: int = 0
    canvases: int = 0
    canvases_halted: int = 0


class Engine:
    """Requests on one model.

    Args:
        model: the stack.
        tokenizer: for texts of events.
        max_rows: most requests that step at a time; None: all that are added.
        kv_bytes: most memory of their caches together (``Scheduler``); None: no bound.
        prefix_bytes: most memory of the prefix cache; 0: none.
        prefill_rows: prompts that are encoded, a chunk each, in a step; None: all.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        *,
        max_rows: int | None = None,
        kv_bytes: int | None = None,
        prefix_bytes: int = 0,
        prefill_rows: int | None = None,
    ) -> None:
        self.model, self._tokenizer = model, tokenizer
        self._chunk = prefill_chunk(model.device)
        self.prefix = PrefixCache(model.config.text, model.cache_dtype, self._chunk, prefix_bytes)
        self.runner = ModelRunner(model)
        self.scheduler = Scheduler(
            lambda one, tokens: self.cache_bytes(one.request, tokens),
            self._chunk,
            max_rows=max_rows,
            kv_bytes=kv_bytes,
            prefill_rows=prefill_rows,
        )
        self.counts = Counts()

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return self.scheduler.live > 0

    @property
    def rows(self) -> list[SequenceState]:
        """Those that step."""
        return self.scheduler.running

    @property
    def kv_bytes(self) -> int:
        """Memory of all caches so far, with those of the parked ones."""
        return sum(one.cache.bytes for one in (*self.rows, *self.scheduler.waiting) if one.cache is not None)

    def cache_bytes(self, request: Request, tokens: int) -> int:
        """The most memory that the cache of a request takes which may hold so many tokens."""
        canvas = unit_of(self.model, request)
        return KVCache.bytes_of(self.model.config.text, tokens, self.model.cache_dtype, canvas=canvas, chunk=self._chunk)

    def add(self, request: Request, key: object = None, number: int = 0) -> None:
        """Let a request wait for a place.

        Args:
            request: what is asked.
            key: comes back with its events; hashable.
            number: the row number in them.

        Raises:
            InputError, PromptTooLongError, OptionError: see ``request.check``.
        """
        self.scheduler.add(self._sequence(request, key, number))

    def _sequence(self, request: Request, key: object, number: int) -> SequenceState:
        checked = check(self.model, request, number)
        pinned = 0 if request.pins is None else last_set(request.pins)
        opening = self._tokenizer.markup.opening(request.prompt)
        answer = Answer(self._tokenizer, request.params, request.stop_ids, len(request.prompt), pinned, opening)
        state = checked.take_state(request, number)
        return SequenceState(
            key,
            number,
            request,
            checked.slots,
            unit_of(self.model, request),
            answer,
            None if state is None else GuardedState(state),
            confined(request.grammar),
            self.prefix.names(request.prompt),
        )

    def cancel(self, key: object) -> None:
        """Drop all requests of a key; their places are free at once."""
        self.scheduler.cancel(key)

    @torch.inference_mode()
    def step(self) -> Iterator[tuple[object, Event | Failed]]:
        """Advance every sequence by one pass of each kind it needs.

        Steps:
            1. the scheduler gives places and memory to those that wait; what other processes were asked is taken up;
            2. encode: a chunk of a prompt, a committed canvas, a token of a causal answer;
            3. denoise the canvases;
            4. read them by their constraints, step, and commit those that stopped.

        Yields:
            The key and the event: a Draft a row and step, a Commit a row and canvas (or token), a Done a row, or a Failed
            instead, where the row could not join, or what it is constrained to failed.
        """
        # 1.
        self.scheduler.place(time.perf_counter())
        for one in self.rows:
            if one.phase is Phase.WAITING:
                self._open(one)
        yield from _told(self._answered())
        batch = self.scheduler.schedule()
        # 2.
        yield from _told(self._encode(batch.encode))
        # 3.
        on_canvas = [one for one in batch.denoise if one.phase is Phase.DENOISE]
        if on_canvas:
            self.counts.passes += 1
            self.counts.denoising_steps += len(on_canvas)
            canvases = self.runner.denoise(on_canvas)
            # 4.
            yield from _told(self._read(canvases))
        for one in self.rows:
            if one.failed is not None:
                yield one.key, Failed(one.number, one.failed)
        self.scheduler.running = [one for one in self.rows if one.failed is None and one.phase is not Phase.DONE]
        if not on_canvas and not batch.encode:
            wait([one.asked.future for one in self.rows if one.asked is not None], _IDLE, FIRST_COMPLETED)

    def _open(self, one: SequenceState) -> None:
        """Give a sequence a cache; what fails here, a native library's panic too, ends it alone."""
        try:
            if one.answer.began is None:
                one.answer.began = time.perf_counter()
                self.counts.prompt_tokens += len(one.request.prompt)
            one.cache = self.runner.new_cache(one)
            self.prefix.load(one.blocks, one.cache, len(one.request.prompt) - 1)
            one.phase = Phase.ENCODE
        except BaseException as error:
            one.error = as_error(error)

    # -- encode ------------------------------------------------------------------------------------------------------

    def _encode(self, batch: list[tuple[SequenceState, list[int]]]) -> Events:
        if not batch:
            return
        self.counts.passes += 1
        before = [one.last_1D for one, _ in batch]
        kept = [one.cache.fork() if one.judging and one.cache is not None else None for one, _ in batch]
        for (one, tokens), last_1D, cache, hidden_TD in zip(batch, before, kept, self.runner.encode(batch), strict=True):
            if cache is not None and last_1D is not None:
                yield from _alone(one, self._judged(one, cache, last_1D, hidden_TD))
                continue
            if one.commit is not None and last_1D is not None and one.encoded == one.length:
                one.commit.logprobs.extend(self._logprobs(one, tokens, torch.cat((last_1D, hidden_TD[:-1]))))
            if one.encoded <= len(one.request.prompt) and one.cache is not None:
                self.prefix.store(one.blocks, one.cache)
        ready = [one for one, _ in batch if one.phase is Phase.ENCODE and one.encoded == one.length and one.form is None]
        for one in ready:
            if one.commit is not None:
                commit, one.commit = one.commit, None
                yield from _alone(one, self._emitted(one, commit))
        going = [one for one in ready if one.answer.finish is None and one.failed is None]
        for one in going:
            if one.drafts:
                yield from _alone(one, self._begin(one))
        yield from self._say([one for one in going if not one.drafts])

    def _logprobs(self, one: SequenceState, ids: Sequence[int], before_TD: Tensor) -> list[TokenLogprob]:
        assert one.request.logprobs is not None
        return alternatives(self.model, before_TD, ids, one.request.logprobs)

    def _say(self, sequences: Sequence[SequenceState]) -> Events:
        """The next token of causal sequences."""
        if not sequences:
            return
        chosen, finite, hidden_BD = self.runner.next_tokens(sequences)
        for place, (one, token) in enumerate(zip(sequences, chosen, strict=True)):
            if not finite[place]:
                one.error = _not_finite(f"token {len(one.answer.ids)} of the answer")
                continue
            one.answer.commit_passes += 1
            one.rest = max(0, one.rest - 1)
            commit = one.answer.add(one.number, [token])
            if one.request.logprobs is not None:
                commit.logprobs.extend(self._logprobs(one, [token], hidden_BD[place : place + 1]))
            yield from _alone(one, self._emitted(one, commit))

    # -- denoise -----------------------------------------------------------------------------------------------------

    def _begin(self, one: SequenceState) -> Events:
        """The next canvas, or the one that stood there before the memory was given up."""
        one.phase = Phase.DENOISE
        if one.canvas is not None:
            self.runner.resume(one)
        elif one.constraint is None:
            self._began(one, canvas_slice(one.request.pins, one.index, one.unit))
        else:
            yield from self._ask(one, partial(one.constraint.forced_tokens, one.unit), partial(self._began_constrained, one))

    def _began_constrained(self, one: SequenceState, pins: list[int]) -> Events:
        one.phase = Phase.DENOISE
        self._began(one, pins)
        yield from ()

    def _began(self, one: SequenceState, pins: list[int] | None) -> None:
        one.pins = pins
        self.runner.begin(one, pins)
        one.began = time.perf_counter()

    def _read(self, batch: CanvasBatch) -> Events:
        """Let constraints read their canvases. Those that another process reads step when it has."""
        sequences, readings = batch.sequences, list[Reading | None]([None] * len(batch.sequences))
        if batch.candidates:
            open_BL = batch.canvas.open
            tokens = torch.where(open_BL, batch.statistics.argmax_ids_BL, batch.canvas.noisy_ids_BL).tolist()
            entropy = batch.statistics.entropy_BL.masked_fill(~open_BL, 0.0).tolist()
        later = [at for at in batch.candidates if sequences[at].confined]
        for at in batch.candidates:
            one, constraint = sequences[at], sequences[at].constraint
            assert constraint is not None
            row = batch.row(at) if at in later else batch
            best_of = self.runner.best_of(batch, at)
            read = partial(constraint.read, tokens[at][: one.unit], entropy[at][: one.unit], best_of)
            if at in later:
                yield from self._ask(one, read, partial(self._step_alone, row))
            else:
                readings[at] = read()
        now = batch.without(later)
        if now is not None:
            yield from self._step(now, [reading for at, reading in enumerate(readings) if at not in later])

    def _step_alone(self, batch: CanvasBatch, reading: Reading) -> Events:
        yield from self._step(batch, [reading])

    def _step(self, batch: CanvasBatch, readings: Sequence[Reading | None]) -> Events:
        """Step canvases; commit those that stopped."""
        stepped = self.runner.step(batch, readings)
        for at, one in enumerate(batch.sequences):
            one.phase = Phase.DENOISE
            if not stepped.finite[at]:
                one.error = _not_finite(f"step {stepped.steps[at]} of canvas {one.index}")
        yield from self._drafts(batch.sequences, stepped)
        for at, one in enumerate(batch.sequences):
            if not stepped.done[at] or one.failed is not None:
                continue
            one.metadata, final, steps, reading = None, stepped.finals[at], stepped.steps[at], readings[at]
            if one.request.mode == "exact":
                yield from _alone(one, self._verify(one, steps, final))
                continue
            constrained = {place for place, pin in enumerate(one.pins or ()) if pin >= 0}
            constrained.update(reading.positions if reading else ())
            best_of = None if reading is None else self.runner.best_of(batch, at)
            form = Form(final, one.answer.taken(final), steps, frozenset(constrained), best_of)
            # A canvas that its grammar does not take is mended by that first: the causal role knows nothing of it.
            if one.request.params.repair and (reading is None or (reading.complete and reading.tokens[: one.unit] == final)):
                one.form, one.phase = form, Phase.ENCODE
            else:
                yield from _alone(one, self._commit_best(one, form, form if one.repair is None else one.repair.best))

    def _commit_best(self, one: SequenceState, last: Form, best: Form) -> Events:
        """Commit the best form of a canvas, which took its steps up to the last one."""
        steps = last.steps + (0 if one.repair is None else one.repair.steps)
        one.repair = None
        halted = last.steps < one.request.params.num_diffusion_steps
        self.counts.canvases += 1
        self.counts.canvases_halted += halted
        if one.constraint is None or best.best_of is None:
            yield from self._commit(one, steps, halted, best.tokens)
        else:
            work = partial(one.constraint.commit, best.tokens, best.best_of)
            yield from self._ask(one, work, partial(self._commit, one, steps, halted))

    def _commit(self, one: SequenceState, steps: int, halted: bool, final: list[int]) -> Events:
        if one.failed is not None:
            return
        answer, before = one.answer, len(one.answer.ids)
        commit = answer.add(one.number, final, one.constraint)
        answer.report(steps, len(answer.ids) - before, time.perf_counter() - one.began, halted)
        one.index, one.phase = one.index + 1, Phase.ENCODE
        wanted = one.request.logprobs is not None
        answer.commit_passes += wanted or (answer.finish is None and one.encoded < one.length)
        if wanted:
            one.commit = commit
        else:
            yield from self._emitted(one, commit)

    def _judged(self, one: SequenceState, before: RowCache, last_1D: Tensor, hidden_TD: Tensor) -> Events:
        """Denoise a canvas anew from the first token that the causal role doubts, or commit the best of its forms.

        Args:
            one: the sequence; the tokens of its form are in its cache.
            before: the cache without them.
            last_1D: state of the token before them.
            hidden_TD: of each of them.
        """
        params, form, repair = one.request.params, one.form, one.repair
        assert form is not None
        one.form = None
        tokens = form.tokens[: form.taken]
        logprobs = [each.logprob for each in alternatives(self.model, torch.cat((last_1D, hidden_TD[:-1])), tokens, 0)]
        if not all(map(math.isfinite, logprobs)):
            one.error = _not_finite(f"canvas {one.index}, read by the causal role")
            return
        one.answer.commit_passes += 1
        rounds, steps = (0, 0) if repair is None else (repair.rounds, repair.steps)
        best, score = form, sum(logprobs) / len(logprobs)
        if repair is not None and repair.score >= score:
            best, score = repair.best, repair.score
        least = math.log(params.doubt)
        doubted = next((at for at, each in enumerate(logprobs) if each < least and at not in form.constrained), None)
        done = doubted is None or rounds == params.repair
        if not done or best is not form or one.constraint is not None or one.request.logprobs is not None:
            one.cache, one.last_1D = before, last_1D
        if done:
            yield from self._commit_best(one, form, best)
            return
        one.repair, one.phase = Repair(rounds + 1, steps + form.steps, best, score), Phase.DENOISE
        # What follows a wrong token was written to suit it (measured against redoing doubted tokens alone, docs/lab-log.md).
        self.runner.begin(one, [*tokens[:doubted], *(one.pins or [-1] * one.unit)[doubted:]])

    def _verify(self, one: SequenceState, steps: int, final: list[int]) -> Events:
        """Say the part of a draft that the causal role would have said, and its own token after it."""
        assert one.cache is not None
        answer, before, kept = one.answer, len(one.answer.ids), one.cache.fork()
        draft = final[: answer.taken(final)]
        chosen, finite, hidden_TD = self.runner.verify(one, draft)
        same = next((at for at, token in enumerate(draft) if token != chosen[at]), len(draft))
        if not all(finite[: same + 1]):
            one.error = _not_finite(f"token {before} of the answer")
            return
        if same < len(draft):
            one.cache = kept  # the rest of the draft was never said; what was is encoded next
        commit = answer.add(one.number, chosen[: same + 1])
        said = len(answer.ids) - before
        if one.request.logprobs is not None:
            commit.logprobs.extend(self._logprobs(one, commit.token_ids, hidden_TD[:said]))
        answer.commit_passes += 2
        answer.report(steps, said, time.perf_counter() - one.began, steps < one.request.params.num_diffusion_steps)
        one.judged(said, steps + 2)
        one.index, one.phase = one.index + 1, Phase.ENCODE
        yield from self._emitted(one, commit)

    def _emitted(self, one: SequenceState, commit: Commit) -> Events:
        one.answer.logprobs.extend(commit.logprobs)
        grammar = approximated(one.request.grammar)
        if grammar is None:
            yield one, commit
        else:
            one.withheld.append(commit)
        if one.answer.finish is None:
            return
        result = one.answer.result()
        if grammar is not None:
            valid = result.finish_reason != "stop" or bool(result.tool_calls) or grammar.takes(result.text)
            if not valid and one.attempts < ATTEMPTS:
                self._again(one)
                return
            reason = result.finish_reason if valid else "invalid"
            result = replace(result, finish_reason=reason, attempts=one.attempts, approximated=grammar.left_out)
            yield from ((one, each) for each in one.withheld)
        one.phase = Phase.DONE
        self.counts.completion_tokens += len(one.answer.ids)
        yield one, Done(one.number, result)

    def _again(self, one: SequenceState) -> None:
        """Another sequence in the place of one whose answer is not valid for its schema."""
        params = one.request.params
        other = self._sequence(
            replace(one.request, params=params.replaced(seed=later_seed(params.seed, _ATTEMPT))), one.key, one.number
        )
        other.answer.after(one.answer)
        other.attempts, other.placed = one.attempts + 1, one.placed
        one.phase = Phase.DONE
        self.scheduler.running.append(other)

    def _drafts(self, sequences: Sequence[SequenceState], stepped: Stepped) -> Events:
        wanted = [at for at, one in enumerate(sequences) if one.request.drafts and one.error is None]
        if not wanted:
            return
        canvas = stepped.canvas
        states = (canvas.step_B, canvas.argmax_ids_BL, canvas.entropy_BL, canvas.accepted_BL, canvas.pinned_BL)
        for at, (step, *values) in zip(wanted, zip(*(state[wanted].tolist() for state in states), strict=True), strict=True):
            one = sequences[at]
            before = 0 if one.repair is None else one.repair.steps
            yield from _alone(one, self._draft(one, before + step, *(value[: one.unit] for value in values)))

    def _draft(
        self, one: SequenceState, taken: int, best: list[int], entropy: list[float], accepted: list[bool], pinned: list[bool]
    ) -> Events:
        yield one, Draft(one.number, one.index, taken, best, entropy, accepted, self._tokenizer.decode(best), pinned)

    # -- constraints in processes of their own -------------------------------------------------------------------------

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(_ASKED_AT_ONCE, "constraint")

    def _ask(self, one: SequenceState, work: Callable[[], T], then: Callable[[T], Events]) -> Events:
        """Ask a constraint. What another process must answer may take a second: the sequence sits out until then, alone."""
        if one.confined:
            one.phase = Phase.CONSTRAIN
            one.asked = Asked(self._pool.submit(torch.inference_mode()(work)), then)
        else:
            yield from then(work())

    def _answered(self) -> Events:
        """Go on with those whose answers are there."""
        for one in self.rows:
            if one.asked is not None and one.asked.future.done():
                asked, one.asked = one.asked, None
                if one.failed is None:
                    yield from _alone(one, asked.then(asked.future.result()))


def _told(events: Events) -> Iterator[tuple[object, Event]]:
    for one, event in events:
        yield one.key, event


def _alone(one: SequenceState, events: Events) -> Events:
    """Events of one sequence; what fails here, a native library's panic too, ends it and not the step of all."""
    try:
        yield from events
    except GeneratorExit:
        raise
    except BaseException as error:
        one.error = as_error(error)


def _not_finite(where: str) -> EngineError:
    return EngineError(
        f"the model computed numbers that are not finite at {where}; its weights are damaged, or too large for its dtype: load it "
        "with dtype float32"
    )
