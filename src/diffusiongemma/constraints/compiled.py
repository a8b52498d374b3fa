"""A constraint read, and compiled by the engine in this process."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from diffusiongemma.constraints.automaton import Automaton
from diffusiongemma.constraints.constraint import Constraint
from diffusiongemma.constraints.cost import Cost, of_lark, of_pattern, of_schema, of_texts, together
from diffusiongemma.constraints.cursor import Cursor
from diffusiongemma.constraints.json_completion import CompletionHints, close_json
from diffusiongemma.constraints.json_state import NativeScanner, Scanner
from diffusiongemma.constraints.native import calls_grammar
from diffusiongemma.constraints.pinned_search import SearchGuide
from diffusiongemma.constraints.regex import emit, parse, size
from diffusiongemma.constraints.schema import Prepared, prepare
from diffusiongemma.constraints.search import Path, nearest
from diffusiongemma.constraints.vocabulary import Vocabulary
from diffusiongemma.errors import ConstraintError

__all__ = ["Compiled", "Reading", "read"]

_LONGEST = 16384
"""Bytes of the shortest text of a grammar; one that needs more is refused."""
_TRIED = 64
"""Tokens of the shortest text along which masks are tried."""
_SEPARATORS = {"spaced": (", ", ": "), "compact": (",", ":"), "either": (", ?", ": ?")}
_META = set("\\.+*?()|[]{}^$#&-~/ ")
_LIMITS = LLParserLimits(max_items_in_row=10_000, step_max_items=250_000, max_lexer_states=250_000, step_lexer_fuel=4_000_000)
"""They tell of a grammar that is too complex before it takes all time and memory, where they do: no limit bounds one call."""


@dataclass(frozen=True)
class Reading:
    """A constraint in the engine's words.

    Attributes:
        constraint: that was read.
        source: for the engine; its own form.
        guide: what is known of the texts besides.
        cost: what compiling and following it may take.
        left_out: of a schema what the grammar does not express.
    """

    constraint: Constraint
    source: str
    guide: SearchGuide
    cost: Cost
    left_out: tuple[str, ...] = ()


def read(constraint: Constraint) -> Reading:
    """Read a constraint, without the engine's compiler, in time that grows with its size.

    Raises:
        ConstraintError: it is wrong, too large, or cannot be expressed; the message says which and why.
    """
    return _READERS[constraint.kind](constraint)


class Compiled:
    """A constraint compiled for a vocabulary in this process.

    Attributes:
        shortest: tokens of a short whole text; none shorter was found.

    Raises:
        ConstraintError: it is impossible, too large, or cannot be expressed; the message says which and why.
    """

    def __init__(self, reading: Reading, vocabulary: Vocabulary) -> None:
        self._constraint = constraint = reading.constraint
        self._vocabulary, self._guide = vocabulary, reading.guide
        self._scanner = Scanner if constraint.kind.startswith("json") else NativeScanner if constraint.kind == "calls" else None
        self._bytes = _matcher(vocabulary.byte_engine, reading.source, constraint)
        self._tokens = _matcher(vocabulary.engine, reading.source, constraint)
        self.shortest = self._shortest()
        self._try_masks()

    def start(self) -> Cursor:
        """A cursor at the beginning of a text."""
        ending = self._vocabulary.text(self.shortest)
        return Cursor(self._vocabulary, self._tokens.deep_copy(), self._start_path(), self._guide, ending)

    def _start_path(self) -> Path:
        return Path(self._bytes.deep_copy(), self._scanner() if self._scanner else None)

    def _shortest(self) -> list[int]:
        path = self._start_path()
        result = b"" if path.matcher.is_accepting() else self._guide.find(path, b"", _LONGEST)
        tokens = None if result is None else self._vocabulary.spell(result)
        if tokens is not None and (not tokens or self._tokens.deep_copy().validate_tokens(tokens) == len(tokens)):
            return tokens
        empty = not path.allowed() or len(self._vocabulary.alphabet) < 256
        reason = "no text of this model's vocabulary satisfies it" if empty else f"no text of up to {_LONGEST:,} bytes was found"
        if path.matcher.is_error() and "NoExtension" not in (message := path.matcher.get_error().split("\n")[0]):
            reason = message
        raise ConstraintError(f"the {_NAMES[self._constraint.kind]} cannot be satisfied: {reason}")

    def _try_masks(self) -> None:
        """Mask after mask along a whole text: what is beyond the engine's limits should show before anything is generated."""
        cursor = self.start()
        for token in (*self.shortest[:_TRIED], None):
            cursor.packed()
            if token is not None:
                cursor.advance(token)


