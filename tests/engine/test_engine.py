"""The loop from prompt to answer: same seed, same tokens; where an answer ends; what is counted; what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from diffusiongemma.engine.events import Commit, Done, Draft, Event, Result
from diffusiongemma.errors import InputError, OptionError, PromptTooLongError
from diffusiongemma.generation import DiffusionGemmaModel
from tests.tiny import ALPHABET, text_of, tiny_config, tiny_model, tiny_transformer

PROMPTS = ["abc", "Hello", "x", "abcdefghijklmnopqrstuvwxyz"]
SHORT = {"num_diffusion_steps": 5, "max_tokens": 20}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DiffusionGemmaModel:
    return tiny_model(tmp_path_factory.mktemp("model"), tiny_transformer(scale=0.4))


def generate(model: DiffusionGemmaModel, prompt: str = "abc", **options: Any) -> Result:
    return model.generate(prompt, **{**SHORT, "seed": 1, **options})


@pytest.mark.parametrize("mode", ["diffusion", "causal"])
def test_same_seed_same_tokens_alone_and_in_any_batch(model: DiffusionGemmaModel, mode: str) -> None:
    options = {**SHORT, "seed": 3, "mode": mode, "temperature": 0.7}
    alone = [model.generate(prompt, **options).token_ids for prompt in PROMPTS]
    assert [r.token_ids for r in model.generate(PROMPTS, **options)] == alone
    assert [r.token_ids for r in model.generate(PROMPTS[::-1], **options)] == alone[::-1]
    assert [r.token_ids for r in model.generate([PROMPTS[2]] * 7, **options)] == [alone[2]] * 7
    assert [r.token_ids for r in model.generate(PROMPTS, **{**options, "seed": 4})] != alone


def test_an_unset_seed_is_drawn(model: DiffusionGemmaModel) -> None:
    assert len({tuple(model.generate("abc", **SHORT).token_ids) for _ in range(4)}) > 1


def test_max_tokens_cuts_a_canvas(model: DiffusionGemmaModel) -> None:
    for most in (1, 7, 8, 9, 20):
        result = generate(model, max_tokens=most)
        assert (len(result.token_ids), result.finish_reason) == (most, "length")
        assert result.text == text_of(result.token_ids) == str(result)
        assert [canvas.tokens for canvas in result.canvases] == [8] * (most // 8) + [most % 8] * (most % 8 > 0)


def stopping_at(model: DiffusionGemmaModel, token: int) -> DiffusionGemmaModel:
    return DiffusionGemmaModel(model.transformer, model.tokenizer, model.defaults, (token,))


@pytest.mark.parametrize("position", [0, 3, 7, 8, 13])
def test_a_stop_token_ends_the_answer_wherever_it_stands(model: DiffusionGemmaModel, position: int) -> None:
    free = generate(model).token_ids
    token = free[position]
    first = free.index(token)
    result = generate(stopping_at(model, token))
    assert result.token_ids == free[: first + 1]
    assert result.text == text_of(free[:first]) and result.finish_reason == "stop"
    assert len(result.canvases) == first // 8 + 1


@pytest.mark.parametrize(("start", "size"), [(0, 1), (2, 3), (6, 4), (7, 2), (14, 4)])
def test_a_stop_string_ends_the_text_before_it(model: DiffusionGemmaModel, start: int, size: int) -> None:
    """(6, 4) and (14, 4) lie across the border of two canvases."""
    free = generate(model).text
    stop = free[start : start + size]
    events = list(model.stream("abc", seed=1, stop=[stop, "never there"], **SHORT))
    result = next(event.result for event in events if isinstance(event, Done))
    assert result.text == free[: free.index(stop)] and result.finish_reason == "stop"
    assert "".join(event.text for event in events if isinstance(event, Commit)) == result.text


def test_the_start_of_a_stop_string_that_does_not_come_is_text(model: DiffusionGemmaModel) -> None:
    free = generate(model).text
    almost = free[6:9] + next(char for char in ALPHABET if char != free[9])
    assert generate(model, stop=almost).text == free


def test_events_come_in_order_and_say_what_happens(model: DiffusionGemmaModel) -> None:
    events: list[Event] = list(model.stream(["abc", "Hello"], seed=1, **SHORT))
    for row in (0, 1):
        mine = [event for event in events if event.row == row]
        assert isinstance(mine[-1], Done) and sum(isinstance(event, Done) for event in mine) == 1
        result = mine[-1].result
        commits = [event for event in mine if isinstance(event, Commit)]
        assert "".join(event.text for event in commits) == result.text
        assert [token for event in commits for token in event.token_ids] == result.token_ids
        drafts = [event for event in mine if isinstance(event, Draft)]
        for index, canvas in enumerate(result.canvases):
            steps = [draft for draft in drafts if draft.canvas == index]
            assert [draft.step for draft in steps] == list(range(1, canvas.steps + 1))
            # The last draft is what is committed.
            assert steps[-1].argmax_ids[: canvas.tokens] == result.token_ids[8 * index : 8 * index + canvas.tokens]
        assert all(len(d.argmax_ids) == len(d.entropy) == len(d.accepted) == 8 and any(d.accepted) for d in drafts)
        assert drafts[0].text == text_of(drafts[0].argmax_ids)


def test_usage_is_true(model: DiffusionGemmaModel) -> None:
    usage, canvases = generate(model, early_stop=False).usage, 3
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (3, 20, 23)
    assert (usage.denoising_steps, usage.commit_passes) == (5 * canvases, canvases - 1)
    assert usage.tokens_per_forward == pytest.approx(20 / 15)
    assert usage.tokens_per_forward_with_commits == pytest.approx(20 / 17)
    causal = generate(model, mode="causal").usage
    assert (causal.completion_tokens, causal.denoising_steps, causal.commit_passes) == (20, 0, 20)


def test_the_canvas_can_be_committed_as_it_was_sampled(model: DiffusionGemmaModel) -> None:
    best, sampled = generate(model), generate(model, commit="canvas")
    assert best.token_ids != sampled.token_ids and len(sampled.token_ids) == 20


def test_pins_come_out_unchanged_on_every_canvas(model: DiffusionGemmaModel) -> None:
    pins = [-1] * 20
    for position, token in ((0, 5), (7, 9), (8, 11), (19, 63)):
        pins[position] = token
    free, pinned = generate(model), generate(model, pins=pins)
    for position, token in enumerate(pins):
        assert token == -1 or pinned.token_ids[position] == token
    assert pinned.token_ids != free.token_ids
    by_row = model.generate(["abc", "abc"], seed=1, pins=[pins, [-1]], **SHORT)
    assert [r.token_ids for r in by_row] == [pinned.token_ids, free.token_ids]


@pytest.mark.parametrize(
    ("options", "error", "needle"),
    [
        ({"prompt": ""}, InputError, "prompt 0 is empty"),
        ({"prompt": "  \n"}, InputError, "prompt 0 is empty"),
        ({"prompt": []}, InputError, "there is no prompt"),
        ({"prompt": ["a", ""]}, InputError, "prompt 1 is empty"),
        ({"prompt": ["a", 5]}, InputError, "prompt 1 is of type int"),
        ({"prompt": None}, InputError, "either prompt or messages"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, InputError, "either prompt or messages"),
        ({"prompt": None, "messages": [{"role": "user", "content": "a"}]}, InputError, "no chat template"),
        ({"prompt": "a" * 500}, PromptTooLongError, "the model has 512"),
        ({"max_tokens": 0}, OptionError, "max_tokens is 0"),
        ({"num_diffusion_steps": 0}, OptionError, "num_diffusion_steps is 0"),
        ({"mode": "psychic"}, OptionError, "allowed: diffusion, causal"),
        ({"mode": "causal", "pins": [1]}, OptionError, "pins need mode 'diffusion'"),
        ({"pins": [64]}, InputError, "outside 0 to 63"),
        ({"pins": [-2]}, InputError, "outside 0 to 63"),
        ({"pins": [1] * 25}, InputError, "pins 25 positions; max_tokens 20 ends the answer"),
        ({"pins": [[1], [2]]}, InputError, "pins for 2 rows and 1 prompts"),
        ({"top_a": 5}, OptionError, "unknown option top_a"),
    ],
)
def test_bad_input_is_named_before_anything_runs(
    model: DiffusionGemmaModel, options: dict[str, Any], error: type[Exception], needle: str
) -> None:
    with pytest.raises(error, match=needle):
        model.generate(**{"prompt": "abc", **SHORT, **options})


def test_stream_refuses_bad_options_before_it_is_read(model: DiffusionGemmaModel) -> None:
    with pytest.raises(OptionError):
        model.stream("abc", max_tokens=0)


def test_a_saved_model_gives_the_same_answer(model: DiffusionGemmaModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    assert generate(DiffusionGemmaModel.from_pretrained(tmp_path)).token_ids == generate(model).token_ids


def test_long_prompts_are_encoded_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64: a random model turns the last bit of float32 into another token sooner or later."""
    from diffusiongemma.model import cache

    wide = tiny_model(tmp_path, tiny_transformer(scale=0.4, dtype=torch.float64))
    for mode in ("diffusion", "causal"):
        monkeypatch.setattr(cache, "CHUNK_CPU", 2048)
        is_complete = [r.token_ids for r in wide.generate(PROMPTS, seed=1, mode=mode, **SHORT)]
        for chunk in (1, 4, 9):
            monkeypatch.setattr(cache, "CHUNK_CPU", chunk)
            assert [r.token_ids for r in wide.generate(PROMPTS, seed=1, mode=mode, **SHORT)] == is_complete


