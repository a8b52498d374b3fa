"""The contract of a cursor, the cache, the vocabularies, and the length of endings."""

import json
import random
import time

import numpy as np
import pytest
import torch

from diffusiongemma.constraints import Constraint, Vocabulary, compile_grammar
from diffusiongemma.errors import ConstraintError, InputError
from diffusiongemma.tasks.json_extract import JsonExtract
from diffusiongemma.text.tokenizer import Tokenizer
from tests.constraints.schemas import FLAG, NUMBER, TEXT, WHOLE, array, record, text

PERSON = record("*", name=TEXT, age=WHOLE)


def bytes_of(cursor_ending: list[int] | None, vocabulary: Vocabulary) -> bytes:
    assert cursor_ending is not None
    return vocabulary.text(cursor_ending)


def test_mask_and_allows_agree(nano: Vocabulary) -> None:
    cursor = compile_grammar(Constraint.json_schema(PERSON), nano).start()
    for token in nano.spell(b'{"name": "Al') or []:
        cursor.advance(token)
    allowed = cursor.allowed()
    assert (allowed.dtype, allowed.shape) == (torch.bool, (nano.size,))
    assert 100 < allowed.sum() < nano.size
    for token in random.Random(0).sample(range(nano.size), 300):
        assert bool(allowed[token]) == cursor.allows(token)
    assert not cursor.allows(nano.size)
    assert not cursor.allows(-1)


def test_stop_ends_a_whole_text_only(nano: Vocabulary) -> None:
    cursor = compile_grammar(Constraint.regex("ab?"), nano).start()
    stop = nano.stop_ids[0]
    assert (cursor.accepting, cursor.finished, cursor.allows(stop)) == (False, False, False)
    with pytest.raises(ConstraintError, match="not allowed"):
        cursor.advance(stop)
    (a,), (b,) = nano.spell(b"a") or [], nano.spell(b"b") or []
    cursor.advance(a)
    assert (cursor.accepting, cursor.finished, bool(cursor.allowed()[stop])) == (True, False, True)
    assert cursor.validate([b, stop, a]) == 2
    assert cursor.validate([stop, b]) == 1
    other = cursor.copy()
    other.advance(b)
    assert (other.accepting, other.finished, cursor.finished) == (True, True, False)
    assert other.allowed().nonzero()[:, 0].tolist() == list(nano.stop_ids)
    cursor.advance(stop)
    assert (cursor.finished, cursor.accepting, int(cursor.allowed().sum()), cursor.validate([b])) == (True, True, 0, 0)
    with pytest.raises(ConstraintError):
        cursor.advance(b)


def test_special_tokens_are_never_allowed(nano: Vocabulary) -> None:
    cursor = compile_grammar(Constraint.regex("(?s:.*)"), nano).start()
    allowed = set(cursor.allowed().nonzero()[:, 0].tolist())
    words = {token for token in range(nano.size) if nano.token_bytes[token]} - {*nano.stop_ids, nano.quote}
    half = {token for token in words if not _starts_a_text(nano.token_bytes[token])}
    assert len(words) > nano.size - 100 and allowed == {*nano.stop_ids, *words} - half


def _starts_a_text(text: bytes) -> bool:
    return any(_decodes(text + rest) for rest in (b"", b"\x80", b"\x90\x90\x90", b"\xa0\x80", b"\x80\x80", b"\x80\x80\x80"))


