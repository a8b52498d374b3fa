"""What a text may be, as a user says it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from diffusiongemma.errors import ConstraintError

__all__ = ["MAX_SOURCE", "Constraint", "ResponseFormat", "Spacing"]

Kind = Literal["json_schema", "json_object", "regex", "choices", "grammar", "calls"]
Spacing = Literal["spaced", "compact", "either"]
ResponseFormat = Mapping[str, Any] | bool | type[Any]
"""``{"type": "json_schema", "json_schema": {"schema": ...}}``, the schema itself, a pydantic class, ``{"type": "json_object"}`` or
``{"type": "text"}``."""
MAX_SOURCE = 1 << 20
"""Characters of a schema, pattern, list of choices or grammar."""


@dataclass(frozen=True)
class Constraint:
    """A constraint with its source in one canonical spelling; make it with one of the class methods.

    Attributes:
        kind: what the source is.
        source: JSON of a schema, of a list of choices or of tools, a pattern, or the text of a grammar.
        spacing: of JSON: one blank after each ``:`` and ``,`` as ``json.dumps`` writes it, none, or either of the two.
        strict: whether a schema that no grammar can express is refused; else the nearest grammar is taken, and a finished text
            is validated (arguments of calls are not).
    """

    kind: Kind
    source: str
    spacing: Spacing = "spaced"
    strict: bool = True

    def __post_init__(self) -> None:
        if self.spacing not in ("spaced", "compact", "either"):
            raise ConstraintError(f'spacing is {self.spacing!r}; it is "spaced", "compact" or "either"')
        if len(self.source) > MAX_SOURCE:
            raise ConstraintError(f"the {self.kind} has {len(self.source):,} characters; {MAX_SOURCE:,} are allowed")
        try:
            self.source.encode()
        except UnicodeEncodeError as error:
            raise ConstraintError(f"the {self.kind} has half of a surrogate pair, which no text can hold") from error

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | bool | str, spacing: Spacing = "spaced", strict: bool = True) -> "Constraint":
        """JSON that a schema describes; the schema as an object or as JSON. Properties are written in the schema's order."""
        try:
            given = json.loads(schema) if isinstance(schema, str) else schema
            source = json.dumps(given, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        except (TypeError, ValueError, RecursionError) as error:
            raise ConstraintError(f"the schema is not JSON: {error}") from error
        if not isinstance(given, Mapping | bool):
            raise ConstraintError(f"a JSON schema is an object or a boolean, this is {type(given).__name__}")
        return cls("json_schema", source, spacing, strict)

    @classmethod
    def json_object(cls, spacing: Spacing = "spaced") -> "Constraint":
        """Any JSON object."""
        return cls("json_object", '{"type":"object"}', spacing)

    @classmethod
    def regex(cls, pattern: str) -> "Constraint":
        """Texts that a regular expression matches as a whole; for the syntax see ``constraints.regex``."""
        if not isinstance(pattern, str):
            raise ConstraintError(f"a regex is a string, this is {type(pattern).__name__}")
        return cls("regex", pattern)

    @classmethod
    def choices(cls, choices: Sequence[str]) -> "Constraint":
        """One of several texts; one may begin like another, and one may be empty."""
        listed = isinstance(choices, Sequence) and not isinstance(choices, str | bytes)
        if not listed or not all(isinstance(choice, str) for choice in choices):
            raise ConstraintError(f"choices are a list of strings, this is {choices!r:.200}")
        if not choices:
            raise ConstraintError("choices is empty; give one string at least")
        return cls("choices", json.dumps(list(dict.fromkeys(choices)), ensure_ascii=False))

    @classmethod
    def grammar(cls, grammar: str) -> "Constraint":
        """Texts of a context-free grammar in Lark's syntax as llguidance reads it: rules in lower case, terminals in upper
        case, ``start`` first."""
        if not isinstance(grammar, str) or not grammar.strip():
            raise ConstraintError('a grammar is a text of rules such as \'start: "yes" | "no"\'; this one is empty')
        return cls("grammar", grammar)

    @classmethod
    def calls(cls, tools: Sequence[tuple[str, Mapping[str, Any] | bool]], strict: bool = True) -> "Constraint":
        """A call of one of some tools in the native markup (``text.markup``), without the marks around it.

        Args:
            tools: name and parameters (a JSON schema) of each, at least one.
        """
        if not tools:
            raise ConstraintError("there are no tools; give one at least")
        try:
            source = json.dumps([[name, parameters] for name, parameters in tools], allow_nan=False)
            return cls("calls", source, strict=strict)
        except (TypeError, ValueError, RecursionError) as error:
            raise ConstraintError(f"tools: their parameters are not JSON: {error}") from error

    @classmethod
    def of(
        cls,
        response_format: ResponseFormat | None = None,
        regex: str | None = None,
        choices: Sequence[str] | None = None,
        grammar: str | None = None,
    ) -> "Constraint | None":
        """The constraint of a request; None where it asks for plain text.

        Args:
            response_format: see ``ResponseFormat``.
            regex: see ``Constraint.regex``.
            choices: see ``Constraint.choices``.
            grammar: see ``Constraint.grammar``.

        Raises:
            ConstraintError: more than one is given, or one that is not as described; ``param`` names it.
        """
        given = {"response_format": response_format, "regex": regex, "choices": choices, "grammar": grammar}
        names = [name for name, value in given.items() if value is not None]
        if len(names) > 1:
            raise ConstraintError(f"{' and '.join(names)} are given; a text can be constrained to one of them")
        try:
            if regex is not None:
                return cls.regex(regex)
            if choices is not None:
                return cls.choices(choices)
            if grammar is not None:
                return cls.grammar(grammar)
            return None if response_format is None else _response_format(response_format)
        except ConstraintError as error:
            error.param = names[0]
            raise


def _response_format(given: Any) -> Constraint | None:
    if isinstance(given, type) and callable(describe := getattr(given, "model_json_schema", None)):
        return Constraint.json_schema(describe(), strict=False)
    if isinstance(given, bool):
        return Constraint.json_schema(given)
    kind = given.get("type") if isinstance(given, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return Constraint.json_object()
    if kind == "json_schema" and "json_schema" in given:
        schema = given["json_schema"]
        inner = isinstance(schema, Mapping) and isinstance(schema.get("schema"), Mapping | bool)
        strict = inner and schema.get("strict") is True
        return Constraint.json_schema(schema["schema"] if inner else schema, strict=strict)
    if isinstance(given, Mapping) and _is_schema(given):
        return Constraint.json_schema(given, strict=False)
    raise ConstraintError(
        f'response_format is {given!r:.200}; it is {{"type": "json_schema", "json_schema": {{"schema": ...}}}}, the schema itself, '
        'a pydantic class, {"type": "json_object"} or {"type": "text"}'
    )


def _is_schema(given: Mapping[str, Any]) -> bool:
    """Whether this is a schema as it is, not an envelope that was misspelt; ``True`` is the schema of anything, not ``{}``."""
    kind = given.get("type", "object")
    typed = isinstance(kind, list) or kind in ("object", "array", "string", "number", "integer", "boolean", "null")
    return bool(given) and typed and given.keys().isdisjoint(("json_schema", "schema"))
