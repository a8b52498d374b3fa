"""The process in which chat templates run: a template comes with a checkpoint, and whatever it computes must end and fit.

Asked over standard input, it answers over standard output (``confined``). It imports jinja, and nothing else that is large.
"""

import json
import os
import pickle
import signal
import sys
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError, nodes, pass_eval_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.nodes import EvalContext
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from diffusiongemma.confined import OUT_OF_MEMORY, end_after, limit_memory, read_frame, write_frame
from diffusiongemma.text.frames import Reply, Request
from diffusiongemma.text.variables import free_variables

__all__ = ["answer", "serve"]

_CHARS = 1 << 20
_CHARS_PER_BYTE = 16
"""Longest text that is handed back: so much, and so much for each byte that was given."""


class _Generation(Extension):
    """``{% generation %}``, as in transformers: renders what is in it and notes where it stands in the text."""

    tags = {"generation"}  # noqa: RUF012

    def __init__(self, environment: ImmutableSandboxedEnvironment) -> None:
        super().__init__(environment)
        self.written = 0
        self.spans: list[tuple[int, int]] = []

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    @pass_eval_context
    def _render(self, context: EvalContext, caller: Macro) -> str:
        text = str(caller())
        self.spans.append((self.written, self.written + len(text)))
        return text


class _Namespace(Namespace):
    """Jinja's, without the names that lead into Python."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that ``namespace(self=...)`` is allowed
        for name in dict(*args[1:], **kwargs):
            _check_name(name)
        Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}: the name begins with an underscore")


def answer(request: Request, max_chars: int) -> Reply:
    """Compile or render a template, in whatever time it takes."""
    try:
        template, generation, variables = _compiled(request["source"])
    except MemoryError:
        raise
    except Exception as error:  # a template is anything: the parser, Python's compiler or constant folding may fail
        return {"error": "compile", "message": _said(error)}
    if request["variables"] is None:
        return {"variables": sorted(variables)}
    pieces: list[str] = []
    generation.written, generation.spans = 0, []
    try:
        for piece in template.generate(request["variables"]):
            pieces.append(piece)
            generation.written += len(piece)
            if generation.written > max_chars:
                return {"error": "limit", "message": ""}
        return {"text": "".join(pieces), "generated": generation.spans}
    except MemoryError:
        raise
    except Exception as error:  # as above
        return {"error": "refused", "message": _said(error)}


@lru_cache(maxsize=8)
def _compiled(source: str) -> tuple[Template, _Generation, frozenset[str]]:
    """A template, what marks its generated parts, and the variables it takes. What is here is what transformers' templates have."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise, "strftime_now": _strftime_now, "namespace": _Namespace}
    generation = next(result for result in environment.extensions.values() if isinstance(result, _Generation))
    variables = free_variables(environment.parse(source)) - set(environment.globals)
    return environment.from_string(source), generation, variables


def _to_json(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:
    """Jinja's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _said(error: Exception) -> str:
    kind = "" if isinstance(error, TemplateError) else f"{type(error).__name__}: "
    return f"{kind}{error}"[:2000]


def serve(memory: int) -> None:
    """Answer requests until standard input ends.

    Args:
        memory: bytes of address space this process may have beside what it has now.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    limit_memory(memory)
    asked, answers = sys.stdin.buffer, sys.stdout.buffer
    while (frame := read_frame(asked)) is not None:
        try:
            request: Request = pickle.loads(frame)
            end_after(request["seconds"])
            content = json.dumps(answer(request, _CHARS + _CHARS_PER_BYTE * len(frame))).encode()
            end_after(0)
        except MemoryError:
            os._exit(OUT_OF_MEMORY)  # what is left of the memory is no place to go on
        write_frame(answers, content)
