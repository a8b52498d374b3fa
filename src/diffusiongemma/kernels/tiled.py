"""The canvas head in one pass over the vocabulary, tile by tile: ``[L, V]`` never exists.

It is attention of the hidden states over the embedding table with an online softmax (arXiv 2205.14135) that keeps on its way
what a step needs: maximum, mass, entropy, the winning groups of the argmax and of the draw, the expected row.
Shapes: N positions of all rows, V vocabulary, T tile, G groups of a tile, D hidden.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusiongemma.kernels.invariance import AS_THEY_COME, BatchInvariance
from diffusiongemma.kernels.reference import GROUP, SoftPositions, Statistics, soft_joined
from diffusiongemma.kernels.rng import gumbel_at
from diffusiongemma.kernels.table import Table, TableReader, table_reader, table_rows
from diffusiongemma.kernels.top import TopGroups, mix_top

__all__ = ["SoftProducts", "canvas_head"]

TILE_NUMBERS = 1 << 20
"""Logits of a tile and canvas: 4 MiB of float32; smaller ones make more small calls, larger ones win nothing (docs/lab-log.md).
The number of rows has no part in it, so that a row's rounding does not depend on its neighbours."""
TILE_MIN, TILE_MAX = 256, 4096
"""Tokens of a tile: fewer make slow products, more would widen a bfloat16 table by too much at once."""
_NOTHING = -1e30
"""Stands for a token that is not there: finite, so that no mass times itself is no NaN."""


@dataclass
class SoftProducts:
    """How many of the products for the soft embedding were made, in rows times tiles."""

    made: int = 0
    skipped: int = 0


@dataclass
class _Winner:
    """For each position the group with the largest value so far, and its logits."""

    value_N: Tensor
    group_N: Tensor
    logits_NT: Tensor

    def update(self, value_NG: Tensor, z_NGT: Tensor, first: int) -> None:
        value_N, group_N = value_NG.max(-1)
        better_N = value_N > self.value_N
        logits_NT = z_NGT.gather(1, group_N[:, None, None].expand(-1, 1, z_NGT.shape[2])).squeeze(1)
        self.value_N = torch.where(better_N, value_N, self.value_N)
        self.group_N = torch.where(better_N, group_N + first, self.group_N)
        self.logits_NT = torch.where(better_N[:, None], logits_NT, self.logits_NT)


