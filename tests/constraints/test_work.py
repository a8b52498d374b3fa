"""What a search may do is counted: it ends, whatever it looks for, and an answer does without what it did not find."""

import pytest

from diffusiongemma.constraints import Constraint, Cursor, Vocabulary
from diffusiongemma.constraints.compiled import Compiled, read
from diffusiongemma.constraints.pinned_search import SEARCH_BUDGETS
from diffusiongemma.constraints.search import Path
from diffusiongemma.constraints.work import PLAN_WORK, STEP_WORK, Exhausted, Work
from diffusiongemma.errors import ConstraintError
from tests.constraints.schemas import record, text

MANY = record("*", **{f"f{n}": text(minLength=3) for n in range(12)})
SLOW = """start: item{60}
item: "a" | T r3
r3: r2{20}
r2: r1{20}
r1: (P Q){20}
T: /[0-9]/
P: /[a-z]/
Q: /[A-Z]/
"""
"""130 bytes that held the engine's thread for 355 s: after a digit 16,000 letters must follow."""


@pytest.fixture(name="looked")
def _looked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Texts that searches looked at."""
    count = [0]
    extend = Path.extend

    def counted(self: Path, text: bytes) -> Path:
        count[0] += 1
        return extend(self, text)

    monkeypatch.setattr(Path, "extend", counted)
    return count


def after(vocabulary: Vocabulary, constraint: Constraint, begun: bytes) -> Cursor:
    """In this process, where work can be counted."""
    cursor = Compiled(read(constraint), vocabulary).start()
    for token in vocabulary.spell(begun) or []:
        cursor.advance(token)
    return cursor


def test_work_is_used_up() -> None:
    work = Work(2)
    work.spend()
    work.spend()
    with pytest.raises(Exhausted):
        work.spend()
    endless = Work(-1)
    for _ in range(5):
        endless.spend()


def test_work_that_takes_long_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    work, now = Work(0), [5.0]
    monkeypatch.setattr("diffusiongemma.constraints.work.time.thread_time", lambda: now[0])
    work.begin(STEP_WORK)
    for _ in range(200):
        work.spend()
    now[0] += 2.5
    with pytest.raises(ConstraintError, match="more than 2 s"):
        for _ in range(200):
            work.spend()
    work.begin(PLAN_WORK)
    now[0] += 2.5
    for _ in range(200):
        work.spend()


def test_a_search_that_has_no_work_left_finds_nothing(nano: Vocabulary, looked: list[int]) -> None:
    cursor = after(nano, Constraint.json_schema(MANY), b'{"f0": "abcdef", "f1": "xyzabc')
    cursor.begin(50)
    looked[0] = 0
    assert cursor.ending(500) is None
    assert cursor.ending(500) is None and looked[0] < 60, "the second search had nothing left"
    cursor.begin(PLAN_WORK)
    assert cursor.ending(500) is not None


def test_copies_share_what_is_left(nano: Vocabulary, looked: list[int]) -> None:
    cursor = after(nano, Constraint.json_schema(MANY), b'{"f0": "abcdef", "f1": "xyzabc')
    cursor.begin(500)
    looked[0] = 0
    for _ in range(20):
        cursor.copy().ending(500)
    assert looked[0] < 550


def test_the_beginning_needs_no_search(nano: Vocabulary, looked: list[int]) -> None:
    grammar = Compiled(read(Constraint.json_schema(MANY)), nano)
    cursor = grammar.start()
    looked[0] = 0
    assert cursor.ending(500) == grammar.shortest and looked[0] <= 1
    for token in grammar.shortest[:10]:
        cursor.advance(token)
    assert cursor.ending(500) == grammar.shortest[10:] and looked[0] <= 4


def test_an_ending_that_is_known_serves_where_there_is_no_work_left(nano: Vocabulary) -> None:
    cursor = after(nano, Constraint.json_schema(record("*", a=text(minLength=9))), b'{"a": "wwwww')
    cursor.begin(0)
    ending = cursor.ending(50)
    assert ending is not None
    for token in ending:
        cursor.advance(token)
    assert cursor.accepting


def test_the_grammar_that_stopped_the_engine_is_given_up(nano: Vocabulary, looked: list[int]) -> None:
    cursor = after(nano, Constraint.grammar(SLOW), b"1x")
    looked[0] = 0
    assert cursor.ending(200) is None
    assert looked[0] <= STEP_WORK + 5


@pytest.mark.parametrize("position", [1, 3, 50, 200])
def test_a_pin_within_a_character_is_found(nano: Vocabulary, looked: list[int], position: int) -> None:
    """It took 9 s and 1 GB to say that the second byte of a character cannot stand at position 50, where it can."""
    token = nano.id_of(b"\xa1")
    assert token is not None
    cursor = after(nano, Constraint.regex("(?s:.*)"), b"")
    cursor.begin(PLAN_WORK)
    looked[0] = 0
    paths = (cursor.through([-1] * position + [token], 256, budget) for budget in SEARCH_BUDGETS)
    path = next(path for path in paths if path.ends)
    assert path.ends and path.tokens[position] == token
    nano.text(path.tokens).decode()
    assert looked[0] < 5_000


def test_pins_that_cannot_be_are_given_up(nano: Vocabulary, looked: list[int]) -> None:
    token = nano.id_of(b"\xa1")
    assert token is not None
    cursor = after(nano, Constraint.regex("[a-z ]*"), b"")
    cursor.begin(PLAN_WORK)
    looked[0] = 0
    assert not any(cursor.through([-1] * 50 + [token], 256, budget).ends for budget in SEARCH_BUDGETS)
    assert looked[0] <= PLAN_WORK + 3
