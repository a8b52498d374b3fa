"""How a batch is computed: the passes of the model and the pure functions of ``diffusion`` on its canvases. It decides nothing.

Sequences lie one after another in a pass and in the canvas head, whatever their settings and lengths; only their canvases are
filled up to the longest, for ``diffusion.step``.

Shapes: B sequences, L canvas (the longest), N positions of all canvases, T tokens, D hidden, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor

from diffusiongemma.diffusion import COLDEST, BatchParams, Canvas, SamplingParams, committed, new_canvas, step, temperature
from diffusiongemma.engine.constraint import BestOf, Reading, applied
from diffusiongemma.engine.request import later_seed
from diffusiongemma.engine.sequence import SequenceState, canvas_slice
from diffusiongemma.kernels import RngPurpose, SoftPositions, Statistics, draw, draw_top, position_keys
from diffusiongemma.model.cache import RowCache
from diffusiongemma.model.transformer import Transformer
from diffusiongemma.options import MOST_DRAWN

__all__ = ["CanvasBatch", "ModelRunner", "Stepped"]

_ROUND = 1_000_003
"""Between the seeds of a canvas's rounds of repair."""
CANDIDATES = 8
"""Most probable tokens of each position of a constrained canvas that the head's own pass keeps: where one of them is allowed, a
token is replaced without another product. Where none is, few are allowed, and few rows of the table are read."""
LARGE_TABLE = 1 << 24
"""Numbers of the head's table from which the candidates are kept: a product over a smaller one costs less (docs/lab-log.md)."""


@dataclass(frozen=True)
class CanvasBatch:
    """Canvases after a pass.

    Attributes:
        sequences: that stand on them.
        canvas: ``[B, L]``, before the step.
        params: of the sequences.
        hidden: ``[L, D]`` final hidden states of each, as long as its own canvas.
        statistics: ``[B, L]``, of the distributions; without the soft embeddings.
        softs: ``[1, L, D]`` of each, None where the next pass is not told.
        candidates: of the constrained ones the most probable tokens of each position.
    """

    sequences: list[SequenceState]
    canvas: Canvas
    params: BatchParams
    hidden: list[Tensor]
    statistics: Statistics
    softs: list[Tensor | None]
    candidates: dict[int, list[list[int]]]

    def row(self, at: int) -> "CanvasBatch":
        """One of the canvases."""
        one = self.sequences[at]
        here = slice(at, at + 1), slice(one.unit)
        statistics = _each(self.statistics, lambda value: value[here])
        candidates = {0: self.candidates[at]} if at in self.candidates else {}
        return CanvasBatch(
            [one], _own(self.canvas, at, one), _params([one]), [self.hidden[at]], statistics, [self.softs[at]], candidates
        )

    def without(self, rows: Sequence[int]) -> "CanvasBatch | None":
        """The others; None: there are none."""
        kept = [at for at in range(len(self.sequences)) if at not in rows]
        if not rows or not kept:
            return self if kept else None
        index = torch.tensor(kept, device=self.canvas.length_B.device)
        sequences = [self.sequences[at] for at in kept]
        return CanvasBatch(
            sequences,
            self.canvas.select(kept),
            _params(sequences),
            [self.hidden[at] for at in kept],
            _each(self.statistics, lambda value: value[index]),
            [self.softs[at] for at in kept],
            {kept.index(at): candidates for at, candidates in self.candidates.items() if at in kept},
        )


@dataclass(frozen=True)
class Stepped:
    """What a step came to.

    Attributes:
        canvas: ``[B, L]``, after it.
        done: whether each canvas is.
        finite: whether the model computed numbers.
        steps: taken by each.
        finals: tokens of each canvas that is done, as many as it has.
    """

    canvas: Canvas
    done: list[bool]
    finite: list[bool]
    steps: list[int]
    finals: list[list[int]]


