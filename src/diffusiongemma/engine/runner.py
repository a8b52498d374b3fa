"""The loop: admit -> encode -> (denoise -> step)* -> commit -> emit, until every row has its answer.

Shapes: B rows, T prompt tokens, L canvas, D hidden, V vocabulary.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffusiongemma.engine.answer import Answer
from diffusiongemma.engine.events import Done, Draft, Event
from diffusiongemma.errors import InputError, PromptTooLongError
from diffusiongemma.model.cache import KVCache
from diffusiongemma.model.transformer import Transformer
from diffusiongemma.sampler import Canvas, SamplingParams, Stream, committed, gumbel, new_canvas, position_keys, step
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
        pins: token ids to hold fixed at the beginning of the first canvases, -1 where open; None: no pins.
    """

    prompts: list[list[int]]
    seeds: list[int]
    params: SamplingParams
    stop_ids: tuple[int, ...]
    pins: list[list[int]] | None = None


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
    room = -(-batch.params.max_tokens // unit) * unit
    for row, ids in enumerate(batch.prompts):
        if not ids:
            raise InputError(f"prompt {row} is empty; give it at least one token")
        if min(ids) < 0 or max(ids) >= config.text.vocab_size:
            raise InputError(f"prompt {row} has a token id outside 0 to {config.text.vocab_size - 1}")
        if config.image_token_id in ids and config.vision is not None and config.image_token_id < config.text.vocab_size:
            raise InputError(f"prompt {row} has the image token {config.image_token_id}; images are not supported yet")
        if len(ids) + room > config.text.max_position_embeddings:
            raise PromptTooLongError(
                f"prompt {row} has {len(ids)} tokens and max_tokens {batch.params.max_tokens} takes {room} more, in steps of "
                f"{unit}: {len(ids) + room} positions; the model has {config.text.max_position_embeddings}. "
                "Shorten the prompt or lower max_tokens"
            )
    for row, pins in enumerate(batch.pins or []):
        if len(pins) > room:
            raise InputError(f"row {row} pins {len(pins)} positions; max_tokens {batch.params.max_tokens} gives {room}")
        if any(not -1 <= pin < config.text.vocab_size for pin in pins):
            raise InputError(f"row {row} pins a token id outside 0 to {config.text.vocab_size - 1} (-1 leaves a position open)")
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
        1. noise it (pins apart);
        2. denoise and step until each row stops;
        3. commit: emit the final tokens, drop rows that are finished from the emission;
        4. encode the committed canvas for the rows that go on.
    """
    slots = admit(model, batch, model.config.canvas_length)
    params, length, rows = batch.params, model.config.canvas_length, range(len(batch.prompts))
    answers = [Answer(tokenizer, params, batch.stop_ids, len(ids)) for ids in batch.prompts]
    cache = KVCache(model.config.text, len(rows), slots, model.dtype, model.device)
    seeds = torch.tensor(batch.seeds, device=model.device)
    encode_prompts(model, batch.prompts, cache)
    index = 0
    while any(answer.finish is None for answer in answers):
        began = time.perf_counter()
        active = torch.tensor([answer.finish is None for answer in answers], device=model.device)
        # 1.
        canvas = new_canvas(
            seeds,
            torch.full_like(seeds, index),
            length,
            model.config.text.vocab_size,
            params.stability,
            _pins(batch, index, model),
        )
        canvas = replace(canvas, done_B=~active)
        soft: Tensor | None = None
        # 2.
        while not bool(canvas.done_B.all()):
            moving = (~canvas.done_B).tolist()
            canvas, shaped = step(canvas, model.logits(model.denoise(canvas.tokens_BL, cache, soft)), params, batch.stop_ids)
            soft = model.soften(shaped) if params.self_conditioning else None
            if soft is not None and bool(canvas.pinned_BL.any()):
                soft = torch.where(canvas.pinned_BL[..., None], model.embed(canvas.tokens_BL), soft)
            yield from _drafts(canvas, moving, index, tokenizer)
        # 3.
        final = committed(canvas, params)
        for row in rows:
            if (answer := answers[row]).finish is None:
                before = len(answer.ids)
                commit = answer.add(row, final[row].tolist())
                answer.report(int(canvas.step_B[row]), len(answer.ids) - before, time.perf_counter() - began)
                answer.commit_passes += answer.finish is None
                yield commit
                if answer.finish is not None:
                    yield Done(row, answer.result())
        # 4.
        going = torch.tensor([answer.finish is None for answer in answers], device=model.device)
        if bool(going.any()):
            model.encode(final, cache, going * length)
        index += 1


@torch.inference_mode()
def run_causal(model: Transformer, tokenizer: Tokenizer, batch: Batch) -> Iterator[Event]:
    """Token-by-token decoding with the encoder role and the tied head: greedy at temperature 0, else sampled."""
    slots = admit(model, batch, 1)
    params, rows = batch.params, range(len(batch.prompts))
    answers = [Answer(tokenizer, params, batch.stop_ids, len(ids)) for ids in batch.prompts]
    cache = KVCache(model.config.text, len(rows), slots, model.dtype, model.device)
    seeds = torch.tensor(batch.seeds, device=model.device)
    hidden_BD = encode_prompts(model, batch.prompts, cache)
    index = torch.zeros_like(seeds)
    while True:
        logits_BV = model.logits(hidden_BD)
        if params.temperature > 0:
            keys = position_keys(seeds, index, torch.zeros_like(seeds), Stream.DRAW, 1)
            logits_BV = logits_BV / params.temperature + gumbel(keys, logits_BV.shape[-1])[:, 0]
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


def _pins(batch: Batch, index: int, model: Transformer) -> Tensor | None:
    """This canvas's share of the pins ``[B, L]``, -1 where open."""
    if batch.pins is None:
        return None
    length = model.config.canvas_length
    pins = torch.full((len(batch.prompts), length), -1)
    for row, row_pins in enumerate(batch.pins):
        here = row_pins[index * length : (index + 1) * length]
        pins[row, : len(here)] = torch.tensor(here, dtype=torch.int64)
    return pins.to(model.device)


def _drafts(canvas: Canvas, moving: list[bool], index: int, tokenizer: Tokenizer) -> Iterator[Draft]:
    best, entropy, accepted, steps = (
        canvas.best_BL.tolist(),
        canvas.entropy_BL.tolist(),
        canvas.accepted_BL.tolist(),
        canvas.step_B.tolist(),
    )
    for row, moved in enumerate(moving):
        if moved:
            yield Draft(row, index, steps[row], best[row], entropy[row], accepted[row], tokenizer.decode(best[row]))
