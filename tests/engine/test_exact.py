"""The exact mode: whatever a canvas drafts, the answer's tokens are those of the causal mode, greedy and sampled."""

from pathlib import Path
from typing import Any

import pytest
import torch

from diffusiongemma import DiffusionGemmaModel
from diffusiongemma.engine import scheduler
from diffusiongemma.engine.engine import Engine
from diffusiongemma.engine.events import Done
from diffusiongemma.engine.request import Request, max_steps
from diffusiongemma.errors import InputError, OptionError
from tests.tiny import tiny_model, tiny_transformer

PROMPTS = ["ab", "hello", "xyzzy", "alongerpromptofletters"]


def both(model: DiffusionGemmaModel, prompts: Any, **options: Any) -> tuple[list[Any], list[Any]]:
    return tuple(model.generate(prompts, mode=mode, **options) for mode in ("causal", "exact"))  # type: ignore[call-overload,return-value]


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.3])
@pytest.mark.parametrize("seed", range(6))
def test_its_tokens_are_those_of_the_causal_mode(tmp_path: Path, seed: int, temperature: float) -> None:
    """Random models, whose drafts are hardly ever right; a large scale makes them sure, and draft and judge agree at times."""
    model = tiny_model(tmp_path, tiny_transformer(seed=seed, scale=0.2 + 0.2 * (seed % 3)), stop_ids=(1, 9))
    causal, exact = both(model, PROMPTS, seed=seed, temperature=temperature, max_tokens=45)
    for one, two in zip(causal, exact, strict=True):
        assert two.token_ids == one.token_ids and two.text == one.text and two.finish_reason == one.finish_reason
        assert 1 <= sum(canvas.tokens for canvas in two.canvases) <= len(two.token_ids)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_drafts_of_a_trained_model_save_passes(temperature: float) -> None:
    nano = DiffusionGemmaModel.from_pretrained("nano")
    prompt = "Extract as JSON: number (string), origin (string)\nFlight DN323 from Alvyford to Perraburg leaves gate 13 at 05:45."
    causal, exact = both(nano, prompt, seed=3, temperature=temperature, max_tokens=60, logprobs=1)
    assert exact.token_ids == causal.token_ids
    assert [one.token_id for one in exact.logprobs] == exact.token_ids
    assert [one.logprob for one in exact.logprobs] == pytest.approx([one.logprob for one in causal.logprobs], abs=1e-3)
    passes = exact.usage.denoising_steps + exact.usage.commit_passes
    assert passes < causal.usage.commit_passes or len(causal.token_ids) < 12


def test_company_preemption_and_the_other_modes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "BLOCK", 1)
    model = tiny_model(tmp_path, tiny_transformer(seed=1, scale=0.4), stop_ids=(1,))
    alone = {
        mode: model.generate("hello", mode=mode, seed=1, temperature=0.5, max_tokens=40).token_ids for mode in ("causal", "exact")
    }  # type: ignore[call-overload]
    [ids] = model.prompt_ids("hello")
    params = model.defaults.replaced(seed=1, temperature=0.5, max_tokens=40)
    request = Request(prompt=ids, params=params, stop_ids=model.stop_ids, mode="exact")
    few = 3 * Engine(model.transformer, model.tokenizer).cache_bytes(request, 16)
    for kv_bytes in (None, few):
        engine = Engine(model.transformer, model.tokenizer, kv_bytes=kv_bytes)
        for number, mode in enumerate(["exact", "causal", "diffusion", "exact"]):
            chosen = params.on_canvas() if mode == "diffusion" else params
            engine.add(Request(prompt=ids, params=chosen, stop_ids=model.stop_ids, mode=mode), number=number)  # type: ignore[arg-type]
        results = {}
        while engine.busy:
            for _, event in engine.step():
                if isinstance(event, Done):
                    results[event.row] = event.result.token_ids
        assert results[0] == results[3] == alone["exact"] == results[1] == alone["causal"]
    assert engine.scheduler.preempted > 0


def test_a_draft_that_costs_more_than_it_gives_comes_later_and_later(tmp_path: Path) -> None:
    model = tiny_model(tmp_path, tiny_transformer(seed=2, scale=0.3))
    result = model.generate("hello", mode="exact", seed=1, temperature=1.0, max_tokens=400, num_diffusion_steps=12)
    assert len(result.canvases) <= 6  # after 16, 32, 64, 128 tokens
    [request] = model.requests("hello", mode="exact", max_tokens=400, num_diffusion_steps=12)
    assert result.usage.denoising_steps + result.usage.commit_passes <= max_steps(model.transformer, request)


def test_a_canvas_at_the_end_of_the_positions(tmp_path: Path) -> None:
    model = tiny_model(tmp_path, tiny_transformer(seed=1, scale=0.4))
    most = model.config.text.max_position_embeddings
    room = most - len(model.prompt_ids("hello")[0]) - model.config.canvas_length
    causal, exact = both(model, "hello", seed=1, temperature=0.0, max_tokens=room)
    assert exact.token_ids == causal.token_ids and len(exact.token_ids) == room


def test_what_does_not_go_with_it(tmp_path: Path) -> None:
    model = tiny_model(tmp_path, stop_ids=(1,))
    with pytest.raises(OptionError, match="need mode 'diffusion'"):
        model.generate("a", mode="exact", regex="a*")
    with pytest.raises(OptionError, match="pins need mode 'diffusion'"):
        model.generate("a", mode="exact", pins={1: 3})
    [ids] = model.prompt_ids("a")
    with pytest.raises(InputError, match="need mode 'diffusion'"):
        Engine(model.transformer, model.tokenizer).add(
            Request(prompt=ids, params=model.defaults, stop_ids=(1,), mode="exact", pins=[3])
        )


def test_stop_strings_and_streams(tmp_path: Path) -> None:
    model = tiny_model(tmp_path, tiny_transformer(seed=3, scale=0.4), stop_ids=(1,))
    plain = model.generate("hello", mode="causal", seed=2, temperature=0.0, max_tokens=40).text
    stop = plain[5:7] if len(plain) > 8 else "zz"
    causal, exact = both(model, "hello", seed=2, temperature=0.0, max_tokens=40, stop=[stop])
    assert exact.text == causal.text and exact.finish_reason == causal.finish_reason
    events = list(model.stream("hello", mode="exact", seed=2, temperature=0.0, max_tokens=40, drafts=False))
    assert "".join(event.text for event in events if hasattr(event, "thinking") and not isinstance(event, Done)) == plain
    assert torch.is_grad_enabled()
