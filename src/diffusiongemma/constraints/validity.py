"""Whether a finished text is what a schema asks for, where the grammar could not express all of it."""

import json
from typing import Any

import jsonschema_rs

from diffusiongemma.errors import ConstraintError

__all__ = ["Validator"]

_TRIES = 100_000
"""Steps that a pattern may go back: a text that takes more counts as not matching."""


class Validator:
    """A schema that texts are held against; it reads no file and opens no connection.

    Args:
        source: the schema as JSON; references outside it are taken for schemas of anything.

    Raises:
        ConstraintError: it is no schema.
    """

    def __init__(self, source: str) -> None:
        patterns = jsonschema_rs.FancyRegexOptions(backtrack_limit=_TRIES)
        try:
            schema = json.loads(source)
            schema = _without_outside(schema, _names(schema))
            try:
                self._validator: Any = jsonschema_rs.validator_for(schema, pattern_options=patterns, retriever=_anything)
            except jsonschema_rs.ValidationError:  # many schemas are of another draft than they say
                self._validator = jsonschema_rs.Draft7Validator(schema, pattern_options=patterns, retriever=_anything)
        except Exception as error:  # of several kinds
            raise ConstraintError(f"the schema cannot be read by the validator: {str(error)[:500]}") from error

    def takes(self, text: str) -> bool:
        """Whether a text is valid JSON of the schema."""
        try:
            return bool(self._validator.is_valid(json.loads(text)))
        except ValueError:
            return False


def _names(node: Any) -> set[str]:
    """What the schemas of a document call themselves."""
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    own = {node[word] for word in ("$id", "id") if isinstance(node.get(word), str)} if isinstance(node, dict) else set()
    return own.union(*map(_names, inner))


def _without_outside(node: Any, names: set[str]) -> Any:
    """A schema without the references to other documents."""
    if isinstance(node, list):
        return [_without_outside(each, names) for each in node]
    if not isinstance(node, dict):
        return node
    target = node.get("$ref")
    outside = isinstance(target, str) and not target.startswith("#") and target.partition("#")[0] not in names
    return {word: _without_outside(value, names) for word, value in node.items() if word != "$ref" or not outside}


def _anything(address: str) -> Any:
    return {}
