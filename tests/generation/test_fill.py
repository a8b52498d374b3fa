"""Spans are filled and nothing else changes; the length that reads best wins; bad templates are named."""

import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusiongemma import DiffusionGemmaModel
from diffusiongemma.errors import InputError, OptionError, PromptTooLongError
from diffusiongemma.examples.sudoku.puzzles import prompt_text, reasoning_gym_puzzles
from diffusiongemma.generation import fill, score
from diffusiongemma.generation.template import Span, Template
from tests.engine.test_constraint import model_of
from tests.tiny import tiny_transformer

QUICK = {"num_diffusion_steps": 2, "tries": 3}
TEXTS = st.text(st.characters(codec="utf-8"), max_size=30)
SPECIAL = re.compile(r"<(pad|eos|bos|unk|turn\||\|turn>)|\ufffd")


@pytest.fixture(scope="module", name="model")
def _model() -> DiffusionGemmaModel:
    """Random weights, nano's tokenizer, canvases of 16."""
    return model_of()


def pieces_of(texts: list[str], filled: str) -> list[str] | None:
    """What stands in the spans between texts, if the filled text is made of them."""
    pattern = "(.*)".join(map(re.escape, texts))
    result = re.fullmatch(pattern, filled, re.DOTALL)
    return None if result is None else list(result.groups())


@settings(max_examples=40, deadline=None)
@given(
    prefix=TEXTS,
    suffix=st.one_of(TEXTS, st.text("ab <>|\n", min_size=20, max_size=90)),
    seed=st.integers(0, 2**32),
    canvas=st.sampled_from([None, 5]),
)
def test_what_stands_around_a_hole_comes_out_unchanged(
    model: DiffusionGemmaModel, prefix: str, suffix: str, seed: int, canvas: int | None
) -> None:
    filled = model.infill(prefix, suffix, max_tokens=20, seed=seed, canvas_length=canvas, **QUICK)
    assert filled.text == prefix + filled.spans["span"] + suffix
    for tried in filled.tried:
        assert tried.text == prefix + tried.spans["span"] + suffix
        assert not SPECIAL.search(tried.spans["span"])


@settings(max_examples=25, deadline=None)
@given(
    texts=st.lists(TEXTS.filter(lambda text: "{" not in text and not text.endswith("\\")), min_size=3, max_size=5),
    seed=st.integers(0, 2**32),
)
def test_every_text_of_a_template_comes_out_unchanged(model: DiffusionGemmaModel, texts: list[str], seed: int) -> None:
    names = [f"h{i}" for i in range(len(texts) - 1)]
    template = "".join(text + f"{{{{{name}:1-9}}}}" for text, name in zip(texts, names, strict=False)) + texts[-1]
    filled = model.fill(template, seed=seed, **QUICK)
    assert list(filled.spans) == names
    assert filled.text == "".join(text + filled.spans.get(name, "") for text, name in zip(texts, [*names, ""], strict=True))


def test_long_texts_around_a_hole_over_many_canvases(model: DiffusionGemmaModel) -> None:
    prefix, suffix = "Lines before.\n" * 50, "und Zeilen danach, früh und spät\n" * 60
    filled = model.infill(prefix, suffix, min_tokens=40, max_tokens=40, seed=1, num_diffusion_steps=2)
    assert filled.text == prefix + filled.spans["span"] + suffix
    assert {tried.lengths["span"] for tried in filled.tried} == {40}


def test_a_stop_token_ends_its_hole_and_not_the_text(model: DiffusionGemmaModel) -> None:
    always = DiffusionGemmaModel(model.transformer, model.tokenizer, model.defaults, list(range(4096)))
    filled = always.fill("a{{x:3}}b{{y:20}}c", seed=1, num_diffusion_steps=2)
    assert (filled.text, filled.spans) == ("abc", {"x": "", "y": ""})