def _decodes(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_what_nano_writes_is_accepted(nano: Vocabulary, tokenizer: Tokenizer) -> None:
    for example in JsonExtract().examples(150, 5):
        assert isinstance(example.detail["schema"], dict)
        cursor = compile_grammar(Constraint.json_schema(example.detail["schema"]), nano).start()
        tokens = tokenizer.encode(example.answer)
        assert cursor.validate([*tokens, 5]) == len(tokens) + 1
        forced_tokens = cursor.forced_tokens()
        assert forced_tokens
        assert tokens[: len(forced_tokens)] == forced_tokens  # cut as the tokenizer cuts the whole answer
        for token in tokens:
            cursor.advance(token)
        assert cursor.finished


def test_forced_tokens_must_follow(nano: Vocabulary) -> None:
    cursor = compile_grammar(Constraint.json_schema(record("*", kind={"const": "fixed"}, n=WHOLE)), nano).start()
    forced_tokens = cursor.forced_tokens()
    assert nano.text(forced_tokens).startswith(b'{"kind": "fixed", "n":')
    for token in forced_tokens:
        assert cursor.allows(token)
        cursor.advance(token)
    assert cursor.forced_tokens() == []


ENDINGS = [
    (PERSON, b"", 22),
    (PERSON, b'{"name": "Al', 12),
    (PERSON, b'{"name": "Al", "age": 3', 1),
    (array(WHOLE, minItems=3), b"[1", 7),
    (text(minLength=5), b'"ab', 4),
    (text(pattern="^[a-z]+foo[0-9]{3}$"), b'"abcf', 6),
    (text(pattern="foo", minLength=9), b'"', 10),
    (text(format="uuid"), b'"0123', 33),
    (record("f40", **{f"f{n}": TEXT for n in range(50)}), b'{"f1": "x', 13),
    (record("*", a=record("*", b=array(FLAG, minItems=2))), b"", 26),
    ({"enum": ["alpha", "alphabet", "beta"]}, b'"al', 4),
    (record("*", n={"type": "integer", "minimum": 1000}), b'{"n": 1', 4),
    ({"anyOf": [record("*", a=text(minLength=30)), array(NUMBER)]}, b"", 2),
    ({"type": "object"}, b'{"a": [[{"b": "', 5),
    (record("aab", a=TEXT, aa=TEXT, aab=TEXT), b"", 11),
]
"""Schema, the text so far, and the length in bytes of the shortest ending, counted by hand."""


@pytest.mark.parametrize(("schema", "begun", "least"), ENDINGS)
def test_endings_are_shortest(schema: dict[str, object], begun: bytes, least: int, nano: Vocabulary) -> None:
    cursor = compile_grammar(Constraint.json_schema(schema), nano).start()
    for token in nano.spell(begun) or []:
        cursor.advance(token)
    ending = cursor.ending(100)
    assert len(bytes_of(ending, nano)) == least
    assert ending is not None
    assert cursor.ending(len(ending)) == ending
    assert cursor.ending(len(ending) - 1) is None
    for token in ending:
        cursor.advance(token)
    assert cursor.accepting
    json.loads(cursor.text)


def test_an_ending_is_kept_while_it_is_followed(nano: Vocabulary) -> None:
    cursor = compile_grammar(Constraint.json_schema(record("*", **{f"f{n}": text(minLength=3) for n in range(12)})), nano).start()
    ending = cursor.ending(500)
    assert ending is not None
    began = time.process_time()
    for n, token in enumerate(ending):
        cursor.advance(token)
        rest = cursor.ending(len(ending) - n - 1)
        assert rest is not None
        assert len(rest) <= len(ending) - n - 1
    assert (time.process_time() - began) / len(ending) < 0.02


def test_the_cache_is_bounded_and_keyed_by_the_source(nano: Vocabulary, fallback: Vocabulary) -> None:
    constraint = Constraint.json_schema(PERSON)
    grammar = compile_grammar(constraint, nano)
    assert compile_grammar(Constraint.json_schema(json.dumps(PERSON)), nano) is grammar
    assert compile_grammar(constraint, fallback) is not grammar
    assert compile_grammar(Constraint.json_schema(PERSON, "compact"), nano) is not grammar
    for n in range(200):
        compile_grammar(Constraint.choices([str(n)]), nano)
    assert len(nano.grammars) == 64
    assert compile_grammar(constraint, nano) is not grammar


def test_vocabularies_know_their_bytes(
    tokenizer: Tokenizer, nano: Vocabulary, fallback_tokenizer: Tokenizer, fallback: Vocabulary
) -> None:
    rng = random.Random(0)
    for source, vocabulary in ((tokenizer, nano), (fallback_tokenizer, fallback)):
        assert Vocabulary.of(source, vocabulary.stop_ids[::-1]) is vocabulary
        assert len(vocabulary.alphabet) == 256
        inside = [token for token, text in enumerate(vocabulary.token_bytes) if text]
        checked = 0
        for _ in range(500):
            tokens = rng.choices(inside, k=4)
            try:
                expected = vocabulary.text(tokens).decode()
            except UnicodeDecodeError:
                continue
            checked += 1
            assert source.decode(tokens) == expected
        assert checked > 100
        for sample in ("plain text", "é😀 漢", '{"a": 1}'):
            assert source.decode(vocabulary.spell(sample.encode()) or []) == sample
            assert source.decode(vocabulary.encode(sample)) == sample


def test_a_vocabulary_that_cannot_write_json() -> None:
    words = Vocabulary([b"", b"", b"yes", b"no", b"y", b"e", b"s"], [1])
    with pytest.raises(ConstraintError, match="vocabulary"):
        compile_grammar(Constraint.json_object(), words)
    assert compile_grammar(Constraint.choices(["yes"]), words).shortest == [2]


def test_the_size_of_the_large_model() -> None:
    rng = np.random.default_rng(0)
    letters = np.frombuffer(b"etaoinshrdlucmfwypvbgkqjxz ETAOIN0123456789.,", dtype=np.uint8)
    drawn = rng.choice(letters, size=(262144 - 258, 8)).tobytes()
    words = [bytes([n]) for n in range(256)] + [drawn[8 * n : 8 * n + 2 + n % 7] for n in range(262144 - 258)]
    vocabulary = Vocabulary([b"", b"", *words], [1])
    assert vocabulary.size == 262144
    began = time.process_time()
    cursor = compile_grammar(Constraint.json_schema(PERSON), vocabulary).start()
    assert time.process_time() - began < 1
    for token in vocabulary.spell(b'{"name": "x') or []:
        cursor.advance(token)
    times = []
    for _ in range(20):
        began = time.process_time()
        allowed = cursor.allowed()
        times.append(time.process_time() - began)
    assert allowed.sum() > 100_000
    assert min(times) < 0.005


def test_errors_are_input_errors(nano: Vocabulary) -> None:
    with pytest.raises(InputError):
        compile_grammar(Constraint.regex("("), nano)
