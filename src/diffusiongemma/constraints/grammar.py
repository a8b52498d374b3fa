"""A constraint compiled for a vocabulary."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from diffusiongemma.constraints.automaton import Automaton
from diffusiongemma.constraints.constraint import Constraint
from diffusiongemma.constraints.cursor import Cursor
from diffusiongemma.constraints.ending import Hints, close_json
from diffusiongemma.constraints.native import calls_grammar
from diffusiongemma.constraints.regex import emit, parse
from diffusiongemma.constraints.scanner import NativeScanner, Scanner
from diffusiongemma.constraints.schema import prepare
from diffusiongemma.constraints.search import Path, nearest
from diffusiongemma.constraints.through import Guide, Way
from diffusiongemma.constraints.vocabulary import Vocabulary
from diffusiongemma.errors import ConstraintError

__all__ = ["Grammar", "compile_grammar"]

_KEPT = 128
"""Grammars kept for each vocabulary, the least recently used ones going first."""
_LONGEST = 16384
"""Bytes of the shortest text of a grammar; one that needs more is refused."""
_TRIED = 64
"""Tokens of the shortest text along which masks are tried."""
_SEPARATORS = {"spaced": (", ", ": "), "compact": (",", ":"), "either": (", ?", ": ?")}
_META = set("\\.+*?()|[]{}^$#&-~/ ")


class Grammar:
    """A constraint compiled for a vocabulary; make it with ``compile_grammar``.

    Attributes:
        constraint: what it was compiled from.
        vocabulary: what it was compiled for.
        shortest: tokens of a short whole text; none shorter was found.
        ways: through pins that were asked for, with what was asked.
    """

    def __init__(self, constraint: Constraint, vocabulary: Vocabulary) -> None:
        source, self._guide = _BUILDERS[constraint.kind](constraint)
        self.constraint = constraint
        self.vocabulary = vocabulary
        self.ways: dict[object, Way] = {}
        self._scanner = Scanner if constraint.kind.startswith("json") else NativeScanner if constraint.kind == "calls" else None
        self._bytes = _matcher(vocabulary.byte_engine, source, constraint)
        self._tokens = _matcher(vocabulary.engine, source, constraint)
        self.shortest = self._shortest()
        self._try_masks()

    def start(self) -> Cursor:
        """A cursor at the beginning of a text."""
        ending = self.vocabulary.text(self.shortest)
        return Cursor(self.vocabulary, self._tokens.deep_copy(), self.start_path(), self._guide, ending)

    def start_path(self) -> Path:
        """The state at the beginning, byte by byte."""
        return Path(self._bytes.deep_copy(), self._scanner() if self._scanner else None)

    def _shortest(self) -> list[int]:
        path = self.start_path()
        found = b"" if path.matcher.is_accepting() else self._guide.find(path, b"", _LONGEST)
        tokens = None if found is None else self.vocabulary.spell(found)
        if tokens is not None and (not tokens or self._tokens.deep_copy().validate_tokens(tokens) == len(tokens)):
            return tokens
        empty = not path.allowed() or len(self.vocabulary.alphabet) < 256
        reason = "no text of this model's vocabulary satisfies it" if empty else f"no text of up to {_LONGEST:,} bytes was found"
        if path.matcher.is_error() and "NoExtension" not in (message := path.matcher.get_error().split("\n")[0]):
            reason = message
        raise ConstraintError(f"the {_NAMES[self.constraint.kind]} cannot be satisfied: {reason}")

    def _try_masks(self) -> None:
        """Mask after mask along a whole text: what is beyond the engine's limits should show before anything is generated."""
        cursor = self.start()
        for token in (*self.shortest[:_TRIED], None):
            cursor.packed()
            if token is not None:
                cursor.advance(token)


def compile_grammar(constraint: Constraint, vocabulary: Vocabulary) -> Grammar:
    """Compile a constraint, or take it from the vocabulary's cache.

    Raises:
        ConstraintError: it is wrong, impossible, too large, or cannot be expressed; the message says which and why.
    """
    cache = vocabulary.grammars
    grammar: Grammar | None = cache.pop(constraint, None)
    if grammar is None:
        grammar = Grammar(constraint, vocabulary)
    cache[constraint] = grammar
    while len(cache) > _KEPT:
        cache.pop(next(iter(cache)), None)
    return grammar


