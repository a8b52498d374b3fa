"""Decisions: against a slow loop over random weights, and against a language whose probabilities are known."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tools.measure_decisions import RULES
from torch import Tensor

import diffusiongemma
from diffusiongemma import Choice, DiffusionGemmaModel, Predicate, Score
from diffusiongemma.diffusion import SamplingParams
from diffusiongemma.errors import InputError, OptionError, PromptTooLongError
from diffusiongemma.generation.checkpoint import Checkpoint
from diffusiongemma.generation.decide import ROWS_A_PASS, Alternatives, chain, decide
from diffusiongemma.kernels import RngPurpose, position_keys, random_ids
from diffusiongemma.model.cache import KVCache
from diffusiongemma.model.transformer import Transformer
from diffusiongemma.text.tokenizer import Tokenizer
from tests.tiny import tiny_config, tiny_model, tiny_transformer

NANO = Path(diffusiongemma.__file__).parent / "checkpoints" / "nano"
PAD, END = 0, 1
PROMPT = [5, 9, 33, 2]


@pytest.fixture(scope="module", name="stack")
def _stack() -> Transformer:
    return tiny_transformer(scale=0.3)  # unsure of everything, so that each factor counts


@pytest.fixture(name="model")
def _model(tmp_path: Path, stack: Transformer) -> DiffusionGemmaModel:
    return tiny_model(tmp_path, stack, stop_ids=(END,))


def slow(stack: Transformer, prompt: list[int], answers: Sequence[Sequence[int]], seed: int, draw: int = 0) -> list[float]:
    """One canvas at a time, with the definition written out a second time."""
    tail = next(n for n in range(1, 9) if len({tuple(answer[-n:]) for answer in answers}) > 1) - 1
    length, vocab = stack.config.canvas_length, stack.config.text.vocab_size
    used = sorted({token for answer in answers for token in answer})
    zero = torch.zeros(1, dtype=torch.int64)
    free = torch.tensor([token for token in range(vocab) if token not in used])
    noise = free[random_ids(position_keys(zero + seed, zero + draw, zero, RngPurpose.INITIAL, length), len(free))][0].tolist()

    def log_p(token: int, at: int, known: dict[int, int]) -> float:
        cache = KVCache(stack.config.text, 1, 64, stack.dtype, stack.device)
        stack.encode(torch.tensor([prompt]), cache)
        canvas = torch.tensor([[known.get(i, noise[i]) for i in range(length)]])
        return float(stack.logits(stack.denoise(canvas, cache))[0, at].log_softmax(-1)[token])

    scores = []
    for answer in answers:
        alike = [other for other in answers if len(other) == len(answer)]
        known = {i: token for i, token in enumerate(answer) if all(list(other[i : i + 1]) == [token] for other in answers)}
        score = 0.0
        for common in (True, False):
            for i, token in enumerate(answer):
                if i not in known and (not common or all(other[i] == token for other in alike)):
                    score += log_p(token, i, known) if i <= len(answer) - tail else 0.0
                    known[i] = token
        scores.append(score)
    weights = [math.exp(score) for score in scores]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize(
    "answers",
    [
        [[7, END], [8, END], [9, END]],
        [[3, 7, 4, END], [3, 8, 4, END]],
        [[3, 7, 8, 4, END], [3, 8, 7, 4, END], [3, 8, 8, 4, END]],
        [[3, 7, 4, END], [3, 8, 4, END], [3, 8, 8, 4, END], [3, 4, END]],
        [[7, END], [7, 7, END], [7, 7, 7, 7, 7, 7, 7, END]],
    ],
)
def test_answers_are_scored_as_by_a_slow_loop(stack: Transformer, answers: list[list[int]]) -> None:
    result = decide(stack, [Alternatives(PROMPT, answers)], seed=3)
    assert result.probabilities[0] == pytest.approx(slow(stack, PROMPT, answers, seed=3), abs=1e-5)
    assert sum(result.probabilities[0]) == pytest.approx(1)
    assert result.passes == 1


def test_options_of_one_token_are_a_softmax_over_one_canvas(stack: Transformer) -> None:
    answers = [[3, token, 4, END] for token in range(10, 30)]
    assert decide(stack, [Alternatives(PROMPT, answers)]).rows == 1
    assert {factor.canvas for mine in chain(answers, 8) for factor in mine} == {(3, -1, 4, END, -1, -1, -1, -1)}


def test_what_is_known_is_pinned_and_what_is_asked_is_open() -> None:
    answers = [[3, 7, 4, END], [3, 8, 4, END], [3, 8, 8, 4, END]]
    for answer, mine in zip(answers, chain(answers, 8), strict=True):
        assert len({factor.position for factor in mine}) == len(mine)
        for factor in mine:
            assert factor.canvas[factor.position] == -1 and factor.token == answer[factor.position]
            assert factor.canvas[0] == 3 and factor.canvas[len(answer) :] == (-1,) * (8 - len(answer))
            assert all(token in (-1, *answer[i : i + 1]) for i, token in enumerate(factor.canvas))


def test_noise_is_no_token_of_an_answer_and_pins_stand(stack: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all but three tokens in the answers, noise has those three to choose from."""
    answers = [[3, token, END] for token in range(64) if token not in (20, 40, 60)]
    seen: list[Tensor] = []
    real = stack.denoise
    monkeypatch.setattr(stack, "denoise", lambda ids, *rest: (seen.append(ids), real(ids, *rest))[1])
    decide(stack, [Alternatives(PROMPT, answers)], draws=5)
    canvases = torch.cat(seen)
    assert canvases.shape == (5, 8) and (canvases[:, 0] == 3).all() and (canvases[:, 2] == END).all()
    assert set(canvases[:, 1].tolist()) <= {20, 40, 60} and len(set(canvases[:, 1].tolist())) > 1


