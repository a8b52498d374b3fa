"""Regular expressions, choices and grammars: what is written is what ``re``, the list or the grammar has."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusiongemma.constraints import Constraint, Vocabulary, compile_grammar
from diffusiongemma.constraints.automaton import Automaton
from diffusiongemma.constraints.regex import emit, parse
from diffusiongemma.errors import ConstraintError
from tests.constraints.conftest import walk

atoms = st.sampled_from(
    ["a", "b", "xy", "é", "😀", " ", r"\d", r"\w", r"\s", r"\D", r"\W", r"\S", ".", "[a-f]", "[^a-f]", r"[\w.-]", r"[^\s,]",
     r"[^\W_]",     r"\.", r"\\", '"', r"\/", r"\t", "(?i:aé)", "(?s:.)", "-", "~", "&"]
)  # fmt: skip
patterns = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map("(?:{0[0]}|{0[1]})".format),
        inner.map("({})?".format),
        inner.map("(?:{})*".format),
        inner.map("(?:{})+?".format),
        inner.map("(?:{}){{2,3}}".format),
    ),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(patterns, st.integers(0, 1 << 30))
def test_regex(nano: Vocabulary, pattern: str, seed: int) -> None:
    grammar = compile_grammar(Constraint.regex(pattern), nano)
    for extra in (0, 3, 12):
        text = walk(grammar, random.Random(seed), len(grammar.shortest) + extra).text.decode()
        assert re.fullmatch(pattern, text)


@settings(max_examples=60, deadline=None)
@given(patterns, st.text("ab é0_-. ", max_size=6))
def test_regex_completion_is_right_and_shortest(pattern: str, begun: str) -> None:
    rest = Automaton(parse(pattern)).complete(begun)
    if rest is not None:
        assert re.fullmatch(pattern, begun + rest)
    if re.fullmatch(pattern, begun, re.ASCII) and re.fullmatch(pattern, begun):
        assert rest == ""


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=8), min_size=1, max_size=6), st.integers(0, 1 << 30))
def test_choices(nano: Vocabulary, choices: list[str], seed: int) -> None:
    grammar = compile_grammar(Constraint.choices(choices), nano)
    texts = {walk(grammar, random.Random(seed + n), len(grammar.shortest) + n).text.decode() for n in range(4)}
    assert texts <= set(choices)
    assert len(grammar.shortest) == min(
        len(nano.spell(choice.encode()) or []) for choice in choices if len(choice.encode()) == shortest(choices)
    )
    for choice in choices:
        tokens = nano.spell(choice.encode())
        assert tokens is not None
        cursor = grammar.start()
        assert cursor.validate([*tokens, nano.stop_ids[0]]) == len(tokens) + 1


def shortest(choices: list[str]) -> int:
    return min(len(choice.encode()) for choice in choices)


def test_choices_that_begin_alike(nano: Vocabulary) -> None:
    grammar = compile_grammar(Constraint.choices(["ab", "a", "", "ab", "abc"]), nano)
    seen = {walk(grammar, random.Random(seed), 9).text for seed in range(60)}
    assert seen == {b"", b"a", b"ab", b"abc"}
    many = compile_grammar(Constraint.choices([f"number {n}" for n in range(3000)]), nano)
    assert walk(many, random.Random(1), 9).text.startswith(b"number ")


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(0, 30))
def test_grammar(nano: Vocabulary, seed: int, budget: int) -> None:
    source = 'start: sum\nsum: term ("+" term)*\nterm: NUMBER | "(" sum ")"\nNUMBER: /[1-9][0-9]{0,3}/'
    grammar = compile_grammar(Constraint.grammar(source), nano)
    text = walk(grammar, random.Random(seed), max(budget, 1)).text.decode()
    assert re.fullmatch(r"[0-9()+]+", text)
    assert eval(text) > 0


def test_grammar_closes_what_is_open(nano: Vocabulary) -> None:
    source = 'start: "(" start ")" | "[" start "]" | "x"'
    cursor = compile_grammar(Constraint.grammar(source), nano).start()
    for token in nano.spell(b"([([") or []:
        cursor.advance(token)
    ending = cursor.ending(20)
    assert ending is not None
    assert nano.text(ending) == b"x])])"


def test_anchors() -> None:
    result = {pattern: emit(parse(pattern)) for pattern in ("^a$", "a", r"\Aa\Z", "^(a)$", "(^a$)", "(?:^a)")}
    assert set(result.values()) == {emit(parse("a"))}
    searches = [
        ("^a|b$", "axx", True),
        ("^a|b$", "xxb", True),
        ("^a|b$", "xax", False),
        ("(^a|b)c", "xbcx", True),
        ("(^a|b)c", "xacx", False),
        ("^(a|b$)", "xb", False),
        ("^$", "", True),
        ("^$", "x", False),
        ("", "x", True),
        ("a{2}|b", "xaax", True),
    ]
    for pattern, text, right in searches:
        assert (Automaton(parse(pattern, search=True)).complete(text) == "") == right == bool(re.search(pattern, text))


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(", "compile"), ("a{2,1}", "compile"), ("(?=a)b", "lookahead"), (r"(a)\1", "back reference"), (r"\ba", r"\\b"),
        ("a^b", "anchor"), ("(?>a)", "atomic"), ("a*+", "possessive"), ("((a{99}){99}){99}", "large"),
        (r"[\ud800-\udfff]", "surrogate"), (r"[^\x00-\U0010ffff]", "satisf"),
    ],
)  # fmt: skip
def test_regexes_refused(pattern: str, reason: str, nano: Vocabulary) -> None:
    with pytest.raises(ConstraintError, match=reason):
        compile_grammar(Constraint.regex(pattern), nano)


@pytest.mark.parametrize(
    "source", ["", "nonsense", "start: x", "start: /[/", 'start: "a" start', "start: <eos>", 'start: %json {"not": {}}']
)
def test_grammars_refused(source: str, nano: Vocabulary) -> None:
    with pytest.raises(ConstraintError, match="grammar"):
        compile_grammar(Constraint.grammar(source), nano)


def test_characters_cut_into_bytes(nano: Vocabulary, fallback: Vocabulary) -> None:
    for vocabulary in (nano, fallback):
        cursor = compile_grammar(Constraint.regex("[😀😁]é"), vocabulary).start()
        for byte in "😀".encode()[:3]:
            cursor.advance(next(t for t, text in enumerate(vocabulary.token_bytes) if text == bytes([byte])))
        ending = cursor.ending(10)
        assert ending is not None
        assert (cursor.text + vocabulary.text(ending)).decode() in ("😀é", "😁é")