_NAMES = {
    "json_schema": "schema",
    "json_object": "JSON object",
    "regex": "regex",
    "choices": "list of choices",
    "grammar": "grammar",
    "calls": "grammar of the tools",
}


def _matcher(engine: LLTokenizer, source: str, constraint: Constraint) -> LLMatcher:
    matcher = LLMatcher(engine, source, log_level=0, limits=LLParserLimits(max_items_in_row=10_000, step_max_items=250_000))
    if not matcher.is_error():
        return matcher
    message = matcher.get_error().split("\n<state>")[0].split("\n  while processing")[0].strip()
    name = _NAMES[constraint.kind]
    if "Unsatisfiable schema" in message:
        raise ConstraintError(f"no text can satisfy the {name}: {message.split('Unsatisfiable schema:')[-1].strip()}")
    if "oneOf" in message:
        message = "'oneOf' with branches of which more than one could hold; make them exclusive or say anyOf"
    raise ConstraintError(f"the {name} cannot be expressed: {message[:1000]}")


def _schema(constraint: Constraint) -> tuple[str, Guide]:
    ready = prepare(constraint.source)
    hints = Hints.of(ready.names, ready.required, map(Automaton, ready.patterns))
    item, key = _SEPARATORS[constraint.spacing]
    options: Any = {
        "item_separator": item,
        "key_separator": key,
        "whitespace_flexible": False,
        "lenient": False,
        "coerce_one_of": False,
    }

    def find(path: Path, text: bytes, limit: int) -> bytes | None:
        return close_json(path, limit, hints)

    try:
        return LLMatcher.grammar_from_json_schema(ready.text, overrides=options), Guide(find, hints.patterns, hints.names)
    except ValueError as error:  # the engine's reader of JSON stops at 128 levels
        raise ConstraintError(f"the schema cannot be expressed: {error}") from error


def _regex(constraint: Constraint) -> tuple[str, Guide]:
    node = parse(constraint.source)
    automaton = Automaton(node)

    def find(path: Path, text: bytes, limit: int) -> bytes | None:
        try:
            rest = automaton.complete(text.decode())
        except UnicodeDecodeError:  # in the middle of a character
            rest = None
        if rest is not None and path.follow(found := rest.encode()):
            return found
        return _nearest(path, text, limit)

    return LLMatcher.grammar_from_regex(emit(node)), Guide(find, (automaton,))


def _choices(constraint: Constraint) -> tuple[str, Guide]:
    choices: Sequence[str] = json.loads(constraint.source)
    spelled = sorted((choice.encode() for choice in choices), key=len)

    def find(path: Path, text: bytes, limit: int) -> bytes | None:
        return next((choice[len(text) :] for choice in spelled if choice.startswith(text)), None)

    pattern = "|".join("".join("\\" + c if c in _META else c for c in choice) for choice in choices)
    return LLMatcher.grammar_from_regex(f"(?:{pattern})"), Guide(find, texts=tuple(spelled))


def _calls(constraint: Constraint) -> tuple[str, Guide]:
    tools = json.loads(constraint.source)
    lark, ready = calls_grammar(tools)
    names = [*(f"call:{name}" for name, _ in tools), *(name for one in ready for name in one.names)]
    required = [name for one in ready for name in one.required]
    patterns = [Automaton(node) for one in ready for node in one.patterns]
    hints = Hints.of(dict.fromkeys(names), required, patterns, lambda name: name.encode(errors="replace"))

    def find(path: Path, text: bytes, limit: int) -> bytes | None:
        return close_json(path, limit, hints)

    return LLMatcher.grammar_from_lark(lark), Guide(find, hints.patterns, hints.names)


def _cfg(constraint: Constraint) -> tuple[str, Guide]:
    return LLMatcher.grammar_from_lark(constraint.source), Guide(_nearest)


def _nearest(path: Path, text: bytes, limit: int) -> bytes | None:
    return next(nearest(path, lambda at: at.matcher.is_accepting(), limit), None)


_BUILDERS: dict[str, Callable[[Constraint], tuple[str, Guide]]] = {
    "json_schema": _schema,
    "json_object": _schema,
    "regex": _regex,
    "choices": _choices,
    "grammar": _cfg,
    "calls": _calls,
}
