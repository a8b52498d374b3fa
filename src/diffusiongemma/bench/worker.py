"""A side in a process of its own, asked one thing at a time.

The protocol: the process sends ``("done", facts)`` once it has loaded, then answers each request with ``("done", answer)`` or
``("failed", kind, message)``; it ends when the pipe closes. torch is imported there, not here.
"""

import multiprocessing
import os
import signal
import sys
import traceback
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any

from diffusiongemma import errors
from diffusiongemma.bench.settings import Case, SideSpec
from diffusiongemma.errors import BenchError, DiffusionGemmaError

__all__ = ["Worker", "serve"]

GOODBYE_SECONDS = 10.0
LAST_WORDS = 600
"""Characters of a dead process's output that an error repeats."""


def serve(connection: Connection, spec: SideSpec) -> None:
    """The process: load, then answer until the pipe closes."""
    # Ctrl-C goes to the whole group of processes; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _print_to(spec.log)
    try:
        from diffusiongemma.bench.sides import LoadedSide

        side = LoadedSide(spec)
        connection.send(("done", side.facts))
        while True:
            connection.send(("done", side.answer(connection.recv())))
    except (EOFError, BrokenPipeError):
        return
    except Exception as error:  # the other side of the pipe must learn of whatever it is
        traceback.print_exc()
        connection.send(("failed", type(error).__name__, str(error)))


class Worker:
    """The parent's end: starts the process, asks, and ends it with a ``with``: kills it where something went wrong.

    Args:
        spec: what it loads.
    """

    def __init__(self, spec: SideSpec) -> None:
        self.name = spec.name
        self._log = Path(spec.log)
        self._connection, theirs = multiprocessing.Pipe()
        # Spawned, not forked: no side inherits memory, threads or a CUDA context.
        self._process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs, spec), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # A closed pipe ends a process that waits for a request, and lets it tidy up what a compiler left.
        self._connection.close()
        if error is None:
            self._process.join(GOODBYE_SECONDS)
        self._process.kill()
        self._process.join()

    @property
    def pid(self) -> int | None:
        """The process's number."""
        return self._process.pid

    def loaded(self) -> dict[str, Any]:
        """Wait until the side has its weights; returns what it says of itself.

        Raises:
            DiffusionGemmaError: see ``ask``.
        """
        facts: dict[str, Any] = self._answer("loading")
        return facts

    def ask(self, request: Case | str) -> Any:
        """Send a request and wait for its answer.

        Raises:
            DiffusionGemmaError: the side refused it (an error of our tree keeps its class).
            BenchError: it failed in another way, or its process died.
        """
        try:
            self._connection.send(request)
        except BrokenPipeError:
            raise self._died("waiting") from None
        return self._answer("measuring")

    def _answer(self, doing: str) -> Any:
        # An answer that is already in the pipe counts, even if the process ended after it.
        wait([self._connection, self._process.sentinel])
        if not self._connection.poll():
            raise self._died(doing)
        try:
            answer = self._connection.recv()
        except (EOFError, ConnectionResetError):
            raise self._died(doing) from None
        if answer[0] == "done":
            return answer[1]
        kind, message = answer[1:]
        result = getattr(errors, kind, None)
        if isinstance(result, type) and issubclass(result, DiffusionGemmaError):
            raise result(f"{self.name}: {message}")
        raise BenchError(f"the side {self.name} failed while {doing}: {kind}: {message}")

    def _died(self, doing: str) -> BenchError:
        self._process.join()
        code = self._process.exitcode or 0
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
        hint = "; the system does that when memory runs out" if code == -signal.SIGKILL else ""
        said = self._log.read_text("utf-8", "replace").strip()[-LAST_WORDS:] if self._log.is_file() else ""
        return BenchError(f"the side {self.name} died while {doing}, {how}{hint}; it last said: {said or 'nothing'}")


def _print_to(log: str) -> None:
    """Everything the process prints, C libraries included, goes to a file: the parent's output stays its own."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    sys.stdout.flush()
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
