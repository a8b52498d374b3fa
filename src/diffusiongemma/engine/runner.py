"""The loop: admit -> encode -> (denoise -> step)* -> commit -> emit, until every row has its answer.

Shapes: B rows, T prompt tokens, L canvas, D hidden, V vocabulary.
"""

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from diffusiongemma.constraints import Grammar
from diffusiongemma.engine.answer import Answer
from diffusiongemma.engine.events import Done, Draft, Event
from diffusiongemma.engine.held import HeldRow, hold
from diffusiongemma.engine.pins import last_set
from diffusiongemma.errors import InputError, OptionError, PromptTooLongError
from diffusiongemma.kernels import Stream, draw, position_keys
from diffusiongemma.model.cache import KVCache
from diffusiongemma.model.transformer import Transformer
from diffusiongemma.sampler import Canvas, SamplingParams, committed, new_canvas, step, temperature
from diffusiongemma.text.tokenizer import Tokenizer

__all__ = ["Batch", "admit", "run_causal", "run_diffusion"]

PREFILL_CHUNK = 2048
"""Prompt tokens encoded in one pass; longer prompts go in parts, which changes nothing but the peak memory."""


@dataclass(frozen=True)
class Batch:
    """Prompts that passed every check.

    Attributes:
        prompts: token ids, a row each; none empty.
        seeds: one a row.
        params: for all rows.
        stop_ids: token ids that end an answer.
        pins: token ids to hold fixed from the start of each row's answer over as many canvases as it takes, -1 where open;
            None: no pins.
        starts: token ids that each row's canvases begin with instead of noise, -1 where noise; None: noise alone.
        limits: most tokens of each row's answer; None: ``params.max_tokens`` for all.
        grammars: what each row's answer must be, None where it is free; None: all are.
        drafts: whether Draft events are wanted. Without them the host learns of a step only whether rows are done.
    """

    prompts: list[list[int]]
    seeds: list[int]
    params: SamplingParams
    stop_ids: tuple[int, ...]
    pins: list[list[int]] | None = None
    starts: list[list[int]] | None = None
    limits: list[int] | None = None
    grammars: list[Grammar | None] | None = None
    drafts: bool = True

    def limit(self, row: int) -> int:
        """Most tokens of a row's answer."""
        return self.params.max_tokens if self.limits is None else self.limits[row]


def canvas_length(model: Transformer, params: SamplingParams) -> int:
    """Positions of a canvas: the checkpoint's, unless fewer are asked for.

    Raises:
        OptionError: more than the checkpoint's.
    """
    most = model.config.canvas_length
    if params.canvas_length is not None and params.canvas_length > most:
        raise OptionError(f"canvas_length is {params.canvas_length}; this checkpoint's is {most}, and fewer are allowed")
    return params.canvas_length or most


