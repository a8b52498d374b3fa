"""The prefix cache: what is found has the bits of what is computed, its bound holds at every moment, and the beginning stays."""

import random

import pytest
import torch
from torch import Tensor

from diffusiongemma.engine.prefix import PrefixCache, block_bytes, default_prefix_bytes
from diffusiongemma.model import cache
from diffusiongemma.model.cache import RowCache
from diffusiongemma.model.config import ModelConfig
from diffusiongemma.model.transformer import Transformer
from tests import released
from tests.tiny import tiny_config, tiny_transformer

BLOCK, WINDOW = 4, 8
GENEROUS = 1 << 20
CANVAS = torch.arange(8)[None]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "PAGE", 16)
    monkeypatch.setattr(cache, "BLOCK", 4)
    monkeypatch.setattr(cache, "CHUNK_CPU", BLOCK)


@pytest.fixture(scope="module")
def model() -> Transformer:
    return tiny_transformer(scale=0.4)


class Watched(PrefixCache):
    """Says of every block that is copied that there was room for it before."""

    def store(self, names: list[bytes], row: RowCache) -> None:  # type: ignore[override]
        read = row.read

        def checked(start: int, end: int, *, sliding: bool) -> list[tuple[Tensor, Tensor]]:
            block = read(start, end, sliding=sliding)
            assert self.bytes + sum(k.nbytes + v.nbytes for k, v in block) <= self._max_bytes
            return block

        row.read = checked  # type: ignore[method-assign]
        super().store(names, row)
        row.read = read  # type: ignore[method-assign]
        assert self.bytes == sum(k.nbytes + v.nbytes for part in self._parts.values() for k, v in part) <= self._max_bytes


def prefix_of(model: Transformer, max_bytes: int) -> Watched:
    return Watched(model.config.text, model.dtype, BLOCK, max_bytes)


def part_sizes(model: Transformer) -> tuple[int, int]:
    """Bytes of a block's two parts: full layers, sliding layers."""
    full, sliding = (block_bytes(model.config.text, BLOCK, model.dtype, sliding=sliding) for sliding in (False, True))
    return full, sliding


def prefill(model: Transformer, prompt: list[int], prefix: PrefixCache) -> tuple[int, Tensor, Tensor]:
    """Tokens found, the last hidden state, and a canvas after the prompt: as the engine does it."""
    row = RowCache(model.config.text, 128, model.dtype, model.device)
    names = prefix.names(prompt)
    result = prefix.load(names, row, len(prompt) - 1)
    assert row.length == result
    hidden = torch.empty(0)
    for start in range(result, len(prompt), BLOCK):
        (hidden,) = model.encode_rows([prompt[start : start + BLOCK]], [row])
        prefix.store(names, row)
    return result, hidden[-1], model.denoise_rows([CANVAS], [None], [model.canvas_metadata(row, 8)])[0]


@pytest.mark.parametrize("window", [1, 2, 5, 8, 9, 30])
@pytest.mark.parametrize("layer_types", [["sliding_attention"] * 2 + ["full_attention"], ["full_attention"] * 2])
@pytest.mark.parametrize("blocks", [1, 4, 9, 1000])
def test_what_is_found_has_the_bits_of_what_is_computed(window: int, layer_types: list[str], blocks: int) -> None:
    """Prompts with beginnings in common, of any length, in any order, under any bound."""
    config = tiny_config(sliding_window=window, layer_types=layer_types, num_hidden_layers=len(layer_types))
    model = tiny_transformer(config, scale=0.4)
    prefix, none = prefix_of(model, blocks * sum(part_sizes(model))), prefix_of(model, 0)
    draw = random.Random(window * blocks)
    roots = [[draw.randrange(64) for _ in range(60)] for _ in range(2)]
    for _ in range(18):
        root = draw.choice(roots)
        prompt = root[: draw.randrange(1, 60)] + [draw.randrange(64) for _ in range(draw.randrange(6))]
        _, hidden, canvas = prefill(model, prompt, prefix)
        _, expected, expected_canvas = prefill(model, prompt, none)
        assert torch.equal(hidden, expected) and torch.equal(canvas, expected_canvas)
    assert prefix.reused or blocks == 1
    assert not none.bytes and not none.reused