def test_a_question_is_decided_as_if_it_were_alone(stack: Transformer) -> None:
    """Neighbours, their number, their order and the split into passes change rounding only; prompts differ in length."""
    many = [Alternatives(PROMPT[: 1 + i % 4], [[7 + i, 2, END], [8 + i, 3, END], [9 + i, END]]) for i in range(30)]
    together = decide(stack, many, seed=4, draws=2)
    assert together.rows > ROWS_A_PASS and together.passes == -(-together.rows // ROWS_A_PASS)
    backwards = decide(stack, many[::-1], seed=4, draws=2).probabilities[::-1]
    for i, (a, b) in enumerate(zip(together.probabilities, backwards, strict=True)):
        assert a == pytest.approx(b, abs=1e-5)
        if i % 7 == 0:
            assert a == pytest.approx(decide(stack, [many[i]], seed=4, draws=2).probabilities[0], abs=1e-5)


def test_a_decision_is_made_in_passes_of_few_rows(stack: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the model runs but within ``call``, a pass a time; long prompts come in pieces, and not all of them at once."""
    sizes: list[int] = []
    caches: list[int] = []
    inside = False

    def watched(name: str) -> None:
        real = getattr(stack, name)

        def passed(ids: Any, *rest: Any) -> Any:
            assert inside and torch.is_inference_mode_enabled()
            sizes.append(len(ids))
            return real(ids, *rest)

        monkeypatch.setattr(stack, name, passed)

    def call(work: Callable[[], object]) -> object:
        nonlocal inside
        inside, before = True, len(sizes)
        result = work()
        inside = False
        assert len(sizes) == before + 1
        return result

    class Cache(KVCache):
        def __init__(self, config: Any, rows: int, *rest: Any) -> None:
            caches.append(rows)
            super().__init__(config, rows, *rest)

    many = [Alternatives([5, 9, i, 2] * 5, [[7 + i, 2, END], [8 + i, 3, END], [9 + i, END]]) for i in range(20)]
    expected = decide(stack, many, seed=4, draws=3)
    for name in ("encode_rows", "denoise"):
        watched(name)
    monkeypatch.setattr("diffusiongemma.model.cache.CHUNK_CPU", 8)
    monkeypatch.setattr("diffusiongemma.generation.decide.KVCache", Cache)
    result = decide(stack, many, seed=4, draws=3, call=call)
    assert max(sizes) == ROWS_A_PASS and caches == [16, 4]
    assert len(sizes) == result.passes + 2 * 3, "two groups of prompts, each encoded in three pieces"
    for a, b in zip(result.probabilities, expected.probabilities, strict=True):
        assert a == pytest.approx(b, abs=1e-5)


def test_more_canvases_than_can_be_waited_for_are_refused(stack: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusiongemma.generation.decide.MAX_ROWS", 30)
    one = Alternatives(PROMPT, [[7, 2, END], [8, 3, END], [9, END]])
    rows = decide(stack, [one], draws=2).rows // 2
    decide(stack, [one] * 5, draws=30 // (5 * rows))
    with pytest.raises(InputError, match="more than 30 canvases"):
        decide(stack, [one] * 5, draws=30 // (5 * rows) + 1)


def test_the_order_of_the_answers_is_theirs(stack: Transformer) -> None:
    answers = [[7, END], [8, END], [9, 9, END]]
    forth, back = (decide(stack, [Alternatives(PROMPT, list(order))]).probabilities[0] for order in (answers, answers[::-1]))
    assert forth == pytest.approx(back[::-1], abs=1e-6)


def test_draws_are_averaged_and_the_seed_decides(stack: Transformer) -> None:
    one = [Alternatives(PROMPT, [[7, END], [8, END]])]
    first, other = decide(stack, one).probabilities[0], decide(stack, one, seed=9).probabilities[0]
    assert first == decide(stack, one).probabilities[0]
    assert abs(first[0] - other[0]) > 1e-6
    both = decide(stack, one, draws=2)
    second = slow(stack, PROMPT, one[0].answers, seed=0, draw=1)
    assert both.rows == 2 and abs(second[0] - first[0]) > 1e-2
    assert both.probabilities[0] == pytest.approx([(a + b) / 2 for a, b in zip(first, second, strict=True)], abs=1e-5)


LANGUAGE = {(7, END): 5.0, (8, END): 1.0, (7, 8, END): 2.0, (8, 8, END): 3.0, (7, 7, 8, END): 4.0, (8, 7, 7, END): 6.0}
"""Texts and their weights."""


@pytest.fixture(name="oracle")
def _oracle(monkeypatch: pytest.MonkeyPatch) -> Iterator[Transformer]:
    """A stack that denoises by Bayes' rule over LANGUAGE: tokens that no text has are noise, all others are known."""
    stack = tiny_transformer(tiny_config())
    texts = torch.tensor([[*text, *[PAD] * (8 - len(text))] for text in LANGUAGE])
    weights = torch.tensor(list(LANGUAGE.values()))

    def denoise(canvas: Tensor, *_: object) -> Tensor:
        known = (canvas == END) | (canvas == 7) | (canvas == 8)
        fits = ((canvas[:, None] == texts) | ~known[:, None]).all(-1) * weights
        probs = torch.zeros(*canvas.shape, 64)
        for text, canvas_slice in zip(texts, fits.T, strict=True):
            probs[:, range(8), text] += canvas_slice[:, None]
        return (probs / probs.sum(-1, keepdim=True)).log()

    monkeypatch.setattr(stack, "denoise", denoise)
    monkeypatch.setattr(stack, "logits", lambda hidden: hidden)
    yield stack


@pytest.mark.parametrize("few", [6, 5, 4, 2])
def test_probabilities_are_right_where_they_are_known(oracle: Transformer, few: int) -> None:
    """Texts of three lengths, one the beginning of another: each gets its share, by the chain rule in either order."""
    answers = list(LANGUAGE)[:few]
    wanted = [LANGUAGE[text] / sum(LANGUAGE[text] for text in answers) for text in answers]
    for name in ("chain", "left to right"):
        assert decide(oracle, [Alternatives(PROMPT, answers)], rule=RULES[name]).probabilities[0] == pytest.approx(wanted, abs=1e-5)


def test_the_rules_that_are_wrong_are_seen_to_be(oracle: Transformer) -> None:
    """Pseudo-likelihood favours long texts, whose tokens give each other away."""
    wanted = [weight / sum(LANGUAGE.values()) for weight in LANGUAGE.values()]
    for name in ("pseudo-likelihood", "marginals"):
        result = decide(oracle, [Alternatives(PROMPT, list(LANGUAGE))], rule=RULES[name]).probabilities[0]
        assert max(abs(a - b) for a, b in zip(result, wanted, strict=True)) > 0.03


def test_joint_questions_see_each_other(model: DiffusionGemmaModel, monkeypatch: pytest.MonkeyPatch, oracle: Transformer) -> None:
    """``ab`` or ``ba``, nothing else is probable: alone each letter is a coin, together they are two."""
    monkeypatch.setattr(model.checkpoint, "transformer", oracle)
    questions = [Choice("first", ["h", "i"]), Choice("second", ["h", "i"])]  # tokens 7 and 8
    result = model.decide("x", questions, joint=True, template="{{first}}{{second}}")
    with pytest.raises(InputError, match="joint"):
        model.decide("x", questions, template="{{first}}{{second}}")
    # Of the texts of LANGUAGE only 7 8 (weight 2) and 8 8 (weight 3) are such pairs.
    assert result["first"].probabilities == pytest.approx({"h": 0.4, "i": 0.6})
    assert result["second"].probabilities == pytest.approx({"h": 0.0, "i": 1.0})
    assert (result["first"].answer, result["second"].answer) == ("i", "i")


def test_decisions_of_every_kind(model: DiffusionGemmaModel) -> None:
    questions = [Predicate("p", yes="y", no="n"), Choice("c", ["ab", "c", "abc"]), Score("s", 0, 12)]
    result = model.decide("hello", questions, seed=5)
    assert [decision.name for decision in result.decisions] == ["p", "c", "s"] and result.passes == 1
    for question, decision in zip(questions, result.decisions, strict=True):
        assert tuple(decision.probabilities) == question.texts
        assert sum(decision.probabilities.values()) == pytest.approx(1)
        assert decision.entropy == pytest.approx(-sum(p * math.log(p) for p in decision.probabilities.values() if p))
        best = max(decision.probabilities, key=decision.probabilities.__getitem__)
        assert decision.answer == question.values[question.texts.index(best)]
        alone = model.decide("hello", [question], seed=5)[question.name]
        assert alone.probabilities == pytest.approx(decision.probabilities, abs=1e-5)
    mean = sum(int(text) * p for text, p in result["s"].probabilities.items())
    assert result["s"].expectation == pytest.approx(mean) and result["p"].expectation is None
    assert isinstance(result["p"].answer, bool) and isinstance(result["s"].answer, int)


def test_below_the_threshold_a_question_stays_open(model: DiffusionGemmaModel) -> None:
    question = Choice("c", ["a", "b", "c"])
    top = max(model.decide("x", [question])["c"].probabilities.values())
    assert model.decide("x", [question], threshold=top - 1e-3)["c"].answer is not None
    assert model.decide("x", [question], threshold=top + 1e-3)["c"].answer is None


def test_instructions_are_part_of_the_prompt(model: DiffusionGemmaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """One question's words are not shown to another, unless they are joint."""
    shown: list[object] = []
    monkeypatch.setattr(
        Checkpoint, "prompt_ids", lambda self, prompt, messages, options: (shown.append((prompt, messages)), [[3]])[1]
    )
    questions = [Choice("a", ["b", "c"]), Choice("d", ["e", "f"], "Why?"), Choice("g", ["h", "i"], "How?")]
    model.decide("x", questions)
    model.decide("x", questions, joint=True, template="{{a}}{{d}}{{g}}")
    model.decide(messages=[{"role": "user", "content": "x"}], questions=questions[1:2])
    said = [{"role": "user", "content": "x"}, {"role": "user", "content": "Why?"}]
    assert shown == [("x", None), ("x\n\nWhy?", None), ("x\n\nHow?", None), ("x\n\nWhy?\nHow?", None), (None, said)]


def test_answers_are_tokens_of_the_whole_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge across the edge of a slot is as the model would write it, not as the pieces are."""
    tokenizer = Tokenizer.from_folder(NANO)
    stack = tiny_transformer(tiny_config(16, vocab_size=4096))
    model = DiffusionGemmaModel(stack, tokenizer, SamplingParams(), [1, 5])
    seen: list[Alternatives] = []
    monkeypatch.setattr(
        "diffusiongemma.generation.decide.decide", lambda _, asked, **options: (seen.extend(asked), decide(_, asked, **options))[1]
    )
    model.decide("x", [Predicate("a", yes="true", no="false")], template='{"a": {{a}}}')
    is_complete = [tokenizer.encode(text) for text in ('{"a": true}', '{"a": false}')]
    assert seen[0].answers == [[*ids, 5] for ids in is_complete]
    assert is_complete[0] != [token for piece in ('{"a": ', "true", "}") for token in tokenizer.encode(piece)]
    with pytest.raises(InputError, match="cannot write"):
        model.decide("x", [Choice("a", ["b", "<turn|>"])])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"questions": []}, InputError, "no questions"),
        ({"questions": [Predicate("a", yes="y", no="n"), Score("a", 1, 2)]}, InputError, "'a' is given 2 times"),
        ({"questions": [Predicate("", yes="y", no="n")]}, InputError, "at least one character"),
        ({"questions": [Choice("a", [])]}, InputError, "0 options"),
        ({"questions": [Choice("a", ["b"])]}, InputError, "1 options"),
        ({"questions": [Choice("a", ["b", "c", "b"])]}, InputError, "'b' 2 times"),
        ({"questions": [Choice("a", ["b", ""])]}, InputError, "at least one character"),
        ({"questions": [Choice("a", "bc")]}, InputError, "list of strings"),
        ({"questions": [Predicate("a", yes="y", no="y")]}, InputError, "must differ"),
        ({"questions": [Score("a", 3, 3)]}, InputError, "high must be above low"),
        ({"questions": [Score("a", 0, 10**12)]}, InputError, "at most 256"),
        ({"questions": [Choice("a", ["b", "?"])]}, InputError, "cannot represent"),
        ({"questions": [Choice("a", ["b", "c" * 8])]}, InputError, "9 tokens with its end, a canvas has 8"),
        ({"template": "aaaaaaa{{a}}"}, InputError, "9 tokens with its end, a canvas has 8"),
        ({"template": "a{{b}}"}, InputError, "slots for"),
        ({"template": "a"}, InputError, "slots for nothing"),
        ({"template": "{{a}}{{a}}"}, InputError, "exactly once"),
        ({"threshold": 1.5}, OptionError, "0 to 1"),
        ({"threshold": -0.1}, OptionError, "0 to 1"),
        ({"threshold": math.nan}, OptionError, "0 to 1"),
        ({"draws": 0}, OptionError, "draws"),
        ({"seed": -1}, OptionError, "seed"),
        ({"prompt": ""}, InputError, "empty"),
        ({"prompt": "x" * 600}, PromptTooLongError, "positions"),
        ({"prompt": None}, InputError, "either prompt or messages"),
        ({"questions": [Score("a", 1, 99), Score("b", 1, 3)], "joint": True, "template": "{{a}}{{b}}"}, InputError, "at most 256"),
    ],
)
def test_errors_come_before_any_pass(
    model: DiffusionGemmaModel, monkeypatch: pytest.MonkeyPatch, options: dict[str, object], error: type[Exception], message: str
) -> None:
    monkeypatch.setattr(model.transformer, "stack", None)
    given: dict[str, object] = {"prompt": "x", "questions": [Choice("a", ["b", "c"])], **options}
    with pytest.raises(error, match=message):
        model.decide(**given)  # type: ignore[arg-type]


def test_answers_the_checkpoint_cannot_tell_apart(stack: Transformer) -> None:
    with pytest.raises(InputError, match="same tokens"):
        decide(stack, [Alternatives(PROMPT, [[7, END], [7, END]])])
    with pytest.raises(InputError, match="beginning of another"):
        decide(stack, [Alternatives(PROMPT, [[7, 8], [9], [7]])])
    with pytest.raises(InputError, match="all 64 tokens"):
        decide(stack, [Alternatives(PROMPT, [[token] for token in range(64)])])
