"""A checkpoint tuned on rows: what is learnt of them, that it is learnt, and that a run goes on and is written as it should be."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from diffusiongemma import DiffusionGemmaModel, finetune
from diffusiongemma.cli.main import app
from diffusiongemma.errors import ConfigError, OptionError, TrainingError
from diffusiongemma.generation.quantising import quantize_checkpoint
from diffusiongemma.training import rows as training_rows
from diffusiongemma.training.finetune import finetune_recipe
from diffusiongemma.training.loop import Hooks, TrainRun
from diffusiongemma.training.rows import Rows, RowsData
from diffusiongemma.weights.resolve import builtin_folder
from tests.chat import TEMPLATE
from tests.native import TEMPLATE as NATIVE_TEMPLATE
from tests.native import native_model
from tests.parity.reference import write_checkpoint

WORDS = ["Solve: 1", "Solve: 2", "Solve: 3", "Solve: 4"]


def tiny(folder: Path) -> Path:
    """A small random checkpoint with the tokenizer, template and stop tokens of a built-in one."""
    write_checkpoint(folder, vocab_size=4096, scale=0.1)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((builtin_folder() / "nano" / name).read_bytes())
    stops = {"eos_token_id": [1, 5], "pad_token_id": 0, "max_new_tokens": 77}
    (folder / "generation_config.json").write_text(json.dumps(stops))
    return folder


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def pairs(path: Path, count: int = 12) -> Path:
    return lines(path, *({"prompt": WORDS[i % 4], "completion": f"{i % 4}{i % 4}{i % 4}"} for i in range(count)))


def rows_of(tmp_path: Path, *rows: Any, base: str = "nano", **fields: Any) -> Rows:
    lines(tmp_path / "rows.jsonl", *rows)
    recipe = RowsData(kind="rows", base=base, path=str(tmp_path / "rows.jsonl"), eval_share=0.0, **fields)
    return Rows(recipe, 1, tmp_path, lambda done, of: None)


def losses_of(folder: Path, name: str = "causal") -> list[float]:
    return [json.loads(line)[name] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_only_what_the_model_says_is_learnt(tmp_path: Path) -> None:
    said = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
        {"role": "assistant", "content": "four"},
    ]
    rows = rows_of(
        tmp_path, {"messages": said}, {"prompt": "one", "completion": "two"}, {"prompt": said[:2], "completion": said[2:3]}
    )
    tokenizer = rows.text_tokenizer
    shown = [
        (tokenizer.decode(e.prompt, skip_special=False), tokenizer.decode(e.answer, skip_special=False)) for e in rows._examples
    ]
    assert [answer for _, answer in shown] == ["two<turn|>", "four<turn|>", "two<turn|>", "two<turn|>"]
    assert all(prompt.endswith("<|turn>model\n") for prompt, _ in shown)
    assert "two<turn|>" in shown[1][0] and "Be short." in shown[1][0]
    # The prompt is the one that generation writes.
    model = DiffusionGemmaModel.from_pretrained("nano")
    assert list(rows._examples[1].prompt) == model.prompt_ids(messages=said[:4])[0]


@pytest.mark.parametrize("template", [TEMPLATE, NATIVE_TEMPLATE])
def test_a_template_that_opens_turns_with_an_empty_thought(tmp_path: Path, template: str) -> None:
    model = native_model(tmp_path / "tokenizer")
    model.save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").write_text(template)
    asked = [{"role": "user", "content": "hi"}]
    rows = rows_of(tmp_path, {"prompt": "hi", "completion": "yes"}, base=str(tmp_path / "base"))
    [example] = rows._examples
    tuned = DiffusionGemmaModel.from_pretrained(tmp_path / "base")
    assert list(example.prompt) == tuned.prompt_ids(messages=asked)[0]
    assert rows.report.shown[0][0].endswith("<|turn>model\n<|channel>thought\n<channel|>")
    assert rows.report.shown[0][1] == "yes<turn|>"


def test_thoughts_are_learnt_after_the_prompt_that_asks_for_them(tmp_path: Path) -> None:
    native_model(tmp_path / "tokenizer").save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").write_text(TEMPLATE)
    asked = [{"role": "user", "content": "hi"}]
    said = {"role": "assistant", "reasoning_content": "hmm", "content": "yes"}
    rows = rows_of(tmp_path, {"messages": [*asked, said]}, base=str(tmp_path / "base"))
    tuned = DiffusionGemmaModel.from_pretrained(tmp_path / "base")
    assert list(rows._examples[0].prompt) == tuned.prompt_ids(messages=asked, enable_thinking=True)[0]
    assert rows.report.shown[0][1] == "<|channel>thought\nhmm\n<channel|>yes<turn|>"


def test_a_long_answer_is_learnt_canvas_by_canvas(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, {"prompt": "go", "completion": "many words " * 80})
    [example] = rows._examples
    assert len(example.answer) > 2 * rows.canvas_length and rows.report.canvases == (len(example.answer) - 1) // 64 + 1
    starts = set()
    for step in range(40):
        batch = rows.batch(step, 1)
        prompt = batch.prompt_PT[0].tolist()
        start = len(prompt) - len(example.prompt)
        assert prompt == [*example.prompt, *example.answer[:start]]
        kept = list(example.answer[start : start + 64])
        assert batch.answer_PL[0, : len(kept)].tolist() == kept
        assert batch.weight_PL is not None and batch.weight_PL[0, : len(kept)].eq(1).all()
        starts.add(start)
    assert starts == {64 * at for at in range(rows.report.canvases)}


def test_nothing_is_left_out_silently(tmp_path: Path) -> None:
    rows = rows_of(
        tmp_path,
        "no json",
        {"prompt": "a"},
        {"prompt": "a", "completion": ""},
        {"messages": [{"role": "user", "content": "a"}]},
        {"messages": "a"},
        {"other": 1},
        [1],
        {"prompt": "word " * 200, "completion": "b"},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "tools": "no json"},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "tools": {"name": "f"}},
        {"prompt": "a", "completion": "b"},
        max_prompt=50,
    )
    report = rows.report
    assert report.rows == 12 and report.examples == 1
    assert sum(count for count, _ in report.left_out.values()) == 11
    assert report.left_out["tools is text that is no JSON"] == (1, ("line 10",))
    assert report.left_out["the prompt has more than 50 tokens (max_prompt)"] == (1, ("line 8",))
    assert report.left_out["the row has no answer of the assistant"] == (2, ("line 4", "line 9"))
    assert json.loads((tmp_path / "data.json").read_text())["examples"] == 1


def test_reasons_of_one_kind_are_one_line_and_long_answers_count_as_contexts(tmp_path: Path) -> None:
    long = {"prompt": "a", "completion": "b c d e f g " * 60}
    rows = rows_of(tmp_path, long, {"prompt": "a", "completion": "b"}, *({"prompt": f"{i}", "completion": ""} for i in range(3)))
    before = rows.report.context_tokens[3]
    assert before > rows.report.prompt_tokens[3] + 100 and before % 64 == rows.report.prompt_tokens[3] % 64
    longest = max(int((batch.prompt_PT != 0).sum(1).max()) for batch in (rows.batch(step, 4) for step in range(20)))
    assert longest <= before
    bounded = rows_of(tmp_path, long, {"prompt": "a", "completion": "b"}, max_prompt=100).report
    assert bounded.left_out == {
        "the prompt and the canvases of the answer before its last have more than 100 tokens (max_prompt)": (1, ("line 1",))
    }


def test_a_run_goes_on_with_its_own_rows_alone(tmp_path: Path) -> None:
    base, rows, out = tiny(tmp_path / "base"), tmp_path / "rows.jsonl", tmp_path / "run"
    finetune(base, pairs(rows), out, train={"steps": 2, "prompts": 2})
    content = rows.read_text()
    rows.write_text(content.replace("000", "001", 1))
    with pytest.raises(TrainingError, match="holds other rows than when the run in"):
        finetune(base, rows, out, train={"steps": 4, "prompts": 2})
    rows.write_text(content.replace('": "', '":  "'))  # other bytes, the same rows
    finetune(base, rows, out, train={"steps": 4, "prompts": 2})
    assert len(losses_of(out, "denoising")) == 4


def test_a_report_that_cannot_be_written_is_our_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(training_rows, "write_json", full)
    with pytest.raises(TrainingError, match=r"data.json cannot be written \(No space left on device\)"):
        rows_of(tmp_path, {"prompt": "a", "completion": "b"})


def test_each_epoch_has_every_row_once(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, *({"prompt": f"{i}", "completion": f"{i}"} for i in range(10)))
    seen = [tuple(answer) for step in range(10) for answer in rows.batch(step, 2).answer_PL.tolist()]
    assert len(set(seen[:10])) == 10 and sorted(seen[:10]) == sorted(seen[10:]) and seen[:10] != seen[10:]


@pytest.mark.parametrize("lora", [True, False])
def test_it_learns(tmp_path: Path, lora: bool) -> None:
    base = tiny(tmp_path / "base")
    options = {"steps": 80, "prompts": 4, "adamw_lr": 2e-2 if lora else 3e-3, "warmup": 5}
    folder = finetune(base, pairs(tmp_path / "rows.jsonl"), tmp_path / "run", lora=lora, train=options)
    for name in ("causal", "denoising"):
        course = losses_of(tmp_path / "run", name)
        # Beside random weights that stay, adapters cannot do as much.
        assert sum(course[-10:]) < (0.85 if lora else 0.6) * sum(course[:10]), (name, course[:10], course[-10:])
    model = DiffusionGemmaModel.from_pretrained(folder)
    if lora:
        assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    else:
        assert model.generate(WORDS[2], mode="causal", temperature=0.0, max_tokens=8).text == "222"
        assert model.defaults.max_tokens == 77 and model.tokenizer.template is not None
        weights = load_file(folder / "model.safetensors")
        kept = load_file(base / "model.safetensors")
        router = "model.decoder.layers.0.router.proj.weight"
        assert torch.equal(weights[router].float(), kept[router].bfloat16().float())
        assert not torch.equal(
            weights["model.decoder.embed_tokens.weight"].float(), kept["model.decoder.embed_tokens.weight"].float()
        )


def test_adapters_on_packed_weights_learn_as_on_their_values(tmp_path: Path) -> None:
    base = tiny(tmp_path / "base")
    quantize_checkpoint(base, tmp_path / "int8", "int8")
    DiffusionGemmaModel.from_pretrained(tmp_path / "int8").save_pretrained(tmp_path / "values", dequantize=True)
    course = {}
    for name in ("int8", "values"):
        finetune(tmp_path / name, pairs(tmp_path / "rows.jsonl"), tmp_path / f"run-{name}", train={"steps": 6, "prompts": 4})
        course[name] = losses_of(tmp_path / f"run-{name}")
    assert course["int8"] == pytest.approx(course["values"], abs=2e-2)
    assert course["int8"][0] != course["int8"][-1]
    with pytest.raises(TrainingError, match="quantised weights, which take no gradients"):
        finetune(tmp_path / "int8", tmp_path / "rows.jsonl", tmp_path / "full", lora=False)


def test_a_run_goes_on_exactly(tmp_path: Path) -> None:
    base, data = tiny(tmp_path / "base"), pairs(tmp_path / "rows.jsonl")

    def weights(folder: Path) -> dict[str, torch.Tensor]:
        return load_file(folder / "adapter_model.safetensors")

    def run(folder: Path, steps: int) -> Path:
        recipe = finetune_recipe(base, data, train={"steps": 8, "prompts": 2, "accumulate": 2, "checkpoint_every": 1, "decay": 0.0})
        made = TrainRun(recipe.model_copy(update={"train": recipe.train.model_copy(update={"steps": steps})}), folder)
        return made.train()

    whole = weights(run(tmp_path / "whole", 6))
    run(tmp_path / "cut", 3)
    again = weights(run(tmp_path / "cut", 6))
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)
    assert losses_of(tmp_path / "whole") == losses_of(tmp_path / "cut")
    state = torch.load(tmp_path / "cut" / "state.pt", weights_only=True)
    assert all(".lora." in name for name in state["model"])  # the base's weights are not written again and again


def test_layers_computed_again_give_the_same_gradients(tmp_path: Path) -> None:
    base, data = tiny(tmp_path / "base"), pairs(tmp_path / "rows.jsonl")
    course = []
    for recompute in (False, True):
        folder = tmp_path / f"run-{recompute}"
        finetune(base, data, folder, lora=False, train={"steps": 4, "prompts": 2, "recompute": recompute})
        course.append((losses_of(folder), losses_of(folder, "denoising")))
    assert course[0] == course[1]


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    base, data = tiny(tmp_path / "base"), pairs(tmp_path / "rows.jsonl")
    finetune(base, data, tmp_path / "one", train={"steps": 2, "prompts": 2, "adamw_lr": 1e-9})
    finetune(base, data, tmp_path / "two", train={"steps": 1, "prompts": 2, "accumulate": 2, "adamw_lr": 1e-9})
    assert losses_of(tmp_path / "two")[0] == pytest.approx(sum(losses_of(tmp_path / "one")) / 2, rel=1e-5)


def test_weights_of_the_losses(tmp_path: Path) -> None:
    base, data = tiny(tmp_path / "base"), pairs(tmp_path / "rows.jsonl")
    finetune(base, data, tmp_path / "plain", train={"steps": 1, "prompts": 4})
    finetune(base, data, tmp_path / "canvas", train={"steps": 1, "prompts": 4, "causal_every": 0})
    finetune(base, data, tmp_path / "weighted", train={"steps": 1, "prompts": 4, "loss_weighting": "1/(1-t)"})
    assert "causal" not in json.loads((tmp_path / "canvas" / "log.jsonl").read_text())
    plain, weighted = (losses_of(tmp_path / name, "denoising")[0] for name in ("plain", "weighted"))
    assert losses_of(tmp_path / "canvas", "denoising")[0] == plain != weighted


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    base, data = tiny(tmp_path / "base"), pairs(tmp_path / "rows.jsonl")
    recipe = finetune_recipe(base, data, train={"steps": 9, "prompts": 2, "checkpoint_every": 2})
    run = TrainRun(recipe, tmp_path / "run")

    def spoil(line: dict[str, Any]) -> None:
        if line["step"] == 5:
            next(iter(run._trained.values())).data.fill_(float("nan"))

    run.hooks = Hooks(on_step=spoil)
    with pytest.raises(TrainingError, match=r"not finite at step 5 .*batch 5 of the data.*state of step 4 is kept"):
        run.train()
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["step"] == 4


@pytest.mark.parametrize("preset", ["default", "google", "nemo"])
def test_presets_are_recipes(preset: str) -> None:
    recipe = finetune_recipe("nano", "rows.jsonl", preset=preset)
    assert recipe.lora is not None and recipe.train.schedule == "cosine" and recipe.train.optimiser == "adamw"
    assert recipe.train.min_noise == {"default": 0.0, "google": 1e-4, "nemo": 1e-3}[preset]


def test_the_preset_of_small_models() -> None:
    full = finetune_recipe("nano", "rows.jsonl", preset="small", lora=False)
    assert (full.train.optimiser, full.train.adamw_lr, full.train.muon_lr, full.train.causal_every) == ("muon", 2e-3, 3e-3, 4)
    slower = finetune_recipe("nano", "rows.jsonl", preset="small", lora=False, train={"adamw_lr": 1e-3})
    assert (slower.train.adamw_lr, slower.train.muon_lr) == (1e-3, pytest.approx(1.5e-3))
    adapters = finetune_recipe("nano", "rows.jsonl", preset="small")
    assert adapters.lora is not None and (adapters.lora.rank, adapters.train.optimiser) == (32, "adamw")


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"preset": "unsloth"}, OptionError, "default, google, nemo, small"),
        ({"train": {"stepz": 3}}, ConfigError, "stepz"),
        ({"lora": {"rank": 0}}, ConfigError, "lora.rank"),
        ({"lora": {"targets": ["experts"]}}, ConfigError, "attention"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        finetune_recipe("nano", "rows.jsonl", **settings)


def test_data_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no row that can be learnt: the row has neither"):
        rows_of(tmp_path, {"a": 1})
    with pytest.raises(TrainingError, match=r"datasets|cannot be loaded"):
        finetune("nano", tmp_path / "none.parquet", tmp_path / "run")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, data = tiny(tmp_path / "base"), pairs(tmp_path / "rows.jsonl", 40)
    run: Callable[..., Any] = CliRunner().invoke
    given = ["finetune", str(base), "--data", str(data), "-o", str(tmp_path / "run"), "--steps", "4", "--batch", "2"]
    dry = run(app, [*given, "--dry-run", "--json"])
    assert dry.exit_code == 0, dry.output
    report = json.loads(dry.stdout)
    assert report["data"]["examples"] == 38 and report["data"]["held_out"] == 2 and report["fits"]
    assert not (tmp_path / "run" / "state.pt").exists()
    done = run(app, [*given, "--lora", "r=2,alpha=4,targets=attention", "--eval-every", "2", "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["finished"] and report["scores"].keys() == {"held-out"}
    logged = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert logged[1]["held_out"].keys() == {"denoising", "causal"}
    adapter = tmp_path / "run" / "model"
    assert json.loads((adapter / "adapter_config.json").read_text())["r"] == 2

    merged = run(app, ["merge", str(adapter), str(tmp_path / "merged"), "--dtype", "float32"])
    assert merged.exit_code == 0, merged.output
    ids = torch.tensor([DiffusionGemmaModel.from_pretrained(base).prompt_ids("Solve: 1")[0]])
    logits = []
    for model in (
        DiffusionGemmaModel.from_pretrained(base, adapter=adapter),
        DiffusionGemmaModel.from_pretrained(tmp_path / "merged"),
        DiffusionGemmaModel.from_pretrained(base),
    ):
        logits.append(model.logits(model.encode(ids, model.new_cache())))
    torch.testing.assert_close(logits[0], logits[1], atol=1e-4, rtol=1e-4)
    assert (logits[0] - logits[2]).abs().max() > 1e-3
    again = run(app, ["merge", str(adapter), str(tmp_path / "merged")])
    assert again.exit_code == 2 and "not an empty folder" in again.output
    router = run(app, [*given, "--train-router"])
    assert router.exit_code == 2 and "without --full" in router.output.replace("\n", " "), router.output
    for wrong, says in (("r=x", "lora.rank"), ("rr=2", "r=16,alpha=32"), ("targets=experts", "allowed: attention")):
        result = run(app, [*given, "--lora", wrong])
        assert result.exit_code == 2 and says in result.output.replace("\n", ""), result.output


def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "finetuning.md").read_text("utf-8")
    [block] = re.findall(r"```python\n(.*?)```", page, re.S)
    monkeypatch.chdir(tmp_path)
    pairs(tmp_path / "rows.jsonl", 40)
    names: dict[str, Any] = {}
    exec(compile(block, "docs/finetuning.md", "exec"), names)
    assert names["model"].generate("Solve: 1", seed=1, max_tokens=8).usage.completion_tokens >= 1
