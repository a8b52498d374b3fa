"""What a grammar needs to know of a tokenizer: the bytes of every token, and which tokens may stand inside a text."""

import pickle
import re
import threading
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from llguidance import LLTokenizer, TokenizerWrapper

from diffusiongemma.errors import ConstraintError, InputError
from diffusiongemma.text.spelling import BYTE_TOKEN, byte_decoder
from diffusiongemma.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MARK", "MARK_NAME", "Vocabulary"]

MARK = b"\xf8"
"""The quote mark of the native markup as a byte, which UTF-8 never has: it is one token and no text."""
MARK_NAME = "<mark>"
"""How a grammar calls it."""

_UNUSED = re.compile(r"<unused\d+>|<mask>|\[multimodal\]")
"""Added tokens of Gemma's vocabulary that stand for nothing but are not flagged as special."""
_LONGEST = 64
"""Bytes of the longest token that a text is cut into; longer ones (runs of blanks) save little."""

_FILLER, _FILLERS = (2, 4, 8, 16), 256
"""Bytes of the tokens that a search takes to fill room; sets of bytes for which such tokens are kept."""


class Vocabulary:
    """The tokens of a tokenizer as bytes; make one with ``Vocabulary.of``, which keeps it as long as the tokenizer lives.

    Attributes:
        size: rows of the model's vocabulary; a mask has as many entries.
        stop_ids: tokens that end a text.
        token_bytes: bytes of each token; empty for one that is never allowed inside a text (special tokens, rows without a
            token, a second spelling of the same bytes). Of the special tokens the quote mark has ``MARK``.
        alphabet: the bytes that are tokens by themselves.
        longest: bytes of the longest token that a text is cut into.
        quote: the quote mark of the native markup; None: there is none.
        grammars: compiled for this vocabulary, the most recently used last; ``lock`` is held where they are changed.
        home: the process that those of grammars that are not cheap are forked from (``process.py``); ``starting`` is held where it
            is started.
        warned: it was said that there can be no such process.
    """

    def __init__(
        self, token_bytes: Sequence[bytes], stop_ids: Iterable[int], backend: Any = None, quote: int | None = None
    ) -> None:
        if quote is not None:
            token_bytes = [b"" if MARK in text else text for text in token_bytes]
            token_bytes[quote] = MARK
        self.size, self.quote = len(token_bytes), quote
        self.stop_ids = tuple(sorted(set(stop_ids)))
        if outside := [i for i in self.stop_ids if not 0 <= i < self.size]:
            raise ConstraintError(f"stop ids {outside} are outside the vocabulary of {self.size} tokens")
        self._ids: dict[bytes, int] = {}
        kept: list[bytes] = []
        for index, text in enumerate(token_bytes):
            new = bool(text) and index not in self.stop_ids and self._ids.setdefault(text, index) == index
            kept.append(text if new else b"")
        self.token_bytes = tuple(kept)
        self.alphabet = frozenset(text[0] for text in self._ids if len(text) == 1)
        self.longest = min(_LONGEST, max(map(len, self._ids), default=1))
        self._backend = backend
        self._fillers: dict[bytes, tuple[bytes, ...]] = {}
        self.grammars: dict[Any, Any] = {}
        self.home: Any = None
        self.lock, self.starting, self.warned = threading.Lock(), threading.Lock(), False
        self.engine = _engine(self.token_bytes, self.encode, quote)
        alone = [bytes([i]) if i in self.alphabet else b"" for i in range(256)]
        self.byte_engine = _engine(alone, list, None if quote is None else MARK[0])

    @classmethod
    def of(cls, tokenizer: Tokenizer, stop_ids: Iterable[int], size: int | None = None) -> "Vocabulary":
        """The vocabulary of a tokenizer, built once.

        Args:
            tokenizer: of a checkpoint; byte-level BPE, BPE with byte fallback, or whole words.
            stop_ids: tokens that end a text.
            size: rows of the model's vocabulary; None: as many as the tokenizer has.

        Raises:
            ConstraintError: the tokenizer decodes in a way of which the bytes of a token cannot be known.
        """
        key = (tuple(sorted(set(stop_ids))), size)
        known = _KNOWN.setdefault(tokenizer, {})
        if key not in known:
            backend = tokenizer._backend
            rows, quote = _token_bytes(backend, size), tokenizer.markup.quote
            known[key] = cls(rows, key[0], backend, None if quote is None or quote >= len(rows) else quote)
        return known[key]

    def packed(self) -> bytes:
        """What another process needs to make this vocabulary: a pickle of the constructor's arguments, the tokenizer as JSON."""
        backend = None if self._backend is None else self._backend.to_str()
        return pickle.dumps((self.token_bytes, self.stop_ids, backend, self.quote))

    def encode(self, text: bytes | str) -> list[int]:
        """Tokens of a text as the tokenizer itself would cut it, where it can; else the fewest."""
        raw = text.encode() if isinstance(text, str) else bytes(text)
        if self._backend is not None:
            try:
                ids: list[int] = self._backend.encode(raw.decode(), add_special_tokens=False).ids
            except UnicodeDecodeError:
                ids = []
            if b"".join(self.token_bytes[i] for i in ids) == raw:
                return ids
        return self.spell(raw) or []

    def spell(self, text: bytes) -> list[int] | None:
        """The fewest tokens whose bytes are the text; None where the vocabulary cannot write it."""
        best: list[tuple[int, int]] = [(0, -1)] + [(len(text) + 1, -1)] * len(text)  # tokens so far, last token
        for end in range(1, len(text) + 1):
            for start in range(max(0, end - self.longest), end):
                if best[start][0] + 1 < best[end][0] and (token := self._ids.get(text[start:end])) is not None:
                    best[end] = (best[start][0] + 1, token)
        ids: list[int] = []
        end = len(text)
        while end:
            token = best[end][1]
            if token < 0:
                return None
            ids.append(token)
            end -= len(self.token_bytes[token])
        return ids[::-1]

    def id_of(self, text: bytes) -> int | None:
        """The token with these bytes."""
        return self._ids.get(text)

    def begins(self, text: bytes) -> bool:
        """Does a token begin with these bytes?"""
        at = bisect_left(self._sorted, text)
        return at < len(self._sorted) and self._sorted[at].startswith(text)

    def fillers(self, allowed: bytes) -> tuple[bytes, ...]:
        """Tokens of several of these bytes, one of each length: much text in few tokens."""
        if allowed not in self._fillers:
            result: dict[int, bytes] = {}
            for text in self._sorted:
                if len(text) in _FILLER and len(text) not in result and not text.translate(None, allowed):
                    result[len(text)] = text
            if len(self._fillers) >= _FILLERS:
                self._fillers.clear()
            self._fillers[allowed] = tuple(result.values())
        return self._fillers[allowed]

    @cached_property
    def words(self) -> "Tensor":
        """Tokens that are text: ``[V]`` bool."""
        import torch  # here, since a process that has cursors for others knows no torch

        return torch.tensor([self.is_word(token) for token in range(self.size)])

    def is_word(self, token: int) -> bool:
        """Whether a token is text."""
        return 0 <= token < self.size and token != self.quote and bool(self.token_bytes[token])

    @cached_property
    def _sorted(self) -> list[bytes]:
        return sorted(self._ids)

    def text(self, ids: Iterable[int]) -> bytes:
        """Bytes of tokens; those that cannot stand inside a text have none."""
        return b"".join(self.token_bytes[i] for i in ids)