def test_the_longest_beginning_is_found_and_the_last_token_never(model: Transformer) -> None:
    prefix, prompt = prefix_of(model, GENEROUS), list(range(24))
    assert prefill(model, prompt, prefix)[0] == 0
    assert prefill(model, prompt, prefix)[0] == 20
    assert prefill(model, [*prompt, 1], prefix)[0] == 24
    assert prefill(model, [*prompt[:10], 63, 62], prefix)[0] == 8
    assert prefill(model, prompt[:4], prefix)[0] == 0 and prefill(model, [5, *prompt], prefix)[0] == 0
    assert prefix.reused == 20 + 24 + 8


def test_of_a_prompt_that_is_larger_than_the_bound_the_beginning_stays(model: Transformer) -> None:
    """Sliding layers' parts that the window does not reach give way to full layers' parts: five blocks take the room of three."""
    full, sliding = part_sizes(model)
    assert sliding == 2 * full
    prompt = list(range(60))
    for room, depth in ((5 * full + 2 * sliding, 5), (3 * full + 3 * sliding, 5), (full + sliding, 1)):
        prefix = prefix_of(model, room)
        prefill(model, prompt, prefix)
        assert prefix.bytes <= room
        assert prefill(model, prompt, prefix)[0] == BLOCK * depth
    assert prefix_of(model, 1).names(prompt) and not prefix_of(model, 0).names(prompt)
    none_fits = prefix_of(model, full + sliding - 1)
    prefill(model, prompt, none_fits)
    assert prefill(model, prompt, none_fits)[0] == 0


def test_the_least_recently_used_go_first(model: Transformer) -> None:
    full, sliding = part_sizes(model)
    prefix = prefix_of(model, 4 * (full + sliding))
    first, second, third = ([n] * 9 for n in (1, 2, 3))
    prefill(model, first, prefix)
    prefill(model, second, prefix)
    assert prefill(model, first, prefix)[0] == 8
    prefill(model, third, prefix)
    assert prefill(model, first, prefix)[0] == 8 and prefill(model, second, prefix)[0] == 0


def test_nothing_is_dropped_for_what_will_not_fit(model: Transformer) -> None:
    """A block has no room beside those before it: what others left stays."""
    full, sliding = part_sizes(model)
    prefix = prefix_of(model, 2 * (full + sliding))
    long, short = list(range(40)), [50, 51, 52, 53, 54]
    prefill(model, long, prefix)
    constraint = prefix.bytes
    row = RowCache(model.config.text, 64, model.dtype, model.device)
    prefix.load(prefix.names(long), row, 39)
    assert prefix._made_room(3 * (full + sliding), []) is False and prefix.bytes == constraint
    prefill(model, short, prefix)
    assert prefill(model, short, prefix)[0] == 4


def test_a_common_beginning_is_found_by_prompts_that_go_on_differently(model: Transformer) -> None:
    prefix = prefix_of(model, GENEROUS)
    system = list(range(20))
    for end in range(30, 36):
        result = prefill(model, [*system, *[end] * 20], prefix)[0]
        assert result == (0 if end == 30 else 20)


def test_the_default_holds_something_of_every_model() -> None:
    small = tiny_config().text
    assert default_prefix_bytes(small, torch.float32, 64, 1 << 40) == 64 << 20
    large = ModelConfig.from_dict(released.config()).text
    a_block = sum(block_bytes(large, 1024, torch.bfloat16, sliding=sliding) for sliding in (False, True))
    assert a_block == 220 << 20
    assert default_prefix_bytes(large, torch.bfloat16, 1024, 1 << 40) == 8 * a_block
    assert default_prefix_bytes(large, torch.bfloat16, 1024, 4 << 30) == 1 << 30, "a quarter of what caches may take"
    assert default_prefix_bytes(large, torch.bfloat16, 1024, 1 << 20) == a_block, "but at least a block"
