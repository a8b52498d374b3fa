"""Both passes against transformers, number for number.

Two precisions do different work. In float64 both sides round each norm to float32 at the same places, so that an equal
computation gives equal numbers to far below any modelling difference: that is the strict check. In float32, which users
run, the order of sums shows, and the bound is a few roundings.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusiongemma.kernels import Choice, dispatch
from diffusiongemma.model.cache import KVCache
from diffusiongemma.model.transformer import Transformer
from tests.parity.reference import CACHE, CONFIGS, Pair, load_ours, load_reference, make_pair, with_encoder_states, write_checkpoint
from tests.tiny import tiny_config, tiny_transformer

pytestmark = pytest.mark.usefixtures("_inference")
STRICT, FLOAT32 = 1e-9, 1e-5


@pytest.fixture(name="_inference")
def _inference_fixture():
    with torch.inference_mode():
        yield


def ids_of(pair: Pair, tokens: int, seed: int = 1, batch: int = 1) -> Tensor:
    vocabulary = pair.ours.config.text.vocab_size
    return torch.randint(0, vocabulary, (batch, tokens), generator=torch.Generator().manual_seed(seed))


def assert_near(ours: Tensor, theirs: Tensor, relative: float) -> None:
    """The largest difference, in units of the largest number."""
    assert ours.shape == theirs.shape
    scale = float(theirs.abs().max())
    assert scale > 0.1, "the oracle's numbers are too small to compare with"
    difference = float((ours - theirs).abs().max()) / scale
    assert difference <= relative, f"differs by {difference:.2g} of {scale:.3g}"


def reference_causal_logits(pair: Pair, hidden: Tensor) -> Tensor:
    """What the reference's head makes of encoder states; it has no method of its own for it."""
    cap = pair.reference.final_logit_softcapping
    return torch.tanh(pair.reference.lm_head(hidden).float() / cap) * cap


def check_first_canvas(pair: Pair, prompt_tokens: int, relative: float) -> None:
    """Prompt, causal logits, a first step, and a second step that is conditioned on the first."""
    theirs, ours = pair.contexts()
    prompt, canvas, second = ids_of(pair, prompt_tokens), ids_of(pair, 8, seed=2), ids_of(pair, 8, seed=3)

    expected, encoded = with_encoder_states(pair.reference, input_ids=prompt, **{CACHE: theirs}, decoder_input_ids=canvas)
    hidden = pair.ours.encode(prompt, ours)
    assert_near(hidden, encoded, relative)
    assert_near(pair.ours.logits(hidden), reference_causal_logits(pair, encoded), max(relative, 1e-6))
    logits = pair.ours.logits(pair.ours.denoise(canvas, ours))
    assert_near(logits, expected.logits, max(relative, 1e-6))

    shaped = expected.logits / 0.7
    conditioned = pair.reference(**{CACHE: theirs}, decoder_input_ids=second, self_conditioning_logits=shaped.to(pair.ours.dtype))
    soft = pair.ours.soften(shaped)
    assert_near(pair.ours.logits(pair.ours.denoise(second, ours, soft)), conditioned.logits, max(relative, 1e-6))
    # The block must matter here, or the comparison above would say nothing about it.
    assert not torch.allclose(pair.ours.logits(pair.ours.denoise(second, ours)), conditioned.logits, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("prompt_tokens", [5, 21])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_in_float64(tmp_path: Path, name: str, prompt_tokens: int) -> None:
    """Each field of a config does what it does in transformers; 5 tokens fit the window of 8, 21 do not."""
    check_first_canvas(make_pair(tmp_path, torch.float64, **CONFIGS[name]), prompt_tokens, STRICT)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_in_float32(tmp_path: Path, name: str, attention: str) -> None:
    check_first_canvas(make_pair(tmp_path, torch.float32, attention, **CONFIGS[name]), 21, FLOAT32)


@pytest.mark.parametrize("prompt_tokens", [1, 6, 7, 8, 9, 16])
def test_the_window_edge(tmp_path: Path, prompt_tokens: int) -> None:
    """One token more or less in the window is the mistake to expect: prompts around its size, one by one."""
    check_first_canvas(make_pair(tmp_path, torch.float64), prompt_tokens, STRICT)


@pytest.mark.parametrize("choice", ["dense", "grouped"])
@pytest.mark.parametrize(("experts", "chosen"), [(1, 1), (4, 2), (8, 3)])
def test_both_expert_implementations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: str, experts: int, chosen: int
) -> None:
    asked: list[tuple[int, ...]] = []

    def forced(*sizes: Any) -> Choice:
        asked.append(sizes[:3])
        return Choice(choice, "forced by the test")

    monkeypatch.setattr(dispatch, "experts_choice", forced)
    check_first_canvas(make_pair(tmp_path, torch.float64, num_experts=experts, top_k_experts=chosen), 21, STRICT)
    assert (experts, chosen, 3 * 16 * 32) in asked


