"""How a vocabulary spells text: the bytes that a token stands for, and the most of a text that one token can stand for."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from diffusiongemma.errors import InputError

__all__ = ["BYTE_TOKEN", "byte_decoder", "widest_token"]

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""A token of one byte, where the vocabulary falls back to bytes."""
_KEEPS = {"ByteLevel", "Metaspace", "Digits", "Split", "Punctuation", "UnicodeScripts", "Prepend", "Replace", "Sequence"}
"""Normalizers and pre-tokenizers of which no character gets lost, but for ``Removed`` parts and replacements by less."""


def byte_decoder(backend: Backend) -> Callable[[str], bytes]:
    """What turns the spelling of a token into its bytes, from the tokenizer's decoder.

    Raises:
        InputError: it decodes in a way of which the bytes of a token cannot be known.
    """
    parts = [*_parts(backend.decoder)]
    kinds = {part["type"] for part in parts}
    if kinds == {"ByteLevel"}:
        table = _byte_level_table()
        return lambda content: bytes(table[c] for c in content) if all(c in table for c in content) else content.encode()
    if not kinds <= {"Replace", "ByteFallback", "Fuse"}:
        raise InputError(
            f"the tokenizer decodes with {', '.join(sorted(kinds))}; bytes of tokens are known for ByteLevel, and for Replace, "
            "ByteFallback and Fuse"
        )
    swaps = [(part["pattern"]["String"], part["content"]) for part in parts if part["type"] == "Replace"]
    fallback = "ByteFallback" in kinds

    def to_bytes(content: str) -> bytes:
        if fallback and (match := BYTE_TOKEN.fullmatch(content)):
            return bytes([int(match[1], 16)])
        for old, new in swaps:
            content = content.replace(old, new)
        return content.encode()

    return to_bytes


def widest_token(backend: Backend) -> int | None:
    """The most characters of a text that a token can stand for; None: no bound is known, since some tokens leave nothing of it."""
    parts = [*_parts(backend.normalizer), *_parts(backend.pre_tokenizer)]
    added = backend.get_added_tokens_decoder().values()
    if not all(map(_keeps, parts)) or any(token.lstrip or token.rstrip for token in added):
        return None
    vocab, model = backend.get_vocab(), backend.model
    bytes_alone = _byte_level_table() if any(part["type"] == "ByteLevel" for part in parts) else {}
    if getattr(model, "byte_fallback", False) and not bytes_alone:
        bytes_alone = {f"<0x{byte:02X}>": byte for byte in range(256)}
    # Otherwise unknown characters are dropped, or any number of them makes one token.
    if not isinstance(model, BPE) or not bytes_alone or not all(text in vocab for text in bytes_alone):
        return None
    return max(map(len, vocab))


def _keeps(part: Mapping[str, Any]) -> bool:
    if part["type"] == "Replace":
        given = part["pattern"].get("String")
        return given is not None and len(part["content"]) >= len(given)
    return part["type"] in _KEEPS and part.get("behavior") != "Removed"


def _parts(component: Any) -> Iterator[dict[str, Any]]:
    """The settings of a component of the tokenizer, those of its parts where it has any."""
    if component is not None:
        yield from _flat(json.loads(component.__getstate__()))


def _flat(state: dict[str, Any]) -> Iterator[dict[str, Any]]:
    inner = next((state[name] for name in ("decoders", "normalizers", "pretokenizers") if name in state), None)
    if inner is None:
        yield state
    for part in inner or ():
        yield from _flat(part)


def _byte_level_table() -> dict[str, int]:
    """GPT-2's spelling of bytes as printable characters (tokenizers, ``ByteLevel``)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in printable]
    return table | {chr(0x100 + n): byte for n, byte in enumerate(others)}