_NAMES = {
    "json_schema": "schema",
    "json_object": "JSON object",
    "regex": "regex",
    "choices": "list of choices",
    "grammar": "grammar",
    "calls": "grammar of the tools",
}


def _matcher(engine: LLTokenizer, source: str, constraint: Constraint) -> LLMatcher:
    matcher = LLMatcher(engine, source, log_level=0, limits=_LIMITS)
    if not matcher.is_error():
        return matcher
    message = matcher.get_error().split("\n<state>")[0].split("\n  while processing")[0].strip()
    name = _NAMES[constraint.kind]
    if "Unsatisfiable schema" in message:
        raise ConstraintError(f"no text can satisfy the {name}: {message.split('Unsatisfiable schema:')[-1].strip()}")
    if "oneOf" in message:
        message = "'oneOf' with branches of which more than one could hold; make them exclusive or say anyOf"
    raise ConstraintError(f"the {name} cannot be expressed: {message[:1000]}")


def _schema(constraint: Constraint) -> Reading:
    ready = prepare(constraint.source, constraint.strict)
    hints = CompletionHints.of(ready.names, ready.required, map(Automaton, ready.patterns))
    item, key = _SEPARATORS[constraint.spacing]
    options: Any = {
        "item_separator": item,
        "key_separator": key,
        "whitespace_flexible": False,
        "lenient": not constraint.strict,
        "coerce_one_of": False,
    }
    try:
        source = LLMatcher.grammar_from_json_schema(ready.text, overrides=options)
    except ValueError as error:  # the engine's reader of JSON stops at 128 levels
        raise ConstraintError(f"the schema cannot be expressed: {error}") from error
    return Reading(constraint, source, _json_guide(hints), _cost(ready), ready.left_out)


def _cost(ready: Prepared) -> Cost:
    return of_schema(ready.text, sum(map(size, ready.patterns)))


def _json_guide(hints: CompletionHints) -> SearchGuide:
    def find(path: Path, text: bytes, limit: int) -> bytes | None:
        return close_json(path, limit, hints)

    return SearchGuide(find, hints.patterns, hints.names)


def _regex(constraint: Constraint) -> Reading:
    node = parse(constraint.source)
    automaton = Automaton(node)

    def find(path: Path, text: bytes, limit: int) -> bytes | None:
        try:
            rest = automaton.complete(text.decode())
        except UnicodeDecodeError:  # in the middle of a character
            rest = None
        if rest is not None and path.follow(result := rest.encode()):
            return result
        return _nearest(path, text, limit)

    source = LLMatcher.grammar_from_regex(emit(node))
    return Reading(constraint, source, SearchGuide(find, (automaton,)), of_pattern(constraint.source, size(node)))


def _choices(constraint: Constraint) -> Reading:
    choices: Sequence[str] = json.loads(constraint.source)
    spelled = sorted((choice.encode() for choice in choices), key=len)

    def find(path: Path, text: bytes, limit: int) -> bytes | None:
        return next((choice[len(text) :] for choice in spelled if choice.startswith(text)), None)

    pattern = "|".join("".join("\\" + c if c in _META else c for c in choice) for choice in choices)
    source = LLMatcher.grammar_from_regex(f"(?:{pattern})")
    return Reading(constraint, source, SearchGuide(find, texts=tuple(spelled)), of_texts(pattern))


def _calls(constraint: Constraint) -> Reading:
    tools = json.loads(constraint.source)
    lark, ready = calls_grammar(tools, constraint.strict)
    names = [*(f"call:{name}" for name, _ in tools), *(name for one in ready for name in one.names)]
    required = [name for one in ready for name in one.required]
    patterns = [Automaton(node) for one in ready for node in one.patterns]
    hints = CompletionHints.of(dict.fromkeys(names), required, patterns, lambda name: name.encode(errors="replace"))
    cost = together([*map(_cost, ready), of_texts(lark)])
    left_out = tuple(f"{word} of {name}" for (name, _), one in zip(tools, ready, strict=True) for word in one.left_out)
    return Reading(constraint, LLMatcher.grammar_from_lark(lark), _json_guide(hints), cost, left_out)


def _cfg(constraint: Constraint) -> Reading:
    return Reading(constraint, LLMatcher.grammar_from_lark(constraint.source), SearchGuide(_nearest), of_lark(constraint.source))


def _nearest(path: Path, text: bytes, limit: int) -> bytes | None:
    return next(nearest(path, lambda at: at.matcher.is_accepting(), limit), None)


_READERS: dict[str, Callable[[Constraint], Reading]] = {
    "json_schema": _schema,
    "json_object": _schema,
    "regex": _regex,
    "choices": _choices,
    "grammar": _cfg,
    "calls": _calls,
}