class ModelRunner:
    """Computes batches on a model.

    Args:
        model: the stack.
    """

    def __init__(self, model: Transformer) -> None:
        self.model = model
        self._asked: list[tuple[SamplingParams, tuple[int, ...]]] = []
        self._params: BatchParams | None = None

    def new_cache(self, sequence: SequenceState) -> RowCache:
        """An empty cache for a sequence."""
        return RowCache(self.model.config.text, sequence.max_length, self.model.cache_dtype, self.model.device)

    def encode(self, batch: Sequence[tuple[SequenceState, list[int]]]) -> list[Tensor]:
        """One encoder pass; the tokens of each sequence go into its cache. Returns their final hidden states ``[T, D]``."""
        hidden = self.model.encode_rows([tokens for _, tokens in batch], [_cache(one) for one, _ in batch])
        for (one, _), hidden_TD in zip(batch, hidden, strict=True):
            one.last_1D = hidden_TD[-1:]
        return hidden

    def next_tokens(self, sequences: Sequence[SequenceState]) -> tuple[list[int], list[bool], Tensor]:
        """The next token of causal sequences: the most probable at temperature 0, else a draw.

        Returns:
            The tokens, whether all logits are finite, and the states ``[B, D]`` that predict them.
        """
        hidden_BD = torch.cat([cast(Tensor, one.last_1D) for one in sequences])
        return *self._chosen(
            hidden_BD, [one.request.params for one in sequences], [len(one.answer.ids) for one in sequences]
        ), hidden_BD

    def verify(self, one: SequenceState, draft: Sequence[int]) -> tuple[list[int], list[bool], Tensor]:
        """What a causal answer would say at each place of a draft, and after it, if all before it had been said.

        The draft's tokens go into the sequence's cache.

        Returns:
            As ``next_tokens``, one more than the draft has; those up to and with the first that is not the draft's are the
            answer's.
        """
        last_1D = cast(Tensor, one.last_1D)
        [hidden_TD] = self.encode([(one, list(draft))])
        hidden_TD = torch.cat((last_1D, hidden_TD))
        first, count = len(one.answer.ids), len(hidden_TD)
        return *self._chosen(hidden_TD, [one.request.params] * count, range(first, first + count)), hidden_TD

    def _chosen(self, hidden_BD: Tensor, params: Sequence[SamplingParams], places: Sequence[int]) -> tuple[list[int], list[bool]]:
        """The tokens of the causal role after some states, each at its place of an answer, and whether all logits are finite."""
        logits_BV = self.model.logits(hidden_BD)
        chosen_B, finite_B = logits_BV.argmax(-1), logits_BV.isfinite().all(-1).tolist()
        temperature_B = torch.tensor([one.temperature or 0.0 for one in params], device=logits_BV.device)
        if bool((temperature_B > 0).any()):
            seeds = torch.tensor([one.seed for one in params], device=logits_BV.device)
            index = torch.tensor(list(places), device=logits_BV.device)
            keys = position_keys(seeds, index, torch.zeros_like(seeds), RngPurpose.DRAW, 1)
            shaped_BV = logits_BV / temperature_B.clamp(min=COLDEST)[:, None]
            drawn_B = draw(shaped_BV, keys[:, 0])
            if any(one.shapes_draws for one in params):
                z_BK, ids_BK = shaped_BV.topk(min(MOST_DRAWN, shaped_BV.shape[1]))
                best_B = (z_BK[:, 0] - shaped_BV.logsumexp(-1)).exp()
                drawn_B = torch.where(
                    torch.tensor([one.shapes_draws for one in params], device=drawn_B.device),
                    draw_top(z_BK, ids_BK, best_B, keys[:, 0], torch.ones_like(best_B), *_cut_off(params, drawn_B.device)),
                    drawn_B,
                )
            chosen_B = torch.where(temperature_B > 0, drawn_B, chosen_B)
        return chosen_B.tolist(), finite_B

    def begin(self, one: SequenceState, pins: Sequence[int] | None) -> None:
        """A sequence's next canvas: noise, but for what is pinned and what there is to start from.

        Args:
            one: the sequence.
            pins: of the canvas, -1 where open, and in a round of repair what stays of its form; None: none.
        """
        device, request = self.model.device, one.request
        rounds = 0 if one.repair is None else one.repair.rounds
        init_tokens = None if rounds else canvas_slice(request.init_tokens, one.index, one.unit)
        one.canvas = new_canvas(
            torch.tensor([later_seed(request.params.seed, _ROUND * rounds)], device=device),
            torch.tensor([one.index], device=device),
            one.unit,
            self.model.process,
            request.params.stability,
            *(None if given is None else torch.tensor([given], device=device) for given in (pins, init_tokens)),
        )
        one.soft_1LD = None
        self.resume(one)

    def resume(self, one: SequenceState) -> None:
        """Prepare the passes over a canvas after the context that is in the sequence's cache."""
        one.metadata = self.model.canvas_metadata(_cache(one), one.unit, one.request.params.canvas_window)

    def denoise(self, sequences: list[SequenceState]) -> CanvasBatch:
        """One denoiser pass over the canvases of all sequences, and one call of the canvas head."""
        canvases = [one.canvas for one in sequences if one.canvas is not None]
        metadata = [one.metadata for one in sequences if one.metadata is not None]
        hidden = self.model.denoise_rows([each.noisy_ids_BL for each in canvases], [one.soft_1LD for one in sequences], metadata)
        canvas, params, lengths = Canvas.cat(canvases), self._params_of(sequences), [one.unit for one in sequences]
        places = _Places(lengths, canvas.length, self.model.device)
        constrained = [at for at, one in enumerate(sequences) if one.constraint is not None]
        noise = [one.request.params.noise if one.request.mode == "diffusion" else 1.0 for one in sequences]
        greedy = [at for at, factor in enumerate(noise) if factor == 0]
        shaped = [at for at, one in enumerate(sequences) if at not in greedy and (one.request.params.shapes_draws or noise[at] < 1)]
        text = self.model.config.text
        large = text.vocab_size * text.hidden_size >= LARGE_TABLE
        kept = [at for at in range(len(sequences)) if at in shaped or (large and at in constrained)]
        keys_N = places.flat(canvas.keys(RngPurpose.DRAW))
        statistics = self.model.canvas_head(
            torch.cat(hidden)[:, None],
            places.flat(temperature(canvas.step_B, params)[:, None].expand(-1, canvas.length)),
            keys_N[:, None],
            places.flat(canvas.noisy_ids_BL)[:, None],
            soft=_soft_positions(sequences, places),
            top=MOST_DRAWN if shaped else CANDIDATES,
            top_at_M=places.of(kept) if kept else None,
        )
        softs = (
            [None] * len(sequences) if statistics.soft_BLD is None else torch.split(statistics.soft_BLD.transpose(0, 1), lengths, 1)
        )
        candidates: dict[int, list[list[int]]] = {at: [[]] * lengths[at] for at in constrained}
        if statistics.top_ids_MK is not None:
            tops = torch.split(statistics.top_ids_MK, [lengths[at] for at in kept])
            chosen = {at: ids_LK for at, ids_LK in zip(kept, tops, strict=True) if at in candidates}
            candidates |= {at: ids_LK[:, :CANDIDATES].tolist() for at, ids_LK in chosen.items()}
        if shaped:
            statistics = _shaped_draws(statistics, keys_N, [(sequences[at], noise[at]) for at in kept], places.of(kept))
        if greedy:
            drawn_BL, at_M = statistics.drawn_BL.clone(), places.of(greedy)
            drawn_BL[at_M] = statistics.argmax_ids_BL[at_M]
            statistics = statistics._replace(drawn_BL=drawn_BL)
        return CanvasBatch(
            sequences,
            canvas,
            params,
            hidden,
            _each(statistics, lambda value: places.padded(value[:, 0])),
            [soft if one.request.params.self_conditioning else None for one, soft in zip(sequences, softs, strict=True)],
            candidates,
        )

    def _params_of(self, sequences: Sequence[SequenceState]) -> BatchParams:
        """Their parameters, made anew only where the sequences are not those of the step before."""
        asked = [(one.request.params, one.request.stop_ids) for one in sequences]
        if self._params is None or asked != self._asked:
            self._asked, self._params = asked, _params(sequences)
        return self._params

    def best_of(self, batch: CanvasBatch, row: int) -> BestOf:
        """What chooses the most probable of the allowed tokens at a position of a constrained canvas."""
        return partial(self._best_of, batch.hidden[row], batch.candidates[row])

    def _best_of(self, hidden_LD: Tensor, candidates: list[list[int]], at: int, allowed_V: Tensor) -> int:
        size = len(allowed_V)
        known = (token for token in candidates[at] if token < size and allowed_V[token])
        token = next(known, None)
        return self.model.best_of(hidden_LD[at], allowed_V) if token is None else token

    def step(self, batch: CanvasBatch, readings: Sequence[Reading | None]) -> Stepped:
        """Step the canvases; those of sequences that go on are theirs.

        Args:
            batch: after the pass.
            readings: what each constraint makes of its canvas; None: the sequence is free.
        """
        canvas, statistics, certain_BL, process = batch.canvas, batch.statistics, batch.canvas.kept_BL, self.model.process
        finite_B = statistics.entropy_BL.isfinite().all(-1)
        broken_B = torch.zeros_like(finite_B)
        if any(reading is not None for reading in readings):
            statistics, constrained_BL, broken_B = applied(statistics, canvas, readings)
            # A grammar's token takes the place of one that the process kept.
            canvas = replace(canvas, kept_BL=canvas.kept_BL & (canvas.pinned_BL | ~constrained_BL))
            certain_BL = certain_BL | constrained_BL
        canvas = step(canvas, statistics, batch.params, process)
        goes_on_B = broken_B & (canvas.step_B < batch.params.num_diffusion_steps_B)
        canvas = replace(canvas, done_B=canvas.done_B & ~goes_on_B | ~finite_B)
        done = canvas.done_B.tolist()
        for at, one in enumerate(batch.sequences):
            one.canvas, soft = (None, None) if done[at] else (_own(canvas, at, one), batch.softs[at])
            certain = process.keeps or one.constraint is not None or one.request.pins is not None or one.repair is not None
            if one.canvas is not None and soft is not None and certain:
                certain_1L1 = certain_BL[at : at + 1, : one.unit, None]
                soft = torch.where(certain_1L1, self.model.embed(one.canvas.noisy_ids_BL), soft)
            one.soft_1LD = soft
        if not any(done):
            return Stepped(canvas, done, [True] * len(done), [], [])
        finals = zip(committed(canvas, batch.params).tolist(), batch.sequences, strict=True)
        return Stepped(canvas, done, finite_B.tolist(), canvas.step_B.tolist(), [final[: one.unit] for final, one in finals])


