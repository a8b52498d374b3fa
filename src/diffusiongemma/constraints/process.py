"""The processes of grammars that are not cheap (``cost.py``), seen from here: each may be ended, and the others go on."""

import contextlib
import json
import os
import pickle
import select
import socket
import subprocess
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

from diffusiongemma.confined import command
from diffusiongemma.constraints.work import STEP_WORK
from diffusiongemma.constraints.worker import MEMORY, MESSAGE
from diffusiongemma.errors import ConstraintError, OverloadedError

if TYPE_CHECKING:
    from diffusiongemma.constraints.vocabulary import Vocabulary

__all__ = ["COMPILE_SECONDS", "MAX_PROCESSES", "Gone", "Home", "Process", "why_not"]

COMPILE_SECONDS = 3.0
"""Processor time for compiling a grammar, its shortest text and the masks along it."""
_AT_ONCE = 1.0
"""Processor time that a grammar has at the beginning, and saves up at most: its rows sit out steps meanwhile. All the searches
of a step (``STEP_WORK``) take up to 0.5 s where rows of the parser are long."""
_A_STEP = 0.02
"""Processor time that each step of a row adds."""
_A_CALL = 0.005
"""Processor time for a call, in any case."""
_A_PLAN = 2.0
"""Processor time for a way through pins: before an answer begins, while nobody waits but who asked."""
MAX_PROCESSES = 16
"""Grammars in processes of their own, of all vocabularies together."""
_COMPILES = 2
"""Those that are compiled at once."""
_WAITING = 8
"""Those that wait for it."""
_LEFT = "the grammar is not compiled: whoever asked for it has left"
_WORKER = "diffusiongemma.constraints.worker"
_POLL = 0.05
"""Seconds between two looks whether whoever asked is still there."""
_WALL = 60.0
"""Seconds after which a process is ended that takes no processor time either."""
_START = 30.0
"""Seconds in which a process must have loaded a vocabulary; the largest takes three."""
Gone = Callable[[], bool]
"""Whether whoever asked has left."""

_alive: set[int] = set()
_numbers = iter(range(1, 1 << 62))
_starting = threading.Lock()
_compiling, _waiting = threading.BoundedSemaphore(_COMPILES), threading.BoundedSemaphore(_WAITING)


def why_not() -> str | None:
    """Why there can be no such process here; None: there can."""
    if not hasattr(os, "fork") or not hasattr(socket, "send_fds"):
        return "this system cannot fork a process and hand it a socket"
    try:
        command(_WORKER, 0)
    except OSError as error:
        return str(error)
    return None


class Home:
    """The process that a vocabulary's grammars are forked from; it ends with this object, or with this process.

    Args:
        vocabulary: is loaded there.

    Raises:
        OverloadedError: it cannot be started now.
    """

    def __init__(self, vocabulary: "Vocabulary") -> None:
        self._lock, self._owner = threading.Lock(), os.getpid()
        try:
            self._socket, theirs = socket.socketpair()
            with theirs:
                number, null = theirs.fileno(), subprocess.DEVNULL
                self._process = subprocess.Popen(
                    command(_WORKER, number), stdin=null, stdout=null, stderr=subprocess.PIPE, pass_fds=(number,)
                )
        except OSError as error:
            raise _cannot(str(error)) from error
        weakref.finalize(self, _end_home, self._process, self._socket)
        self._socket.settimeout(_START)
        try:
            content = vocabulary.packed()
            self._socket.sendall(len(content).to_bytes(8, "big") + content)
            ready = self._socket.recv(8)
        except OSError:
            ready = b""
        if not ready:
            self._process.kill()
            said = self._process.communicate()[1][-1000:].decode(errors="replace").strip()
            raise _cannot(said or "it ends without an answer")

    @property
    def usable(self) -> bool:
        """It is there, and this process's own."""
        return self._process.poll() is None and self._owner == os.getpid()

    def fork(self) -> "Process":
        """A process for one grammar.

        Raises:
            OverloadedError: there are as many as may be, or it cannot be started now.
        """
        number = next(_numbers)
        with _starting:
            if len(_alive) >= MAX_PROCESSES:
                raise OverloadedError(
                    f"{len(_alive)} large grammars are in use, and {MAX_PROCESSES} may be; ask again when an answer has ended",
                    2.0,
                )
            _alive.add(number)
        try:
            mine, theirs = socket.socketpair()
            with theirs, self._lock:
                socket.send_fds(self._socket, [b"f".ljust(MESSAGE, b"\0")], [theirs.fileno()])
                child = int.from_bytes(self._socket.recv(8), "big")
            if not child:
                mine.close()
                raise OSError("the process that it is forked from has ended")
            return Process(self, mine, child, number)
        except OSError as error:
            _alive.discard(number)
            raise _cannot(str(error)) from error

    def kill(self, child: int) -> None:
        """End a grammar's process; nothing happens where it has ended."""
        with self._lock:
            self._socket.sendall(b"k" + child.to_bytes(MESSAGE - 1, "big"))


