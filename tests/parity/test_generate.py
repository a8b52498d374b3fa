"""Whole generations against transformers, token for token.

transformers runs its own ``generate`` loop. Only its two sources of chance are replaced, by numbers from our counter-based
generator with the same keys: ``torch.randint`` (the initial canvas, and re-noising) and ``torch.multinomial`` (the draw).
Weights are float64 unless a test says otherwise, so that no rounding can flip a token on another machine.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.models.diffusion_gemma import generation_diffusion_gemma as theirs
from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
    DiffusionGemmaGenerationConfig,
    EntropyBoundSamplerConfig,
)

from diffusiongemma.diffusion import SamplingParams
from diffusiongemma.engine.events import Done, Draft, Result
from diffusiongemma.engine.offline import OfflineEngine
from diffusiongemma.engine.request import Request
from diffusiongemma.kernels import RngPurpose, dispatch, draw, position_keys, random_ids, reference, tiled
from tests.parity.reference import CACHE, Pair, make_pair
from tests.tiny import letters

LENGTH, VOCABULARY = 8, 64


class SharedChance:
    """Stands in for the name ``torch`` inside transformers' generation module; only two of its functions differ.

    ``generate`` calls randint once for each new canvas, then multinomial and randint in each step.
    """

    def __init__(self, seeds: list[int]) -> None:
        self._seed_B = torch.tensor(seeds)
        self.canvas = -1
        self.step = 0
        self._drawn = False

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def _keys(self, stream: RngPurpose) -> Tensor:
        same = torch.ones_like(self._seed_B)
        return position_keys(self._seed_B, same * self.canvas, same * self.step, stream, LENGTH)

    def randint(self, low: int, high: int, size: tuple[int, int], device: torch.device) -> Tensor:
        assert (low, high, size) == (0, VOCABULARY, (len(self._seed_B), LENGTH))
        if not self._drawn:
            self.canvas, self.step = self.canvas + 1, 0
            return random_ids(self._keys(RngPurpose.INITIAL), high)
        noise = random_ids(self._keys(RngPurpose.RENOISE), high)
        self._drawn, self.step = False, self.step + 1
        return noise

    def multinomial(self, probs: Tensor, num_samples: int) -> Tensor:
        assert num_samples == 1
        self._drawn = True
        return draw(probs.log(), self._keys(RngPurpose.DRAW).flatten())[:, None]


@dataclass
class Watch:
    """A streamer of transformers that keeps the draft of every step, and how many passes each row took."""

    chance: SharedChance
    drafts: dict[tuple[int, int], list[list[int]]] = field(default_factory=dict)
    passes: list[int] = field(default_factory=list)

    def put(self, value: Tensor) -> None:
        pass

    def put_draft(self, value: Tensor) -> None:
        self.drafts[self.chance.canvas, self.chance.step] = value.tolist()

    def end(self) -> None:
        pass


def their_answers(
    pair: Pair, prompts: list[list[int]], params: SamplingParams, stop_ids: list[int], monkeypatch: pytest.MonkeyPatch
) -> tuple[list[list[int]], Watch]:
    """Answers of transformers: each row up to its first stop token, and what was seen on the way."""
    chance = SharedChance([params.seed] * len(prompts))
    watch = Watch(chance)
    longest = max(map(len, prompts))
    padded = torch.tensor([[0] * (longest - len(ids)) + ids for ids in prompts])
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts])

    def keep_passes(ids: Tensor, passes: Tensor, *_: Any) -> Tensor:
        watch.passes = passes.tolist()
        return passes

    with monkeypatch.context() as patch:
        patch.setattr(theirs, "torch", chance)
        patch.setattr(pair.reference, "_compute_tokens_per_forward", keep_passes, raising=False)
        output = pair.reference.generate(
            padded,
            attention_mask=mask,
            streamer=watch,
            generation_config=DiffusionGemmaGenerationConfig(
                max_new_tokens=params.max_tokens,
                max_denoising_steps=params.num_diffusion_steps,
                sampler_config=EntropyBoundSamplerConfig(params.entropy_bound),
                t_min=params.t_min,
                t_max=params.t_max,
                # transformers has no switch for the early stop: a history longer than the steps is never all equal.
                stability_threshold=params.stability if params.early_stop else 1000,
                confidence_threshold=params.confidence,
                eos_token_id=stop_ids,
                pad_token_id=0,
                bos_token_id=2,
            ),
        )
    answers = []
    for ids in output.sequences[:, longest:].tolist():
        end = next((i + 1 for i, token in enumerate(ids) if token in stop_ids), len(ids))
        answers.append(ids[: min(end, params.max_tokens)])
    return answers, watch


def our_answers(
    pair: Pair, prompts: list[list[int]], params: SamplingParams, stop_ids: list[int]
) -> tuple[list[Result], list[Draft]]:
    requests = [Request(prompt=ids, params=params, stop_ids=tuple(stop_ids), drafts=True) for ids in prompts]
    results: dict[int, Result] = {}
    drafts = []
    for event in OfflineEngine(pair.ours, letters(pair.folder)).run(requests):
        if isinstance(event, Done):
            results[event.row] = event.result
        elif isinstance(event, Draft):
            drafts.append(event)
    return [results[row] for row in range(len(prompts))], drafts


def check(
    pair: Pair,
    prompts: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
    stop_ids: list[int] | None = None,
    **options: Any,
) -> list[Result]:
    """Same tokens, same draft at every step, same number of passes."""
    params = SamplingParams(**options)
    expected, watch = their_answers(pair, prompts, params, stop_ids or [], monkeypatch)
    results, drafts = our_answers(pair, prompts, params, stop_ids or [])
    assert [result.token_ids for result in results] == expected
    assert [result.usage.denoising_steps for result in results] == watch.passes
    assert drafts
    for draft in drafts:
        assert draft.argmax_ids == watch.drafts[draft.canvas, draft.step][draft.row], (draft.row, draft.canvas, draft.step)
    return results


@pytest.fixture(scope="module", name="unsure")
def _unsure(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A model of high entropy: most positions are re-noised at every step."""
    return make_pair(tmp_path_factory.mktemp("unsure"), torch.float64, gentle=True, seed=1)


