"""A place in a text that a grammar describes: what may follow, what must, and a short way to the end."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from llguidance import LLMatcher

from diffusiongemma.constraints.pinned_search import PinnedPath, SearchBudget, SearchGuide, pinned_path
from diffusiongemma.constraints.search import Path
from diffusiongemma.constraints.vocabulary import Vocabulary
from diffusiongemma.constraints.work import STEP_WORK, Exhausted, Work
from diffusiongemma.errors import ConstraintError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Cursor", "flags"]

_AT_ONCE = 16
"""Tokens that the engine looks at in one go: it bounds what it keeps of a text only where it takes tokens for good."""


class Cursor:
    """A place in a text; ``Grammar.start`` gives the first one. V is the size of the vocabulary.

    A token is allowed where some whole text goes on with its bytes. Stop tokens are allowed where the text is whole.

    Args:
        vocabulary: of the grammar.
        tokens: the engine after the tokens so far.
        path: the engine after the same bytes, one by one; ``ending`` searches from it.
        guide: what is known of the grammar besides.
        ending: bytes that make the text whole, where some are known.
        work: what is left to do for its searches, and for those of its copies.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        tokens: LLMatcher,
        path: Path,
        guide: SearchGuide,
        ending: bytes | None = None,
        work: Work | None = None,
    ) -> None:
        self._vocabulary = vocabulary
        self._tokens = tokens
        self._path = path  # its tail is the text up to where it was last brought along
        self._guide = guide
        self._text = path.tail
        self._ending = ending
        self._strayed = 0  # bytes taken since the ending was found that are not its own
        self._searched = False  # the ending is not the one that was given
        self._stopped = False
        self._work = Work(STEP_WORK) if work is None else work

    def begin(self, work: int = STEP_WORK) -> None:
        """From now on the searches of this cursor and its copies may do so much together."""
        self._work.begin(work)

    @property
    def text(self) -> bytes:
        """The text so far."""
        return self._text

    @property
    def accepting(self) -> bool:
        """The text so far is whole."""
        return self._stopped or self._tokens.is_accepting()

    @property
    def complete(self) -> bool:
        """An answer that must end here has not been cut."""
        return self.accepting

    @property
    def finished(self) -> bool:
        """Nothing may follow but a stop token; after one, nothing at all."""
        return self._stopped or (self._tokens.is_accepting() and self._tokens.is_stopped())

    def copy(self) -> "Cursor":
        """A cursor at the same place that goes its own way."""
        other = Cursor(self._vocabulary, self._tokens.deep_copy(), self._path, self._guide, self._ending, self._work)
        other._text, other._stopped = self._text, self._stopped
        other._strayed, other._searched = self._strayed, self._searched
        return other

    def allowed(self) -> "Tensor":
        """Tokens that may follow: ``[V]`` bool.

        Raises:
            ConstraintError: the constraint has grown beyond the engine's limits.
        """
        return flags(self.packed(), self._vocabulary.size)

    def packed(self) -> bytearray:
        """Tokens that may follow, one bit a token, lowest bit first.

        Raises:
            ConstraintError: the constraint has grown beyond the engine's limits.
        """
        size = self._vocabulary.size
        if self._stopped:
            return bytearray((size + 7) // 8)
        mask = bytearray(self._tokens.compute_bitmask()) if not self.finished else bytearray(size // 8 + 1)
        self._check()
        if self._tokens.is_accepting():
            for token in self._vocabulary.stop_ids:
                mask[token // 8] |= 1 << token % 8
        return mask

    def allows(self, token: int) -> bool:
        """May this token follow?"""
        return self.validate((token,)) == 1

    def validate(self, tokens: Sequence[int]) -> int:
        """How many of the tokens may follow one after another; a stop token may be the last of them."""
        size, stops = self._vocabulary.size, self._vocabulary.stop_ids
        end = next((n for n, token in enumerate(tokens) if token in stops or not 0 <= token < size), len(tokens))
        inside = list(tokens[:end])
        if self._stopped:
            return 0
        count, behind = 0, self._tokens
        while count < end and not (count == 0 and self.finished):
            piece = inside[count : count + _AT_ONCE]
            taken = behind.validate_tokens(piece)
            count += taken
            if taken < len(piece) or count == len(tokens):
                return count
            behind = behind.deep_copy() if behind is self._tokens else behind
            behind.consume_tokens(piece)
        if count < end or end == len(tokens) or tokens[end] not in stops:
            return count
        return count + int(behind.is_accepting())

    def advance(self, token: int) -> None:
        """Take a token.

        Raises:
            ConstraintError: it is not allowed here.
        """
        if token in self._vocabulary.stop_ids and self.accepting and not self._stopped:
            self._stopped = True
            return
        inside = 0 <= token < self._vocabulary.size and token not in self._vocabulary.stop_ids and not self.finished
        if not inside or self._tokens.try_consume_tokens([token]) != 1:
            self._check()
            raise ConstraintError(f"token {token} is not allowed after {self._text[-40:]!r}; ask allows() before advance()")
        added = self._vocabulary.token_bytes[token]
        self._text += added
        if self._ending is not None and not self._strayed and self._ending.startswith(added):
            self._ending = self._ending[len(added) :]
        else:
            self._strayed += len(added)

    def forced_tokens(self) -> list[int]:
        """Tokens that must follow, cut as the tokenizer would; none where there is a choice."""
        return [] if self.finished else list(self._tokens.compute_ff_tokens())

    def ending(self, limit: int) -> list[int] | None:
        """A short row of tokens that makes the text whole, without a stop token.

        Args:
            limit: tokens at most.

        Returns:
            The tokens, none of them where the text is whole; None: no way was found within the limit (for a JSON schema
            and a context-free grammar there may yet be one).
        """
        if self.accepting:
            return []
        # A text that has left the ending that was given is likely to have a shorter one.
        known = self._known(limit) if self._searched or not self._strayed else None
        if known is not None:
            return known
        # The search stops at what cannot be written within the limit: few tokens have more than 16 bytes.
        try:
            result = self._guide.find(self._here().begin(self._work), self._text, 64 + 16 * limit)
        except Exhausted:
            return self._known(limit)
        if result is None or len(result) > limit * self._vocabulary.longest:
            return None
        tokens = self._vocabulary.spell(result)
        if tokens is None or len(tokens) > limit:
            return None
        self._ending, self._strayed, self._searched = result, 0, True
        return tokens

    def through(self, given: Sequence[int], limit: int, budget: SearchBudget) -> PinnedPath:
        """A way through tokens that are given at their positions, and on to the end.

        Args:
            given: a token, or -1 where it is open, for each next position; the last is a token, and may be a stop token.
            limit: tokens at most.
            budget: how wide to search; a text that it does not find may exist all the same.
        """
        if self.finished and given:
            stops = len(given) == 1 and given[0] in self._vocabulary.stop_ids and not self._stopped
            return PinnedPath(list(given), True, 1) if stops else PinnedPath([], False, 0)
        try:
            return pinned_path(self._here().begin(self._work), self._text, given, limit, self._vocabulary, self._guide, budget)
        except Exhausted:
            return PinnedPath([], False, 0)

    def _known(self, limit: int) -> list[int] | None:
        """The last ending, if it still is one, after what was taken instead of its beginning, or as a whole."""
        if self._ending is None:
            return None
        for ending in dict.fromkeys((self._ending[self._strayed :], self._ending)):
            path = self._here().follow(ending)
            if path is not None and path.matcher.is_accepting():
                self._ending, self._strayed = ending, 0
                tokens = self._vocabulary.spell(ending)
                if tokens is not None and len(tokens) <= limit:
                    return tokens
        return None

    def _here(self) -> Path:
        """The engine after the bytes so far."""
        if missing := self._text[len(self._path.tail) :]:
            self._path = self._path.extend(missing)
        return self._path

    def _check(self) -> None:
        if self._tokens.is_error():
            reason = self._tokens.get_error().split("\n")[0]
            raise ConstraintError(f"the constraint is too complex for the engine after {self._text[-40:]!r}: {reason}")


def flags(packed: bytes | bytearray, size: int) -> "Tensor":
    """Bits, lowest first, as ``[size]`` bool."""
    import torch  # here, since a process that has cursors for others knows no torch

    bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=size, bitorder="little")
    return torch.from_numpy(bits).view(torch.bool)
