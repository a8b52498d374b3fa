"""Scores add up from lines; a run that was stopped goes on and ends as if nothing had been."""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import diffusiongemma
from diffusiongemma.diffusion import SamplingParams
from diffusiongemma.errors import InputError, OptionError
from diffusiongemma.evals.results import Outcome, ResultsFile, TaskReport, default_path, fingerprint, summarise
from diffusiongemma.evals.run import evaluate
from diffusiongemma.examples.sudoku.puzzles import SudokuTask
from diffusiongemma.generation import DiffusionGemmaModel
from diffusiongemma.tasks.base import Example
from diffusiongemma.tasks.json_extract import JsonExtract
from diffusiongemma.text.tokenizer import Tokenizer
from tests.tiny import text_of, tiny_config, tiny_model, tiny_transformer

OPTIONS: dict[str, Any] = {"num_diffusion_steps": 5, "seed": 3}


class Letters:
    """Answers are judged by how many of their letters are small."""

    name, summary, max_tokens = "letters", "small letters", 20

    def examples(self, count: int, seed: int) -> Sequence[Example]:
        return [Example(f"abc{seed}x{i}", "never" if i % 2 else None, "odd" if i % 2 else "even") for i in range(count)]

    def score(self, example: Example, text: str) -> float:
        return sum(char.islower() for char in text) / max(1, len(text))


