"""A cursor whose grammar is in a process of its own.

What is asked of it goes there and back, so little is asked: tokens are sent with the next question, a copy is made there once it
goes its own way, and an answer tells what is likely to be asked next.
"""

import base64
from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

from diffusiongemma.constraints.cursor import Cursor, flags
from diffusiongemma.constraints.pinned_search import PinnedPath, SearchBudget
from diffusiongemma.constraints.process import Process
from diffusiongemma.constraints.vocabulary import Vocabulary
from diffusiongemma.constraints.work import STEP_WORK

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["AnyCursor", "RemoteCursor"]

_numbers = count(1)


class _Place:
    """A cursor there; it is dropped when nobody has it here."""

    def __init__(self, process: Process, number: int) -> None:
        self._process, self.number = process, number

    def __del__(self) -> None:
        if self.number:
            self._process.freed.append(self.number)


State = tuple[bool, bool, list[int]]
"""Accepting, finished, forced."""


class _Begun:
    """What the searches of a step may do, until it has been said; shared by copies."""

    work: int | None = None


class RemoteCursor:
    """See ``Cursor``: the same place, asked in another process. V is the size of the vocabulary.

    Any method may raise ConstraintError where the process has taken more time or memory than it may.

    Args:
        process: of the grammar.
        vocabulary: of the grammar.
    """

    def __init__(self, process: Process, vocabulary: Vocabulary) -> None:
        self._process, self._vocabulary = process, vocabulary
        self._place, self._alone = _Place(process, 0), False
        self._begun = _Begun()
        self._pending: list[int] = []
        self._text = b""
        self._state: State | None = None
        self._ahead: tuple[list[int], _Place, State] | None = None  # after tokens that were said to be allowed

    def begin(self, work: int = STEP_WORK) -> None:
        """See ``Cursor``."""
        self._begun.work = work

    @property
    def text(self) -> bytes:
        """See ``Cursor``."""
        return self._text

    @property
    def accepting(self) -> bool:
        """See ``Cursor``."""
        return self._known()[0]

    @property
    def complete(self) -> bool:
        """See ``Cursor``."""
        return self.accepting

    @property
    def finished(self) -> bool:
        """See ``Cursor``."""
        return self._known()[1]

    def copy(self) -> "RemoteCursor":
        """See ``Cursor``."""
        other = RemoteCursor.__new__(RemoteCursor)
        other.__dict__.update(self.__dict__)
        other._pending, other._ahead = list(self._pending), None
        self._alone = other._alone = False
        return other

    def allowed(self) -> "Tensor":
        """See ``Cursor``."""
        return flags(base64.b64decode(self._ask("packed")), self._vocabulary.size)

    def allows(self, token: int) -> bool:
        """See ``Cursor``."""
        return self.validate((token,)) == 1

    def validate(self, tokens: Sequence[int]) -> int:
        """See ``Cursor``."""
        given, place = list(tokens), _Place(self._process, next(_numbers))
        answer = self._asked("validate", given, ahead=place.number)
        count = int(answer["value"])
        self._ahead = (given[:count], place, _state(answer["ahead"])) if count else None
        return count

    def advance(self, token: int) -> None:
        """Take a token, which is allowed here; where it is not, the next question raises ConstraintError."""
        self._pending.append(token)
        self._state = None
        if 0 <= token < self._vocabulary.size:
            self._text += self._vocabulary.token_bytes[token]
        if self._ahead is not None and self._pending == self._ahead[0]:
            _, self._place, self._state = self._ahead
            self._alone, self._pending, self._ahead = True, [], None

    def forced_tokens(self) -> list[int]:
        """See ``Cursor``."""
        return list(self._known()[2])

    def ending(self, limit: int) -> list[int] | None:
        """See ``Cursor``."""
        result: list[int] | None = self._ask("ending", limit)
        return result

    def through(self, given: Sequence[int], limit: int, budget: SearchBudget) -> PinnedPath:
        """See ``Cursor``."""
        return PinnedPath(*self._ask("through", list(given), limit, list(vars(budget).values())))

    def _known(self) -> State:
        if self._state is None:
            self._ask("nothing")
        assert self._state is not None
        return self._state

    def _ask(self, *what: Any) -> Any:
        return self._asked(*what)["value"]

    def _asked(self, *what: Any, ahead: int = 0) -> dict[str, Any]:
        """Ask for a value; a place that a copy has too is left as it is, and another made of it."""
        process, place = self._process, self._place
        target = place if self._alone else _Place(process, next(_numbers))
        work, self._begun.work = self._begun.work, None
        freed, process.freed = process.freed, []
        question = {"from": place.number, "to": target.number, "tokens": self._pending, "freed": freed, "ask": what}
        answer = process.ask(question | {"ahead": ahead}, work)
        self._place, self._alone, self._pending, self._ahead = target, True, [], None
        self._state = _state(answer["state"])
        return answer


def _state(said: Sequence[Any]) -> State:
    accepting, finished, forced_tokens = said
    return bool(accepting), bool(finished), list(forced_tokens)


AnyCursor = Cursor | RemoteCursor
"""A cursor of a grammar, wherever that is."""
