"""Ops of the model. One dispatch an op: it names the implementation and why it was chosen.

``reference`` holds the plain implementations; a faster one is proved against it and then chosen here.
"""

from diffusiongemma.kernels.attend import KeysValues, Mask, attention
from diffusiongemma.kernels.dispatch import (
    Choice,
    Kernels,
    canvas_head,
    canvas_head_choice,
    experts,
    experts_choice,
    linear,
    product_dtype,
    rms_norm,
    tile_rows,
)
from diffusiongemma.kernels.invariance import AS_THEY_COME, BATCH_INVARIANT, BatchInvariance
from diffusiongemma.kernels.reference import (
    SoftPositions,
    Statistics,
    by_expert,
    draw,
    entropy,
    rotate,
    soft_cap,
    statistics,
)
from diffusiongemma.kernels.rng import RngPurpose, position_keys, random_ids
from diffusiongemma.kernels.table import PackedRows, Table, TableReader, plain_reader, table_rows, table_tile
from diffusiongemma.kernels.top import draw_top

__all__ = [
    "AS_THEY_COME",
    "BATCH_INVARIANT",
    "BatchInvariance",
    "Choice",
    "Kernels",
    "KeysValues",
    "Mask",
    "PackedRows",
    "RngPurpose",
    "SoftPositions",
    "Statistics",
    "Table",
    "TableReader",
    "attention",
    "by_expert",
    "canvas_head",
    "canvas_head_choice",
    "draw",
    "draw_top",
    "entropy",
    "experts",
    "experts_choice",
    "linear",
    "plain_reader",
    "position_keys",
    "product_dtype",
    "random_ids",
    "rms_norm",
    "rotate",
    "soft_cap",
    "statistics",
    "table_rows",
    "table_tile",
    "tile_rows",
]
