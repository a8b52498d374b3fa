"""Grammars in processes of their own: the same answers as in place, and only one of them ends where one takes too much."""

import gc
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any

import pytest

from diffusiongemma.constraints import Constraint, Grammar, RemoteCursor, Vocabulary, compile_grammar, process
from diffusiongemma.constraints.compiled import Compiled, read
from diffusiongemma.constraints.cursor import Cursor
from diffusiongemma.constraints.grammar import _BYTES
from diffusiongemma.constraints.pinned_search import SEARCH_BUDGETS
from diffusiongemma.constraints.work import PLAN_WORK
from diffusiongemma.errors import ConstraintError, OverloadedError
from tests.constraints.schemas import TEXT, WHOLE, array, record, text
from tests.constraints.test_work import SLOW

LIST = 'start: "[" item ("," item)* "]"\nitem: /[a-z]+/ | start'


def alike(count: int, name: str = "start") -> str:
    """Rules that begin alike and may all hold at once."""
    each = [f'r{n}: "a" {name}?' for n in range(count)]
    return "\n".join([f"{name}: {' | '.join(f'r{n}' for n in range(count))}", *each])


def chained(count: int) -> str:
    return "\n".join(["start: r0", *(f"r{n}: r{n + 1}" for n in range(count)), f'r{count}: "a"'])


TWO_STEPS = {"type": "integer", "allOf": [{"multipleOf": 9973}, {"multipleOf": 9967}]}
SLOW_BEHIND = 'start: "x" | "1" many\n' + alike(300, "many")
"""Cheap along its shortest text, and seconds a token after a digit."""
HOSTILE = {
    "1,000 rules that begin alike": Constraint.grammar(alike(1000)),
    "a chain of 20,000 rules": Constraint.grammar(chained(20_000)),
    "two steps together": Constraint.json_schema(TWO_STEPS),
    "the same through references": Constraint.json_schema(
        {"$ref": "#/$defs/a", "multipleOf": 9967, "$defs": {"a": {"type": "integer", "multipleOf": 9973}}}
    ),
    "alternatives that begin alike": Constraint.json_schema({"anyOf": [array({"$ref": "#"}, maxItems=n) for n in range(1, 600)]}),
}
SAME = {
    "a grammar": Constraint.grammar(LIST),
    "the grammar that is slow": Constraint.grammar(SLOW),
    "a schema": Constraint.json_schema(record("*", a=text(minLength=3), b=array(WHOLE), c={"enum": ["x", "y"]})),
    "a regex": Constraint.regex(r"(?:\d{4}-[a-zé]+ ?){1,5}"),
    "choices": Constraint.choices(["yes", "no", "", "yellow"]),
}


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "COMPILE_SECONDS", 0.4)


def remote(constraint: Constraint, vocabulary: Vocabulary) -> RemoteCursor:
    one = process.Home(vocabulary).fork() if vocabulary.home is None else vocabulary.home.fork()
    one.compile((constraint.kind, constraint.source, constraint.spacing), None)
    return RemoteCursor(one, vocabulary)


def confined(constraint: Constraint, vocabulary: Vocabulary) -> Grammar:
    grammar = compile_grammar(constraint, vocabulary)
    assert grammar.confined
    return grammar