@pytest.mark.parametrize("prompt_tokens", [5, 21])
def test_four_canvases(tmp_path: Path, prompt_tokens: int) -> None:
    """Commit and go on: each finished canvas is encoded after the ones before it, and the next one sees it."""
    pair = make_pair(tmp_path, torch.float64)
    theirs, ours = pair.contexts()
    commit = ids_of(pair, prompt_tokens)
    for index in range(4):
        canvas = ids_of(pair, 8, seed=10 + index)
        expected, encoded = with_encoder_states(pair.reference, input_ids=commit, **{CACHE: theirs}, decoder_input_ids=canvas)
        assert_near(pair.ours.encode(commit, ours), encoded, STRICT)
        logits = pair.ours.logits(pair.ours.denoise(canvas, ours))
        assert_near(logits, expected.logits, 1e-6)
        conditioned = pair.reference(**{CACHE: theirs}, decoder_input_ids=canvas, self_conditioning_logits=expected.logits.double())
        logits = pair.ours.logits(pair.ours.denoise(canvas, ours, pair.ours.soften(expected.logits)))
        assert_near(logits, conditioned.logits, 1e-6)
        commit = logits.argmax(-1)
    assert ours.lengths.tolist() == [prompt_tokens + 3 * 8]


def test_bfloat16_is_as_near_to_the_truth_as_the_reference(tmp_path: Path) -> None:
    """bfloat16 keeps 8 bits, and two correct programs differ by several roundings; so errors are compared, not numbers.

    The truth is the reference in float32 on the same (bfloat16) weights. Ours may err at most 1.25 times as much as the
    reference in bfloat16 does, over 4 checkpoints and 8 canvases each; and may be no further from the reference in
    bfloat16 than that is from the truth.
    """
    ours_error, their_error, apart = 0.0, 0.0, 0.0
    for seed in range(4):
        folder = tmp_path / str(seed)
        write_checkpoint(folder, seed=seed, weight_dtype=torch.bfloat16)
        pair = Pair(load_reference(folder, torch.bfloat16), load_ours(folder, torch.bfloat16), folder)
        truth = Pair(load_reference(folder, torch.float32), load_ours(folder, torch.float32), folder)
        prompt, canvas = ids_of(pair, 21, seed, batch=8), ids_of(pair, 8, seed + 50, batch=8)
        (theirs, ours), (exact, _) = pair.contexts(8), truth.contexts(8)
        expected = truth.reference(input_ids=prompt, **{CACHE: exact}, decoder_input_ids=canvas).logits
        their_logits = pair.reference(input_ids=prompt, **{CACHE: theirs}, decoder_input_ids=canvas).logits
        pair.ours.encode(prompt, ours)
        logits = pair.ours.logits(pair.ours.denoise(canvas, ours))
        assert logits.dtype == torch.float32
        ours_error += float((logits - expected).abs().mean() / expected.abs().mean())
        their_error += float((their_logits - expected).abs().mean() / expected.abs().mean())
        apart += float((logits - their_logits).abs().mean() / expected.abs().mean())
    assert their_error > 1e-3, "the reference shows no rounding: this compares nothing"
    assert ours_error < 1.25 * their_error
    assert apart < their_error


def encoded(model: Transformer, prompt: Tensor, chunks: list[int]) -> tuple[Tensor, KVCache]:
    """Hidden states and cache of a prompt that is encoded in parts of the given sizes."""
    cache = KVCache(model.config.text, prompt.shape[0], 64, model.dtype, torch.device("cpu"))
    parts = [model.encode(part, cache) for part in prompt.split(chunks, dim=1)]
    return torch.cat(parts, dim=1), cache