def test_the_best_score_wins_and_empty_holes_come_last(model: DiffusionGemmaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[list[int]] = []
    monkeypatch.setattr(fill, "span_text", lambda context, ids: "" if len(ids) == 3 else "x" * len(ids))

    def scored(transformer: Any, prompt: list[int], rows: list[list[int]], call: Any) -> list[list[float]]:
        texts.extend(prompt + row for row in rows)
        return [[-abs(number - 2.0), *[0.0] * (len(row) - 1)] for number, row in enumerate(rows)]

    monkeypatch.setattr(fill, "log_probs", scored)
    filled = model.infill("a", "bcd", min_tokens=1, max_tokens=4, seed=1, num_diffusion_steps=1)
    # The lengths 1 to 4 score -2, -1, 0, -1, but the third left its span empty; what opened its borders lost them.
    assert [(tried.lengths["span"], tried.open_borders) for tried in filled.tried] == [(n, False) for n in (2, 4, 1, 3)]
    # Judged as one text, with its end.
    assert texts == [[2, *model.tokenizer.encode("a" + span + "bcd"), 1] for span in ("x", "xx", "", "xxxx")]


def test_the_mean_is_of_a_token(model: DiffusionGemmaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []

    def scored(transformer: Any, prompt: list[int], rows: list[list[int]], call: Any) -> list[list[float]]:
        counts[:] = map(len, rows)
        return [[-5.0, *[-1.0] * (len(row) - 1)] for row in rows]

    monkeypatch.setattr(fill, "log_probs", scored)
    total, mean = (model.infill("a", "bcd", max_tokens=1, seed=1, tries=1, rank=rank).tried[0].score for rank in ("total", "mean"))
    assert total == -4 - counts[0] and mean == total / counts[0]


def test_open_borders_count_only_if_they_come_out_again(model: DiffusionGemmaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row "writes" the same tokens: ' "Gil", in the tokens of the whole text."""
    prefix, suffix = '{"city": "', '", "x": 1}'
    ids = model.tokenizer.encode(prefix + "Gil" + suffix)
    before, after = model.tokenizer.encode(prefix), model.tokenizer.encode(suffix)
    monkeypatch.setattr(fill, "span_text", lambda context, span: ' "Gil",' if len(span) in (3, 4) else ' "Gil"')
    rows: dict[str, list[list[int]]] = {}
    write = fill.write_rows

    def watched(context: Any, prompts: list[list[int]], pins: list[list[int]], *rest: Any) -> Any:
        rows.update(prompts=prompts, pins=pins)
        return write(context, prompts, pins, *rest)

    monkeypatch.setattr(fill, "write_rows", watched)
    filled = model.infill(prefix, suffix, max_tokens=2, seed=1, num_diffusion_steps=1)
    first = model.tokenizer.decode(after[:1])
    assert first == '",', "else this test shows nothing"
    assert {tried.spans["span"] for tried in filled.tried if tried.open_borders} == {"Gil"}
    assert {tried.spans["span"] for tried in filled.tried if not tried.open_borders} == {' "Gil"'}
    assert rows["prompts"] == [[2, *before], [2, *before[:-1]]] * 2
    assert [row.count(-1) for row in rows["pins"]] == [1, 3, 2, 4] and ids[: len(before) - 1] == before[:-1]
    assert rows["pins"][1][3 : 3 + len(after) - 1] == after[1:]


def test_scores_are_the_causal_roles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against one plain pass over prompt and text; in several chunks too."""
    model = tiny_transformer(scale=0.4, dtype=torch.float64)
    prompt, texts = [1, 2, 3], [[4, 5, 6, 7, 8], [9], [], [10, 11, 12]]
    for size in (1, 64 << 20):
        monkeypatch.setattr(score, "LOGITS_BYTES", size)
        result = score.log_probs(model, prompt, texts)
        for text, scores in zip(texts, result, strict=True):
            is_complete = torch.tensor([prompt + text])
            cache = score.KVCache(model.config.text, 1, 32, model.dtype, model.device)
            logits = model.logits(model.encode(is_complete, cache))[0, len(prompt) - 1 :].log_softmax(-1)
            assert scores == pytest.approx([float(logits[at, token]) for at, token in enumerate(text)], abs=1e-5)
    assert score.log_probs(model, prompt, [[], []]) == [[], []]


def test_scores_are_read_in_passes_of_few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may have their step between two of them."""
    model = tiny_transformer(scale=0.4, dtype=torch.float64)
    prompt, texts = [1, 2, 3] * 5, [[4 + n, 5, 6, 7, 8] * 4 for n in range(6)]
    expected = score.log_probs(model, prompt, texts)
    sizes: list[int] = []
    encode = model.encode_rows
    monkeypatch.setattr(model, "encode_rows", lambda ids, rows: (sizes.append(sum(map(len, ids))), encode(ids, rows))[1])
    monkeypatch.setattr("diffusiongemma.model.cache.CHUNK_CPU", 8)
    calls: list[int] = []
    result = score.log_probs(model, prompt, texts, lambda work: (work(), calls.append(len(sizes))))
    assert calls == list(range(1, len(sizes) + 1)) and max(sizes) <= 32 and len(sizes) == 2 + 4
    for one, other in zip(result, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-6)


def test_holes_and_their_lengths() -> None:
    template = Template.parse("Dear {{name:2-5}}, \\{{it}} is {{ reason }}{{mark:1}}")
    assert template.pieces == (
        "Dear ", Span("name", 2, 5), ", {{it}} is ", Span("reason", 1, 16), "", Span("mark", 1, 1), "",
    )  # fmt: skip
    assert template.text({"name": "A", "reason": "so", "mark": "!"}) == "Dear A, {{it}} is so!"
    assert Span("x", 5, 20).lengths() == [5, 6, 8, 12, 16, 20]


@given(st.integers(1, 40), st.lists(st.tuples(st.integers(1, 9), st.integers(0, 60)), min_size=1, max_size=4), st.integers(0, 99))
def test_layouts_are_within_bounds_and_different(max_tokens: int, spans: list[tuple[int, int]], seed: int) -> None:
    template = Template(("", *(Span(str(i), min_tokens, min_tokens + more) for i, (min_tokens, more) in enumerate(spans)), ""))
    layouts = template.layouts(max_tokens, seed)
    assert 1 <= len(layouts) <= max(max_tokens, 1) and len(set(layouts)) == len(layouts)
    assert layouts == template.layouts(max_tokens, seed)
    for layout in layouts:
        assert all(span.min_tokens <= length <= span.max_tokens for span, length in zip(template.spans, layout, strict=True))
    if max_tokens > 1 and len(layouts) > 1:
        assert any(layout == tuple(span.max_tokens for span in template.spans) for layout in layouts)


def test_a_template_of_any_length_is_read_in_time_that_grows_with_it() -> None:
    """Both took time that grows with the square: minutes at these sizes."""
    began = time.monotonic()
    assert Template.parse("\\{{" * 1_000_000 + "{{a}}").pieces[0] == "{{" * 1_000_000
    assert len(Template.parse("".join(f"{{{{a{number}}}}}" for number in range(100_000))).spans) == 100_000
    assert time.monotonic() - began < 30


def test_near_layouts_differ_in_one_hole() -> None:
    template = Template(("", Span("a", 1, 4), "", Span("b", 2, 3), ""))
    assert list(template.near((2, 3))) == [(1, 3), (2, 2), (3, 3), (4, 3)]
    assert list(Template.around("", "", 1, 9).near((3,))) == []


def test_a_second_batch_goes_on_from_the_best(model: DiffusionGemmaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The score is best at lengths 3 and 4, which the first batch need not hold: it has (3, 3) and (4, 4), a step away."""
    seen: list[list[tuple[int, ...]]] = []
    written = fill._written

    def watched(context: Any, template: Any, given: Any, layouts: list[tuple[int, ...]], *rest: Any) -> Any:
        seen.append(list(layouts))
        return written(context, template, given, layouts, *rest)

    def scored(context: Any, template: Any, given: Any, candidates: list[fill.InfillCandidate], rank: str) -> list[float]:
        return [-abs(candidate.lengths["a"] - 3.0) - abs(candidate.lengths["b"] - 4.0) for candidate in candidates]

    monkeypatch.setattr(fill, "_written", watched)
    monkeypatch.setattr(fill, "_scores", scored)
    monkeypatch.setattr(fill, "span_text", lambda context, ids: f"{len(ids)} ")
    filled = model.fill("x{{a:1-6}}y{{b:1-6}}z", seed=1, tries=20, num_diffusion_steps=1)
    assert filled.tried[0].lengths == {"a": 3, "b": 4} and (3, 4) not in seen[0]
    assert 2 <= len(seen) <= 3 and len({layout for batch in seen for layout in batch}) == sum(map(len, seen))
    assert max(map(len, seen)) <= 10


@pytest.mark.parametrize(
    ("call", "error", "needle"),
    [
        (lambda m: m.fill("no spans"), InputError, "has no span"),
        (lambda m: m.fill("a {{name:0-3}}"), InputError, "'name' has 0 to 3 tokens"),
        (lambda m: m.fill("a {{name:0}}"), InputError, "'name' has 0 to 0 tokens"),
        (lambda m: m.fill("a {{name:4-3}}"), InputError, "'name' has 4 to 3 tokens"),
        (lambda m: m.fill("a {{}} b"), InputError, "is not a span"),
        (lambda m: m.fill("a {{two words}} b"), InputError, "is not a span"),
        (lambda m: m.fill("a {{open"), InputError, "is not a span"),
        (lambda m: m.fill("{{a}} and {{a:2}}"), InputError, "more than one span 'a'"),
        (lambda m: m.infill("a", "b", min_tokens=0), InputError, "0 to 16 tokens"),
        (lambda m: m.infill("a", "b", min_tokens=0, max_tokens=0), InputError, "0 to 0 tokens"),
        (lambda m: m.infill("a", None), InputError, "suffix is of type NoneType"),
        (lambda m: m.fill("a {{x}} b", max_tokens=4), OptionError, "max_tokens may not be combined"),
        (lambda m: m.infill("a", "b", stop="x"), OptionError, "stop may not be combined"),
        (lambda m: m.infill("a", "b", rank="best"), OptionError, "total, mean,"),
        (lambda m: m.infill("a", "b", tries=0), OptionError, "tries 0"),
        (lambda m: m.infill("a", "b", seed=-1), OptionError, "seed is -1"),
        (lambda m: m.infill("a", "b", prompt=" "), InputError, "prompt 0 is empty"),
        (lambda m: m.infill("a " * 9000, "b"), PromptTooLongError, "the model has 8192"),
        (lambda m: m.edit("", "do"), InputError, "text to edit is ''"),
        (lambda m: m.edit("text", " "), InputError, "prompt 0 is empty"),
        (lambda m: m.edit("some text", "do", max_tokens=1), InputError, "max_tokens is 1; raise it"),
        (lambda m: m.vary("", 0.5), InputError, "text to vary is ''"),
        (lambda m: m.vary("a", 1.5), OptionError, "strength is 1.5"),
        (lambda m: m.vary("a", -0.1), OptionError, "strength is -0.1"),
        (lambda m: m.vary("a", float("nan")), OptionError, "strength is nan"),
        (lambda m: m.vary("a", 0.5, 0), OptionError, "n is 0"),
    ],
)
def test_bad_input_is_named_before_any_pass(
    model: DiffusionGemmaModel, monkeypatch: pytest.MonkeyPatch, call: Any, error: type[Exception], needle: str
) -> None:
    monkeypatch.setattr(model.transformer, "stack", None)
    with pytest.raises(error, match=needle):
        call(model)


@pytest.fixture(scope="module")
def sudoku() -> DiffusionGemmaModel:
    return DiffusionGemmaModel.from_pretrained("sudoku", progress=False)


def grid_lines(solution: str) -> list[str]:
    return [solution[i : i + 9] for i in range(0, 81, 9)]


def test_a_model_that_knows_fills_its_holes(sudoku: DiffusionGemmaModel) -> None:
    """Two rows of a solved grid are spans, and what is around them is pinned."""
    puzzle = next(p for p in reasoning_gym_puzzles(50, 31_337) if p.clue_count >= 48)
    lines = grid_lines(puzzle.solution)
    template = "\n".join([*lines[:2], "{{third:9}}", *lines[3:6], "{{seventh:9}}", *lines[7:]])
    filled = sudoku.fill(template, prompt=prompt_text(puzzle), seed=1)
    assert filled.spans == {"third": lines[2], "seventh": lines[6]}
    before, after = "\n".join(lines[:4]) + "\n", "\n" + "\n".join(lines[5:])
    result = sudoku.infill(before, after, min_tokens=9, max_tokens=10, prompt=prompt_text(puzzle), seed=1)
    assert lines[4] in [tried.spans["span"] for tried in result.tried]


def test_an_edit_begins_with_the_text(sudoku: DiffusionGemmaModel) -> None:
    puzzle = next(p for p in reasoning_gym_puzzles(50, 31_337) if p.clue_count <= 40)
    right = "\n".join(grid_lines(puzzle.solution))
    edited = sudoku.edit(right, prompt_text(puzzle), in_prompt=False, seed=1)
    anew = sudoku.generate(prompt_text(puzzle), seed=1)
    assert edited.text.strip() == right and edited.usage.denoising_steps < anew.usage.denoising_steps


def test_nano_is_there(tmp_path: Path) -> None:
    """The plain form and the chat form end with their own stop tokens."""
    nano = DiffusionGemmaModel.from_pretrained("nano", progress=False)
    plain, chat = nano._context(None, None, {}), nano._context("Hi", None, {})
    assert [nano.tokenizer.token_text(context.ending or 0) for context in (plain, chat)] == ["<eos>", "<turn|>"]
    assert plain.prompt == [2] and nano.tokenizer.decode(chat.prompt, skip_special=False).endswith("<|turn>model\n")
