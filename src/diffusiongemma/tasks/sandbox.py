"""Runs Python code that a model wrote, in a process of its own that may compute and nothing else.

The process is ``python -I -S -B`` in an empty temporary folder that is deleted afterwards, in a session of its own, without
environment variables, its input closed and its output thrown away. Limits hold it:

- wall time: at the end, and when time is up, the whole process group is killed;
- CPU time, address space, core files, the size of written files (none), by ``setrlimit``; the number of processes too, which the
  kernel does not apply to the superuser;
- an audit hook, which code cannot take out again, ends the process when it starts another one or sends a signal, opens a file
  for writing or changes the file system, makes a socket, calls C through ctypes, or lifts a limit. It works on every Unix;
- no network: on Linux the process also leaves for a network namespace without any device, where the system lets an ordinary process
  make one (containers often do not). Where it does not, the audit hook alone keeps sockets away.

The code may read files that the user may read. It counts as run only if it reaches its end: a random word, made for each run, is
written then. This is a guard against what a model writes by accident; code made to break out (a search through the frames of
the interpreter for that word, say, or a system call smuggled past the hook) needs a virtual machine instead.
"""

import math
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile

from diffusiongemma.errors import InputError

__all__ = ["runs_to_its_end"]

_RUNNER = r"""
import os, resource, sys
word, seconds, memory, source = sys.stdin.buffer.read().split(b"\n", 3)
verdict = os.dup(1)
null = os.open(os.devnull, os.O_RDWR)
for stream in (0, 1, 2):
    os.dup2(null, stream)
os.close(null)
if sys.platform == "linux":
    try:
        import ctypes
        ctypes.CDLL(None).unshare(0x10000000 | 0x40000000)  # CLONE_NEWUSER | CLONE_NEWNET, linux/sched.h
    except (ImportError, OSError, AttributeError):
        pass
for name, limit in (
    ("CPU", int(seconds)), ("AS", int(memory)), ("FSIZE", 0), ("CORE", 0), ("NPROC", 0),
):
    number = getattr(resource, "RLIMIT_" + name, None)
    if number is not None:
        try:
            resource.setrlimit(number, (limit, limit))
        except (ValueError, OSError):
            pass
forbidden = (
    "ctypes.", "fcntl.", "os.chflags", "os.chmod", "os.chown", "os.exec", "os.fork", "os.kill", "os.link",
    "os.lockf", "os.mkdir", "os.posix_spawn", "os.remove", "os.removexattr", "os.rename", "os.rmdir", "os.setxattr", "os.spawn",
    "os.startfile", "os.symlink", "os.system", "os.truncate", "os.utime", "pty.spawn", "resource.", "shutil.", "signal.",
    "socket.", "sqlite3.", "subprocess.", "syslog.",
)
writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
leave, write = os._exit, os.write
def guard(event, arguments, startswith=str.startswith):
    if startswith(event, forbidden) or event == "open" and arguments[2] & writing:
        leave(1)
sys.addaudithook(guard)
exec(compile(source, "answer", "exec"), {"__name__": "answer"})
write(verdict, word)
"""


def runs_to_its_end(source: str, *, seconds: float = 3.0, megabytes: int = 512) -> bool:
    """Whether code runs to its end, without an error, within the limits.

    Args:
        source: a Python program with the tests that judge it at its end.
        seconds: of wall time, and of CPU time rounded up.
        megabytes: of address space.

    Returns:
        True where the last line was reached; False for everything else a program can do.

    Raises:
        InputError: the system has no sandbox for it (it is no Unix).
    """
    if os.name != "posix":
        raise InputError("code of a model is only run on Linux and other Unix systems; leave this task out here")
    word = secrets.token_hex(16).encode()
    with tempfile.TemporaryFile() as given, tempfile.TemporaryDirectory() as folder:
        given.write(b"%s\n%d\n%d\n" % (word, math.ceil(seconds), megabytes << 20))
        given.write(source.encode("utf-8", "replace"))
        given.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-c", _RUNNER],
            stdin=given, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=folder, env={}, start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            # One short read decides: whatever else is written there is neither waited for nor kept.
            ready, _, _ = select.select([process.stdout], [], [], seconds)
            return bool(ready) and os.read(process.stdout.fileno(), 2 * len(word)) == word
        finally:
            process.stdout.close()
            _kill(process)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    # The leader is not yet waited for, so its number cannot have passed to another group.
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()
    process.wait()