@pytest.fixture(scope="module", name="sure")
def _sure(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A model of low entropy: rows settle, each at its own step."""
    return make_pair(tmp_path_factory.mktemp("sure"), torch.float64, gentle=True, sharpness=5.0, seed=1)


@pytest.fixture(autouse=True, params=["plain", "tiled"])
def _head(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both canvas heads; the tiled one, which this vocabulary of 64 is too small for, with four tiles of a group each."""
    if request.param == "tiled":
        monkeypatch.setattr(dispatch, "PLAIN_HEAD_LIMIT", 0)
        monkeypatch.setattr(tiled, "TILE_NUMBERS", 0)
        monkeypatch.setattr(tiled, "TILE_MIN", 16)
        for module in (reference, tiled):
            monkeypatch.setattr(module, "GROUP", 16)


def prompts_of(*lengths: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


@pytest.mark.parametrize("bound", [0.01, 0.5, 2.0, 100.0])
def test_every_step_runs(unsure: Pair, monkeypatch: pytest.MonkeyPatch, bound: float) -> None:
    """From one accepted position a step to the whole canvas at once."""
    results = check(
        unsure,
        prompts_of(5, 5),
        monkeypatch,
        early_stop=False,
        num_diffusion_steps=7,
        max_tokens=16,
        entropy_bound=bound,
        seed=3,
    )
    assert [result.usage.denoising_steps for result in results] == [14, 14]


def test_the_bound_decides_how_much_is_accepted(unsure: Pair) -> None:
    """The cases above differ in what they accept; otherwise one of them would do."""
    accepted = []
    for bound in (0.01, 2.0, 100.0):
        params = SamplingParams(early_stop=False, num_diffusion_steps=7, max_tokens=16, entropy_bound=bound, seed=3)
        _, drafts = our_answers(unsure, prompts_of(5, 5), params, [])
        accepted.append(sum(sum(draft.accepted) for draft in drafts))
    assert accepted[0] < accepted[1] < accepted[2] == 2 * 14 * LENGTH


@pytest.mark.parametrize("stability", [0, 1, 2, 3])
def test_rows_stop_early_each_at_its_own_step(sure: Pair, monkeypatch: pytest.MonkeyPatch, stability: int) -> None:
    """A row that has stopped keeps its canvas while its neighbours go on."""
    results = check(
        sure,
        prompts_of(6, 6, 6, 6, 6, 6),
        monkeypatch,
        num_diffusion_steps=24,
        confidence=0.3,
        stability=stability,
        max_tokens=8,
        entropy_bound=0.5,
        seed=13,
    )
    steps = [result.usage.denoising_steps for result in results]
    assert len(set(steps)) >= 2
    assert min(steps) < 24


@pytest.mark.parametrize("t_range", [(0.0, 1.0), (0.4, 0.8), (0.2, 3.0)])
def test_temperatures(sure: Pair, monkeypatch: pytest.MonkeyPatch, t_range: tuple[float, float]) -> None:
    check(
        sure,
        prompts_of(4, 4),
        monkeypatch,
        early_stop=False,
        num_diffusion_steps=6,
        max_tokens=8,
        t_min=t_range[0],
        t_max=t_range[1],
        seed=5,
    )


def stop_in_the_middle(results: list[Result]) -> tuple[int, int]:
    """A row and a token that comes first inside one of its canvases, and that some other row never has."""
    for row, result in enumerate(results):
        for i, token in enumerate(result.token_ids):
            elsewhere = [token in other.token_ids for other in results]
            if i % LENGTH in range(1, LENGTH - 1) and token not in result.token_ids[:i] and not all(elsewhere):
                return row, token
    raise AssertionError("no row has a token that could end it in the middle of a canvas")


def check_stop(pair: Pair, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    row, stop = stop_in_the_middle(check(pair, prompts, monkeypatch, **options))
    results = check(pair, prompts, monkeypatch, stop_ids=[stop], **options)
    assert results[row].token_ids[-1] == stop
    assert len(results[row].token_ids) % LENGTH not in (0, 1)
    assert results[row].finish_reason == "stop"
    assert "length" in {result.finish_reason for result in results}, "some row should go on to the end"


def test_a_stop_token_inside_a_canvas(sure: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows the first stop token is dropped; the row ends, the others take further canvases."""
    check_stop(sure, prompts_of(6, 6, 6), monkeypatch, num_diffusion_steps=6, max_tokens=24, seed=2)


def test_several_canvases_and_an_uneven_end(sure: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five canvases, far beyond the window of 8; max_tokens cuts the last one."""
    results = check(sure, prompts_of(3, 3), monkeypatch, num_diffusion_steps=5, max_tokens=37, confidence=0.2, seed=7)
    assert [len(result.token_ids) for result in results] == [37, 37]
    assert [len(result.canvases) for result in results] == [5, 5]


@pytest.mark.parametrize("lengths", [(2, 9), (21, 5, 8, 1), (7, 30)])
def test_unequal_prompts(unsure: Pair, monkeypatch: pytest.MonkeyPatch, lengths: tuple[int, ...]) -> None:
    """transformers pads on the left and shifts positions, we give each row its own: the answers are the same."""
    check(unsure, prompts_of(*lengths), monkeypatch, num_diffusion_steps=5, max_tokens=24, seed=13, entropy_bound=1.0)


def test_unequal_prompts_with_stops(sure: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything at once: padding, early stops, a stop token, several canvases."""
    check_stop(sure, prompts_of(12, 3, 7), monkeypatch, num_diffusion_steps=16, max_tokens=32, seed=21, confidence=0.3)


def test_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The precision that users run on a CPU."""
    pair = make_pair(tmp_path, torch.float32, gentle=True, sharpness=3.0, seed=4)
    check(pair, prompts_of(9, 9), monkeypatch, num_diffusion_steps=6, max_tokens=16, seed=1, entropy_bound=1.0)


@pytest.mark.parametrize("prompt_tokens", [4, 19])
def test_causal_greedy(tmp_path: Path, prompt_tokens: int) -> None:
    """The causal role is the reference's encoder under its own head and soft cap, decoded by hand."""
    pair = make_pair(tmp_path, torch.float64, seed=0)
    prompt = prompts_of(prompt_tokens, seed=8)[0]
    cap = pair.reference.final_logit_softcapping
    cache = DynamicCache(config=pair.reference.config.get_text_config(decoder=True))
    expected: list[int] = []
    fed = prompt
    with torch.no_grad():
        for _ in range(20):
            hidden = pair.reference.model.encoder(input_ids=torch.tensor([fed]), **{CACHE: cache}).last_hidden_state[:, -1]
            logits = torch.tanh(pair.reference.lm_head(hidden).float() / cap) * cap
            fed = [int(logits.argmax())]
            expected += fed
    request = Request(prompt=prompt, params=SamplingParams(max_tokens=20), mode="causal")
    (result,) = [event.result for event in OfflineEngine(pair.ours, letters(pair.folder)).run([request]) if isinstance(event, Done)]
    assert result.token_ids == expected
    assert len(set(expected)) > 2, "a constant answer proves little"
    assert (result.usage.denoising_steps, result.usage.commit_passes) == (0, 20)