def admit(model: Transformer, batch: Batch, unit: int) -> int:
    """Check a batch against the model; returns the cache slots a row needs.

    Args:
        model: the stack.
        batch: what was asked.
        unit: tokens an answer grows by at a time: a canvas, or one.

    Raises:
        InputError: no prompts, an empty prompt, an id outside the vocabulary, pins that do not fit.
        PromptTooLongError: prompt and answer exceed the model's positions.
    """
    if not batch.prompts:
        raise InputError("there is no prompt; give at least one")
    config = model.config
    most = max(map(batch.limit, range(len(batch.prompts))))
    room = -(-most // unit) * unit
    for row, ids in enumerate(batch.prompts):
        if not ids:
            raise InputError(f"prompt {row} is empty; give it at least one token")
        if min(ids) < 0 or max(ids) >= config.text.vocab_size:
            raise InputError(f"prompt {row} has a token id outside 0 to {config.text.vocab_size - 1}")
        if config.image_token_id in ids and config.vision is not None and config.image_token_id < config.text.vocab_size:
            raise InputError(f"prompt {row} has the image token {config.image_token_id}; images are not supported yet")
        if len(ids) + room > config.text.max_position_embeddings:
            raise PromptTooLongError(
                f"prompt {row} has {len(ids)} tokens and max_tokens {most} takes {room} more, in steps of "
                f"{unit}: {len(ids) + room} positions; the model has {config.text.max_position_embeddings}. "
                "Shorten the prompt or lower max_tokens"
            )
    if batch.grammars is not None and (batch.pins is not None or batch.params.stop or not batch.stop_ids):
        what = "pins" if batch.pins is not None else "stop strings" if batch.params.stop else "a checkpoint without stop tokens"
        raise InputError(f"an answer cannot be held to a grammar and have {what}: which of the two should give way?")
    for what, rows in (("pins", batch.pins), ("starts", batch.starts)):
        for row, given in enumerate(rows or []):
            if (end := last_set(given)) > batch.limit(row):
                raise InputError(f"row {row} {what} {end} positions; max_tokens {batch.limit(row)} ends the answer before them")
            if any(not -1 <= token < config.text.vocab_size for token in given):
                last = config.text.vocab_size - 1
                raise InputError(f"row {row} {what} a token id outside 0 to {last} (-1 leaves a position open)")
    return max(map(len, batch.prompts)) + room


def encode_prompts(model: Transformer, prompts: Sequence[Sequence[int]], cache: KVCache) -> Tensor:
    """Prefill in chunks; returns each row's last hidden state ``[B, D]``."""
    lengths = torch.tensor([len(ids) for ids in prompts], device=model.device)
    longest = int(lengths.max())
    padded = torch.zeros(len(prompts), longest, dtype=torch.int64)
    for row, ids in enumerate(prompts):
        padded[row, : len(ids)] = torch.tensor(ids)
    padded = padded.to(model.device)
    last: Tensor | None = None
    for start in range(0, longest, PREFILL_CHUNK):
        chunk = padded[:, start : start + PREFILL_CHUNK]
        here = (lengths - start).clamp(0, chunk.shape[1])
        hidden = model.encode(chunk, cache, here)
        ends = hidden[torch.arange(len(prompts), device=model.device), (here - 1).clamp(min=0)]
        last = ends if last is None else torch.where((here > 0)[:, None], ends, last)
    assert last is not None
    return last


@torch.inference_mode()
def run_diffusion(model: Transformer, tokenizer: Tokenizer, batch: Batch) -> Iterator[Event]:
    """Denoise canvas after canvas; yields a Draft a row and step, a Commit a row and canvas, a Done a row.

    Steps, for each canvas:
        1. noise it (pins, what a grammar forces, and what there is to start from apart);
        2. denoise and step until each row stops; a row that stops leaves the passes at once;
        3. commit: emit the final tokens;
        4. encode the committed canvas for the rows that go on; rows with their answer leave the batch.
    """
    length = canvas_length(model, batch.params)
    slots = admit(model, batch, length)
    answers = [_answer(tokenizer, batch, row) for row in range(len(batch.prompts))]
    cache = KVCache(model.config.text, len(answers), slots, model.dtype, model.device)
    encode_prompts(model, batch.prompts, cache)
    rows, index = list(range(len(answers))), 0
    held = _held(batch)
    while rows:
        began = time.perf_counter()
        # 1.
        seeds = torch.tensor([batch.seeds[row] for row in rows], device=model.device)
        pins, starts = (
            None if share is None else share.to(model.device)
            for share in (_pins(batch, held, rows, index, length), _share(batch.starts, rows, index, length))
        )
        indices = torch.full_like(seeds, index)
        canvas = new_canvas(seeds, indices, length, model.config.text.vocab_size, batch.params.stability, pins, starts)
        # 2.
        finals, steps = yield from _denoise(model, tokenizer, batch, canvas, cache, rows, index, held)
        # 3.
        for row, final, taken in zip(rows, finals, steps, strict=True):
            answer = answers[row]
            before = len(answer.ids)
            commit = answer.add(row, final, held[row])
            answer.report(taken, len(answer.ids) - before, time.perf_counter() - began)
            answer.commit_passes += answer.finish is None
            yield commit
            if answer.finish is not None:
                yield Done(row, answer.result())
        # 4.
        going = [place for place, row in enumerate(rows) if answers[row].finish is None]
        if going:
            cache = cache if len(going) == len(rows) else cache.select(going, slots)
            model.encode(torch.tensor([finals[place] for place in going], device=model.device), cache)
        rows, index = [rows[place] for place in going], index + 1


def _denoise(
    model: Transformer,
    tokenizer: Tokenizer,
    batch: Batch,
    canvas: Canvas,
    cache: KVCache,
    rows: Sequence[int],
    index: int,
    held: Sequence[HeldRow | None],
) -> Generator[Draft, None, tuple[list[list[int]], list[int]]]:
    """Step canvases until each row stops; returns the tokens to commit and the steps taken, a row each."""
    params = batch.params
    finals: list[list[int]] = [[] for _ in rows]
    steps = [0] * len(rows)
    places = list(range(len(rows)))
    soft: Tensor | None = None
    vocab_size = model.config.text.vocab_size
    view = model.view(cache, canvas.length)
    while True:
        hidden = model.denoise(canvas.tokens_BL, cache, soft, view)
        heat, keys = temperature(canvas.step_B, params), canvas.keys(Stream.DRAW)
        found = model.canvas_head(hidden, heat, keys, canvas.tokens_BL, soft=params.self_conditioning)
        certain_BL, soft = canvas.pinned_BL, found.soft_BLD
        if batch.grammars is None:
            canvas = step(canvas, found, params, vocab_size, batch.stop_ids)
        else:
            here = [held[rows[place]] for place in places]
            found, held_BL, broken_B = hold(found, canvas, here, partial(model.best_of, hidden))
            canvas = step(canvas, found, params, vocab_size, batch.stop_ids)
            canvas = replace(canvas, done_B=canvas.done_B & ~(broken_B & (canvas.step_B < params.num_diffusion_steps)))
            certain_BL = certain_BL | held_BL
        if soft is not None and (batch.grammars is not None or batch.pins is not None):
            soft = torch.where(certain_BL[..., None], model.embed(canvas.tokens_BL), soft)
        if batch.drafts:
            yield from _drafts(canvas, [rows[place] for place in places], index, tokenizer)
        done = canvas.done_B.tolist()
        if not any(done):
            continue
        for at, (place, final, taken) in enumerate(
            zip(places, committed(canvas, params).tolist(), canvas.step_B.tolist(), strict=True)
        ):
            if done[at]:
                row = held[rows[place]]
                finals[place] = final if row is None else row.commit(final, partial(model.best_of, hidden, at))
                steps[place] = taken
        if all(done):
            return finals, steps
        left = [i for i, stopped in enumerate(done) if not stopped]
        places = [places[i] for i in left]
        canvas, cache = canvas.select(left), cache.select(left, min(cache.max_length, cache.used + canvas.length))
        view = model.view(cache, canvas.length)
        soft = None if soft is None else soft[left]


@torch.inference_mode()
def run_causal(model: Transformer, tokenizer: Tokenizer, batch: Batch) -> Iterator[Event]:
    """Token-by-token decoding with the encoder role and the tied head: greedy at temperature 0, else sampled."""
    slots = admit(model, batch, 1)
    params, rows = batch.params, range(len(batch.prompts))
    answers = [_answer(tokenizer, batch, row) for row in rows]
    cache = KVCache(model.config.text, len(rows), slots, model.dtype, model.device)
    seeds = torch.tensor(batch.seeds, device=model.device)
    hidden_BD = encode_prompts(model, batch.prompts, cache)
    index = torch.zeros_like(seeds)
    while True:
        logits_BV = model.logits(hidden_BD)
        if params.temperature > 0:
            keys = position_keys(seeds, index, torch.zeros_like(seeds), Stream.DRAW, 1)
            chosen_B = draw(logits_BV / params.temperature, keys[:, 0])
        else:
            chosen_B = logits_BV.argmax(-1)
        for row, token in zip(rows, chosen_B.tolist(), strict=True):
            if (answer := answers[row]).finish is None:
                answer.commit_passes += 1
                yield answer.add(row, [token])
                if answer.finish is not None:
                    yield Done(row, answer.result())
        going = torch.tensor([answer.finish is None for answer in answers], device=model.device)
        if not bool(going.any()):
            return
        hidden_BD = model.encode(chosen_B[:, None], cache, going * 1)[:, 0]
        index = index + 1


def _pins(batch: Batch, held: Sequence[HeldRow | None], rows: Sequence[int], index: int, length: int) -> Tensor | None:
    """This canvas's share of the pins and what its grammar forces ``[B, L]``, -1 where open."""
    if batch.grammars is None:
        return _share(batch.pins, rows, index, length)
    forced = [[-1] * length if (grammar := held[row]) is None else grammar.forced(length) for row in rows]
    return torch.tensor(forced)


def _share(by_row: list[list[int]] | None, rows: Sequence[int], index: int, length: int) -> Tensor | None:
    """This canvas's share of what is given from the start of the answers: ``[B, L]``, -1 where nothing is."""
    if by_row is None:
        return None
    cut = [by_row[row][index * length : (index + 1) * length] for row in rows]
    return torch.tensor([here + [-1] * (length - len(here)) for here in cut])


def _answer(tokenizer: Tokenizer, batch: Batch, row: int) -> Answer:
    params = replace(batch.params, max_tokens=batch.limit(row))
    fixed = 0 if batch.pins is None else last_set(batch.pins[row])
    return Answer(tokenizer, params, batch.stop_ids, len(batch.prompts[row]), fixed)


def _held(batch: Batch) -> list[HeldRow | None]:
    """Each row's place in its grammar."""
    grammars = batch.grammars or [None] * len(batch.prompts)
    return [None if grammar is None else HeldRow(grammar, batch.limit(row), batch.stop_ids) for row, grammar in enumerate(grammars)]


def _drafts(canvas: Canvas, rows: Sequence[int], index: int, tokenizer: Tokenizer) -> Iterator[Draft]:
    states = (canvas.step_B, canvas.best_BL, canvas.entropy_BL, canvas.accepted_BL, canvas.pinned_BL)
    for row, taken, best, entropy, accepted, pinned in zip(rows, *(state.tolist() for state in states), strict=True):
        yield Draft(row, index, taken, best, entropy, accepted, tokenizer.decode(best), pinned)
