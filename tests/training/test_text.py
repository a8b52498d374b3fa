"""The text mixture: a pure function of (seed, step), in the ids generation would see, and nothing held out."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer as Backend

from diffusiongemma.errors import TrainingError
from diffusiongemma.tasks.python_code import functions, module_files
from diffusiongemma.text.tokenizer import Tokenizer
from diffusiongemma.training.data import CHAT_TEMPLATE, MARKS, SPECIALS, STOP_IDS
from diffusiongemma.training.init import write_tokenizer
from diffusiongemma.training.loop import TrainRun
from diffusiongemma.training.recipe import Bucket, Recipe, load_recipe
from diffusiongemma.training.text import SOURCES, TextMixture
from tests.training.test_loop import small, weights


def quiet(done: int, total: int) -> None:
    """Progress nobody looks at."""


def nano(**data: object) -> Recipe:
    """The built-in recipe with a small vocabulary."""
    recipe = load_recipe("nano")
    settings = {"vocab_size": 600, "tokenizer_examples": 10, "tokenizer_functions": 20, **data}
    buckets = tuple(bucket.model_copy(update={"prompt": 3 * bucket.prompt}) for bucket in recipe.data.buckets)
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"buckets": buckets, **settings})})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def mixture(folder: Path) -> TextMixture:
    return TextMixture(nano().data, 1, folder, quiet)


def test_a_batch_depends_on_seed_and_step_alone(mixture: TextMixture, folder: Path) -> None:
    again = TextMixture(nano().data, 1, folder, quiet)
    for step in (0, 1, 2, 1):
        one, same = mixture.batch(step, 3), again.batch(step, 3)
        assert all(
            torch.equal(a, b) for a, b in zip(vars(one).values(), vars(same).values(), strict=True) if isinstance(a, torch.Tensor)
        )
    assert not torch.equal(mixture.batch(5, 3).answer_PL[0], mixture.batch(6, 3).answer_PL[0])


def test_rows_are_prompts_as_generation_sees_them_and_whole_answers(mixture: TextMixture, folder: Path) -> None:
    write_tokenizer(folder, mixture.tokenizer, CHAT_TEMPLATE, SPECIALS)
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.template is not None
    chats = 0
    for step in range(12):
        batch = mixture.batch(step, 4)
        assert batch.padding_P is not None and batch.weight_PL is not None and batch.pinned_PL is not None
        for prompt, pad, answer, weight in zip(batch.prompt_PT, batch.padding_P, batch.answer_PL, batch.weight_PL, strict=True):
            assert (prompt[:pad] == 0).all() and (prompt[pad:] != 0).all()
            text = tokenizer.decode(prompt[pad:].tolist(), skip_special=False)
            length = int((weight == 1).sum())
            assert (answer[length:] == 0).all() and weight[length:].tolist() == pytest.approx([0.1] * (len(answer) - length))
            if "<|turn>" in text:
                chats += 1
                user = text.removeprefix("<bos><|turn>user\n").removesuffix("<turn|>\n<|turn>model\n")
                assert tokenizer.encode(tokenizer.template.render([{"role": "user", "content": user}])) == prompt[pad:].tolist()
                assert int(answer[length - 1]) == SPECIALS.index("<turn|>") and int(answer[length - 1]) in STOP_IDS
    assert chats > 30


def test_plain_code_has_holes_whose_surroundings_are_kept(mixture: TextMixture) -> None:
    bucket = mixture._recipe.buckets[-1]
    rows = [mixture._plain_code(bucket, i) for i in range(60)]
    holes = [(hole, len(answer)) for _, answer, hole in rows if hole]
    assert 15 < len(holes) < 45 and all(0 <= begin < end <= length for (begin, end), length in holes)
    assert all(prompt and answer for prompt, answer, _ in rows)
    for step in range(40):
        keep = mixture.batch(step, 4).pinned_PL
        assert keep is not None
        for row in keep[keep.any(-1)]:
            opened = (~row).nonzero().flatten().tolist()
            assert all(b == a + 1 for a, b in pairwise(opened)), "one hole, in one piece"


def test_held_out_code_is_not_learnt_from(mixture: TextMixture) -> None:
    held_out = set(functions(module_files(held_out=True)))
    assert len(held_out) > 200 and not held_out & set(mixture._code)


def test_every_source_is_in_the_recipe_and_no_other_is_taken(tmp_path: Path) -> None:
    recipe = nano()
    both = [bucket for name in ("nano", "nano-2") for bucket in load_recipe(name).data.buckets]  # type: ignore[union-attr]
    assert {name for bucket in both for name in bucket.sources} == set(SOURCES)
    wrong = recipe.data.buckets[0].model_copy(update={"sources": {"poetry": 1.0}})
    with pytest.raises(TrainingError, match="poetry; allowed: aiw"):
        TextMixture(recipe.data.model_copy(update={"buckets": (wrong,)}), 1, tmp_path, quiet)
    with pytest.raises(TrainingError, match="for evaluation"):
        TextMixture(recipe.data, 1_000_000, tmp_path, quiet)


def test_a_bucket_that_nothing_fits_is_refused(mixture: TextMixture, folder: Path) -> None:
    tight = mixture._recipe.buckets[0].model_copy(update={"prompt": 8, "sources": {"syllogism": 1.0}})
    narrow = TextMixture(mixture._recipe.model_copy(update={"buckets": (tight,)}), 1, folder, quiet)
    with pytest.raises(TrainingError, match="exceed a bucket of 8"):
        narrow.batch(0, 1)


def test_a_tokenizer_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(TrainingError, match="remove it"):
        TextMixture(nano().data, 1, tmp_path, quiet)


def test_any_text_goes_through_the_vocabulary_and_back(mixture: TextMixture) -> None:
    backend: Backend = mixture.tokenizer
    for text in ("naïve café 東京 \U0001f642\n\tx = 1", "<FILL>", "0123"):
        assert backend.decode(backend.encode(text, add_special_tokens=False).ids) == text
    assert len(backend.encode("1234", add_special_tokens=False).ids) == 4, "digits stand alone"


def test_a_run_on_text_goes_on_exactly(tmp_path: Path, mixture: TextMixture) -> None:
    for name in ("straight", "half"):  # it need not be learnt again
        (tmp_path / name).mkdir()
        mixture.tokenizer.save(str(tmp_path / name / "tokenizer.json"))
    sudoku = small(steps=4, checkpoint_every=2)
    recipe = nano().model_copy(update={"model": sudoku.model, "train": sudoku.train})
    straight = TrainRun(recipe, tmp_path / "straight")
    straight.train()
    half = TrainRun(recipe, tmp_path / "half")
    for _ in range(2):
        half._step()
        half.step += 1
    half._keep()
    resumed = TrainRun(recipe, tmp_path / "half")
    resumed.train()
    assert resumed.step == 4
    for name, tensor in weights(straight).items():
        assert torch.equal(tensor, weights(resumed)[name]), name


def test_declared_functions_stand_in_the_prompt_and_calls_in_the_answer(folder: Path, mixture: TextMixture) -> None:
    (folder / "tools").mkdir()
    mixture.tokenizer.save(str(folder / "tools" / "tokenizer.json"))
    bucket = Bucket(prompt=200, answer=60, share=1, sources={"tool-call": 1})
    mixture = TextMixture(nano().data.model_copy(update={"buckets": (bucket,)}), 1, folder / "tools", quiet)
    write_tokenizer(folder / "tools", mixture.tokenizer, mixture.chat_template, SPECIALS)
    tokenizer = Tokenizer.from_folder(folder / "tools")
    assert tokenizer.template is not None and tokenizer.template.knows_tools and tokenizer.markup.calls
    marks = {mark: mixture.tokenizer.token_to_id(mark) for mark in MARKS}
    batch = mixture.batch(0, 8)
    assert batch.padding_P is not None
    for prompt, answer in zip(batch.prompt_PT.tolist(), batch.answer_PL.tolist(), strict=True):
        assert marks["<|tool>"] in prompt and marks["<tool|>"] in prompt
        assert answer[0] == marks["<|tool_call>"] and marks["<tool_call|>"] in answer
        assert tokenizer.decode(answer, skip_special=False).startswith("<|tool_call>call:")


def test_a_long_answer_is_learnt_canvas_by_canvas(folder: Path) -> None:
    bucket = Bucket(prompt=160, answer=64, share=1, sources={"convert": 1})
    (folder / "long").mkdir()
    mixture = TextMixture(nano().data.model_copy(update={"buckets": (bucket,), "vocab_size": 300}), 1, folder / "long", quiet)
    starts = set()
    for index in range(200):
        example = mixture._example("convert", index * 200)
        whole = [*mixture._ids(example.answer or ""), SPECIALS.index("<turn|>")]
        prompt, answer, _ = mixture._row("convert", bucket, index)
        assert len(answer) <= 64
        if len(whole) <= 128 and answer in (whole[:64], whole[64:128]):
            starts.add(0 if answer == whole[:64] else 64)
            if answer != whole[:64]:
                assert prompt[-64:] == whole[:64]
    assert starts == {0, 64}