class Process:
    """A grammar's process; make it with ``Home.fork``. It ends with this object. Any thread may ask.

    Attributes:
        freed: cursors that nobody asks about any more.
    """

    def __init__(self, home: Home, mine: socket.socket, child: int, number: int) -> None:
        self._home, self._socket, self._child = home, mine, child
        self._lock, self._owner, self._left = threading.Lock(), os.getpid(), _AT_ONCE
        self.freed: list[int] = []
        self._ended = False
        self._socket.settimeout(_WALL)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._end = weakref.finalize(self, _end_process, mine, number)

    @property
    def usable(self) -> bool:
        """It can be asked."""
        return not self._ended and self._owner == os.getpid()

    def compile(self, constraint: tuple[str, str, str, bool], gone: Gone | None) -> list[int]:
        """Compile a constraint; returns its shortest text.

        Args:
            constraint: its fields.
            gone: asked now and then; where it holds, the process is ended.

        Raises:
            ConstraintError: it is impossible, cannot be expressed, or takes too much time or memory.
            OverloadedError: too many wait to be compiled.
            CancelledError: whoever asked has left.
        """
        if not _waiting.acquire(blocking=False):
            raise OverloadedError(f"{_WAITING} large grammars wait to be compiled already; ask again later", COMPILE_SECONDS)
        try:
            while not _compiling.acquire(timeout=_POLL):
                if gone is not None and gone():
                    raise CancelledError(_LEFT)
        finally:
            _waiting.release()
        try:
            what = f"compiling the grammar took more than {COMPILE_SECONDS:g} s"
            return list(self._asked({"constraint": constraint}, COMPILE_SECONDS, what, gone)["shortest"])
        finally:
            _compiling.release()

    def ask(self, question: dict[str, Any], work: int | None) -> dict[str, Any]:
        """Ask about a cursor.

        Args:
            question: see ``worker``.
            work: what the searches of a step may do, where one begins; None: within a step.

        Raises:
            ConstraintError: it is the grammar's, or the process has taken too much time or memory, and is gone for good.
        """
        if work is not None:
            self._left = _A_PLAN if work > STEP_WORK else min(max(self._left, 0.0) + _A_STEP, _AT_ONCE)
        what = f"following the grammar took more than {_A_STEP:g} s a step, {_AT_ONCE:g} s at once,"
        answer = self._asked(question | {"work": work}, max(self._left, _A_CALL), what)
        self._left -= answer["seconds"]
        return answer

    def _asked(self, question: dict[str, Any], seconds: float, what: str, gone: Gone | None = None) -> dict[str, Any]:
        with self._lock:
            if not self.usable:
                raise ConstraintError("the grammar took more time or memory than it may, and is given up; make it smaller")
            try:
                content = pickle.dumps(question | {"seconds": seconds})
                self._socket.sendall(len(content).to_bytes(8, "big") + content)
                frame = self._received(gone)
            except OSError:
                frame = None
            except BaseException:
                self._give_up()  # Ctrl-C: the answer would be taken for that of the next question
                raise
            if frame is None:
                self._give_up()
                raise ConstraintError(
                    f"{what} of processor time or {MEMORY >> 20} MB of memory; make it smaller: "
                    "fewer alternatives that begin alike, fewer rules that may be empty, shorter counted repeats"
                )
        answer: dict[str, Any] = json.loads(frame)
        if "error" in answer:
            raise ConstraintError(answer["error"])
        return answer

    def _received(self, gone: Gone | None) -> bytes | None:
        """An answer; None where the process has ended, or does nothing any more."""
        until, content = time.monotonic() + _WALL, bytearray()
        while len(content) < 8 or len(content) < 8 + int.from_bytes(content[:8], "big"):
            if self._poll.poll(1000 * _POLL):
                piece = self._socket.recv(1 << 17)
                if not piece:
                    return None
                content += piece
            elif gone is not None and gone():
                raise CancelledError(_LEFT)
            elif time.monotonic() > until:
                return None
        return bytes(content[8:])

    def _give_up(self) -> None:
        self._ended = True
        with contextlib.suppress(OSError):  # it has ended with the process that it was forked from
            self._home.kill(self._child)
        self._end()


def _cannot(reason: str) -> OverloadedError:
    return OverloadedError(f"a large grammar is followed in a process of its own, and none can be started now: {reason}", 2.0)


def _end_home(process: "subprocess.Popen[bytes]", mine: socket.socket) -> None:
    mine.close()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stderr is not None:
        process.stderr.close()


def _end_process(mine: socket.socket, number: int) -> None:
    """No lock is taken here: the garbage collector may call it anywhere."""
    mine.close()
    _alive.discard(number)
