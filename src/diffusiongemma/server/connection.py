"""A client's connection: how long it may take to send and to read, and how many there may be.

uvicorn's protocol, with time limits on the head, the body and an answer that is not taken, and a bound on connections. Where that
is reached, the oldest that waits for its client is closed for the new one: whoever holds many half-sent requests open only closes
their own.
"""

import asyncio
import logging
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from diffusiongemma.server.settings import Settings

__all__ = ["BACKLOG", "Connection", "Connections", "room_for_files"]

log = logging.getLogger(__name__)
BACKLOG = 128
"""Connections that the system holds until they are taken, all of them at one go."""
_OTHER_FILES = 128
"""Files that are open beside connections, with room to spare."""
_MIN_TAKEN = 1 << 14
"""Bytes that a client has to take of an answer within the time for it."""
_GRACE = 5.0
"""Seconds after which a body is cut off that the gate should have refused: an answer may be there before it."""


class Connections:
    """All connections of a server.

    Args:
        settings: limits.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._most = room_for_files(settings.max_connections)
        self._slow: dict[str, dict[Connection, None]] = {"head": {}, "body": {}}

    def add(self, connection: "Connection") -> None:
        """A client came; if it is one too many, another goes: one that sends a head or nothing, else a body, else the new one."""
        if len(connection.connections) > self._most:
            next((one for those in self._slow.values() for one in those), connection).cut()

    def waits(self, connection: "Connection", what: str | None) -> None:
        """Note what a connection waits for its client with: ``head``, ``body``, or None."""
        for kind, those in self._slow.items():
            if kind == what:
                those.setdefault(connection)
            else:
                those.pop(connection, None)

    def protocol(self, **arguments: Any) -> "Connection":
        """What uvicorn makes for each client."""
        return Connection(self, **arguments)


class Connection(H11Protocol):
    """One client.

    Args:
        group: of all connections.
        arguments: uvicorn's.
    """

    def __init__(self, group: Connections, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._group = group
        self._phase: str | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._unsent: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See ``asyncio.Protocol``."""
        super().connection_made(transport)
        # Whatever the system's own buffer does not take is noticed at once (``pause_writing``).
        transport.set_write_buffer_limits(high=0)
        self._group.add(self)
        self._watch(started=True)

    def connection_lost(self, exc: Exception | None) -> None:
        """See ``asyncio.Protocol``."""
        self._group.waits(self, None)
        for timer in (self._deadline, self._unsent):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``."""
        super().data_received(data)
        self._watch(started=True)

    def on_response_complete(self) -> None:
        """An answer is written."""
        super().on_response_complete()
        self._watch(started=False)

    def pause_writing(self) -> None:
        """The client does not take its answer as fast as it comes."""
        super().pause_writing()
        self._expect_progress()

    def resume_writing(self) -> None:
        """It has taken all."""
        super().resume_writing()
        if self._unsent is not None:
            self._unsent.cancel()
            self._unsent = None

    def shutdown(self) -> None:
        """The server ends."""
        try:
            super().shutdown()
        except h11.LocalProtocolError:
            self.cut()

    def cut(self) -> None:
        """End it at once; what is not sent is lost."""
        self._group.waits(self, None)
        if self.transport is not None:
            self.transport.abort()

    def _expect_progress(self) -> None:
        left = self.transport.get_write_buffer_size()

        def look() -> None:
            if self.transport.get_write_buffer_size() > left - _MIN_TAKEN:
                self.cut()
            else:
                self._expect_progress()

        self._unsent = self.loop.call_later(self._group.settings.write_seconds, look)

    def _watch(self, started: bool) -> None:
        """Start the clock once for each head and each body: a byte now and then does not set it back.

        Args:
            started: whether something of a head is there or due; between two requests uvicorn's own clock runs.
        """
        theirs, phase, seconds = self.conn.their_state, None, self._group.settings.head_seconds
        if theirs is h11.SEND_BODY:
            phase, seconds = "body", self._group.settings.body_seconds + _GRACE
        elif theirs is h11.IDLE:
            phase = "head" if started or self._phase == "head" else "idle"
        if phase == self._phase or self.transport.is_closing():
            return
        self._phase = phase
        self._group.waits(self, "head" if phase == "idle" else phase)
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(seconds, self.cut) if phase in ("head", "body") else None


def room_for_files(connections: int) -> int:
    """How many connections the limit on open files allows, at most those asked for; the limit is raised where it may be."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return connections
    needed = connections + BACKLOG + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return connections
    if hard == resource.RLIM_INFINITY or hard > soft:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    room = max(1, min(connections, soft - BACKLOG - _OTHER_FILES))
    if room < connections:
        log.warning("the limit on open files, %d, leaves room for %d connections, not %d", soft, room, connections)
    return room