def test_rows_leave_the_passes_when_they_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The passes hold the rows that still move and no others, and who leaves changes nothing for who stays."""
    model = tiny_model(tmp_path, tiny_transformer(scale=0.4))
    model.transformer.double()  # in float32 rounding decides tokens of a random model after a dozen steps
    options: dict[str, Any] = {"num_diffusion_steps": 12, "max_tokens": 16, "seed": 3, "stability": 0, "entropy_bound": 9.0}
    drafts = [event for event in model.stream(PROMPTS, early_stop=False, **options) if isinstance(event, Draft)]
    means = sorted(sum(draft.entropy) / 8 for draft in drafts)
    options["confidence"] = means[len(means) // 4]
    alone = [model.generate(prompt, **options) for prompt in PROMPTS]
    sizes: list[int] = []
    denoise = model.transformer.denoise_rows

    def counted(canvases: list[torch.Tensor], *rest: Any) -> list[torch.Tensor]:
        sizes.append(len(canvases))
        return denoise(canvases, *rest)

    monkeypatch.setattr(model.transformer, "denoise_rows", counted)
    together = model.generate(PROMPTS, **options)
    assert [result.token_ids for result in together] == [result.token_ids for result in alone]
    steps = [[canvas.steps for canvas in result.canvases] for result in together]
    assert steps == [[canvas.steps for canvas in result.canvases] for result in alone]
    totals = [sum(row) for row in steps]
    assert len({row[0] for row in steps}) > 1 and len(set(totals)) > 1, "the rows stop at different steps, or nothing is shown"
    assert sizes == [sum(total > taken for total in totals) for taken in range(max(totals))], "nobody waits for another's canvas"


def test_rows_with_their_answer_leave_the_batch(model: DiffusionGemmaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    free = model.generate(PROMPTS, seed=1, **SHORT)
    stopper = next(t for t in free[1].token_ids[:8] if all(t not in r.token_ids[:8] for r in (free[0], free[2])))
    stopping = stopping_at(model, stopper)
    sizes: list[int] = []
    encode = model.transformer.encode_rows
    monkeypatch.setattr(model.transformer, "encode_rows", lambda ids, *rest: (sizes.append(len(ids)), encode(ids, *rest))[1])
    together = stopping.generate(PROMPTS, seed=1, **SHORT)
    assert sizes[0] == 4 and 1 <= sizes[1] < 4, "one prompt pass of all rows, then commits of those that go on"
    for result, unstopped in zip(together, free, strict=True):
        ids = unstopped.token_ids
        assert result.token_ids == (ids[: ids.index(stopper) + 1] if stopper in ids else ids)


@pytest.mark.parametrize("mode", ["diffusion", "causal"])
@pytest.mark.parametrize("cold", [1e-8, 1e-30, 1e-38, 1e-45, 1e-300])
def test_a_tiny_temperature_draws_what_a_small_one_does(model: DiffusionGemmaModel, mode: Any, cold: float) -> None:
    """Logits over 1e-8 leave float32 no entropy, over 1e-38 they are infinite."""

    def text(temperature_: float) -> list[int]:
        options = {"t_min": temperature_, "t_max": temperature_} if mode == "diffusion" else {"temperature": temperature_}
        return model.generate("abc", seed=3, max_tokens=12, num_diffusion_steps=3, mode=mode, **options).token_ids

    assert text(cold) == text(1e-4)
    if mode == "causal":
        assert text(cold) == text(0.0)
    else:
        assert text(1e300) == text(1e200)  # all are equally probable


def test_a_seed_for_each_row(model: DiffusionGemmaModel) -> None:
    alone = [model.generate("abc", seed=seed, **SHORT).token_ids for seed in (5, 6)]
    assert [result.token_ids for result in model.generate(["abc", "abc"], seeds=[5, 6], **SHORT)] == alone
    assert alone[0] != alone[1]
    with pytest.raises(InputError, match="one for each of the 2 prompts"):
        model.generate(["abc", "abc"], seeds=[5], **SHORT)
    with pytest.raises(OptionError, match="seed is -1"):
        model.generate(["abc"], seeds=[-1], **SHORT)


def test_a_shorter_canvas(tmp_path: Path) -> None:
    """Five tokens at a time: the positions and numbers are those of a checkpoint whose canvas is as short."""
    long, short = (tiny_model(tmp_path, tiny_transformer(tiny_config(n))) for n in (8, 5))
    options: dict[str, Any] = {"seed": 3, "max_tokens": 13, "num_diffusion_steps": 4}
    result = long.generate("abc", canvas_length=5, **options)
    assert result.token_ids == short.generate("abc", **options).token_ids != long.generate("abc", **options).token_ids
    assert [canvas.tokens for canvas in result.canvases] == [5, 5, 3]
    with pytest.raises(OptionError, match="canvas_length is 9; this checkpoint's is 8, and fewer are allowed"):
        long.generate("abc", canvas_length=9)
    with pytest.raises(OptionError, match="canvas_length is 0"):
        long.generate("abc", canvas_length=0)
