"""Runs Python code that a model wrote, in a process of its own that may compute and nothing else, and judges it from another.

The verdict is out of the code's reach: the tests run in a second process, which asks the first one for the results of its functions
and compares them there, as plain data. What the code does to its own process changes its own answers and nothing else.

Both are ``python -I -S -B`` in an empty temporary folder that is deleted afterwards, in sessions of their own, without environment
variables, input and output closed. What holds the code, from the weakest to the strongest:

- everywhere: wall time, at whose end both process groups are killed; an audit hook that ends the process when it starts another one
  or sends a signal, opens a file for writing or changes the file system, makes a socket, calls C, or lifts a limit;
- on Unix: CPU time, address space, core files, open files, the size of written files (none), by ``setrlimit``; the number of
  processes too, which the kernel does not apply to the superuser;
- on Linux, where the system lets an ordinary process have them (containers often do not): namespaces without network, other
  processes or shared memory;
- on Linux, where the package ``pyseccomp`` and the library libseccomp are there: a filter that lets through the system calls of
  computing and ends the process at those that start processes, send signals, make sockets or change files, however they are made.

``missing_guards`` tells which of these were not there; it is logged once. The code may read what the user may read, but has nobody
to tell. Where the filter is missing, the audit hook is all there is against code that was made to break out, and it knows nothing
of a system call made by other means: run such code in a virtual machine. macOS and others have only what is said for Unix.
"""

import functools
import json
import logging
import math
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusiongemma.errors import InputError
from diffusiongemma.tasks import confined
from diffusiongemma.tasks.callfilter import call_filter

__all__ = ["missing_guards", "passes", "runs_to_its_end"]

log = logging.getLogger(__name__)


def passes(
    program: str, tests: str, *, names: Sequence[str] = (), setup: str = "", seconds: float = 3.0, megabytes: int = 512
) -> bool:
    """Whether a program passes tests, within limits.

    Args:
        program: Python code that is not trusted.
        tests: Python code that is, and raises where something is wrong. It runs in another process than the program.
        names: functions of the program that the tests call; arguments and results are copied, and must be plain data.
        setup: trusted code that runs before the tests: their imports.
        seconds: of wall time for all of it, and of CPU time rounded up.
        megabytes: of address space for the program.

    Returns:
        True where the tests reached their end; False for everything else a program can do.

    Raises:
        InputError: the system has no sandbox for it (it is no Unix).
    """
    verdict = _judged(program, tests, names, setup, seconds, megabytes)
    if verdict is not None and (missing := missing_guards(tuple(verdict["guards"]))):
        _tell(missing)
    return verdict is not None


def runs_to_its_end(source: str, *, seconds: float = 3.0, megabytes: int = 512) -> bool:
    """Whether code runs to its end, without an error, within limits; it has no tests to pass that it could not skip.

    Args:
        source: a Python program.
        seconds: of wall time, and of CPU time rounded up.
        megabytes: of address space.

    Returns:
        True where the last line was reached; False for everything else a program can do.

    Raises:
        InputError: the system has no sandbox for it (it is no Unix).
    """
    return passes(source, "", seconds=seconds, megabytes=megabytes)


def missing_guards(guards: Sequence[str] | None = None) -> tuple[str, ...]:
    """What of the sandbox this system does not have.

    Args:
        guards: what a run had; None: one is made to see.
    """
    if guards is None:
        verdict = _judged("", "", (), "", 10.0, 512)
        guards = () if verdict is None else verdict["guards"]
    wanted = ["limits on time and memory"]
    if sys.platform == "linux":
        wanted += [confined.NAMESPACES, "a filter of system calls"]
    return tuple(name for name in wanted if name not in guards)


@functools.cache
def _tell(missing: tuple[str, ...]) -> None:
    log.warning("code of a model runs without %s here (tasks.sandbox says what that means)", " and without ".join(missing))


def _judged(program: str, tests: str, names: Sequence[str], setup: str, seconds: float, megabytes: int) -> dict[str, Any] | None:
    if os.name != "posix":
        raise InputError("code of a model is only run on Linux and other Unix systems; leave this task out here")
    until = time.monotonic() + seconds
    asks, to_ask = os.pipe()
    answers, to_answer = os.pipe()
    verdict, to_verdict = os.pipe()
    order = {"seconds": math.ceil(seconds), "memory": int(megabytes) << 20}
    code = order | {"role": "code", "asks": asks, "answers": to_answer, "filter": call_filter().hex()}
    judge = order | {
        "role": "tests", "asks": to_ask, "answers": answers, "verdict": to_verdict,
        "program": program, "tests": tests, "names": list(names), "setup": setup,
    }  # fmt: skip
    processes: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            # The one that judges is there, and closed to others, before any of the code runs: it hands the code over.
            processes.append(_started(judge, (to_ask, answers, to_verdict), folder))
            processes.append(_started(code, (asks, to_answer), folder))
            for handle in (asks, to_ask, answers, to_answer, to_verdict):
                os.close(handle)
            return _read(verdict, until)
        finally:
            os.close(verdict)
            for process in processes:
                _kill(process)


def _started(order: dict[str, Any], handles: Sequence[int], folder: str) -> "subprocess.Popen[bytes]":
    with tempfile.TemporaryFile() as given:
        given.write(json.dumps(order).encode())
        given.seek(0)
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(Path(confined.__file__).resolve())],
            stdin=given, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder, env={}, pass_fds=handles,
            start_new_session=True,
        )  # fmt: skip


def _read(handle: int, until: float) -> dict[str, Any] | None:
    result = b""
    while select.select([handle], [], [], max(0.0, until - time.monotonic()))[0]:
        piece = os.read(handle, 1 << 16)
        if not piece:
            break
        result += piece
    return json.loads(result[4:]) if len(result) > 4 else None


def _kill(process: "subprocess.Popen[bytes]") -> None:
    # The leader is not yet waited for, so its number cannot have passed to another group.
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()
    process.wait()
