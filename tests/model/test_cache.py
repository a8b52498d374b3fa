"""The cache: a length for each row, no room for the canvas, and a clear word when it is full."""

import pytest
import torch
from torch import Tensor

from diffusiongemma.api import DiffusionGemmaModel
from diffusiongemma.errors import InputError, OptionError
from diffusiongemma.model.cache import KVCache
from diffusiongemma.model.masks import denoise_masks, encode_masks
from diffusiongemma.model.transformer import Transformer
from tests.tiny import tiny_config, tiny_model, tiny_transformer


def cache_of(model: Transformer, rows: int = 1, slots: int = 64) -> KVCache:
    return KVCache(model.config.text, rows, slots, model.dtype, model.device)


@pytest.fixture(scope="module")
def model() -> Transformer:
    return tiny_transformer(dtype=torch.float64, scale=0.3)


def ids(rows: int, tokens: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 64, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def test_denoising_leaves_the_cache_as_it_was(model: Transformer) -> None:
    cache = cache_of(model)
    model.encode(ids(1, 12), cache)
    before = [tensor[:, :12].clone() for tensor in (*cache._keys, *cache._values)]
    first = model.denoise(ids(1, 8), cache)
    model.denoise(ids(1, 8, seed=1), cache, torch.randn(1, 8, 32, dtype=torch.float64))
    assert all(torch.equal(a, b[:, :12]) for a, b in zip(before, (*cache._keys, *cache._values), strict=True))
    assert cache.lengths.tolist() == [12] and cache.used == 12
    assert torch.equal(model.denoise(ids(1, 8), cache), first)
    # Where the free slots are too few for a canvas, its keys and values go beside instead.
    full = cache_of(model, slots=15)
    model.encode(ids(1, 12), full)
    assert torch.equal(model.denoise(ids(1, 8), full), first)
    assert full._keys[0].shape[1] == 15 and not full._keys[0][:, 12:].any()


def test_a_view_made_once_serves_every_pass(model: Transformer) -> None:
    for lengths in (torch.tensor([12, 12]), torch.tensor([12, 5])):
        cache = cache_of(model, 2)
        model.encode(ids(2, 12), cache, lengths)
        view = model.view(cache, 8)
        for seed in (1, 2):
            canvas = ids(2, 8, seed=seed)
            assert torch.equal(model.denoise(canvas, cache, None, view), model.denoise(canvas, cache))


def test_nothing_hidden_needs_no_mask() -> None:
    config = tiny_config(sliding_window=8).text
    assert denoise_masks(config, torch.tensor([7, 7]), 4, 7, even=True) == {"full_attention": None, "sliding_attention": None}
    edge = denoise_masks(config, torch.tensor([8, 8]), 4, 8, even=True)
    assert edge["full_attention"] is None and drawn(edge["sliding_attention"]) == [".11111111111"]


def test_rows_at_different_lengths_and_in_different_roles_are_as_alone(model: Transformer) -> None:
    """Three rows: one gains 5 tokens, one gains 20 in two goes, one stands still; then all denoise."""
    rows, canvas = ids(3, 20), ids(3, 8, seed=3)
    together = cache_of(model, 3)
    model.encode(rows[:, :9], together, torch.tensor([5, 9, 3]))
    model.encode(rows[:, 9:], together, torch.tensor([0, 11, 0]))
    assert together.lengths.tolist() == [5, 20, 3]
    shared = model.denoise(canvas, together)
    for row, length in enumerate((5, 20, 3)):
        alone = cache_of(model)
        model.encode(rows[row : row + 1, :length], alone)
        assert torch.allclose(model.denoise(canvas[row : row + 1], alone)[0], shared[row], atol=1e-10)


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 7, 8, 9, 16, 22])
def test_prefill_in_chunks_is_one_pass(model: Transformer, chunk: int) -> None:
    """Window 8, prompt 23: boundaries fall inside and outside of the window."""
    prompt, canvas = ids(1, 23), ids(1, 8, seed=3)
    whole, parts = cache_of(model), cache_of(model)
    expected = model.encode(prompt, whole)
    got = torch.cat([model.encode(prompt[:, at : at + chunk], parts) for at in range(0, 23, chunk)], dim=1)
    assert torch.allclose(got, expected, atol=1e-10)
    for a, b in zip((*whole._keys, *whole._values), (*parts._keys, *parts._values), strict=True):
        assert torch.allclose(a[:, :23], b[:, :23], atol=1e-10)
    assert torch.allclose(model.denoise(canvas, whole), model.denoise(canvas, parts), atol=1e-10)


def test_leftovers_behind_a_rows_length_are_never_seen(model: Transformer) -> None:
    prompt, canvas = ids(1, 12), ids(1, 8, seed=3)
    clean, dirty = cache_of(model), cache_of(model)
    for cache, lengths in ((clean, None), (dirty, torch.tensor([6]))):
        model.encode(prompt[:, :6] if lengths is None else prompt, cache, lengths)
    assert torch.allclose(model.denoise(canvas, clean), model.denoise(canvas, dirty), atol=1e-12)
    assert torch.allclose(model.encode(canvas, clean), model.encode(canvas, dirty), atol=1e-12)


def test_no_room_left(model: Transformer) -> None:
    cache = cache_of(model, slots=10)
    model.encode(ids(1, 8), cache)
    with pytest.raises(InputError, match="holds 10 tokens a row and the longest row has 8: 3 more do not fit"):
        model.encode(ids(1, 3), cache)
    model.encode(ids(1, 2), cache)
    assert cache.used == 10


def test_the_public_passes_check_their_input(tmp_path: object, model: Transformer) -> None:
    from pathlib import Path

    public: DiffusionGemmaModel = tiny_model(Path(str(tmp_path)), tiny_transformer())
    cache = public.new_cache(2, 32)
    for wrong in (ids(1, 4), ids(2, 4)[0], ids(2, 0), ids(2, 4).int(), ids(2, 4) + 64, ids(2, 4) - 64):
        with pytest.raises(InputError, match="token ids"):
            public.encode(wrong, cache)
    with pytest.raises(InputError, match=r"soft has shape \[2, 8, 3\]; the canvas needs \[2, 8, 32\]"):
        public.denoise(ids(2, 8), cache, torch.zeros(2, 8, 3))
    for sizes in ((0, 8), (1, 0)):
        with pytest.raises(OptionError, match="at least 1"):
            public.new_cache(*sizes)
    hidden = public.encode(ids(2, 4), cache)
    assert hidden.shape == (2, 4, 32) and public.logits(hidden).shape == (2, 4, 64)
    assert public.logits(hidden).dtype == torch.float32 and public.logits(hidden).abs().max() <= 30


def drawn(mask: Tensor | None) -> list[str]:
    assert mask is not None
    return ["".join(".1"[int(seen)] for seen in row) for row in mask[0, 0].tolist()]


def test_masks_as_they_are_drawn_in_the_module() -> None:
    config = tiny_config(sliding_window=3).text
    masks = encode_masks(config, torch.tensor([2]), 2, 4)
    assert drawn(masks["full_attention"]) == ["111.", "1111"]
    assert drawn(masks["sliding_attention"]) == ["111.", ".111"]
    masks = denoise_masks(config, torch.tensor([4]), 2, 5)
    assert drawn(masks["full_attention"]) == ["1111.11"]
    assert drawn(masks["sliding_attention"]) == ["..11.11"]
