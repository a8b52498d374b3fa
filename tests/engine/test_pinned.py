"""Pins in answers that are constrained to a grammar: both are kept, whatever the weights (here they are random)."""

import json
import random
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusiongemma import DiffusionGemmaModel
from diffusiongemma.constraints import Constraint, compile_grammar
from diffusiongemma.engine.constraint import GrammarState
from diffusiongemma.engine.events import Draft
from diffusiongemma.engine.pinned import PinnedGrammarState, constraint_state
from diffusiongemma.errors import ConstraintError, InputError
from tests.constraints.conftest import walk
from tests.constraints.schemas import own
from tests.constraints.test_walks import validator
from tests.engine.test_constraint import PERSON, model_of, schema_of

SCHEMAS = own()
PATTERNS = (r"\d{3}-[a-f]{2}", r"(ab|cd)+e?", r"[A-Z][a-z]{0,40}\.", r"x*", "é😀{2}", r"(red|green|blue)( (red|green|blue)){0,5}!")
CHOICES = ["yes", "no", "perhaps not", "yes and no", "no and yes"]


@pytest.fixture(scope="module", name="model")
def _model() -> DiffusionGemmaModel:
    return model_of()


def pinned(model: DiffusionGemmaModel, constraint: Constraint, rng: random.Random, spare: int) -> tuple[dict[int, int], int]:
    """Some tokens of a random text of the grammar, and how many the text has."""
    grammar = compile_grammar(constraint, model.vocabulary)
    text = walk(grammar, rng, len(grammar.shortest) + spare).text
    tokens = (model.vocabulary.encode if rng.random() < 0.7 else model.vocabulary.spell)(text) or []
    canvas_slice = rng.choice([0.1, 0.4, 0.8])
    return {at: token for at, token in enumerate(tokens) if rng.random() < canvas_slice}, len(tokens)


@pytest.mark.parametrize("name", list(SCHEMAS)[1::6])
def test_schemas(model: DiffusionGemmaModel, name: str) -> None:
    judge, rng = validator(SCHEMAS[name]), random.Random(name)
    pins, count = pinned(model, Constraint.json_schema(SCHEMAS[name]), rng, 2)
    result = model.generate("x", response_format=schema_of(SCHEMAS[name]), pins=pins, max_tokens=count + rng.choice([0, 6]), seed=1)
    assert result.finish_reason == "stop"
    judge.validate(json.loads(result.text))
    assert {at: result.token_ids[at] for at in pins} == pins


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    source=st.sampled_from([*PATTERNS, "choices", "person"]),
    temperature_=st.sampled_from([0.01, 1.0, 20.0]),
    rule=st.sampled_from(["best", "canvas", "accepted"]),
    canvas=st.sampled_from([4, 16]),
    sharpness=st.sampled_from([1.0, 30.0]),
)
def test_any_seed_temperature_rule_and_canvas(
    seed: int, source: str, temperature_: float, rule: str, canvas: int, sharpness: float
) -> None:
    model, rng = model_of(sharpness, canvas), random.Random(seed)
    constraint, options = {
        "choices": (Constraint.choices(CHOICES), {"choices": CHOICES}),
        "person": (Constraint.json_schema(PERSON), {"response_format": schema_of(PERSON)}),
    }.get(source, (Constraint.regex(source), {"regex": source}))
    pins, count = pinned(model, constraint, rng, rng.choice([0, 8]))
    result = model.generate(
        "x",
        pins=pins,
        max_tokens=max(1, count + rng.choice([0, 5])),
        seed=seed,
        t_max=temperature_,
        t_min=temperature_,
        commit=rule,
        **options,
    )
    assert {at: result.token_ids[at] for at in pins} == pins
    # A gap of the search (docs/lab-log.md): with hardly a token of room after the last pin it may give the end up, and says so.
    if result.finish_reason == "length":
        return
    if source == "choices":
        assert result.text in CHOICES
    elif source == "person":
        validator(PERSON).validate(json.loads(result.text))
    else:
        assert re.fullmatch(source, result.text)


def test_a_pinned_stop_token_is_where_the_text_ends(model: DiffusionGemmaModel) -> None:
    for length in (4, 7, 12, 25):
        result = model.generate("x", regex="[a-z ]+", pins={length: 1}, max_tokens=30, seed=length)
        assert len(result.token_ids) == length + 1 and result.token_ids[-1] == 1 and re.fullmatch("[a-z ]+", result.text)


def test_what_the_model_wants_stands_where_it_leaves_a_way(model: DiffusionGemmaModel) -> None:
    """A canvas that keeps grammar and pins is taken as it is; one that leads away from a pin is repaired from there."""
    encode, vocabulary = model.tokenizer.encode, model.vocabulary
    grammar = compile_grammar(Constraint.json_schema(PERSON), vocabulary)
    wanted = [*encode('{"name": "Bo", "age": 31}'), 1]
    age = len(encode('{"name": "Bo", "age":'))
    asked: list[int] = []

    def best_of(at: int, allowed: torch.Tensor) -> int:
        asked.append(at)
        return int(allowed.nonzero()[0])

    row = PinnedGrammarState(grammar, 40, [1, 5], [-1] * (age - 1) + wanted[age - 1 : age])
    assert row.read(wanted + [9] * 3, [0.0] * 99, best_of) == (wanted + [9] * 3, [], True) and not asked
    assert row.commit(wanted, best_of) == wanted and row.is_complete and not asked

    # The name ends at once: now a token is missing before the pin, and what follows is cut otherwise to make up for it.
    row = PinnedGrammarState(grammar, 40, [1, 5], [-1] * (age - 1) + wanted[age - 1 : age])
    short = list(wanted)
    short[wanted.index(encode("Bo")[-1])] = vocabulary.id_of(b'"') or 0
    repaired = row.commit(short, best_of)
    assert repaired[age - 1] == wanted[age - 1] and repaired != short
    assert not vocabulary.text(repaired[:age]).startswith(vocabulary.text(short[:age]))