def canvas_head(
    hidden_BLD: Tensor,
    table_VD: Table,
    cap: float | None,
    temperature_B: Tensor,
    keys_BL: Tensor,
    likely_BL: Tensor,
    *,
    soft: SoftPositions,
    top: int = 0,
    top_at_M: Tensor | None = None,
    compute: torch.dtype,
    width: int | None = None,
    invariance: BatchInvariance = AS_THEY_COME,
    counter: SoftProducts | None = None,
) -> Statistics:
    """As ``reference.canvas_head``, to rounding.

    Args:
        hidden_BLD: ``[B, L, D]``.
        table_VD: ``[V, D]``, of any dtype, or packed.
        cap: of the logits; None: none.
        temperature_B: ``[B]`` float32.
        keys_BL: ``[B, L]`` int64.
        likely_BL: ``[B, L]`` int64, tokens thought to be probable: the surer they are, the more of the soft products need not
            be made. Any tokens give the same result.
        soft: where the soft embedding is wanted, and of how many tokens.
        top, top_at_M: see ``reference.canvas_head``.
        compute: dtype of the products; results are rounded to the hidden states' dtype as the plain path's are.
        width: tokens of a tile; None: ``tile_width`` of a canvas.
        invariance: how few rows of a product are filled up.
        counter: counts the soft products.
    """
    rows, length, _ = hidden_BLD.shape
    dtype = hidden_BLD.dtype
    hidden_ND, keys_N1 = hidden_BLD.flatten(0, 1), keys_BL.reshape(-1, 1)
    temperature_N1 = temperature_B.repeat_interleave(length)[:, None]
    guess_ND = table_rows(table_VD, likely_BL.flatten(), dtype)
    likely_N1 = _shaped((hidden_ND * guess_ND).sum(-1, keepdim=True).float(), cap, temperature_N1)
    # Everything is relative to the largest logit so far; a probable token is a good first guess of it.
    largest_N1, mass_N1, moment_N1 = likely_N1, torch.zeros_like(likely_N1), torch.zeros_like(likely_N1)
    soft_ND = torch.zeros_like(hidden_ND, dtype=torch.promote_types(compute, torch.float32)) if None in soft else None
    full_at_M = soft.get(None)
    full_N = None if full_at_M is None else torch.zeros_like(keys_N1[:, 0], dtype=torch.bool).index_fill(0, full_at_M, True)
    tops = [(at_M, TopGroups(count)) for count, at_M in soft.items() if count is not None]
    best_few = None if top_at_M is None else TopGroups(top)
    kept = tops if best_few is None else [*tops, (top_at_M, best_few)]
    best, drawn = _winner(likely_N1), _winner(likely_N1)
    reader = table_reader(table_VD, hidden_ND.to(compute))
    width = tile_width(length) if width is None else width
    negligible = torch.finfo(dtype).eps / (8 * (table_VD.shape[0] / width + 1))
    for start in range(0, table_VD.shape[0], width):
        # 1. The tile's logits over the temperature, and their groups.
        end = min(start + width, table_VD.shape[0])
        z_NT = _shaped(reader.scores(start, end).to(dtype).float(), cap, temperature_N1)
        missing = -z_NT.shape[1] % GROUP
        whole_NT = F.pad(z_NT, (0, missing), value=_NOTHING) if missing else z_NT
        groups_NGT = whole_NT.view(len(whole_NT), -1, GROUP)
        highest_NG = groups_NGT.amax(-1)
        best.update(highest_NG, groups_NGT, start // GROUP)
        for at_M, groups in kept:
            picked = (highest_NG, groups_NGT) if at_M is None else (highest_NG[at_M], groups_NGT[at_M])
            groups.update(*picked, start // GROUP)
        # 2. Move what was gathered to the new largest logit; add the tile's mass and first moment.
        before_N1, largest_N1 = largest_N1, torch.maximum(largest_N1, highest_NG.amax(-1, keepdim=True))
        shift_N1 = before_N1 - largest_N1
        scale_N1 = shift_N1.exp()
        below_NT = whole_NT - largest_N1
        weight_NT = below_NT.exp()
        mass_NG = weight_NT.view(len(weight_NT), -1, GROUP).sum(-1)
        tile_mass_N1 = mass_NG.sum(-1, keepdim=True)
        tile_moment_N1 = below_NT.mul_(weight_NT).sum(-1, keepdim=True)
        moment_N1 = (moment_N1 + shift_N1 * mass_N1) * scale_N1 + tile_moment_N1
        mass_N1 = mass_N1 * scale_N1 + tile_mass_N1
        # 3. The draw's groups, each by its mass with noise.
        index_G = torch.arange(start // GROUP + 1, start // GROUP + 1 + mass_NG.shape[1], device=keys_N1.device)
        drawn.update(largest_N1 + mass_NG.log() + gumbel_at(keys_N1, -index_G), groups_NGT, start // GROUP)
        # 4. The expected row; tiles that cannot change it by as much as rounding are left out.
        if soft_ND is not None:
            known_N1 = torch.maximum(mass_N1, (likely_N1 - largest_N1).exp())
            needed_N = (tile_mass_N1 > negligible * known_N1).squeeze(1)
            needed_N = needed_N if full_N is None else needed_N & full_N
            _add_product(soft_ND.mul_(scale_N1), weight_NT[:, : z_NT.shape[1]], reader, (start, end), needed_N, invariance, counter)
    shape = (rows, length)
    entropy_N1 = mass_N1.log() - moment_N1 / mass_N1
    full_BLD = None if soft_ND is None else (soft_ND / mass_N1).to(dtype).view_as(hidden_BLD)
    top_z_MK, top_ids_MK = (None, None) if best_few is None else best_few.tokens(table_VD.shape[0])
    mixed = [(at_M, mix_top(*groups.tokens(table_VD.shape[0]), table_VD, dtype)) for at_M, groups in tops]
    return Statistics(
        _token(best).view(shape),
        _token(drawn, keys_N1).view(shape),
        entropy_N1.view(shape),
        ((best.value_N - largest_N1[:, 0]).exp() / mass_N1[:, 0]).view(shape),
        soft_joined(full_BLD, soft, mixed, hidden_BLD),
        top_ids_MK,
        top_z_MK,
    )


def tile_width(positions: int) -> int:
    """Tokens of a tile for a canvas of so many positions: a multiple of the draw's groups."""
    return max(TILE_MIN, min(TILE_NUMBERS // max(positions, 1), TILE_MAX)) // GROUP * GROUP


def _shaped(raw: Tensor, cap: float | None, temperature_N1: Tensor) -> Tensor:
    """Soft cap and temperature, in place, in the order of the plain head: bit for bit its logits."""
    capped = raw if cap is None else raw.div_(cap).tanh_().mul_(cap)
    return capped.div_(temperature_N1)


def _winner(likely_N1: Tensor) -> _Winner:
    worst = torch.full_like(likely_N1[:, 0], -torch.inf)
    return _Winner(worst, torch.zeros_like(worst, dtype=torch.int64), worst[:, None].repeat(1, GROUP))


def _token(winner: _Winner, keys_N1: Tensor | None = None) -> Tensor:
    """The best token of the winning group; with keys, after Gumbel noise."""
    first_N1, logits_NT = winner.group_N[:, None] * GROUP, winner.logits_NT
    if keys_N1 is not None:
        logits_NT = logits_NT + gumbel_at(keys_N1, first_N1 + torch.arange(1, GROUP + 1, device=keys_N1.device))
    return first_N1[:, 0] + logits_NT.argmax(-1)


def _add_product(
    soft_ND: Tensor,
    weight_NT: Tensor,
    reader: TableReader,
    tile: tuple[int, int],
    needed_N: Tensor,
    invariance: BatchInvariance,
    counter: SoftProducts | None,
) -> None:
    """Add ``weight @ tile`` to the rows that need it; off the CPU to all, since picking rows waits for the device."""
    if soft_ND.device.type != "cpu":
        soft_ND += reader.mix(weight_NT, *tile).to(soft_ND.dtype)
        return
    rows = needed_N.nonzero().squeeze(1)
    if counter is not None:
        counter.made, counter.skipped = counter.made + len(rows), counter.skipped + len(needed_N) - len(rows)
    # What other rows need must not change a row's bits: products it does not need are not added, short ones are filled up.
    if 2 * len(rows) > len(needed_N):
        soft_ND += reader.mix(weight_NT, *tile).mul_(needed_N[:, None])
    elif len(rows):
        soft_ND[rows] += reader.mix(weight_NT[invariance.fill(rows)], *tile)[: len(rows)]
