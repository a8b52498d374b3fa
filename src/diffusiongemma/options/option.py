"""Options, said once: a field of a frozen dataclass with its bounds and its help.

What follows from a field: the check of a value and its error, a line of the class's docstring, the field of the server's bodies
(``server/protocol.py``), the option of the command line (``cli/command.py``) and the values of ``eval --sweep``. Only the
``TypedDict`` of the keywords has to repeat names and types, since type checkers read no program: a test compares the two.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from diffusiongemma.errors import OptionError

__all__ = ["Option", "check_options", "documented", "given", "option", "options_of", "unknown_option"]

T = TypeVar("T")


@dataclass(frozen=True)
class _Said:
    """What ``option`` is told, as metadata of a field."""

    help: str
    ge: float | None
    gt: float | None
    le: float | None
    flags: tuple[str, ...]


def option(
    default: Any,
    help: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    flags: tuple[str, ...] = (),
) -> Any:
    """A field of a dataclass of options.

    Args:
        default: where it is not given.
        help: what it is, for the docstring, the command line and the server's description.
        ge, gt, le: bounds of a number: at least, above, at most.
        flags: on the command line; none: ``--its-name``.
    """
    return field(default=default, metadata={"option": _Said(help, ge, gt, le, flags)})


@dataclass(frozen=True)
class Option:
    """One option, as it is read from its field.

    Attributes:
        name: of the field.
        kind: ``int``, ``float``, ``bool``, ``str`` (one of ``choices``, or any), ``tuple`` (of strings), or another type, whose
            values its class checks itself.
        choices: the words that are allowed; empty: no such list.
        optional: whether None is a value.
        default, help, ge, gt, le, flags: see ``option``.
    """

    name: str
    kind: Any
    choices: tuple[str, ...]
    optional: bool
    default: Any
    help: str
    ge: float | None
    gt: float | None
    le: float | None
    flags: tuple[str, ...]

    def check(self, value: object) -> None:
        """Refuse a value that is not allowed.

        Raises:
            OptionError: with what was given and what is allowed; its ``param`` is the option's name.
        """
        if value is None and self.optional:
            return
        if (allowed := self._refusal(value)) is not None:
            raise OptionError(f"{self.name} is {value!r:.100}; {allowed}", self.name)

    def _refusal(self, value: object) -> str | None:
        """What is allowed instead of a value; None: it is."""
        if self.choices:
            return None if isinstance(value, str) and value in self.choices else f"allowed: {', '.join(self.choices)}"
        if self.kind is bool:
            return None if isinstance(value, bool) else "it must be True or False"
        if self.kind is tuple:
            right = isinstance(value, tuple) and all(isinstance(text, str) and text for text in value)
            return None if right else "it must be a sequence of non-empty strings"
        if self.kind not in (int, float):
            return None
        number = isinstance(value, int | self.kind) and not isinstance(value, bool)
        if number and self._within(value):  # type: ignore[arg-type]
            return None
        if self.kind is int and self.ge is not None and self.le is not None:
            return f"it must be an integer from {self.ge} to {self.le}"
        bounds = [("> ", self.gt), (">= ", self.ge), ("<= ", self.le)]
        said = " and ".join(f"{sign}{bound:g}" for sign, bound in bounds if bound is not None)
        return f"it must be {'an integer' if self.kind is int else 'a finite number'} {said}".rstrip()

    def _within(self, value: float) -> bool:
        try:
            if not math.isfinite(value):
                return False
        except OverflowError:  # an integer that no float can be
            return False
        low = (self.ge is None or value >= self.ge) and (self.gt is None or value > self.gt)
        return low and (self.le is None or value <= self.le)

    def parse(self, text: str) -> Any:
        """A value as it is written in a text; switches are ``on`` and ``off``.

        Raises:
            OptionError: it is none, or not allowed.
        """
        try:
            value = {"on": True, "off": False}[text] if self.kind is bool else text if self.choices else self.kind(text)
        except (KeyError, ValueError):
            what = {int: "an integer", float: "a number", bool: "on or off"}.get(self.kind, "a word")
            raise OptionError(f"{self.name} is {text!r:.100}; it must be {what}", self.name) from None
        self.check(value)
        return value


def _read(cls: Any) -> Mapping[str, Option]:
    hints, result = get_type_hints(cls), {}
    for each in dataclasses.fields(cls):
        said: _Said = each.metadata["option"]
        kinds = get_args(hints[each.name]) if get_origin(hints[each.name]) in (Union, UnionType) else (hints[each.name],)
        optional, kind = NoneType in kinds, next(kind for kind in kinds if kind is not NoneType)
        choices = get_args(kind) if get_origin(kind) is Literal else ()
        result[each.name] = Option(
            each.name, str if choices else get_origin(kind) or kind, choices, optional, each.default, **vars(said)
        )
    return result


options_of: Callable[[Any], Mapping[str, Option]] = cache(_read)
"""The options that a dataclass declares, by name, in its order."""


def check_options(instance: Any) -> None:
    """Check every option of a dataclass, for its ``__post_init__``.

    Raises:
        OptionError: see ``Option.check``.
    """
    for name, each in options_of(type(instance)).items():
        each.check(getattr(instance, name))


def given(cls: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Of some options those that are a class's, but for None, which is how keywords say that they are not given."""
    return {name: options[name] for name in options_of(cls) if options.get(name) is not None}


def unknown_option(names: Any, *known: str) -> OptionError:
    """The error about options that do not exist."""
    first, *_ = names = sorted(names)
    return OptionError(f"unknown option {', '.join(names)}; allowed: {', '.join(sorted(known))}", first)


def documented(cls: type[T]) -> type[T]:
    """Put what the fields say into the docstring of a dataclass."""
    lines = [f"    {name}: {each.help}" for name, each in options_of(cls).items()]
    cls.__doc__ = "\n".join([(cls.__doc__ or "").rstrip(), "", "    Attributes:", *(f"    {line}" for line in lines)])
    return cls