def test_pins_beside_what_is_forced(model: DiffusionGemmaModel) -> None:
    """The grammar forces bytes; a pin among them may ask for another cut of them than the tokenizer's."""
    vocabulary = model.vocabulary
    first = vocabulary.id_of(b"{")
    assert first is not None
    events = list(model.stream("x", response_format=schema_of(PERSON), pins={0: first}, max_tokens=40, seed=1))
    drafts = [event for event in events if isinstance(event, Draft)]
    assert drafts[0].pinned[0] and drafts[0].argmax_ids[0] == first and model.tokenizer.encode('{"')[0] != first
    result = model.generate("x", response_format=schema_of(PERSON), pins={0: first}, max_tokens=40, seed=1)
    validator(PERSON).validate(json.loads(result.text))


def test_rows_of_one_batch_keep_their_own(model: DiffusionGemmaModel) -> None:
    quote, digit = model.vocabulary.id_of(b"q"), model.vocabulary.id_of(b"7")
    assert quote is not None and digit is not None
    options: dict[str, Any] = {"regex": "[a-z]{3}[0-9]{3}", "max_tokens": 8, "seed": 4}
    together = model.generate(["x", "yy", "x"], pins=[{2: quote}, {}, {5: digit}], **options)
    alone = [model.generate(p, pins=pins, **options).text for p, pins in (("x", {2: quote}), ("yy", {}), ("x", {5: digit}))]
    assert [result.text for result in together] == alone
    assert together[0].token_ids[2] == quote and together[2].token_ids[5] == digit


@pytest.mark.parametrize(
    ("pins", "max_tokens", "needle"),
    [
        ({0: b"z"}, 20, "row 0 pins token .* b'z' at position 0, and no text of the regex"),
        ({0: b"a", 7: b"b"}, 20, "b'b' at position 7.* with the pins before it; a beginning that was: b'a'"),
        ({0: 2}, 20, "stands for no bytes"),
        ({0: b"a", 3: 1}, 20, "a stop token at position 3"),
        ({1: 1, 2: b"b"}, 20, "pin nothing after a stop token"),
        ({0: b"a", 4: b"1"}, 6, "after its last pin, at position 4"),
    ],
)
def test_contradictions_are_named_before_any_denoising(
    model: DiffusionGemmaModel, monkeypatch: pytest.MonkeyPatch, pins: dict[int, Any], max_tokens: int, needle: str
) -> None:
    monkeypatch.setattr(model.transformer, "denoise_rows", None)
    ids = {at: token if isinstance(token, int) else model.vocabulary.id_of(token) for at, token in pins.items()}
    with pytest.raises(ConstraintError, match=needle):
        list(model.stream("x", regex="ab[0-9]{4}z", pins=ids, max_tokens=max_tokens))


def test_too_little_room_for_any_text_is_length_as_without_pins(model: DiffusionGemmaModel) -> None:
    token = model.vocabulary.id_of(b"1")
    for options in ({"regex": "[0-9]{40}!"}, {"choices": ["1" * 30 + "!"]}):
        result = model.generate("x", pins={1: token}, max_tokens=4, seed=1, **options)
        assert result.finish_reason == "length" and result.token_ids[1] == token and set(result.text) <= set("0123456789")


def test_which_row_is_made(model: DiffusionGemmaModel) -> None:
    grammar = compile_grammar(Constraint.regex("a+"), model.vocabulary)
    token = model.vocabulary.id_of(b"a")
    assert token is not None
    assert constraint_state(None, 5, [1], [token]) is None
    assert isinstance(constraint_state(grammar, 5, [1]), GrammarState) and isinstance(
        constraint_state(grammar, 5, [1], [-1, -1]), GrammarState
    )
    assert isinstance(constraint_state(grammar, 5, [1], [-1, token]), PinnedGrammarState)
    with pytest.raises(InputError, match="max_tokens 3"):
        list(model.stream("x", regex="a+", pins={4: token}, max_tokens=3))


def test_a_plan_that_is_known_is_kept(model: DiffusionGemmaModel) -> None:
    """No token to spare, and an ending that is looked for anew takes more tokens than the plan has."""
    grammar = compile_grammar(Constraint.json_schema({"type": "string", "format": "uuid"}), model.vocabulary)
    plan = model.vocabulary.spell(b'"bdaededd-De3d-Aba0-abe4-ffffeeeDecdb"')
    assert plan is not None and grammar.start().ending(len(plan)) is None
    for known in (plan, None):
        row = GrammarState(grammar.start(), len(plan), [1, 5], known)
        row.commit([77] * 16, lambda at, allowed: int(allowed.nonzero()[0]))
        row.commit([77] * 16, lambda at, allowed: int(allowed.nonzero()[0]))
        assert row.is_complete == (known is not None)