@pytest.mark.parametrize("name", SAME)
def test_it_answers_as_in_place(name: str, nano: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("COMPILE_SECONDS", "_AT_ONCE", "_A_STEP", "_A_PLAN"):
        monkeypatch.setattr(process, limit, 60.0)
    confined(Constraint.grammar(LIST), nano)  # so that there is a process to fork from
    rng, far = random.Random(3), remote(SAME[name], nano)
    here: Cursor = Compiled(read(SAME[name]), nano).start()
    kept = [(far.copy(), here.copy())]
    for _ in range(12):
        for one, other in ((far, here), rng.choice(kept)):
            canvas = [*rng.sample(range(nano.size), 3)]
            assert (one.text, one.accepting, one.finished, one.complete) == (
                other.text, other.accepting, other.finished, other.complete,
            )  # fmt: skip
            assert (one.forced_tokens(), one.validate(canvas), one.ending(90)) == (
                other.forced_tokens(),
                other.validate(canvas),
                other.ending(90),
            )
        allowed = here.allowed()
        assert bool((far.allowed() == allowed).all())
        tokens = [token for token in allowed.nonzero()[:, 0].tolist() if token not in nano.stop_ids]
        if not tokens:
            break
        token = rng.choice(tokens)
        kept.append((far.copy(), here.copy()))
        for one in (far, here):
            one.begin()
            one.advance(token)
    given = [-1, -1, rng.choice(range(6, 300))]
    for one in (far, here):
        one.begin(PLAN_WORK)
    for budget in SEARCH_BUDGETS[:2]:
        assert far.through(given, 60, budget) == here.through(given, 60, budget)
    stop = nano.stop_ids[0]
    ending = here.ending(200)
    assert ending == far.ending(200)
    for token in [*(ending or []), stop]:
        if far.allows(token):
            far.advance(token)
            here.advance(token)
    assert (far.finished, far.accepting, far.text) == (here.finished, here.accepting, here.text)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_grammar_ends_alone(name: str, nano: Vocabulary) -> None:
    other = confined(Constraint.grammar(LIST), nano).start()
    spent = time.process_time()
    with pytest.raises(ConstraintError, match="compiling the grammar took more than"):
        compile_grammar(HOSTILE[name], nano)
    assert time.process_time() - spent < 2, "none of it was done in this process"
    assert other.allowed().any()


def test_one_that_is_slow_behind_a_token_ends_there(nano: Vocabulary) -> None:
    grammar, other = confined(Constraint.grammar(SLOW_BEHIND), nano), confined(Constraint.grammar(LIST), nano).start()
    cursor, second = grammar.start(), grammar.start()
    (one,), (a,) = nano.spell(b"1") or [], nano.spell(b"a") or []
    assert cursor.allows(one)
    cursor.advance(one)
    spent = time.process_time()
    with pytest.raises(ConstraintError, match="following the grammar took more than"):
        for _ in range(50):
            cursor.begin()
            cursor.advance(a)
            cursor.allowed()
    with pytest.raises(ConstraintError, match="given up"):
        second.allowed()
    assert time.process_time() - spent < 2
    assert other.allowed().any() and not grammar.usable
    assert compile_grammar(Constraint.grammar(SLOW_BEHIND), nano).start().allows(one), "whoever asks next has another chance"


def test_a_process_that_is_killed_is_one_grammars_alone(nano: Vocabulary) -> None:
    grammars = [confined(Constraint.grammar(f"{LIST}\nother{n}: start"), nano) for n in range(2)]
    assert grammars[0]._process is not None
    os.kill(grammars[0]._process._child, signal.SIGKILL)
    with pytest.raises(ConstraintError):
        grammars[0].start().allowed()
    assert grammars[1].start().allowed().any()


def test_a_home_that_is_killed_is_replaced(nano: Vocabulary) -> None:
    grammar = confined(Constraint.grammar(LIST), nano)
    nano.home._process.kill()
    nano.home._process.wait()
    assert grammar.start().allowed().any()
    assert confined(Constraint.grammar(f"{LIST}\nnew: start"), nano).start().allowed().any()


def test_who_left_is_not_compiled_for(nano: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "COMPILE_SECONDS", 60.0)
    confined(Constraint.grammar(LIST), nano)
    left, errors = threading.Event(), list[Exception]()

    def ask() -> None:
        try:
            compile_grammar(HOSTILE["two steps together"], nano, left.is_set)
        except CancelledError as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(5)]  # two are compiled, three wait
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    left.set()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert len(errors) == 5 and all("has left" in str(error) for error in errors)


def test_what_is_kept_is_bounded_by_bytes(nano: Vocabulary) -> None:
    for n in range(40):
        compile_grammar(Constraint.choices([f"{n} {m} {'x' * 40}" for m in range(1000)]), nano)
        compile_grammar(Constraint.json_schema({"type": "integer", "multipleOf": 4001 + 2 * n}), nano)
    for n in range(8):
        compile_grammar(Constraint.grammar(f'start: "{n}" start?'), nano)
    kept = nano.grammars.values()
    assert sum(grammar.size for grammar in kept) <= _BYTES
    assert sum(grammar.confined for grammar in kept) <= 4


