"""Ways through given tokens: what is found is a text, in its tokens and at its places; and what is easy is found."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusiongemma.constraints import Constraint, Cursor, Grammar, Vocabulary, compile_grammar
from diffusiongemma.constraints.pinned_search import SEARCH_BUDGETS, PinnedPath, place
from tests.constraints.conftest import walk
from tests.constraints.schemas import own

PATTERNS = (r"\d{3}-[a-f]{2}", r"(ab|cd)+e?", r"[A-Z][a-z]{0,40}\.", r"x*", "é😀{2}", r"(red|green|blue)( (red|green|blue)){0,5}!")
GRAMMARS = (
    'start: "(" start ")" | "x"',
    'start: "(" start ")" | "[" start "]" | "x"',
    'start: e\ne: t (("+"|"-") t)*\nt: /[0-9]+/ | "(" e ")"',
)
CHOICES = [f"option {n:02} of {word}" for n in range(30) for word in ("one", "two", "three")]
SCHEMAS = own()
CONSTRAINTS = [
    *(Constraint.json_schema(schema) for name, schema in list(SCHEMAS.items())[::4]),
    *map(Constraint.regex, PATTERNS),
    *map(Constraint.grammar, GRAMMARS),
    Constraint.choices(CHOICES),
]


def search(cursor: Cursor, given: list[int], limit: int) -> PinnedPath:
    path = PinnedPath([], False, 0)
    for budget in SEARCH_BUDGETS:
        path = cursor.through(given, limit, budget)
        if path.ends:
            break
    return path


def check(grammar: Grammar, given: list[int], limit: int, path: PinnedPath) -> None:
    cursor = grammar.start()
    for token in path.tokens:
        cursor.advance(token)
    assert cursor.accepting and len(path.tokens) <= limit
    assert len(path.tokens) >= len(given) and all(pin in (-1, token) for pin, token in zip(given, path.tokens, strict=False))


@pytest.mark.parametrize("seed", range(2))
def test_some_tokens_of_a_text_given(nano: Vocabulary, seed: int) -> None:
    """Random texts, random parts of their tokens: nearly always a way is found, and what is found is one."""
    missed = []
    for number, constraint in enumerate(CONSTRAINTS):
        grammar, rng = compile_grammar(constraint, nano), random.Random(100 * seed + number)
        text = walk(grammar, rng, len(grammar.shortest) + rng.choice([0, 4])).text
        tokens = (nano.encode if rng.random() < 0.7 else nano.spell)(text) or []
        share = rng.choice([0.2, 0.5, 0.8])
        given = [token if rng.random() < share else -1 for token in tokens]
        while given and given[-1] == -1:
            given.pop()
        if not 0 < len(given) < 60:
            continue
        limit = len(tokens) + rng.choice([0, 6])
        path = search(grammar.start(), given, limit)
        if path.ends:
            check(grammar, given, limit, path)
        else:
            missed.append((constraint.source, text, given))
    assert len(missed) <= 1, missed


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), pattern=st.sampled_from(PATTERNS))
def test_every_token_of_a_pattern_given_or_not(nano: Vocabulary, seed: int, pattern: str) -> None:
    grammar, rng = compile_grammar(Constraint.regex(pattern), nano), random.Random(seed)
    cursor = walk(grammar, rng, len(grammar.shortest) + 12)
    tokens = nano.spell(cursor.text) or []
    given = [token if rng.random() < 0.4 else -1 for token in tokens] + [1]
    path = search(grammar.start(), given, len(given))
    assert path.ends, (cursor.text, given)
    assert len(path.tokens) == len(given), "a stop token that is given ends the text there"
    check(grammar, given, len(given), path)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_choices_are_searched_completely(nano: Vocabulary, seed: int) -> None:
    grammar, rng = compile_grammar(Constraint.choices(CHOICES), nano), random.Random(seed)
    tokens = nano.encode(rng.choice(CHOICES)) if rng.random() < 0.5 else nano.spell(rng.choice(CHOICES).encode()) or []
    given = [token if rng.random() < 0.3 else -1 for token in tokens]
    while given and given[-1] == -1:
        given.pop()
    path = grammar.start().through(given, len(tokens), SEARCH_BUDGETS[0])
    assert path.ends
    check(grammar, given, len(tokens), path)


def test_a_gap_is_filled_in_as_many_tokens_as_it_has(nano: Vocabulary) -> None:
    """Between the quotes of a string stand 1 to 30 tokens, whatever is asked for."""
    grammar = compile_grammar(Constraint.json_schema({"type": "string"}), nano)
    quote = nano.id_of(b'"')
    assert quote is not None
    for count in range(1, 31):
        given = [quote] + [-1] * count + [quote, 1]
        path = search(grammar.start(), given, len(given))
        assert path.ends and len(path.tokens) == count + 3


def test_what_cannot_be_is_not_found_and_how_far_it_went_is_said(nano: Vocabulary) -> None:
    grammar = compile_grammar(Constraint.regex(r"ab\d{3}z"), nano)
    a, z = nano.id_of(b"a"), nano.id_of(b"z")
    assert a is not None and z is not None
    path = search(grammar.start(), [a, -1, -1, -1, -1, -1, -1, z], 20)
    assert not path.ends and path.passed == 1 and nano.text(path.tokens) == b"a"
    assert not search(grammar.start(), [z], 20).ends
    assert not search(grammar.start(), [a], 3).ends, "too few tokens for the rest"


def test_within_a_character(nano: Vocabulary) -> None:
    """The given token is the last byte of a character whose first ones are open."""
    grammar = compile_grammar(Constraint.json_schema({"type": "string", "maxLength": 4}), nano)
    byte = nano.id_of(b"\xa9")
    assert byte is not None
    path = search(grammar.start(), [-1, -1, byte, -1, 1], 5)
    assert path.ends
    nano.text(path.tokens[:-1]).decode()


def test_placing_a_text(nano: Vocabulary) -> None:
    a, ab = nano.id_of(b"a"), nano.id_of(b"ab")
    assert a is not None and ab is not None
    assert place(b"aab", [-1, ab], 2, nano) == [a, ab]
    assert place(b"aab", [ab], 5, nano) is None
    assert place(b"aab", [a, a], 2, nano) is None
    assert place(b"aab", [-1, -1, -1, 1], 4, nano) == [a, a, nano.id_of(b"b"), 1]
    assert place(b"", [], 0, nano) == []
