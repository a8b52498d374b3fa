"""Where in a text its end stands: the open containers, and the string, if one is open. Assumes that the text is JSON, or a call in
the native markup."""

import json
from dataclasses import dataclass, field, replace
from typing import Self

from diffusiongemma.constraints.vocabulary import MARK

__all__ = ["NativeScanner", "Scanner"]

_BACKSLASH = ord("\\")


@dataclass
class Scanner:
    """The state after a JSON text.

    Attributes:
        containers: ``{`` or ``[`` of every open container, outermost first.
        string: raw bytes of the open string after its quote; None outside a string.
        expects_name: the next string is a property's name.
        last: the last byte that is not a blank; 0 at the start.
        quote: the byte on both sides of a string.
        name_end: what ends a property's name.
    """

    containers: bytes = b""
    string: bytes | None = None
    expects_name: bool = False
    last: int = field(default=0)
    quote = b'"'
    name_end = b'"'

    def copy(self) -> Self:
        """A scanner that goes its own way."""
        return replace(self)

    def push(self, text: bytes) -> Self:
        """Read on; returns itself."""
        for byte in text:
            if self.string is None:
                self._outside(byte)
            elif byte == self.quote[0] and self.may_close:
                self.string, self.last = None, byte
            else:
                self.string += bytes((byte,))
        return self

    def _outside(self, byte: int) -> None:
        if byte == self.quote[0]:
            self.string = b""
        elif byte in b"{[":
            self.containers += bytes((byte,))
        elif byte in b"}]":
            self.containers = self.containers[:-1]
        if byte in b"{,":
            self.expects_name = self.containers.endswith(b"{")
        elif byte in b":[":
            self.expects_name = False
        if byte not in b" \n\r\t":
            self.last = byte

    @property
    def in_number(self) -> bool:
        """The last thing written is a number, which may go on."""
        return self.string is None and self.last != 0 and self.last in b"0123456789-+.eE"

    @property
    def name(self) -> bytes | None:
        """What there is of the name of a property, where one is being written."""
        return self.string if self.expects_name else None

    @property
    def may_close(self) -> bool:
        """A quote would end the open string."""
        assert self.string is not None
        return (len(self.string) - len(self.string.rstrip(bytes((_BACKSLASH,))))) % 2 == 0

    def content(self) -> str | None:
        """The text of the open string so far; None in the middle of an escape or a character."""
        try:
            return str(json.loads(b'"' + (self.string or b"") + b'"', strict=False))
        except ValueError:
            return None

    def spelled(self, text: str) -> bytes:
        """More of a string, and its end."""
        return json.dumps(text, ensure_ascii=False)[1:].encode(errors="replace")


@dataclass
class NativeScanner(Scanner):
    """The state after a call in the native markup: names stand bare, strings have no escapes.

    Attributes:
        begun: of a name.
    """

    expects_name: bool = True
    begun: bytes = b""
    quote = MARK

    def _outside(self, byte: int) -> None:
        if not self.containers and byte != ord("{"):  # call:name
            self.begun += bytes((byte,))
            return
        super()._outside(byte)
        self.begun = self.begun + bytes((byte,)) if self.expects_name and byte not in b"{," else b""

    @property
    def name_end(self) -> bytes:  # type: ignore[override]
        """What ends a name: a tool's, or that of an argument."""
        return b":" if self.containers else b"{"

    @property
    def name(self) -> bytes | None:
        """What there is of a name, where one is being written."""
        return self.begun if self.expects_name and self.string is None else None

    @property
    def may_close(self) -> bool:
        """See ``Scanner``."""
        return True

    def content(self) -> str | None:
        """See ``Scanner``."""
        try:
            return (self.string or b"").decode()
        except UnicodeDecodeError:
            return None

    def spelled(self, text: str) -> bytes:
        """See ``Scanner``."""
        return text.encode(errors="replace") + MARK
