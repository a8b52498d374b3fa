"""A whole reply: thoughts, calls, words and texts of a grammar follow each other as they may, and an end is always in reach."""

import random
from typing import Any

import pytest

from diffusiongemma.constraints import Constraint, ReplyCursor, ReplyGrammar, Vocabulary, compile_grammar
from diffusiongemma.errors import ConstraintError
from diffusiongemma.text.replies import ReplyParts
from diffusiongemma.text.tokenizer import Tokenizer
from tests.constraints.schemas import TEXT, WHOLE, record
from tests.constraints.test_walks import validator
from tests.native import native_tokenizer

TOOLS: dict[str, Any] = {"weather": record("city", city=TEXT, days=WHOLE), "now": record()}


@pytest.fixture(scope="module", name="tokenizer")
def _tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return native_tokenizer(tmp_path_factory.mktemp("native"))


@pytest.fixture(scope="module", name="vocabulary")
def _vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary.of(tokenizer, tokenizer.encode("<eos><turn|>"), tokenizer.vocab_size)


def reply(tokenizer: Tokenizer, vocabulary: Vocabulary, tools: bool = True, regex: str | None = None, **more: Any) -> ReplyGrammar:
    calls = compile_grammar(Constraint.calls(list(TOOLS.items())), vocabulary) if tools else None
    body = compile_grammar(Constraint.regex(regex), vocabulary) if regex else None
    return ReplyGrammar(vocabulary, tokenizer.markup, body, calls, **more)


def walk(grammar: ReplyGrammar, rng: random.Random, budget: int) -> list[int]:
    """Tokens of a reply: marks often, others evenly; the end stays in reach."""
    cursor, taken = grammar.start(), list[int]()
    plan = cursor.ending(budget)
    assert plan is not None
    while True:
        tokens = cursor.allowed().nonzero()[:, 0].tolist()
        assert all(cursor.allows(token) for token in rng.sample(tokens, min(3, len(tokens))))
        marks = [token for token in tokens if token in grammar.markup.ids or token in grammar.vocabulary.stop_ids]
        token = rng.choice(marks if marks and rng.random() < 0.4 else tokens)
        if token in grammar.vocabulary.stop_ids:
            return taken
        after = cursor.copy()
        after.advance(token)
        further = after.ending(budget - len(taken) - 1) if len(taken) < budget else None
        if further is None:
            return [*taken, *plan]
        cursor, plan = after, further
        taken.append(token)


FORMS: list[dict[str, Any]] = [
    {"must_call": True},
    {"must_call": True, "parallel": False},
    {"must_call": True, "thoughts": "must"},
    {"must_call": True, "thoughts": "must", "budget": 2},
    {"thoughts": "may"},
    {"thoughts": "may", "budget": 3, "parallel": False},
    {"tools": False, "thoughts": "may", "budget": 0},
    {"tools": False},
    {"tools": False, "regex": "[ab]{2,4}", "thoughts": "must"},
    {"tools": False, "regex": "[ab]{2,4}", "thoughts": "must", "budget": 0},
    {"tools": False, "regex": "[ab]{2,4}", "opening": "<|channel>"},
    {"must_call": True, "opening": "<|channel>thought\n", "budget": 4},
    {"regex": "[ab]{2,4}"},
    {"regex": "[ab]{2,4}", "thoughts": "must", "parallel": False},
    {"opening": "<|channel>thought\nFirst,", "thoughts": "may"},
]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_what_is_written_is_what_was_asked(tokenizer: Tokenizer, vocabulary: Vocabulary, form: dict[str, Any]) -> None:
    opening = tuple(tokenizer.encode(form.get("opening", "")))
    grammar = reply(tokenizer, vocabulary, **form | {"opening": opening})
    marks = tokenizer.markup
    for seed in range(30):
        ids = walk(grammar, random.Random(seed), 60)
        assert len(ids) <= 60
        cursor = grammar.start()
        assert cursor.validate([*ids, vocabulary.stop_ids[0], 99]) == len(ids) + 1
        for token in ids:
            cursor.advance(token)
        assert cursor.accepting
        splitter = ReplyParts(tokenizer, opening)
        parts = splitter.push(ids, last=True)
        calls = [part.call for part in parts if part.call is not None]
        text = "".join(part.text for part in parts if part.kind == "text")
        assert not any(part.kind == "markup" for part in parts)  # no call is cut, and all can be read
        for call in calls:
            validator(TOOLS[call.name]).validate(call.arguments)
        if form.get("must_call"):
            assert calls and not text
        if form.get("parallel") is False:
            assert len(calls) <= 1
        if form.get("tools") is False:
            assert not calls
        if "regex" in form:
            assert (set(text) <= set("ab") and 2 <= len(text) <= 4) != bool(calls)
        if form.get("thoughts") == "must":
            assert ids[0] == marks.thought_open
        if form.get("thoughts", "none") == "none" and not opening:
            assert marks.thought_open not in ids
        if "budget" in form:
            header = len(grammar.header)
            thoughts = ids.count(marks.thought_open) * (header + 2) + bool(opening)
            assert splitter.thinking_tokens <= form["budget"] + thoughts