TASK = Letters()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DiffusionGemmaModel:
    """The tiny random model as a checkpoint of its own."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model(folder, stop_ids=(5, 9)).save_pretrained(folder)
    return DiffusionGemmaModel.from_pretrained(folder)


def run(
    model: DiffusionGemmaModel, count: int, path: Path | None = None, fresh: bool = False, **options: Any
) -> tuple[TaskReport, list[int]]:
    """The report, and the indexes of the examples that the model was asked in this run."""
    asked: list[int] = []
    results = ResultsFile(path, fresh) if path else None
    written = path.read_text().count("\n") if path else 0
    report = evaluate(model, TASK, TASK.examples(count, 7), results=results, **{**OPTIONS, **options})
    if path:
        asked = [json.loads(line)["index"] for line in path.read_text().splitlines()[written:]]
    return report, asked


def same(one: TaskReport, other: TaskReport) -> bool:
    """Equal in all but the time, and what was resumed."""
    return replace(one, seconds=0, tokens_per_second=0, resumed=0) == replace(other, seconds=0, tokens_per_second=0, resumed=0)


def test_scores_are_those_of_the_answers_one_by_one(model: DiffusionGemmaModel) -> None:
    examples = TASK.examples(7, 7)
    singly = [model.generate(e.prompt, max_tokens=20, **{**OPTIONS, "seed": 3 + i}) for i, e in enumerate(examples)]
    began = time.perf_counter()
    outcomes: list[Outcome] = []
    report = evaluate(model, TASK, examples, batch_size=3, on_outcome=outcomes.append, **OPTIONS)
    spent = time.perf_counter() - began
    usages = [result.usage for result in singly]
    steps, tokens = sum(u.denoising_steps for u in usages), sum(u.completion_tokens for u in usages)
    total = report.total
    assert total.examples == 7 and total.completion_tokens == tokens
    assert total.score == pytest.approx(sum(TASK.score(e, r.text) for e, r in zip(examples, singly, strict=True)) / 7)
    assert total.mean_steps == pytest.approx(steps / sum(len(result.canvases) for result in singly))
    assert total.tokens_per_forward == pytest.approx(tokens / steps)
    assert total.tokens_per_forward_with_commits == pytest.approx(tokens / (steps + sum(u.commit_passes for u in usages)))
    assert sum(u.commit_passes for u in usages) > 0, "some answers take more than one canvas"
    assert sum(total.finish_reasons.values()) == 7
    assert {outcome.index: outcome.text for outcome in outcomes} == {i: result.text for i, result in enumerate(singly)}
    assert 0.3 * spent < report.seconds < spent
    assert report.tokens_per_second == pytest.approx(tokens / report.seconds)
    assert {name: group.examples for name, group in report.groups.items()} == {"even": 4, "odd": 3}
    assert report.groups["even"].exact is None and report.groups["odd"].exact == 0
    assert total.score == pytest.approx((4 * report.groups["even"].score + 3 * report.groups["odd"].score) / 7)


def test_causal_mode_has_no_canvases(model: DiffusionGemmaModel) -> None:
    report = evaluate(model, TASK, TASK.examples(3, 7), mode="causal")
    assert report.total.mean_steps is None and report.total.tokens_per_forward == 1
    assert report.mode == "causal"


def test_max_tokens_is_the_tasks_own_unless_given(model: DiffusionGemmaModel) -> None:
    for options, most in (({}, 20), ({"max_tokens": 3}, 3), ({"max_tokens": None}, 20)):
        result: list[Outcome] = []
        evaluate(model, TASK, TASK.examples(4, 7), on_outcome=result.append, **OPTIONS, **options)
        assert all(outcome.completion_tokens <= most for outcome in result)
        assert max(outcome.completion_tokens for outcome in result if outcome.finish_reason == "length") == most


@pytest.mark.parametrize("cut", [1, 2, 30, 400, -1, -40])
def test_a_file_cut_anywhere_goes_on_to_the_same_end(model: DiffusionGemmaModel, tmp_path: Path, cut: int) -> None:
    """A negative cut leaves a part of the last line, as a killed process may."""
    path = tmp_path / "deep" / "results.jsonl"
    whole, asked = run(model, 6, path, batch_size=2)
    assert sorted(asked) == list(range(6))
    content = path.read_bytes()
    path.write_bytes(content[:cut])
    kept = content[:cut].count(b"\n")
    again, asked = run(model, 6, path, batch_size=2)
    assert same(again, whole) and again.resumed == kept and len(asked) == 6 - kept
    assert sorted(json.loads(line)["index"] for line in path.read_text().splitlines()) == list(range(6))
    third, asked = run(model, 6, path)
    assert third.resumed == 6 and asked == [] and same(third, whole)
    assert third.seconds == pytest.approx(again.seconds)


def test_more_examples_run_only_what_is_new(model: DiffusionGemmaModel, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    run(model, 2, path)
    report, asked = run(model, 5, path)
    assert sorted(asked) == [2, 3, 4]
    assert same(report, run(model, 5)[0])
    fewer, asked = run(model, 3, path)
    assert asked == [] and same(fewer, run(model, 3)[0])


def test_other_settings_stand_beside(model: DiffusionGemmaModel, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    first, _ = run(model, 3, path)
    for options in ({"seed": 4}, {"num_diffusion_steps": 2}, {"mode": "causal"}, {"t_max": 0.9}, {"max_tokens": 4}):
        assert len(run(model, 3, path, **options)[1]) == 3, options
        assert len(run(model, 3, path, **options)[1]) == 0, options
    again, asked = run(model, 3, path)
    assert asked == [] and same(again, first)
    assert path.read_text().count("\n") == 18


def test_another_checkpoint_or_example_is_not_taken_for_this_one(model: DiffusionGemmaModel, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    run(model, 3, path)
    assert model.folder is not None
    folder = tmp_path / "other"
    folder.mkdir()
    for file in model.folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    twin = DiffusionGemmaModel.from_pretrained(folder)
    assert fingerprint(twin) == fingerprint(model)
    assert run(twin, 3, path)[1] == [], "a copy of a checkpoint is the same checkpoint"
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert len(run(DiffusionGemmaModel.from_pretrained(folder), 3, path)[1]) == 3
    others = TASK.examples(3, 8)
    assert evaluate(model, TASK, others, results=ResultsFile(path), **OPTIONS).resumed == 0


def test_fresh_runs_everything_again_and_the_later_line_counts(model: DiffusionGemmaModel, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    run(model, 3, path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**line, "score": 0.125}) + "\n" for line in lines))
    assert run(model, 3, path)[0].total.score == 0.125
    report, asked = run(model, 3, path, fresh=True)
    assert sorted(asked) == [0, 1, 2] and report.total.score != 0.125
    assert same(run(model, 3, path)[0], report)


def test_a_line_is_there_as_soon_as_its_example_is_done(model: DiffusionGemmaModel, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    counts: list[int] = []

    class StopError(Exception):
        pass

    def look(outcome: Outcome) -> None:
        counts.append(path.read_text().count("\n"))
        if len(counts) == 3:
            raise StopError

    with pytest.raises(StopError):
        evaluate(model, TASK, TASK.examples(6, 7), results=ResultsFile(path), on_outcome=look, **OPTIONS)
    assert counts == [1, 2, 3]
    assert run(model, 6, path)[0].resumed == 3


def test_what_the_model_cannot_take_is_recorded_with_the_reason(model: DiffusionGemmaModel, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    most = model.config.text.max_position_embeddings
    examples = [Example("abc", None), Example("x", None), Example(text_of([1]) * most, None), Example("what?", None)]
    report = evaluate(model, TASK, examples, results=ResultsFile(path), **OPTIONS)
    assert report.total.finish_reasons["refused"] == 2 and report.total.examples == 4
    assert "positions; the model has" in report.refusal
    lines = {line["index"]: line for line in map(json.loads, path.read_text().splitlines())}
    assert lines[2]["score"] == lines[3]["score"] == 0
    assert "positions" in lines[2]["reason"] and "cannot represent" in lines[3]["reason"]
    assert lines[0]["reason"] == "" and lines[0]["text"]
    served = evaluate(model, TASK, examples[:2], **OPTIONS)
    assert report.total.score == pytest.approx(served.total.score / 2)
    nothing = evaluate(model, TASK, examples[2:3], **OPTIONS)
    assert nothing.total.finish_reasons == {"refused": 1} and nothing.total.tokens_per_forward is None


def test_mistakes_are_named(model: DiffusionGemmaModel, tmp_path: Path) -> None:
    examples = TASK.examples(2, 7)
    with pytest.raises(OptionError, match="nothing can be pinned with the task letters"):
        evaluate(model, TASK, examples, pinned=True)
    with pytest.raises(OptionError, match="in mode 'causal'"):
        evaluate(model, SudokuTask(), examples, pinned=True, mode="causal")
    with pytest.raises(OptionError, match="allowed: diffusion, causal"):
        evaluate(model, TASK, examples, mode="typewriter")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="batch_size is 0"):
        evaluate(model, TASK, examples, batch_size=0)
    with pytest.raises(OptionError, match="unknown option colour"):
        evaluate(model, TASK, examples, colour="red")
    with pytest.raises(InputError, match="no examples"):
        evaluate(model, TASK, [])
    with pytest.raises(OptionError, match="made in memory"):
        evaluate(tiny_model(tmp_path), TASK, examples, results=ResultsFile(tmp_path / "results.jsonl"))


def test_a_file_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    for content in ("Dear diary\n", '{"a": 1}\n', "[]\n", "\xff\n", '{"a":' * 50_000 + "\n"):
        path.write_text(content, "latin-1")
        with pytest.raises(InputError, match=r"notes.txt, line 1 is not a result"):
            ResultsFile(path)
        assert path.read_text("latin-1") == content
    with pytest.raises(InputError, match="results cannot be kept in"):
        ResultsFile(tmp_path)


def test_results_are_found_by_model_and_mode() -> None:
    assert default_path("sudoku", "causal") == Path("runs/eval/sudoku-causal.jsonl")
    assert default_path("runs/my run/model", "diffusion") == Path("runs/eval/runs-my-run-model-diffusion.jsonl")
    assert default_path("../x", "diffusion").parent == Path("runs/eval")


def test_right_and_score_differ_where_a_part_counts() -> None:
    half = Outcome(task="t", index=0, example="", group="", score=0.5, exact=False, text="", finish_reason="stop", sampling={})
    report = summarise([half, replace(half, index=1, score=1.0, exact=True)])
    assert (report.total.score, report.total.right, report.total.exact) == (0.75, 0.5, 0.5)
    assert report.groups == {}
    data = report.to_dict()
    assert data["task"] == "t" and data["score"] == 0.75 and json.dumps(data)


def test_answers_held_to_their_schema_are_objects_of_it() -> None:
    """Random weights under nano's tokenizer: every answer has the right fields, and free ones have not."""
    task = JsonExtract()
    examples = task.examples(4, 1_000_000)
    nano = Path(diffusiongemma.__file__).parent / "checkpoints" / "nano"
    transformer = tiny_transformer(tiny_config(16, vocab_size=4096))
    model = DiffusionGemmaModel(transformer, Tokenizer.from_folder(nano), SamplingParams(num_diffusion_steps=3), [1, 5])
    answers: dict[bool, list[str]] = {True: [], False: []}
    for constrained, texts in answers.items():
        report = evaluate(
            model, task, examples, constrained=constrained, max_tokens=128, on_outcome=lambda o, to=texts: to.append(o.text)
        )
        assert report.total.finish_reasons == ({"stop": 4} if constrained else report.total.finish_reasons)
    wanted = sorted(sorted(task.schema(example)["required"]) for example in examples)
    assert sorted(sorted(json.loads(text)) for text in answers[True]) == wanted
    assert not any(text.startswith("{") for text in answers[False])
    with pytest.raises(OptionError, match="constrained to a schema"):
        evaluate(model, TASK, TASK.examples(1, 7), constrained=True)
