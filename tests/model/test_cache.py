"""The cache: what it keeps, that both passes see through it what a plain mask shows, and a clear word when it is full."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffusiongemma import kernels
from diffusiongemma.errors import InputError, OptionError
from diffusiongemma.generation import DiffusionGemmaModel
from diffusiongemma.model import attention, cache
from diffusiongemma.model.cache import KVCache, RowCache
from diffusiongemma.model.transformer import Transformer
from tests.plain import plain_denoise, plain_encode
from tests.tiny import tiny_config, tiny_model, tiny_transformer

WINDOW = 8


def cache_of(model: Transformer, rows: int = 1, slots: int = 64) -> KVCache:
    return KVCache(model.config.text, rows, slots, model.dtype, model.device)


@pytest.fixture(scope="module")
def model() -> Transformer:
    return tiny_transformer(dtype=torch.float64, scale=0.3)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages, blocks and chunks of a few tokens, so that a short prompt crosses them."""
    monkeypatch.setattr(cache, "PAGE", 16)
    monkeypatch.setattr(cache, "BLOCK", 4)
    monkeypatch.setattr(cache, "CHUNK_CPU", 5)


def ids(rows: int, tokens: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 64, (rows, tokens), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tokens", [1, 5, 6, 7, 8, 9, 15, 16, 17, 23, 24, 25, 31, 32, 33, 40, 47])
def test_both_passes_see_what_a_plain_mask_shows(model: Transformer, tokens: int) -> None:
    """Contexts of up to six windows and three pages, in chunks whose borders fall inside both; then a second canvas."""
    prompt, canvas, second = ids(1, tokens), ids(1, 8, seed=3), ids(1, 8, seed=4)
    soft = torch.randn(1, 8, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    ours = cache_of(model)
    expected, context = plain_encode(model, prompt)
    assert torch.allclose(model.encode(prompt, ours), expected, atol=1e-10)
    assert torch.allclose(model.denoise(canvas, ours), plain_denoise(model, tokens, context, canvas), atol=1e-10)
    assert torch.allclose(model.denoise(canvas, ours, soft), plain_denoise(model, tokens, context, canvas, soft), atol=1e-10)
    expected, context = plain_encode(model, torch.cat((prompt, canvas), dim=1))
    assert torch.allclose(model.encode(canvas, ours), expected[:, tokens:], atol=1e-10)
    assert torch.allclose(model.denoise(second, ours), plain_denoise(model, tokens + 8, context, second), atol=1e-10)


@pytest.mark.parametrize("window", [1, 2, 3, 8, 40])
@pytest.mark.parametrize("chunk", [1, 3, 8, 13])
def test_any_window_and_chunk(monkeypatch: pytest.MonkeyPatch, window: int, chunk: int) -> None:
    """Chunks shorter, as long and longer than the window; token by token too."""
    monkeypatch.setattr(cache, "CHUNK_CPU", chunk)
    model = tiny_transformer(tiny_config(sliding_window=window), dtype=torch.float64, scale=0.3)
    prompt, canvas = ids(1, 37), ids(1, 8, seed=3)
    ours = cache_of(model)
    expected, context = plain_encode(model, prompt)
    assert torch.allclose(model.encode(prompt, ours), expected, atol=1e-10)
    assert torch.allclose(model.denoise(canvas, ours), plain_denoise(model, 37, context, canvas), atol=1e-10)
    more = torch.cat([prompt, ids(1, 9, seed=6)], dim=1)
    expected, context = plain_encode(model, more)
    by_token = torch.cat([model.encode(more[:, at : at + 1], ours) for at in range(37, 46)], dim=1)
    assert torch.allclose(by_token, expected[:, 37:], atol=1e-10)
    assert torch.allclose(model.denoise(canvas, ours), plain_denoise(model, 46, context, canvas), atol=1e-10)


@pytest.mark.parametrize("window", [2, 8, 40])
@pytest.mark.parametrize("tokens", [1, 7, 8, 20, 33])
def test_a_window_a_position(window: int, tokens: int) -> None:
    """``per_position`` against its own plain mask; it is ``shared`` as long as nothing is further away than the window."""
    model = tiny_transformer(tiny_config(sliding_window=window), dtype=torch.float64, scale=0.3)
    prompt, canvas, ours = ids(1, tokens), ids(1, 8, seed=3), cache_of(model)
    model.encode(prompt, ours)
    _, context = plain_encode(model, prompt)
    moving = model.denoise(canvas, ours, canvas_window="per_position")
    assert torch.allclose(moving, plain_denoise(model, tokens, context, canvas, rule="per_position"), atol=1e-10)
    shared = model.denoise(canvas, ours)
    assert torch.allclose(shared, plain_denoise(model, tokens, context, canvas), atol=1e-10)
    assert torch.equal(moving, shared) == (tokens + 8 <= window)


def test_sliding_layers_keep_their_window_and_full_layers_all(model: Transformer) -> None:
    """Growth by blocks up to what ``bytes_of`` says, and never above it; a window and a chunk (or a canvas) for sliding layers."""
    row, dtype = RowCache(model.config.text, 64, model.dtype, model.device), model.dtype
    sizes = []
    for start in range(0, 56, 4):
        model.encode_rows([ids(1, 4, seed=start)[0].tolist()], [row])
        sizes.append(row.bytes)
        assert row.bytes <= KVCache.bytes_of(model.config.text, 64, dtype, canvas=0, chunk=5)
    # Two sliding layers of 2 heads of 8, a full one of 1 head of 16; keys and values of 8 bytes a number.
    a_full, a_sliding = 2 * 1 * 16 * 8, 2 * 2 * 2 * 8 * 8
    assert sizes[0] == 4 * (a_full + a_sliding) and sizes[1] == 8 * (a_full + a_sliding)
    assert sizes[-1] == 56 * a_full + (WINDOW - 1 + 5) * a_sliding
    assert KVCache.bytes_of(model.config.text, 64, dtype, canvas=0, chunk=5) == 64 * a_full + 12 * a_sliding
    model.denoise_rows([ids(1, 8)], [None], [model.canvas_metadata(row, 8)])
    assert row.bytes == 56 * a_full + (WINDOW - 1 + 8) * a_sliding, "a canvas takes no room in pages, and makes the window's larger"
    assert row.bytes <= KVCache.bytes_of(model.config.text, 64, dtype, canvas=8, chunk=5)
    few = RowCache(model.config.text, 6, model.dtype, model.device)
    model.encode_rows([ids(1, 6)[0].tolist()], [few])
    assert few.bytes == KVCache.bytes_of(model.config.text, 6, dtype, canvas=8, chunk=5) == 6 * (a_full + a_sliding)


def test_an_empty_cache_takes_nothing(model: Transformer) -> None:
    assert cache_of(model, rows=3, slots=1 << 20).bytes == 0


def test_nothing_hidden_needs_no_mask_and_none_is_wider_than_a_page(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[tuple[int, ...] | str | None] = []

    def attend(q: Tensor, pieces: list[tuple[Tensor, Tensor]], mask: Tensor | str | None = None) -> Tensor:
        masks.append(tuple(mask.shape) if isinstance(mask, Tensor) else mask)
        return plain(q, pieces, mask)

    plain = kernels.attention
    monkeypatch.setattr(attention.kernels, "attention", attend)
    ours = cache_of(model, slots=80)
    model.encode(ids(1, 60), ours)
    shapes = [mask for mask in masks if isinstance(mask, tuple)]
    assert masks[:3] == ["causal"] * 3, "the first chunk"
    assert max(shape[-1] for shape in shapes) <= max(cache.PAGE, WINDOW - 1 + 5) and max(shape[-2] for shape in shapes) == 5
    assert masks[-3:] == [(1, 1, 5, 12), (1, 1, 5, 12), "causal"], "full layers have none once the context fills a page"
    masks.clear()
    model.denoise(ids(1, 8), ours)
    model.encode(ids(1, 1), ours)
    model.denoise(ids(1, 8), ours)
    assert masks == [None] * 9


def test_keys_that_nobody_sees_are_not_read(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    plain = kernels.attention

    def attend(q: Tensor, pieces: list[tuple[Tensor, Tensor]], mask: Tensor | str | None) -> Tensor:
        read.append(sum(k.shape[1] for k, _ in pieces))
        return plain(q, pieces, mask)

    monkeypatch.setattr(attention.kernels, "attention", attend)
    ours = cache_of(model)
    model.encode(ids(1, 40), ours)
    read.clear()
    model.denoise(ids(1, 6), ours)
    assert read == [WINDOW - 1 + 6, WINDOW - 1 + 6, 40 + 6]


def test_denoising_leaves_the_cache_as_it_was(model: Transformer) -> None:
    """Bit for bit, where a canvas fits beside the context, where it crosses a page and where there is no room for its tokens."""
    for tokens, slots in ((12, 64), (14, 64), (30, 64), (12, 15)):
        untouched, ours = cache_of(model, slots=slots), cache_of(model, slots=slots)
        for each in (untouched, ours):
            model.encode(ids(1, tokens), each)
        first = model.denoise(ids(1, 8), ours)
        model.denoise(ids(1, 8, seed=1), ours, torch.randn(1, 8, 32, dtype=torch.float64))
        assert ours.lengths.tolist() == [tokens]
        assert torch.equal(model.denoise(ids(1, 8), ours), first) and torch.equal(model.denoise(ids(1, 8), untouched), first)
        assert torch.equal(model.encode(ids(1, 3, seed=2), ours), model.encode(ids(1, 3, seed=2), untouched))


def test_metadata_made_once_serves_every_pass(model: Transformer) -> None:
    ours = cache_of(model, 2)
    model.encode(ids(2, 12), ours, torch.tensor([12, 5]))
    for canvas in (ids(2, 8, seed=1), ids(2, 8, seed=2)):
        metadata = [model.canvas_metadata(row, 8) for row in ours.rows]
        rows = model.denoise_rows(torch.split(canvas, 1), [None, None], metadata)
        assert torch.equal(torch.stack(rows), model.denoise(canvas, ours))


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


def test_in_float32_a_row_has_the_same_bits_in_any_company() -> None:
    model = tiny_transformer(scale=0.3)
    rows, canvas, lengths = ids(4, 40), ids(4, 8, seed=3), torch.tensor([40, 7, 33, 16])
    together = cache_of(model, 4)
    hidden = model.encode(rows, together, lengths)
    denoised = model.denoise(canvas, together)
    for row, length in enumerate(lengths.tolist()):
        alone = cache_of(model)
        assert torch.equal(model.encode(rows[row : row + 1, :length], alone)[0], hidden[row, :length])
        assert torch.equal(model.denoise(canvas[row : row + 1], alone)[0], denoised[row])


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 7, 8, 9, 16, 22])
def test_prefill_in_chunks_is_one_pass(model: Transformer, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Window 8, prompt 23: boundaries fall inside and outside of the window."""
    prompt, canvas = ids(1, 23), ids(1, 8, seed=3)
    whole, parts = cache_of(model), cache_of(model)
    got = torch.cat([model.encode(prompt[:, at : at + chunk], parts) for at in range(0, 23, chunk)], dim=1)
    monkeypatch.setattr(cache, "CHUNK_CPU", 64)
    assert torch.allclose(got, model.encode(prompt, whole), atol=1e-10)
    assert torch.allclose(model.denoise(canvas, whole), model.denoise(canvas, parts), atol=1e-10)


def test_padding_is_never_seen(model: Transformer) -> None:
    prompt, canvas = ids(1, 12), ids(1, 8, seed=3)
    clean, dirty = cache_of(model), cache_of(model)
    for each, lengths in ((clean, None), (dirty, torch.tensor([6]))):
        model.encode(prompt[:, :6] if lengths is None else prompt, each, lengths)
    assert torch.equal(model.denoise(canvas, clean), model.denoise(canvas, dirty))
    assert torch.equal(model.encode(canvas, clean), model.encode(canvas, dirty))


@pytest.mark.parametrize("tokens", [1, 9, 16, 30, 32])
def test_forks_go_on_alone(model: Transformer, tokens: int) -> None:
    """Two rows that go on from one context, and the context itself, each as if it were alone."""
    prompt, canvas = ids(1, tokens), ids(1, 8, seed=3)
    ours = cache_of(model)
    model.encode(prompt, ours)
    row = ours.rows[0]
    forks = [row.fork(), row.fork()]
    texts = [ids(1, 11, seed=seed) for seed in (7, 8)]
    for start in (0, 6):  # in turns
        for fork, text in zip(forks, texts, strict=True):
            model.encode_rows([text[0, start : start + 6].tolist()], [fork])
    for fork, text in zip(forks, texts, strict=True):
        alone = cache_of(model)
        model.encode(torch.cat((prompt, text), dim=1), alone)
        (forked,) = model.denoise_rows([canvas], [None], [model.canvas_metadata(fork, 8)])
        assert torch.allclose(forked, model.denoise(canvas, alone)[0], atol=1e-10)
    untouched = cache_of(model)
    model.encode(prompt, untouched)
    assert row.length == tokens and torch.equal(model.denoise(canvas, ours), model.denoise(canvas, untouched))
    if tokens >= cache.PAGE:
        layer = model.config.text.layer_types.index("full_attention")
        assert forks[0]._layers[layer]._pages[0][0] is row._layers[layer]._pages[0][0]  # type: ignore[attr-defined]


def test_what_is_read_out_can_be_put_into_another_row(model: Transformer) -> None:
    prompt, canvas = ids(1, 36), ids(1, 8, seed=3)
    ours = cache_of(model)
    model.encode(prompt[:, :20], ours)
    blocks = [ours.rows[0].read(start, start + 5, sliding=True) for start in (10, 15)]
    model.encode(prompt[:, 20:30], ours)
    full = [ours.rows[0].read(start, start + 10, sliding=False) for start in (0, 10)]
    other = cache_of(model)
    other.rows[0].restore(20, full, blocks)
    same = cache_of(model)
    model.encode(prompt[:, :20], same)
    assert torch.equal(model.denoise(canvas, other), model.denoise(canvas, same))
    assert torch.equal(model.encode(prompt[:, 20:], other), model.encode(prompt[:, 20:], same))
    assert other.rows[0].bytes == same.rows[0].bytes


def test_a_cache_filled_in_inference_mode_serves_outside_of_it(model: Transformer) -> None:
    ours = cache_of(model)
    with torch.inference_mode():
        model.encode(ids(1, 12), ours)
    model.denoise(ids(1, 8), ours)
    model.encode(ids(1, 8), ours)
    assert ours.lengths.tolist() == [20]


def test_no_room_left(model: Transformer) -> None:
    ours = cache_of(model, slots=10)
    model.encode(ids(1, 8), ours)
    with pytest.raises(InputError, match="holds 10 tokens a row and the longest row has 8: 3 more do not fit"):
        model.encode(ids(1, 3), ours)
    model.encode(ids(1, 2), ours)
    assert ours.lengths.tolist() == [10]
    both = cache_of(model, 2, slots=10)
    with pytest.raises(InputError, match="11 more do not fit"):
        model.encode(ids(2, 11), both, torch.tensor([3, 11]))
    assert both.lengths.tolist() == [0, 0], "nothing is written before all is known to fit"
    with pytest.raises(InputError, match="11 more do not fit"):
        model.encode_rows([ids(1, 11)[0].tolist()], [both.rows[0]])


def test_the_public_passes_check_their_input(tmp_path: Path) -> None:
    public: DiffusionGemmaModel = tiny_model(tmp_path, tiny_transformer())
    ours = public.new_cache(2, 32)
    for wrong in (ids(1, 4), ids(2, 4)[0], ids(2, 0), ids(2, 4).int(), ids(2, 4) + 64, ids(2, 4) - 64):
        with pytest.raises(InputError, match="token ids"):
            public.encode(wrong, ours)
    with pytest.raises(InputError, match=r"soft has shape \[2, 8, 3\]; the canvas needs \[2, 8, 32\]"):
        public.denoise(ids(2, 8), ours, torch.zeros(2, 8, 3))
    with pytest.raises(OptionError, match="canvas_window is 'moving'; allowed: shared, per_position"):
        public.denoise(ids(2, 8), ours, canvas_window="moving")  # type: ignore[arg-type]
    for sizes in ((0, 8), (1, 0)):
        with pytest.raises(OptionError, match="at least 1"):
            public.new_cache(*sizes)
    hidden = public.encode(ids(2, 4), ours)
    assert hidden.shape == (2, 4, 32) and public.logits(hidden).shape == (2, 4, 64)
    assert public.logits(hidden).dtype == torch.float32 and public.logits(hidden).abs().max() <= 30
