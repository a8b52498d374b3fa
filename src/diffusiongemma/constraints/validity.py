"""Whether a finished text is what a schema asks for, where the grammar could not express all of it."""

import json
import subprocess
import sys
from typing import Any

from diffusiongemma.errors import ConstraintError

__all__ = ["Validator"]

_SECONDS = 2.0
"""For one text, with the start of a process. Schemas that double at each reference take for ever; native code holds the lock."""
_CODE = """
import sys
sys.path[:] = sys.argv[1:]
import json
import jsonschema_rs
from diffusiongemma.confined import limit_memory
limit_memory(1 << 30)
schema, text = json.load(sys.stdin)
given = {"pattern_options": jsonschema_rs.FancyRegexOptions(backtrack_limit=100_000), "retriever": lambda address: {}}
try:
    validator = jsonschema_rs.validator_for(schema, **given)
except jsonschema_rs.ValidationError:  # many schemas are of another draft than they say
    validator = jsonschema_rs.Draft7Validator(schema, **given)
try:
    print(json.dumps(validator.is_valid(json.loads(text))))
except ValueError:
    print("false")
"""
"""A pattern that goes back more often than that does not match."""


class Validator:
    """A schema that texts are held against, each in a process of its own; it reads no file and opens no connection.

    Args:
        source: the schema as JSON; references outside it are taken for schemas of anything.
        sample: a text that is validated at once, to see that it can be.

    Raises:
        ConstraintError: it is no schema, or validating takes too long.
    """

    def __init__(self, source: str, sample: str = "null") -> None:
        try:
            schema = json.loads(source)
            self._schema = _without_outside(schema, _names(schema))
        except RecursionError as error:
            raise ConstraintError("the schema is nested too deeply") from error
        self._slow = False
        said = self._asked(sample)
        if self._slow:
            raise ConstraintError(f"validating a text takes more than {_SECONDS:g} s with this schema; make it smaller")
        if said not in ("true", "false"):
            raise ConstraintError(f"the schema cannot be read by the validator: {said[-500:]}")

    def takes(self, text: str) -> bool:
        """Whether a text is valid JSON of the schema; one that takes too long is not, and after it no other is."""
        return not self._slow and self._asked(text) == "true"

    def _asked(self, text: str) -> str:
        command = [sys.executable, "-I", "-S", "-c", _CODE, *(path for path in sys.path if isinstance(path, str))]
        content = json.dumps([self._schema, text])
        try:
            done = subprocess.run(command, input=content, capture_output=True, text=True, timeout=_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            self._slow = True
            return ""
        return (done.stdout or done.stderr).strip()


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
