"""Masks as they are drawn in the module."""

import torch
from torch import Tensor

from diffusiongemma.model.masks import denoise_masks, encode_masks, plain_denoise_masks, plain_encode_masks
from tests.tiny import tiny_config

CPU = torch.device("cpu")
FULL, SLIDING = "full_attention", "sliding_attention"


def drawn(mask: object) -> list[str]:
    assert isinstance(mask, Tensor)
    return ["".join(".1"[int(seen)] for seen in row) for row in mask[0, 0].tolist()]


def test_masks_as_they_are_drawn_in_the_module() -> None:
    config = tiny_config(sliding_window=3).text
    masks = encode_masks(config, 4, 2, CPU, joined=True)
    assert drawn(masks[FULL]) == ["11111.", "111111"]
    assert drawn(masks[SLIDING]) == ["111.", ".111"]
    assert encode_masks(config, 4, 2, CPU, joined=False)[FULL] == "causal"
    assert denoise_masks(config, 4, 3, CPU) == {FULL: None, SLIDING: None}
    masks = denoise_masks(config, 4, 3, CPU, "per_position")
    assert masks[FULL] is None and drawn(masks[SLIDING]) == ["11111", ".1111", "..111"]


def test_what_a_first_chunk_and_a_single_token_need() -> None:
    config = tiny_config(sliding_window=3).text
    assert encode_masks(config, 0, 3, CPU, joined=True) == {FULL: "causal", SLIDING: "causal"}
    longer = encode_masks(config, 0, 4, CPU, joined=True)
    assert longer[FULL] == "causal" and drawn(longer[SLIDING]) == ["1...", "11..", "111.", ".111"]
    assert encode_masks(config, 9, 1, CPU, joined=True) == {FULL: None, SLIDING: None}


def test_a_moving_window_that_hides_nothing_needs_no_mask() -> None:
    config = tiny_config(sliding_window=8).text
    assert denoise_masks(config, 4, 4, CPU, "per_position")[SLIDING] is None
    assert drawn(denoise_masks(config, 5, 4, CPU, "per_position")[SLIDING]) == ["111111111"] * 3 + [".11111111"]
    # A canvas that is longer than a window hides tokens on both sides.
    assert drawn(denoise_masks(tiny_config(sliding_window=2).text, 0, 3, CPU, "per_position")[SLIDING]) == ["11.", "111", ".11"]


def test_the_plain_masks_of_training() -> None:
    config = tiny_config(sliding_window=3).text
    masks = plain_encode_masks(config, 4, CPU)
    assert drawn(masks[FULL]) == ["1...", "11..", "111.", "1111"]
    assert drawn(masks[SLIDING]) == ["1...", "11..", "111.", ".111"]
    masks = plain_denoise_masks(config, 4, 2, CPU)
    assert drawn(masks[FULL]) == ["111111"] and drawn(masks[SLIDING]) == ["..1111"]
    assert drawn(plain_denoise_masks(config, 1, 2, CPU)[SLIDING]) == ["111"]
