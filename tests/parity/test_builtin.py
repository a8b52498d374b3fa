"""The built-in checkpoints in transformers: they load whole, and generate the same tokens in the same number of passes."""

from pathlib import Path

import pytest
import torch
from transformers import DiffusionGemmaForBlockDiffusion

from diffusiongemma.diffusion import SamplingParams
from diffusiongemma.examples.sudoku.puzzles import prompt_text, reasoning_gym_puzzles
from diffusiongemma.generation import DiffusionGemmaModel
from diffusiongemma.tasks.registry import task_named
from diffusiongemma.weights.resolve import builtin_folder
from tests.parity import test_generate
from tests.parity.reference import Pair
from tests.parity.test_generate import their_answers


def texts_of(name: str, seed: int) -> list[str]:
    if name == "sudoku":
        return [prompt_text(puzzle) for puzzle in reasoning_gym_puzzles(6, 4000 + seed)]
    return [example.prompt for task in ("syllogism", "json-extract") for example in task_named(task).examples(3, 4000 + seed)]


@pytest.fixture(scope="module", params=["sudoku", "nano"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def theirs(name: str) -> DiffusionGemmaForBlockDiffusion:
    model, info = DiffusionGemmaForBlockDiffusion.from_pretrained(
        builtin_folder() / name, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@pytest.fixture(scope="module")
def ours(name: str) -> DiffusionGemmaModel:
    return DiffusionGemmaModel.from_pretrained(name)


@pytest.mark.parametrize("seed", [1, 2])
def test_whole_generations_are_the_same(
    name: str, theirs: DiffusionGemmaForBlockDiffusion, ours: DiffusionGemmaModel, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """A trained model settles: rows of one batch stop early, each at a step of its own, and end with a stop token."""
    texts = texts_of(name, seed)
    assert ours.tokenizer.template is not None
    prompts = [ours.tokenizer.encode(ours.tokenizer.template.render([{"role": "user", "content": text}])) for text in texts]
    length = ours.config.canvas_length
    params = SamplingParams(num_diffusion_steps=20, max_tokens=length, seed=seed)
    with monkeypatch.context() as patch:
        patch.setattr(test_generate, "LENGTH", length)
        patch.setattr(test_generate, "VOCABULARY", ours.config.text.vocab_size)
        pair = Pair(theirs, ours.transformer, Path())
        expected, watch = their_answers(pair, prompts, params, list(ours.stop_ids), patch)
    plain = {name: getattr(params, name) for name in vars(params)}  # transformers' rules, whatever the checkpoint prefers
    results = ours.generate(texts, **plain)
    assert [result.token_ids for result in results] == expected
    assert [result.usage.denoising_steps for result in results] == watch.passes
    assert len(set(watch.passes)) >= 2 and min(watch.passes) < 20
    assert "stop" in {result.finish_reason for result in results}


def test_the_two_roles_share_weights_but_not_scalars(ours: DiffusionGemmaModel) -> None:
    names = dict(ours.transformer.named_buffers())
    assert "layers.0.layer_scalar" in names and "layers.0.encoder_layer_scalar" in names
    assert ours.config.text.num_experts > ours.config.text.top_k_experts >= 2
