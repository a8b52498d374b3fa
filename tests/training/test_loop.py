"""The training loop: what it computes, and that a killed run goes on exactly."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from diffusiongemma.diffusion import Absorbing, Corrupted
from diffusiongemma.errors import ConfigError, TrainingError
from diffusiongemma.examples.sudoku.data import build_tokenizer, vocabulary
from diffusiongemma.generation import DiffusionGemmaModel
from diffusiongemma.model.cache import KVCache
from diffusiongemma.model.transformer import Transformer
from diffusiongemma.training.data import TrainBatch
from diffusiongemma.training.init import initialise, start_from
from diffusiongemma.training.loop import Hooks, TrainRun, learning_rate
from diffusiongemma.training.loss import causal_loss, losses
from diffusiongemma.training.recipe import Recipe, builtin_recipes, load_recipe
from diffusiongemma.weights.stream import stream_tensors
from tests.tiny import tiny_config, tiny_transformer


def small(**train: Any) -> Recipe:
    """The built-in recipe made so small that a step takes milliseconds."""
    recipe = load_recipe("sudoku")
    text = {
        **recipe.model["text_config"],
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
        "head_dim": 8, "global_head_dim": 8, "num_global_key_value_heads": 1, "moe_intermediate_size": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    }  # fmt: skip
    settings = {"steps": 6, "prompts": 2, "canvases": 2, "checkpoint_every": 2, "warmup": 2, "causal_every": 2, **train}
    return recipe.model_copy(
        update={
            "model": {**recipe.model, "text_config": text},
            "train": recipe.train.model_copy(update=settings),
            "data": recipe.data.model_copy(update={"base_puzzles": 3}),
            "eval": recipe.eval.model_copy(update={"every": 3}),
        }
    )


def weights(run: TrainRun) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in run.model.state_dict().items()}


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return dict(stream_tensors(folder / "model"))


def logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_a_run_that_was_killed_ends_with_the_same_bits(average: float, tmp_path: Path) -> None:
    recipe = small(average=average)
    straight = TrainRun(recipe, tmp_path / "straight")
    straight.train()
    # Killed in the middle of step 5: the last state is of step 4, and a line of step 5 is already in the log.
    broken = TrainRun(recipe, tmp_path / "broken")
    kept = broken._step

    def dies() -> dict[str, Any]:
        if broken.step == 5:
            raise KeyboardInterrupt
        return kept()

    broken._step = dies  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    assert logged(tmp_path / "broken")[-1]["step"] == 5
    resumed = TrainRun(recipe, tmp_path / "broken")
    assert resumed.step == 4
    resumed.train()
    assert stored(tmp_path / "straight").keys() == stored(tmp_path / "broken").keys()
    for name, tensor in stored(tmp_path / "straight").items():
        assert torch.equal(tensor, stored(tmp_path / "broken")[name]), name
    for name, tensor in weights(straight).items():
        assert torch.equal(tensor, weights(resumed)[name]), name
    losses_of = [{key: line.get(key) for key in ("step", "denoising", "causal")} for line in logged(tmp_path / "straight")]
    assert losses_of == [{key: line.get(key) for key in ("step", "denoising", "causal")} for line in logged(tmp_path / "broken")]
    assert [line["step"] for line in losses_of] == [1, 2, 3, 4, 5, 6]


def test_training_lowers_the_loss_and_reports_on_the_way(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    judged: list[Path] = []

    def evaluate(folder: Path) -> dict[str, Any]:
        judged.append(folder)
        DiffusionGemmaModel.from_pretrained(folder)
        return {"scores": {"sudoku": {"score": 0.5, "mean_steps": 3.0}}}

    hooks = Hooks(evaluate=evaluate, on_step=seen.append)
    folder = TrainRun(small(steps=30, adamw_lr=0.02, muon_lr=0.02), tmp_path, hooks=hooks).train()
    assert seen[-1]["denoising"] < 0.8 * seen[0]["denoising"]
    assert [line["step"] for line in seen if "scores" in line] == list(range(3, 31, 3))
    assert judged == [folder] * 10
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_sigterm_keeps_a_state_to_go_on_from(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from tests.training.test_loop import small; from diffusiongemma.training.loop import *\n"
        "run = TrainRun(small(steps=100000, checkpoint_every=100000), pathlib.Path(sys.argv[1]),"
        " hooks=Hooks(on_step=lambda line: print(line['step'], flush=True)))\nrun.train()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGTERM)
    last = int(process.stdout.read().split()[-1])
    assert process.wait(timeout=30) == 0
    assert TrainRun(small(steps=100000, checkpoint_every=100000), tmp_path).step == last


def test_a_folder_of_another_recipe_is_refused_but_more_steps_are_not(tmp_path: Path) -> None:
    TrainRun(small(steps=2), tmp_path).train()
    assert TrainRun(small(steps=4, checkpoint_every=3), tmp_path).step == 2
    with pytest.raises(TrainingError, match="another recipe"):
        TrainRun(small(steps=4, prompts=3), tmp_path)


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    TrainRun(small(steps=2), tmp_path).train()
    state = tmp_path / "state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(TrainingError, match="remove it to begin anew"):
        TrainRun(small(steps=4), tmp_path)


def test_the_checkpoint_loads_in_transformers_and_gives_the_same_logits(tmp_path: Path) -> None:
    from transformers import DiffusionGemmaForBlockDiffusion

    folder = TrainRun(small(steps=1), tmp_path).train()
    theirs, info = DiffusionGemmaForBlockDiffusion.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours = DiffusionGemmaModel.from_pretrained(folder)
    ids, canvas = torch.randint(0, 832, (2, 20)), torch.randint(0, 832, (2, 90))
    cache = ours.new_cache(2, 64)
    ours.encode(ids, cache)
    with torch.no_grad():
        expected = theirs(input_ids=ids, decoder_input_ids=canvas).logits
    assert torch.allclose(ours.logits(ours.denoise(canvas, cache)), expected, atol=1e-4)


def separate_losses(
    model: Transformer, prompts: list[torch.Tensor], answer: torch.Tensor, noisy: torch.Tensor, weight: torch.Tensor
) -> tuple[float, float]:
    """Each canvas by itself through the cache, as in generation; half of them with a first look."""
    denoising, causal, weights = [], [], []
    for row, prompt in enumerate(prompts):
        cache = KVCache(model.config.text, 1, 64, model.dtype, model.device)
        hidden = model.encode(torch.cat((prompt, answer[row, :-1]))[None], cache)
        causal.append(F.cross_entropy(model.logits(hidden)[0, len(prompt) - 1 :], answer[row], reduction="none") * weight[row])
        weights.append(weight[row])
        for copy in range(2):
            cache = KVCache(model.config.text, 1, 64, model.dtype, model.device)
            model.encode(prompt[None], cache)
            canvas = noisy[2 * row + copy][None]
            soft = model.soften(model.logits(model.denoise(canvas, cache))) if copy == 0 else None
            logits = model.logits(model.denoise(canvas, cache, soft))[0]
            denoising.append(F.cross_entropy(logits, answer[row], reduction="none") * weight[row])
    total = torch.cat(weights).sum().item()
    return torch.cat(denoising).sum().item() / (2 * total), torch.cat(causal).sum().item() / total


def test_sharing_the_prompts_pass_changes_nothing() -> None:
    """Window 8 and a prompt of 9: the canvas must see the window's last 7 tokens, as in generation."""
    model = tiny_transformer(tiny_config(), dtype=torch.float64, scale=0.2)
    prompt, answer, noisy = (torch.randint(0, 64, shape) for shape in ((3, 9), (3, 8), (6, 8)))
    shared = [loss.item() for loss in losses(model, TrainBatch(prompt, answer), Corrupted(noisy), conditioned=1, causal=True)]
    assert shared == pytest.approx(separate_losses(model, list(prompt), answer, noisy, torch.ones(3, 8)), rel=1e-6)


