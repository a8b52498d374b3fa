"""Processes for work that somebody else has written, and that may take any time and memory: a chat template, a grammar.

Nothing inside Python stops native code, so such work is done by a process that sets its own limits, answers over a stream, and is
given up where it reaches them. This is what both sides need; it imports nothing, so that a process starts soon.
"""

import signal
import sys
from pathlib import Path
from typing import BinaryIO

__all__ = ["OUT_OF_MEMORY", "command", "end_after", "limit_memory", "read_frame", "write_frame"]

OUT_OF_MEMORY = 99
"""Status with which a process ends that has taken all it may."""
_LENGTH = 8


def command(module: str, number: int) -> list[str]:
    """The command line of a process that calls ``serve(number)`` of a module, and can import what this one can.

    It is isolated and without ``site``: where to import from is handed over, and nothing else is looked for.

    Raises:
        OSError: there is no interpreter to start.
    """
    if not sys.executable or getattr(sys, "frozen", False):
        raise OSError("this program has no Python interpreter beside it")
    start = f"import sys; sys.path[:] = sys.argv[2:]; from {module} import serve; serve(int(sys.argv[1]))"
    paths = [*(path for path in sys.path if isinstance(path, str)), str(Path(__file__).parents[1])]
    return [sys.executable, "-I", "-S", "-c", start, str(number), *paths]


def read_frame(stream: BinaryIO) -> bytes | None:
    """The next frame, 8 bytes of length and the content; None where the other side has ended."""
    head = stream.read(_LENGTH)
    if len(head) < _LENGTH:
        return None
    size = int.from_bytes(head, "big")
    content = stream.read(size)
    return content if len(content) == size else None


def write_frame(stream: BinaryIO, content: bytes) -> None:
    """Send a frame."""
    stream.write(len(content).to_bytes(_LENGTH, "big") + content)
    stream.flush()


def limit_memory(memory: int) -> None:
    """Let this process have so many bytes of address space beside what it has now. Where the system has no such limit, what bounds
    the time bounds the memory too, only less tightly."""
    try:
        import resource

        pages = int(open("/proc/self/statm").read().split()[0])  # noqa: SIM115, PTH123
        most = memory + pages * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, OSError, ValueError):
        return


def end_after(seconds: float) -> None:
    """End this process after so much processor time; 0: never. Processor time, so that a busy machine is no reason; the signal's
    default action ends the process wherever it is."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)