@pytest.mark.parametrize("size", range(1, 22))
def test_prefill_in_chunks_is_one_pass(size: int) -> None:
    """A boundary inside the window must lose nothing; every chunk size up to the prompt, around a window of 8."""
    prompt = torch.randint(0, 64, (1, 21), generator=torch.Generator().manual_seed(size))
    canvas = torch.randint(0, 64, (1, 8), generator=torch.Generator().manual_seed(99))
    chunks = [size] * (21 // size) + ([21 % size] if 21 % size else [])
    for dtype in (torch.float64, torch.float32):
        model = tiny_transformer(dtype=dtype)
        whole, whole_cache = encoded(model, prompt, [21])
        parts, parts_cache = encoded(model, prompt, chunks)
        whole_canvas, parts_canvas = model.denoise(canvas, whole_cache), model.denoise(canvas, parts_cache)
        if dtype is torch.float64:
            assert_near(parts, whole, 1e-10)
            assert_near(parts_canvas, whole_canvas, 1e-10)
        assert torch.equal(model.logits(parts).argmax(-1), model.logits(whole).argmax(-1))
        assert torch.equal(model.logits(parts_canvas).argmax(-1), model.logits(whole_canvas).argmax(-1))


def test_uneven_chunks_are_one_pass() -> None:
    model = tiny_transformer(dtype=torch.float64)
    prompt = torch.randint(0, 64, (2, 40), generator=torch.Generator().manual_seed(5))
    whole, _ = encoded(model, prompt, [40])
    parts, _ = encoded(model, prompt, [1, 7, 2, 8, 9, 1, 12])
    assert_near(parts, whole, 1e-10)


def test_rows_of_different_lengths_are_the_rows_alone() -> None:
    """Right-padded prompts, then two commits of which the second skips a row: padding is never seen by anyone."""
    model = tiny_transformer(dtype=torch.float64)
    generator = torch.Generator().manual_seed(6)
    lengths = torch.tensor([3, 21, 8, 9])
    prompts = torch.randint(0, 64, (4, 21), generator=generator)
    canvas = torch.randint(0, 64, (4, 8), generator=generator)
    commits = torch.randint(0, 64, (2, 4, 8), generator=generator)
    second = torch.tensor([8, 8, 0, 8])
    together = KVCache(model.config.text, 4, 64, model.dtype, torch.device("cpu"))
    hidden = model.encode(prompts, together, lengths)
    model.encode(commits[0], together)
    model.encode(commits[1], together, second)
    soft = torch.randn(4, 8, 32, dtype=torch.float64, generator=generator)
    denoised = model.denoise(canvas, together, soft)
    for row in range(4):
        alone = KVCache(model.config.text, 1, 64, model.dtype, torch.device("cpu"))
        n = int(lengths[row])
        assert_near(hidden[row : row + 1, :n], model.encode(prompts[row : row + 1, :n], alone), 1e-10)
        model.encode(commits[0, row : row + 1], alone)
        if second[row]:
            model.encode(commits[1, row : row + 1], alone)
        assert_near(denoised[row : row + 1], model.denoise(canvas[row : row + 1], alone, soft[row : row + 1]), 1e-10)
        assert int(together.lengths[row]) == int(alone.lengths[0])


def test_the_canvas_reads_its_own_context() -> None:
    """A change in the prompt, in the window or before it, must reach the canvas: else the checks above compare nothing."""
    model = tiny_transformer(tiny_config(), dtype=torch.float64)
    prompt = torch.randint(0, 64, (1, 21), generator=torch.Generator().manual_seed(7))
    canvas = torch.randint(0, 64, (1, 8), generator=torch.Generator().manual_seed(8))
    before = model.denoise(canvas, encoded(model, prompt, [21])[1])
    for position in (0, 20):
        changed = prompt.clone()
        changed[0, position] = (changed[0, position] + 1) % 64
        after = model.denoise(canvas, encoded(model, changed, [21])[1])
        assert (after - before).abs().amax(-1).min() > 1e-4