@pytest.mark.parametrize("most", [5, 9], ids=["all in the window", "beyond the window"])
def test_padding_before_a_prompt_changes_nothing(most: int) -> None:
    """Unequal prompts in one batch, weighted positions: as each prompt alone, without padding."""
    model = tiny_transformer(tiny_config(), dtype=torch.float64, scale=0.2)
    padding = torch.tensor([0, 2, most - 1])
    prompt, answer, noisy = (torch.randint(0, 64, shape) for shape in ((3, most), (3, 8), (6, 8)))
    weight = torch.rand(3, 8, dtype=torch.float64)
    batch = TrainBatch(prompt, answer, padding_P=padding, weight_PL=weight)
    together = [loss.item() for loss in losses(model, batch, Corrupted(noisy), conditioned=1, causal=True)]
    alone = [row[pad:] for row, pad in zip(prompt, padding.tolist(), strict=True)]
    assert together == pytest.approx(separate_losses(model, alone, answer, noisy, weight), rel=1e-6)
    assert causal_loss(model, batch).item() == pytest.approx(together[1], rel=1e-9)


def test_the_masked_loss_is_taken_at_masks_over_the_level_and_looks_through_what_is_clean() -> None:
    """Against the sum written out, each canvas by itself as in generation; clean positions believe in their own token."""
    model = tiny_transformer(tiny_config(), dtype=torch.float64, scale=0.2)
    prompt, answer = torch.randint(0, 63, (2, 5)), torch.randint(0, 63, (2, 8))
    clean, levels = answer.repeat_interleave(2, 0), torch.tensor([0.3, 0.5, 0.8, 1.0])
    pinned = torch.zeros_like(clean, dtype=torch.bool)
    corrupted = Absorbing(64, mask_token_id=63).corrupt(clean, levels, pinned, torch.Generator().manual_seed(1))
    weight = torch.rand(2, 8, dtype=torch.float64)
    total = 0.0
    for row, canvas in enumerate(corrupted.noisy_BL):
        cache = KVCache(model.config.text, 1, 64, model.dtype, model.device)
        model.encode(prompt[row // 2][None], cache)
        soft = None
        if row % 2 == 0:
            soft = model.soften(model.logits(model.denoise(canvas[None], cache)))
            soft = torch.where((canvas != 63)[None, :, None], model.embed(canvas[None]), soft)
        each = F.cross_entropy(model.logits(model.denoise(canvas[None], cache, soft))[0], clean[row], reduction="none")
        total += ((each * weight[row // 2])[canvas == 63] / levels[row]).sum().item()
    loss, _ = losses(model, TrainBatch(prompt, answer, weight_PL=weight), corrupted, conditioned=1, causal=False)
    assert loss.item() == pytest.approx(total / (2 * weight.sum().item()), rel=1e-6)


def test_a_recipes_process_decides_noise_vocabulary_and_checkpoint(tmp_path: Path) -> None:
    recipe = Recipe(**{**small(steps=1).model_dump(), "process": "absorbing"})
    run = TrainRun(recipe, tmp_path)
    mask = run.model.config.text.vocab_size - 1
    assert run.model.process == Absorbing(mask + 1, mask)
    batch, corrupted = run._noisy_batch(run._data.batch(run.step, recipe.train.prompts), run.step)
    clean = batch.answer_PL.repeat_interleave(2, 0)
    assert ((corrupted.noisy_BL == clean) | (corrupted.noisy_BL == mask)).all() and (corrupted.noisy_BL == mask).any()
    model = DiffusionGemmaModel.from_pretrained(run.train())
    assert model.config.process == {"name": "absorbing", "mask_token_id": mask}
    assert model.transformer.process == run.model.process and model.tokenizer.encode("<mask>") == [mask]
    with pytest.raises(TrainingError, match="another recipe"):
        TrainRun(small(steps=1), tmp_path)


def test_a_run_of_a_recipe_from_before_there_were_processes_goes_on(tmp_path: Path) -> None:
    TrainRun(small(steps=1), tmp_path).train()
    written = json.loads((tmp_path / "recipe.json").read_text())
    del written["process"]
    (tmp_path / "recipe.json").write_text(json.dumps(written))
    assert TrainRun(small(steps=2), tmp_path).step == 1


def test_a_prompts_own_tokens_count_as_much_as_asked() -> None:
    model = tiny_transformer(tiny_config(), dtype=torch.float64, scale=0.2)
    padding = torch.tensor([0, 3])
    prompt, answer = torch.randint(0, 64, (2, 6)), torch.randint(0, 64, (2, 8))
    terms, weights_of = [], []
    for row, pad in enumerate(padding.tolist()):
        ids = torch.cat((prompt[row, pad:], answer[row]))
        hidden = model.encode(ids[None], KVCache(model.config.text, 1, 64, model.dtype, model.device))
        weight = torch.tensor([0.3] * (6 - pad - 1) + [1.0] * 8)
        terms.append(F.cross_entropy(model.logits(hidden)[0, :-1], ids[1:], reduction="none") * weight)
        weights_of.append(weight)
    expected = torch.cat(terms).sum() / torch.cat(weights_of).sum()
    batch = TrainBatch(prompt, answer, padding_P=padding, prompt_weight=0.3)
    assert causal_loss(model, batch).item() == pytest.approx(expected.item(), rel=1e-6)
    both = losses(model, batch, Corrupted(answer.repeat_interleave(2, 0)), conditioned=0, causal=True)
    assert both[1].item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_first_steps_may_teach_the_causal_role_alone(tmp_path: Path) -> None:
    run = TrainRun(small(steps=4, causal_steps=2, causal_prompts=3, causal_every=0), tmp_path)
    before = weights(run)
    run.train()
    assert [sorted(line.keys() & {"causal", "denoising"}) for line in logged(tmp_path)] == [["causal"]] * 2 + [["denoising"]] * 2
    assert not torch.equal(before["layers.0.self_attn.q_proj.weight"], weights(run)["layers.0.self_attn.q_proj.weight"])


def test_learning_rate_warms_up_stays_and_falls() -> None:
    rates = [learning_rate(step, 100, 10, 0.4) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[60] == 1.0
    assert rates[80] == pytest.approx(0.5) and 0 < rates[99] <= 0.025 + 1e-9
    assert all(later <= earlier for earlier, later in pairwise(rates[10:]))


def test_built_in_recipes_load_and_unknown_fields_do_not(tmp_path: Path) -> None:
    assert list(builtin_recipes()) == ["nano-2", "nano", "sudoku-2", "sudoku-masked", "sudoku"]
    assert load_recipe("nano").data.kind == "text"
    assert load_recipe("sudoku-masked").process == {"name": "absorbing"}
    text = builtin_recipes()["sudoku"].read_text()
    for before, after, needle in (
        ("[eval]", "[evaluation]", "evaluation"),
        ("prompts = 16", "prompts = 0", "train.prompts"),
        ('kind = "sudoku"', 'kind = "chess"', "data"),
        ("seed = 1020000", "seed = 20000", "eval.seed"),
        ("[model.text_config]", "[model.text_config", "cannot be read"),
        ("[eval]", f"deep = {'[' * 50_000}\n[eval]", "cannot be read"),
    ):
        (tmp_path / "mine.toml").write_text(text.replace(before, after))
        with pytest.raises(ConfigError, match=needle):
            load_recipe(str(tmp_path / "mine.toml"))


def test_a_checkpoint_gets_the_average_of_the_weights(tmp_path: Path) -> None:
    plain, averaged = TrainRun(small(), tmp_path / "plain"), TrainRun(small(average=0.9), tmp_path / "averaged")
    expected = {name: weight.detach().clone() for name, weight in averaged.model.named_parameters()}
    for step in range(6):
        averaged._step()
        averaged.step += 1
        kept = min(0.9, (1 + step) / (10 + step))
        for name, weight in averaged.model.named_parameters():
            expected[name] = kept * expected[name] + (1 - kept) * weight.detach()
    averaged.export()
    plain.train()
    for name, weight in plain.model.named_parameters():  # training itself is no other
        assert torch.equal(weight, dict(averaged.model.named_parameters())[name]), name
    found = DiffusionGemmaModel.from_pretrained(tmp_path / "averaged/model").transformer.state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name].float(), tensor, rtol=1e-2, atol=1e-3)


def test_a_run_begins_with_a_checkpoint(tmp_path: Path) -> None:
    first = TrainRun(small(), tmp_path / "first")
    checkpoint = first.train()
    second = TrainRun(small(init=str(checkpoint)), tmp_path / "second")
    for name, tensor in weights(first).items():
        assert torch.equal(weights(second)[name], tensor.to(torch.bfloat16).float()), name
    second.train()
    shutil.rmtree(checkpoint)
    assert TrainRun(small(init=str(checkpoint)), tmp_path / "second").step == 6  # a run that goes on needs it no longer
    with pytest.raises(TrainingError, match="hidden size 128, the recipe 16"):
        TrainRun(small(init="sudoku"), tmp_path / "other")


def test_a_token_a_checkpoint_lacks_begins_as_the_mean_of_its_pieces(tmp_path: Path) -> None:
    checkpoint = TrainRun(small(), tmp_path / "run").train()
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["78", "A1=7B2=3"])
    run = TrainRun(small(), tmp_path / "new")
    config = replace(run.model.config, text=replace(run.model.config.text, vocab_size=tokenizer.get_vocab_size()))
    model = Transformer(config)
    initialise(model, torch.Generator().manual_seed(0))
    start_from(model, tokenizer, checkpoint)
    old = dict(stream_tensors(checkpoint))["model.decoder.embed_tokens.weight"].float()
    ids = vocabulary()
    torch.testing.assert_close(model.embed_tokens.weight[ids["7"]], old[ids["7"]])
    torch.testing.assert_close(model.embed_tokens.weight[-2], (old[ids["7"]] + old[ids["8"]]) / 2)
    torch.testing.assert_close(model.embed_tokens.weight[-1], (old[ids["A1=7"]] + old[ids["B2=3"]]) / 2)


def test_products_in_bfloat16_train_too(tmp_path: Path) -> None:
    wide, narrow = TrainRun(small(), tmp_path / "wide"), TrainRun(small(compute="bfloat16"), tmp_path / "narrow")
    first, second = wide._step(), narrow._step()
    assert all(parameter.dtype == torch.float32 for parameter in narrow.model.parameters())
    assert first["denoising"] != second["denoising"]
    assert second["denoising"] == pytest.approx(first["denoising"], rel=0.02)
