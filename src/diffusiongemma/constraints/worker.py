"""The process in which a grammar is compiled and followed that might take any time and memory.

One process for a vocabulary waits (``serve``): it has the engine and the tokens loaded, and forks another for each grammar, which
takes little time and shares what is loaded. That one answers questions about cursors (``_Following``) until nobody asks any more,
or until it has taken all it may. Neither knows torch.
"""

import base64
import json
import os
import pickle
import signal
import socket
import time
from typing import Any, BinaryIO, cast

from tokenizers import Tokenizer as Backend

from diffusiongemma.confined import OUT_OF_MEMORY, end_after, limit_memory, read_frame, write_frame
from diffusiongemma.constraints.compiled import Compiled, read
from diffusiongemma.constraints.constraint import Constraint
from diffusiongemma.constraints.cursor import Cursor
from diffusiongemma.constraints.pinned_search import SearchBudget
from diffusiongemma.constraints.vocabulary import Vocabulary
from diffusiongemma.errors import ConstraintError

__all__ = ["MEMORY", "MESSAGE", "serve"]

MEMORY = 256 << 20
"""Bytes of address space that a grammar's process may take beside what it is forked with."""
MESSAGE = 9
"""Bytes of a message to the waiting process: ``f`` with a descriptor forks, ``k`` with an id ends; the id in 8 bytes."""


def serve(descriptor: int) -> None:
    """Fork for each grammar until the other side ends.

    Args:
        descriptor: of the socket, from which the vocabulary comes first.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    host = socket.socket(fileno=descriptor)
    with host.makefile("rb", buffering=0) as stream:
        size = int.from_bytes(host.recv(8, socket.MSG_WAITALL), "big")
        content = bytearray()
        while len(content) < size:
            content += stream.read(size - len(content)) or os._exit(1)
    tokens, stop_ids, backend, quote = pickle.loads(content)
    vocabulary = Vocabulary(tokens, stop_ids, None if backend is None else Backend.from_str(backend), quote)
    host.sendall(b"ready")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 2)
    children: set[int] = set()
    while True:
        message, passed, _, _ = socket.recv_fds(host, MESSAGE, 1)
        _reap(children)
        if len(message) < MESSAGE:
            break
        asked = int.from_bytes(message[1:], "big")
        if passed:
            child = os.fork()
            if not child:
                host.close()
                _follow(socket.socket(fileno=passed[0]), vocabulary)
            os.close(passed[0])
            children.add(child)
            host.sendall(child.to_bytes(8, "big"))
        elif asked in children:
            os.kill(asked, signal.SIGKILL)
    for child in children:
        os.kill(child, signal.SIGKILL)


def _reap(children: set[int]) -> None:
    """Forget those that have ended; until then nobody else gets their ids."""
    for child in list(children):
        if os.waitpid(child, os.WNOHANG)[0]:
            children.discard(child)


def _follow(asker: socket.socket, vocabulary: Vocabulary) -> None:
    """Answer until nobody asks; then the process ends."""
    status = 1
    try:
        limit_memory(MEMORY)
        stream = cast(BinaryIO, asker.makefile("rwb"))
        following = _Following(vocabulary)
        while (frame := read_frame(stream)) is not None:
            began = time.process_time()
            question = pickle.loads(frame)
            end_after(question["seconds"])
            answer = following.answer(question)
            end_after(0)
            content = json.dumps(answer | {"seconds": time.process_time() - began}).encode()
            write_frame(stream, content)
        status = 0
    except MemoryError:
        status = OUT_OF_MEMORY
    finally:
        os._exit(status)


def _state(cursor: Cursor) -> tuple[bool, bool, list[int]]:
    return cursor.accepting, cursor.finished, cursor.forced_tokens()


class _Following:
    """A grammar and the cursors that are asked about."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._grammar: Compiled | None = None
        self._cursors: dict[int, Cursor] = {}

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """What becomes of a question; an error where it is the grammar's."""
        try:
            if "constraint" in question:
                self._grammar = Compiled(read(Constraint(*question["constraint"])), self._vocabulary)
                return {"shortest": self._grammar.shortest}
            return self._asked(question)
        except MemoryError:
            raise
        except ConstraintError as error:
            return {"error": str(error)}
        except BaseException as error:  # a native library's panic is no Exception
            return {"error": f"the grammar engine failed ({type(error).__name__}); say it in another way"}

    def _asked(self, question: dict[str, Any]) -> dict[str, Any]:
        for old in question["freed"]:
            self._cursors.pop(old, None)
        cursor = self._cursor(question["from"], question["to"])
        if question["work"] is not None:
            cursor.begin(question["work"])
        for token in question["tokens"]:
            cursor.advance(token)
        what, *given = question["ask"]
        if what != "validate":
            return {"value": self._value(cursor, what, *given), "state": _state(cursor)}
        # Most tokens that are asked about are taken next.
        (tokens,) = given
        count = cursor.validate(tokens)
        ahead = self._cursors[question["ahead"]] = cursor.copy()
        for token in tokens[:count]:
            ahead.advance(token)
        return {"value": count, "state": _state(cursor), "ahead": _state(ahead)}

    def _cursor(self, origin: int, to: int) -> Cursor:
        assert self._grammar is not None
        if origin != to:
            self._cursors[to] = self._cursors[origin].copy() if origin else self._grammar.start()
        return self._cursors[to]

    def _value(self, cursor: Cursor, what: str, *given: Any) -> Any:
        if what == "packed":
            return base64.b64encode(cursor.packed()).decode()
        if what == "ending":
            return cursor.ending(*given)
        if what == "through":
            tokens, limit, budget = given
            path = cursor.through(tokens, limit, SearchBudget(*budget))
            return [path.tokens, path.ends, path.passed]
        return None