class _Places:
    """Where the positions of canvases are, one after another ``[N]`` and side by side ``[B, L]``.

    Args:
        lengths: of the canvases.
        longest: L.
        device: of the tensors.
    """

    def __init__(self, lengths: Sequence[int], longest: int, device: torch.device) -> None:
        self._shape, self._lengths = (len(lengths), longest), lengths
        self._index_N: Tensor | None = None
        if min(lengths) < longest:
            ranges = (torch.arange(row * longest, row * longest + length) for row, length in enumerate(lengths))
            self._index_N = torch.cat(list(ranges)).to(device)
        self._device = device

    def flat(self, x_BL: Tensor) -> Tensor:
        """``[B, L]`` to ``[N]``."""
        flat = x_BL.reshape(-1)
        return flat if self._index_N is None else flat[self._index_N]

    def padded(self, x_N: Tensor) -> Tensor:
        """``[N]`` to ``[B, L]``, 0 in the filler."""
        if self._index_N is None:
            return x_N.view(self._shape)
        return x_N.new_zeros(self._shape[0] * self._shape[1]).index_copy_(0, self._index_N, x_N).view(self._shape)

    def of(self, rows: Sequence[int]) -> Tensor:
        """The positions ``[M]`` of some of the canvases among the N."""
        begins = [sum(self._lengths[:row]) for row in rows]
        ranges = [torch.arange(begin, begin + self._lengths[row]) for begin, row in zip(begins, rows, strict=True)]
        return torch.cat(ranges).to(self._device)


