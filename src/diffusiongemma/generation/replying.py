"""What a reply may be, from what a caller asks of it: tools and their choice, thoughts, a constraint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from diffusiongemma.constraints import Constraint, Gone, Grammar, ReplyGrammar, Vocabulary, compile_grammar
from diffusiongemma.errors import InputError, OptionError
from diffusiongemma.text.markup import NAME, Markup

__all__ = ["ReplyRules", "Tools", "is_skeleton"]

_CHOICES = ("auto", "none", "required")
_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class Tools:
    """Functions that a reply may call.

    Attributes:
        declared: name and parameters (a JSON schema) of each that may be called.
        choice: whether the reply is a call.
        parallel: whether it may have several.
    """

    declared: tuple[tuple[str, Any], ...] = ()
    choice: Literal["auto", "none", "required"] = "auto"
    parallel: bool = True

    @classmethod
    def of(cls, tools: Sequence[Mapping[str, Any]] | None, choice: Any = None, parallel: bool | None = None) -> "Tools | None":
        """The tools of a request; None where there are none.

        Args:
            tools: OpenAI's ``{"type": "function", "function": {...}}``, or what is in ``function``.
            choice: ``auto`` (None), ``none``, ``required``, or ``{"type": "function", "function": {"name": ...}}``.
            parallel: None: several calls are allowed.

        Raises:
            InputError: a tool without a name, with one that no call can have, or with that of another.
            OptionError: a choice that is none of those, of a tool that is not there, or without tools.
        """
        if parallel is not None and not isinstance(parallel, bool):
            raise OptionError(f"parallel_tool_calls is {parallel!r}; give True or False")
        named = choice.get("function") if isinstance(choice, Mapping) and choice.get("type") == "function" else None
        name = named.get("name") if isinstance(named, Mapping) else None
        if choice is not None and choice not in _CHOICES and not isinstance(name, str):
            raise OptionError(
                f"tool_choice is {choice!r:.200}; it is 'auto', 'none', 'required' or "
                "{'type': 'function', 'function': {'name': ...}}"
            )
        declared = tuple(_declared(tool, place) for place, tool in enumerate(tools or ()))
        names = [one for one, _ in declared]
        if twice := [one for one in names if names.count(one) > 1]:
            raise InputError(f"tools: two have the name {twice[0]!r}; names must differ")
        if not declared:
            if choice not in (None, "none", "auto") or parallel is not None:
                raise OptionError("tool_choice or parallel_tool_calls is given without tools")
            return None
        if name is not None and name not in names:
            raise OptionError(f"tool_choice is {name!r}; the tools are {', '.join(names)}")
        chosen = tuple(one for one in declared if name is None or one[0] == name)
        return cls(chosen, "required" if name is not None else choice or "auto", parallel is not False)


def _declared(tool: Any, place: int) -> tuple[str, Any]:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not NAME.fullmatch(name):
        raise InputError(f"tools[{place}] has the name {name!r:.100}; a function has a name of up to 64 letters, digits, and _ . -")
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise InputError(f"tools[{place}]: the parameters of {name} are {parameters!r:.100}; they must be a JSON schema")
    return name, parameters or _NO_PARAMETERS


@dataclass(frozen=True)
class ReplyRules:
    """What is asked of the replies of one call.

    Attributes:
        markup: the tokens that mark parts of replies.
        vocabulary: of the model, with the stop tokens of these replies.
        tools: that may be called; None: none were given.
        budget: most tokens of thoughts.
        thinks: the model is asked to think, whatever its prompt shows.
        gone: whether whoever asked has left, so that a grammar that takes long to compile is given up; None: nobody leaves.
    """

    markup: Markup
    vocabulary: Vocabulary
    tools: Tools | None = None
    budget: int | None = None
    thinks: bool = False
    gone: Gone | None = None

    def grammar(self, prompt: Sequence[int], constraint: Constraint | None) -> Grammar | ReplyGrammar | None:
        """What the reply to a prompt may be; None: it is free.

        Raises:
            ConstraintError: a constraint, or parameters of a tool, that cannot be expressed.
        """
        body = None if constraint is None else compile_grammar(constraint, self.vocabulary, self.gone)
        opening = tuple(self.markup.opening(prompt))
        thinks = self.markup.thinks(prompt) or (self.thinks and self.markup.thoughts)
        tools = self.tools if self.markup.calls else None
        if tools is None and self.budget is None and (body is None or not (opening or thinks)):
            return body
        must = tools is not None and tools.choice == "required"
        calls = None
        if tools is not None and tools.choice != "none":
            calls = compile_grammar(Constraint.calls(tools.declared, strict=False), self.vocabulary, self.gone)
        free = not must and body is None
        return ReplyGrammar(
            self.vocabulary,
            self.markup,
            None if must else body,
            calls,
            must_call=must,
            parallel=tools is None or tools.parallel,
            thoughts="may" if free and self.markup.thoughts else "must" if thinks and not opening else "none",
            opening=opening,
            budget=self.budget,
        )


def is_skeleton(grammar: Any) -> bool:
    """Whether a grammar holds from the answer's first token to its last, so that it may stop sooner (``constrained_params``)."""
    if isinstance(grammar, ReplyGrammar):
        constrained = grammar.body is not None or grammar.must_call
        return constrained and grammar.thoughts == "none" and not grammar.opening
    return isinstance(grammar, Grammar)
