"""Where in a JSON text its end stands: the open containers, and the string, if one is open. Assumes that the text is JSON."""

from dataclasses import dataclass, field

__all__ = ["Scanner"]

_QUOTE, _BACKSLASH = ord('"'), ord("\\")


@dataclass
class Scanner:
    """The state behind a JSON text.

    Attributes:
        containers: ``{`` or ``[`` of every open container, outermost first.
        string: raw bytes of the open string behind its quote; None outside a string.
        expects_name: the next string is a property's name.
        last: the last byte that is not a blank; 0 at the start.
    """

    containers: bytes = b""
    string: bytes | None = None
    expects_name: bool = False
    last: int = field(default=0)

    def copy(self) -> "Scanner":
        """A scanner that goes its own way."""
        return Scanner(self.containers, self.string, self.expects_name, self.last)

    def push(self, text: bytes) -> "Scanner":
        """Read on; returns itself."""
        for byte in text:
            if self.string is None:
                self._outside(byte)
            elif byte == _QUOTE and not _escaped(self.string):
                self.string, self.last = None, byte
            else:
                self.string += bytes((byte,))
        return self

    def _outside(self, byte: int) -> None:
        if byte == _QUOTE:
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


def _escaped(raw: bytes) -> bool:
    return (len(raw) - len(raw.rstrip(bytes((_BACKSLASH,))))) % 2 == 1