def _cut_off(params: Sequence[SamplingParams], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """``top_k``, ``top_p`` and ``min_p`` ``[B]``, where unset so that they cut nothing off."""
    top_k_B = torch.tensor([min(one.top_k or MOST_DRAWN, MOST_DRAWN) for one in params], device=device)
    top_p_B = torch.tensor([torch.inf if one.top_p is None or one.top_p == 1 else one.top_p for one in params], device=device)
    return top_k_B, top_p_B, torch.tensor([one.min_p or 0.0 for one in params], device=device)


def _shaped_draws(statistics: Statistics, keys_N: Tensor, kept: Sequence[tuple[SequenceState, float]], at_M: Tensor) -> Statistics:
    """The statistics ``[N, 1]`` with colder draws, and those of sequences that cut tokens off made among the others.

    Args:
        statistics: of the head, with the most probable tokens at ``at_M``.
        keys_N: of the draws.
        kept: sequences whose most probable tokens were kept, and how much of the random numbers counts.
        at_M: their positions, one sequence after another.
    """
    assert statistics.top_z_MK is not None
    assert statistics.top_ids_MK is not None
    params = [one.request.params for one, _ in kept for _ in range(one.unit)]
    noise = [factor for one, factor in kept for _ in range(one.unit)]
    drawn_M = draw_top(
        statistics.top_z_MK,
        statistics.top_ids_MK,
        statistics.probability_BL[at_M, 0],
        keys_N[at_M],
        torch.tensor(noise, device=at_M.device),
        *_cut_off(params, at_M.device),
    )
    shaped = [one.shapes_draws or factor < 1 for one, factor in zip(params, noise, strict=True)]
    mine_M = torch.tensor(shaped, device=at_M.device)
    drawn_BL = statistics.drawn_BL.clone()
    drawn_BL[at_M, 0] = torch.where(mine_M, drawn_M, drawn_BL[at_M, 0])
    return statistics._replace(drawn_BL=drawn_BL)


def _soft_positions(sequences: Sequence[SequenceState], places: _Places) -> SoftPositions:
    """Of how many tokens the soft embedding of each position is made."""
    rows: dict[int | None, list[int]] = {}
    for at, one in enumerate(sequences):
        if one.request.params.self_conditioning:
            rows.setdefault(one.request.params.soft_top_k, []).append(at)
    return {count: None if len(mine) == len(sequences) else places.of(mine) for count, mine in rows.items()}


def _each(statistics: Statistics, change: Callable[[Tensor], Tensor]) -> Statistics:
    best, drawn, entropy, probability = (change(value) for value in statistics[:4])
    return Statistics(best, drawn, entropy, probability, None)


def _params(sequences: Sequence[SequenceState]) -> BatchParams:
    params = [one.request.params for one in sequences]
    return BatchParams.of(params, _cache(sequences[0]).device, [one.request.stop_ids for one in sequences])


def _own(canvas: Canvas, at: int, one: SequenceState) -> Canvas:
    """A sequence's own canvas, of a batch."""
    return canvas.row(at, one.unit, one.request.params.stability)


def _cache(one: SequenceState) -> RowCache:
    assert one.cache is not None
    return one.cache
