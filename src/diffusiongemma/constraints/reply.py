"""What a whole reply may be: thoughts, then calls, content, or a text of a grammar; told apart by their tokens.

::

    must call:   [thought] call call* stop
    may call:    (word | thought)* [call call*] stop
    grammar:     [thought] (text-of-the-grammar | call call*) stop

A call's inside and the text of a grammar have cursors of their own; thoughts and words are free but for special tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from diffusiongemma.constraints.grammar import Grammar
from diffusiongemma.constraints.remote import AnyCursor
from diffusiongemma.constraints.vocabulary import Vocabulary
from diffusiongemma.constraints.work import STEP_WORK
from diffusiongemma.errors import ConstraintError
from diffusiongemma.text.markup import HEADER, Markup

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ReplyCursor", "ReplyGrammar", "Thoughts"]

Thoughts = Literal["none", "may", "must"]
State = Literal["thinks", "header", "thought", "words", "calls", "call", "after", "body", "over"]


@dataclass(frozen=True, eq=False)
class ReplyGrammar:
    """What a reply may be.

    Attributes:
        vocabulary: of the model.
        markup: ids of the marks.
        body: the reply is a text of this grammar, or calls; None: it is words, or calls.
        calls: what may be called; None: nothing.
        must_call: the reply is calls, without words.
        parallel: several calls may follow each other.
        thoughts: whether the reply begins with a thought; ``may``: words may be interrupted by them too.
        opening: what the prompt has of a thought that it leaves open, from its mark on.
        budget: tokens of all thoughts, without their marks and header; None: as many as there are.
    """

    vocabulary: Vocabulary
    markup: Markup
    body: Grammar | None = None
    calls: Grammar | None = None
    must_call: bool = False
    parallel: bool = True
    thoughts: Thoughts = "none"
    opening: tuple[int, ...] = ()
    budget: int | None = None

    def start(self) -> "ReplyCursor":
        """A cursor at the beginning of a reply."""
        if self.opening:
            said, header = self.opening[1:], self.header
            rest = header[len(said) :] if header[: len(said)] == said else ()
            return ReplyCursor(self, "header" if rest else "thought", rest)
        return ReplyCursor(self, "thinks" if self.thoughts == "must" else self.after_thought)

    @property
    def after_thought(self) -> State:
        """What follows a thought."""
        return "body" if self.body is not None else "calls" if self.must_call else "words"

    @property
    def header(self) -> tuple[int, ...]:
        """What a thought begins with."""
        return tuple(self.vocabulary.encode(HEADER))


class ReplyCursor:
    """A place in a reply; see ``Cursor`` for its methods. V is the size of the vocabulary.

    Args:
        grammar: of the reply.
        state: what is being written.
        header: what is left of a thought's beginning.
    """

    def __init__(self, grammar: ReplyGrammar, state: State, header: Sequence[int] = ()) -> None:
        self._grammar, self._markup, self._vocabulary = grammar, grammar.markup, grammar.vocabulary
        self._state, self._header = state, tuple(header)
        self._thought = 0  # tokens of thoughts
        self._inner: AnyCursor | None = None
        self._enter(state)

    def _enter(self, state: State) -> None:
        self._state, self._inner = state, None
        inner = {"body": self._grammar.body, "call": self._grammar.calls}.get(state)
        if inner is not None:
            self._inner = inner.start()

    def begin(self, work: int = STEP_WORK) -> None:
        """See ``Cursor.begin``."""
        if self._inner is not None:
            self._inner.begin(work)

    @property
    def accepting(self) -> bool:
        """The reply so far is whole."""
        if self._state == "body":
            return self._inner is not None and self._inner.accepting
        return self._state in ("words", "after", "over")

    @property
    def complete(self) -> bool:
        """A reply that must end here has not been cut: words could always go on."""
        return self.accepting and self._state != "words"

    @property
    def finished(self) -> bool:
        """Nothing may follow but a stop token; after one, nothing at all."""
        if self._state == "body":
            return self._inner is not None and self._inner.finished
        return self._state == "over" or (self._state == "after" and not self._grammar.parallel)

    @property
    def _undecided(self) -> bool:
        """A text of the grammar or a call may begin here."""
        return self._state == "body" and self._grammar.calls is not None and self._inner is not None and not self._inner.text

    def copy(self) -> "ReplyCursor":
        """A cursor at the same place that goes its own way."""
        other = ReplyCursor.__new__(ReplyCursor)
        other.__dict__.update(self.__dict__)
        other._inner = None if self._inner is None else self._inner.copy()
        return other

    def allowed(self) -> "Tensor":
        """Tokens that may follow: ``[V]`` bool."""
        import torch  # here, since a process that has cursors for others knows no torch

        if self._inner is not None:
            mask = self._inner.allowed()
            if self._state == "call":
                mask[list(self._vocabulary.stop_ids)] = False
        elif self._state == "words" or (self._state == "thought" and not self._spent):
            mask = self._vocabulary.words.clone()
        else:
            mask = torch.zeros(self._vocabulary.size, dtype=torch.bool)
        mask[self._marks()] = True
        return mask

    def _marks(self) -> list[int]:
        """Marks and stop tokens that may follow, but for those that the inner cursor knows."""
        markup, grammar = self._markup, self._grammar
        result: list[int | None] = []
        if self._state == "thinks" or (self._state == "words" and grammar.thoughts != "none"):
            result.append(markup.thought_open)
        if self._state == "header":
            result.append(self._header[0])
        if self._state == "thought":
            result.append(markup.thought_close)
        again = self._state == "after" and grammar.parallel
        if self._state == "calls" or self._undecided or (grammar.calls is not None and (self._state == "words" or again)):
            result.append(markup.call_open)
        if self._state == "call" and self._inner is not None and self._inner.accepting:
            result.append(markup.call_close)
        if self._state in ("words", "after"):
            result += self._vocabulary.stop_ids
        return [token for token in result if token is not None]

    @property
    def _spent(self) -> bool:
        return self._grammar.budget is not None and self._thought >= self._grammar.budget

    def allows(self, token: int) -> bool:
        """May this token follow?"""
        return self.validate((token,)) == 1

    def validate(self, tokens: Sequence[int]) -> int:
        """How many of the tokens may follow one after another; a stop token may be the last of them."""
        place, at = self.copy(), 0
        while at < len(tokens):
            if place._inner is not None and not (place._undecided and tokens[at] == self._markup.call_open):
                # The inner cursor looks at all that are its own at once.
                own = next((n for n in range(at, len(tokens)) if tokens[n] == self._markup.call_close), len(tokens))
                count = place._inner.validate(tokens[at:own])
                if count < own - at or own == len(tokens):
                    return (
                        at + count - (place._state == "call" and count > 0 and tokens[at + count - 1] in self._vocabulary.stop_ids)
                    )
                for token in tokens[at:own]:
                    place.advance(token)
                at = own
            if not place._takes(tokens[at]):
                return at
            place.advance(tokens[at])
            at += 1
        return at

    def _takes(self, token: int) -> bool:
        """May this token follow, which is none of the inner cursor's?"""
        if token in self._marks():
            return True
        free = self._state == "words" or (self._state == "thought" and not self._spent)
        return free and self._vocabulary.is_word(token)

    def advance(self, token: int) -> None:
        """Take a token.

        Raises:
            ConstraintError: it is not allowed here.
        """
        own = (self._state == "call" and token == self._markup.call_close) or (self._undecided and token == self._markup.call_open)
        if self._inner is not None and not own:
            if self._state == "call" and token in self._vocabulary.stop_ids:
                raise ConstraintError(f"token {token} ends the reply within a call; ask allows() before advance()")
            self._inner.advance(token)
            return
        if not self._takes(token):
            raise ConstraintError(f"token {token} is not allowed here ({self._state}); ask allows() before advance()")
        if token in self._vocabulary.stop_ids:
            self._enter("over")
        elif self._state == "header":
            self._header = self._header[1:]
            if not self._header:
                self._enter("thought")
        elif token == self._markup.thought_open:
            self._header = self._grammar.header
            self._enter("header" if self._header else "thought")
        elif token == self._markup.thought_close:
            self._enter(self._grammar.after_thought)
        elif token == self._markup.call_open:
            self._enter("call")
        elif token == self._markup.call_close:
            self._enter("after")
        elif self._state == "thought":
            self._thought += 1

    def forced_tokens(self) -> list[int]:
        """Tokens that must follow; none where there is a choice."""
        result: list[int] = []
        place = self.copy()
        while not place.finished and not place._undecided:
            if place._inner is not None:
                more = place._inner.forced_tokens() if not (place._state == "call" and place._inner.finished) else place._marks()
            elif place._state in ("thinks", "header", "calls") or (place._state == "thought" and place._spent):
                more = place._marks()
            else:
                break
            if not more:
                break
            for token in more:
                place.advance(token)
            result += more
        return result

    def ending(self, limit: int) -> list[int] | None:
        """A short row of tokens that makes the reply whole, without a stop token; None: no way was found within the limit."""
        result: list[int] = []
        state, markup, grammar = self._state, self._markup, self._grammar
        if state == "thinks":
            result += [*_known(markup.thought_open), *grammar.header]
        if state in ("thinks", "header", "thought"):
            result += [*self._header, *_known(markup.thought_close)]
            state = grammar.after_thought
            if state == "body" and grammar.body is not None:
                result += grammar.body.shortest
        elif self._inner is not None:
            inner = self._inner.ending(limit - (state == "call"))
            if inner is None:
                return None
            result += [*inner, *(_known(markup.call_close) if state == "call" else [])]
        if state == "calls" and grammar.calls is not None:
            result += [*_known(markup.call_open), *grammar.calls.shortest, *_known(markup.call_close)]
        return result if len(result) <= limit else None


def _known(token: int | None) -> list[int]:
    return [] if token is None else [token]