_KNOWN: WeakKeyDictionary[Tokenizer, dict[tuple[tuple[int, ...], int | None], Vocabulary]] = WeakKeyDictionary()


class _Tokens:
    """What the engine asks of a tokenizer. It gets one end token of its own after ours: we answer for stop ids ourselves."""

    bos_token_id = None

    def __init__(self, token_bytes: Sequence[bytes], encode: Any, mark: int | None) -> None:
        # Every barred token has a name of its own: the engine takes time quadratic in the number of those named alike.
        self.tokens = [text or f"<none{i}>".encode() for i, text in enumerate(token_bytes)] + [b"<eos>"]
        self.eos_token_id = len(token_bytes)
        self.special_token_ids = [i for i, text in enumerate(token_bytes) if not text] + [len(token_bytes)]
        if mark is not None:
            self.tokens[mark] = MARK_NAME.encode()
            self.special_token_ids.append(mark)
        self._encode = encode

    def __call__(self, text: bytes | str) -> list[int]:
        return list(self._encode(text))


def _engine(token_bytes: Sequence[bytes], encode: Any, mark: int | None) -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(_Tokens(token_bytes, encode, mark)), eos_token=len(token_bytes))


def _token_bytes(backend: Any, size: int | None) -> list[bytes]:
    """Bytes of every row; empty for special tokens and rows without one."""
    try:
        to_bytes = byte_decoder(backend)
    except InputError as error:
        raise ConstraintError(f"no answer can be constrained to anything: {error}") from error
    vocab: dict[str, int] = backend.get_vocab(with_added_tokens=True)
    rows: list[bytes] = [b""] * (size if size is not None else max(vocab.values(), default=-1) + 1)
    is_complete = sorted(vocab.items(), key=lambda item: bool(BYTE_TOKEN.fullmatch(item[0])))  # so that "a" comes before <0x61>
    seen: set[bytes] = set()
    for content, index in is_complete:
        text = to_bytes(content)
        if index < len(rows) and text not in seen:
            rows[index] = text
            seen.add(text)
    for index, token in backend.get_added_tokens_decoder().items():
        if index < len(rows):
            barred = token.special or _UNUSED.fullmatch(token.content)
            rows[index] = b"" if barred else to_bytes(token.content)
    return rows