def test_every_form_is_walked_to_many_replies(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    """So that the test above looks at calls, thoughts and words, not at the shortest reply again and again."""
    grammar = reply(tokenizer, vocabulary, thoughts="may")
    walks = [walk(grammar, random.Random(seed), 60) for seed in range(30)]
    for mark in (tokenizer.markup.thought_open, tokenizer.markup.call_open):
        assert sum(mark in ids for ids in walks) > 3
    assert any(not tokenizer.markup.ids & set(ids) for ids in walks)


def read(cursor: ReplyCursor, ids: list[int]) -> ReplyCursor:
    for token in ids:
        cursor.advance(token)
    return cursor


def test_what_must_follow_is_forced(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    encode = tokenizer.encode
    thinking = reply(tokenizer, vocabulary, must_call=True, thoughts="must", budget=1).start()
    assert thinking.forced_tokens() == encode("<|channel>thought\n")
    read(thinking, encode("<|channel>thought\n"))
    assert thinking.forced_tokens() == []
    read(thinking, encode("a"))
    assert thinking.forced_tokens()[:2] == encode("<channel|><|tool_call>")  # the budget is spent
    one = reply(tokenizer, vocabulary, must_call=True, parallel=False)
    call = encode('<|tool_call>call:weather{city:<|"|>x<|"|>}<tool_call|>')
    assert read(one.start(), call).finished
    assert not read(reply(tokenizer, vocabulary, must_call=True).start(), call).finished
    assert read(one.start(), call[:-1]).forced_tokens() == call[-1:]


def test_what_may_not_follow(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    encode = tokenizer.encode
    call, stop = encode('<|tool_call>call:weather{city:<|"|>x<|"|>}<tool_call|>'), vocabulary.stop_ids[0]
    may, must = reply(tokenizer, vocabulary, thoughts="may"), reply(tokenizer, vocabulary, must_call=True)
    said = [*encode("ab"), *call, *call, stop]
    assert may.start().validate(said) == len(said)
    assert may.start().validate([*call, *encode("a")]) == len(call)  # words after a call are the caller's turn
    assert must.start().validate(encode("a")) == 0
    assert must.start().validate([stop]) == 0
    assert must.start().validate([*call[:3], stop]) == 3  # a reply does not end within a call
    assert may.start().validate(encode("a<|turn>")) == len(encode("a"))
    assert may.start().validate(encode("a<tool_call|>")) == len(encode("a"))
    assert may.start().validate([-1, 5]) == may.start().validate([10**6]) == 0
    assert reply(tokenizer, vocabulary, tools=False).start().validate(call) == 0
    with pytest.raises(ConstraintError, match="not allowed"):
        must.start().advance(stop)
    with pytest.raises(ConstraintError, match="within a call"):
        read(must.start(), call[:-1]).advance(stop)


def test_no_room_for_an_end(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    must = reply(tokenizer, vocabulary, must_call=True, thoughts="must").start()
    shortest = must.ending(100)
    assert shortest is not None
    assert must.ending(len(shortest) - 1) is None
    assert reply(tokenizer, vocabulary).start().ending(0) == []