@pytest.fixture
def _few(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    gc.collect()
    monkeypatch.setattr(process, "MAX_PROCESSES", len(process._alive) + 2)
    yield


def test_processes_are_bounded(fallback: Vocabulary, _few: None) -> None:
    sources = [f'start: "{n}" start?' for n in range(4)]
    used = [confined(Constraint.grammar(source), fallback) for source in sources[:2]]
    with pytest.raises(OverloadedError, match="large grammars are in use"):
        compile_grammar(Constraint.grammar(sources[2]), fallback)
    assert used[0].start().allowed().any(), "those in use stay"
    del used[1]
    assert confined(Constraint.grammar(sources[2]), fallback).start().allowed().any()


@pytest.mark.parametrize("schema", [
    {"type": "integer", "multipleOf": 99_999_989}, {"type": "integer", "multipleOf": 1_000_003},
    {"type": "object", "properties": {"a": {"type": "number", "multipleOf": 100_001.5}}},
])  # fmt: skip
def test_large_steps_are_refused_by_name(schema: dict[str, object], nano: Vocabulary) -> None:
    with pytest.raises(ConstraintError, match="100,000 is the most"):
        compile_grammar(Constraint.json_schema(schema), nano)


def test_powers_of_ten_are_no_large_steps(nano: Vocabulary) -> None:
    grammar = compile_grammar(Constraint.json_schema({"type": "integer", "multipleOf": 70_000_000, "minimum": 1}), nano)
    assert nano.text(grammar.shortest) == b"70000000" and not grammar.confined


def _in_a_fork(constraint: Constraint, vocabulary: Vocabulary, answers: Any) -> None:
    answers.put(compile_grammar(constraint, vocabulary).start().allowed().tolist())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_process_has_processes_of_its_own(nano: Vocabulary) -> None:
    constraint, context = Constraint.grammar(LIST), multiprocessing.get_context("fork")
    cursor, answers = confined(constraint, nano).start(), context.Queue()
    child = context.Process(target=_in_a_fork, args=(constraint, nano, answers))
    child.start()
    expected = cursor.allowed().tolist()
    assert answers.get(timeout=60) == expected
    child.join(10)
    assert cursor.allowed().tolist() == expected


CHEAP = [
    Constraint.json_schema(record("*", name=TEXT, age=WHOLE)),
    Constraint.json_object(),
    Constraint.json_schema({"type": "integer", "multipleOf": 1000}),
    Constraint.regex(r"[a-z]{3,400}"),
    Constraint.choices([str(n) for n in range(2000)]),
    Constraint.grammar('start: "yes" | "no"'),
    Constraint.grammar('start: call | TEXT\ncall: "<a>" json "</a>"\njson: %json {"type": "object"}\nTEXT: /[a-z]*/\n'),
]
NOT_CHEAP = [
    Constraint.json_schema({"anyOf": [array({"$ref": "#"}, maxItems=n) for n in range(1, 40)]}),
    Constraint.json_schema({"type": "integer", "allOf": [{"multipleOf": 97}, {"multipleOf": 101}]}),
    Constraint.json_schema({"type": "integer", "multipleOf": 9973}),
    Constraint.json_schema(text(maxLength=5000)),
    Constraint.regex("(?s:.){0,9000}"),
    Constraint.grammar('start: "a" start?'),
    Constraint.grammar('start: "a"*'),
    Constraint.grammar('start: a\na: b\nb: a | "x"'),
    Constraint.grammar('start: A? A?\nA: "a"'),
    Constraint.grammar("start: " + '"a"? ' * 33),
    Constraint.grammar('start: %json {"multipleOf": 9973}'),
    Constraint.grammar('start: "a" %json {'),
    Constraint.grammar("%import common.INT\nstart: INT"),
]


def test_what_is_cheap() -> None:
    assert all(read(constraint).cost.cheap for constraint in CHEAP)
    assert not any(read(constraint).cost.cheap for constraint in NOT_CHEAP)


def test_without_processes_it_is_in_place(
    native: Vocabulary, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sys.executable", "")
    for n in range(2):
        grammar = compile_grammar(Constraint.grammar(f'start: "{n}" start?'), native)
        assert not grammar.confined and grammar.start().allowed().any()
    assert [record.message for record in caplog.records if "hostile" in record.message] == [
        "grammars of any size are compiled in this process, which a hostile one can stop: "
        "this program has no Python interpreter beside it"
    ]
