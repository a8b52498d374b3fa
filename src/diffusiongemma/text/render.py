"""Renders chat templates in processes of their own, which are given up when a template does not end or takes too much.

A template is code that comes with a checkpoint. The sandbox keeps it from reaching out; nothing inside Python keeps it from
``'%1000000000d' % 1`` or four loops in each other, so that what it may take is left to the operating system.
"""

import atexit
import json
import os
import pickle
import signal
import subprocess
import threading
from collections.abc import Mapping
from typing import Any, BinaryIO, cast

from diffusiongemma.confined import OUT_OF_MEMORY, command, read_frame, write_frame
from diffusiongemma.errors import CheckpointError
from diffusiongemma.text.frames import Reply, Request

__all__ = ["MEMORY", "compile_template", "render_template", "seconds_for"]

MEMORY = 256 << 20
"""Bytes a rendering process may take beside what Python and jinja need."""
_SECONDS = 0.5
_SECONDS_PER_MESSAGE = 0.005
"""Processor time of a rendering. Gemma's template of July 2026 goes over all later messages for each message: 1000 took 4 s."""
_PROCESSES = 4
"""Renderings at once. One process serves a program that renders one prompt after the other."""
_NO_PROCESS = "chat templates are rendered by a Python process of their own, and it cannot run here"


def seconds_for(messages: int) -> float:
    """Seconds of processor time in which so many messages must be rendered."""
    return _SECONDS + _SECONDS_PER_MESSAGE * messages


def compile_template(source: str) -> Reply:
    """Compile a template: ``variables``, or an error."""
    return _POOL.ask({"source": source, "variables": None, "seconds": _SECONDS})


def render_template(source: str, variables: Mapping[str, Any]) -> Reply:
    """Render a template.

    Args:
        source: the jinja text.
        variables: of builtin types alone, ``messages`` among them.

    Returns:
        ``text`` and ``generated``, or an error.

    Raises:
        CheckpointError: no process can be started here.
    """
    return _POOL.ask({"source": source, "variables": variables, "seconds": seconds_for(len(variables["messages"]))})


class _Worker:
    """A rendering process. It ends with this one, when its input is closed."""

    def __init__(self) -> None:
        try:
            line, pipe = command("diffusiongemma.text.render_worker", MEMORY), subprocess.PIPE
            self._process = subprocess.Popen(line, stdin=pipe, stdout=pipe, stderr=pipe)
        except OSError as error:
            raise CheckpointError(f"{_NO_PROCESS}: {error}") from error
        self._late = False

    def ask(self, content: bytes, seconds: float) -> Reply | None:
        """The answer; None where the process ended instead."""
        # The process ends itself by its own clock, and cannot wait for anything; this is for a system that has no such clock.
        timer = threading.Timer(3 * seconds, self._kill_late)
        timer.daemon = True
        if not hasattr(signal, "setitimer"):
            timer.start()
        try:
            write_frame(cast(BinaryIO, self._process.stdin), content)
            frame = read_frame(cast(BinaryIO, self._process.stdout))
        except BrokenPipeError:
            frame = None
        except BaseException:
            # Ctrl-C between question and answer: the answer would be taken for that of the next question.
            self.end()
            raise
        finally:
            timer.cancel()
        return None if frame is None else cast(Reply, json.loads(frame))

    def limited(self) -> bool:
        """Whether it ended because it reached a limit."""
        return self._late or self._process.wait() in (OUT_OF_MEMORY, -getattr(signal, "SIGPROF", 0))

    def crashed(self) -> bool:
        """Whether a signal ended it; where memory runs out in the middle of C code, say."""
        return self._process.wait() < 0

    def end(self) -> str:
        """End the process, if it has not; returns the last of what it wrote to standard error."""
        self._process.kill()
        return self._process.communicate()[1][-2000:].decode(errors="replace").strip()

    def _kill_late(self) -> None:
        self._late = True
        self._process.kill()


class _Pool:
    """Processes that wait for work; made when they are needed."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew: a forked process must not talk to the processes of the one it comes from."""
        self._lock = threading.Lock()
        self._free: list[_Worker] = []
        self._room = threading.BoundedSemaphore(_PROCESSES)

    def ask(self, request: Request) -> Reply:
        content, said = pickle.dumps(request), ""
        with self._room:
            # A process may have died while nobody asked it anything: a fresh one shows whether it is the template.
            for fresh in (False, True):
                with self._lock:
                    worker = self._free.pop() if self._free and not fresh else _Worker()
                reply = worker.ask(content, request["seconds"])
                if reply is not None:
                    with self._lock:
                        self._free.append(worker)
                    return reply
                if worker.limited() or (fresh and worker.crashed()):
                    worker.end()
                    return {"error": "limit", "message": ""}
                said = worker.end()
        raise CheckpointError(f"{_NO_PROCESS}: {said or 'it ends without an answer'}")

    def close(self) -> None:
        with self._lock:
            while self._free:
                self._free.pop().end()


_POOL = _Pool()
atexit.register(_POOL.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_POOL.forget)
