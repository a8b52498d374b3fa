"""Both processes of the sandbox (``tasks.sandbox``); run as a script, with the standard library alone.

``code`` confines itself and then does what it is asked: load a program, call one of its functions. ``tests`` asks, compares, and
has the verdict. They exchange plain data, packed as JSON, and nothing else: no object of the program is ever in the process that
judges it.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

__all__ = ["NAMESPACES", "pack", "unpack"]

NAMESPACES = "namespaces of its own"

_MAX_BYTES = 1 << 24
_LARGE = 1 << 53
_UNSHARED = (
    (NAMESPACES, 0x10000000 | 0x40000000 | 0x20000000 | 0x08000000),
    ("a network of its own", 0x10000000 | 0x40000000),
)
"""What is asked of unshare, the most first: CLONE_NEWUSER, CLONE_NEWNET, CLONE_NEWPID, CLONE_NEWIPC (linux/sched.h)."""
_NEW_PID = 0x20000000
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
"""linux/prctl.h."""


def pack(value: Any) -> Any:
    """Plain data as JSON has it: lists with a letter for each kind that JSON does not know.

    Raises:
        TypeError: it is no plain data.
    """
    if value is None or isinstance(value, bool | float):
        return value if value is None or type(value) is bool else float(value)
    if isinstance(value, int):
        return int(value) if -_LARGE < value < _LARGE else ["i", hex(value)]
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bytes | bytearray):
        return ["b", bytes(value).hex()]
    if isinstance(value, complex):
        return ["c", value.real, value.imag]
    if isinstance(value, dict):
        return ["d", *([pack(key), pack(item)] for key, item in dict.items(value))]
    for letter, kind in (("l", list), ("t", tuple), ("s", set), ("f", frozenset)):
        if isinstance(value, kind):
            items: Iterator[Any] = kind.__iter__(value)  # type: ignore[arg-type]  # its own, whatever a subclass says
            return [letter, *map(pack, items)]
    raise TypeError(f"{type(value).__name__} is no plain data")


def unpack(data: Any) -> Any:
    """What ``pack`` packed, in the types of the language and no others."""
    if not isinstance(data, list):
        return data
    letter, *rest = data
    if letter == "d":
        return {unpack(key): unpack(item) for key, item in rest}
    if letter in ("i", "b", "c"):
        return int(rest[0], 16) if letter == "i" else bytes.fromhex(rest[0]) if letter == "b" else complex(*rest)
    kinds: dict[str, Callable[[Any], Any]] = {"l": list, "t": tuple, "s": set, "f": frozenset}
    return kinds[letter](map(unpack, rest))


def _send(handle: int, message: Mapping[str, Any]) -> None:
    data = json.dumps(message).encode()
    data = len(data).to_bytes(4, "big") + data
    while data:
        data = data[os.write(handle, data) :]


def _receive(handle: int) -> dict[str, Any] | None:
    """The next message; None at the end."""
    size = _exactly(handle, 4)
    if not size or int.from_bytes(size, "big") > _MAX_BYTES:
        return None
    message = json.loads(_exactly(handle, int.from_bytes(size, "big")))
    return message if isinstance(message, dict) else None


def _exactly(handle: int, count: int) -> bytes:
    result = b""
    while len(result) < count:
        piece = os.read(handle, count - len(result))
        if not piece:
            return b""
        result += piece
    return result


# -- the process that runs the code ----------------------------------------------------------------------------------------


def _code(order: Mapping[str, Any]) -> None:
    asks, answers = order["asks"], order["answers"]
    _send(answers, {"guards": _confine(order)})
    space: dict[str, Any] = {"__name__": "answer"}
    while (ask := _receive(asks)) is not None:
        reply: dict[str, Any]
        try:
            if "load" in ask:
                exec(compile(ask["load"], "answer", "exec"), space)
                reply = {"value": None}
            else:
                reply = {"value": pack(space[ask["call"]](*unpack(ask["args"]), **unpack(ask["named"])))}
        except BaseException as error:
            reply = {"error": type(error).__name__}
        _send(answers, reply)
    os._exit(0)


def _confine(order: Mapping[str, Any]) -> list[str]:
    """Give up all that is not computing; returns what the system had for it."""
    had = []
    if sys.platform == "linux":
        had += _leave()
    if _limit(order["seconds"], order["memory"]):
        had.append("limits on time and memory")
    if sys.platform == "linux" and order["filter"] and _filter_calls(bytes.fromhex(order["filter"])):
        had.append("a filter of system calls")
    for name in [name for name in sys.modules if name.partition(".")[0] in ("ctypes", "_ctypes")]:
        del sys.modules[name]
    _watch()
    return had


def _leave() -> list[str]:
    """Leave for namespaces of one's own, as far as the system allows it."""
    import ctypes

    libc = ctypes.CDLL(None)
    for name, flags in _UNSHARED:
        if libc.unshare(flags) == 0:
            if flags & _NEW_PID:
                # The first process of the namespace ends with this one, and everything in it with that.
                for _ in range(2):
                    if (child := os.fork()) != 0:
                        os.waitpid(child, 0)
                        os._exit(0)
                    libc.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0)
            return [name]
    return []


def _limit(seconds: int, memory: int) -> bool:
    try:
        import resource
    except ImportError:
        return False
    limits = (("CPU", seconds), ("AS", memory), ("FSIZE", 0), ("CORE", 0), ("NPROC", 0), ("NOFILE", 64), ("MSGQUEUE", 0))
    for name, limit in limits:
        number = getattr(resource, f"RLIMIT_{name}", None)
        if number is not None:
            with suppress(ValueError, OSError):
                resource.setrlimit(number, (limit, limit))
    return True


def _filter_calls(program: bytes) -> bool:
    import ctypes

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))

    libc, filters = ctypes.CDLL(None), Program(len(program) // 8, program)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return bool(libc.prctl(_PR_SET_SECCOMP, 2, ctypes.byref(filters), 0, 0) == 0)


def _watch() -> None:
    """End the process at what code that computes does not do, as far as the interpreter tells of it."""
    events = (
        "ctypes.", "fcntl.", "gc.get_", "object.__setattr__", "os.chflags", "os.chmod", "os.chown", "os.exec", "os.fork", "os.kill",
        "os.link", "os.lockf", "os.mkdir", "os.posix_spawn", "os.remove", "os.removexattr", "os.rename", "os.rmdir", "os.setxattr",
        "os.spawn", "os.startfile", "os.symlink", "os.system", "os.truncate", "os.utime", "pty.spawn", "resource.", "shutil.",
        "signal.", "socket.", "sqlite3.", "subprocess.", "syslog.",
    )  # fmt: skip
    modules = (
        "_ctypes",
        "_posixshmem",
        "_posixsubprocess",
        "_testcapi",
        "_testinternalcapi",
        "_xxsubinterpreters",
        "_interpreters",
    )
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    # All it needs is in its defaults, and nothing refers to it but the interpreter.
    def guard(
        event: str,
        arguments: tuple[Any, ...],
        starts: Callable[..., bool] = str.startswith,
        leave: Callable[[int], None] = os._exit,
        events: Sequence[str] = events,
        modules: Sequence[str] = modules,
        writing: int = writing,
    ) -> None:
        if starts(event, events) or (event == "open" and arguments[2] & writing) or (event == "import" and arguments[0] in modules):
            leave(1)

    sys.addaudithook(guard)


# -- the process that judges -----------------------------------------------------------------------------------------------


def _tests(order: Mapping[str, Any]) -> None:
    asks, answers = order["asks"], order["answers"]
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)  # nobody of the same user looks in here, or at its files
    _limit(order["seconds"], 2 * order["memory"])
    started = _receive(answers)
    if started is None:
        return

    def ask(message: Mapping[str, Any]) -> Any:
        _send(asks, message)
        reply = _receive(answers)
        if reply is None or "value" not in reply:
            raise RuntimeError("the code failed")
        return unpack(reply["value"])

    def function(name: str) -> Callable[..., Any]:
        return lambda *args, **named: ask({"call": name, "args": pack(args), "named": pack(named)})

    ask({"load": order["program"]})
    space: dict[str, Any] = {"__name__": "tests"}
    exec(compile(order["setup"], "setup", "exec"), space)
    space.update((name, function(name)) for name in order["names"])
    exec(compile(order["tests"], "tests", "exec"), space)
    _send(order["verdict"], {"passed": True, "guards": started["guards"]})


def main() -> None:
    """Take the order from standard input and do it; the standard streams are closed before anything else."""
    order = json.loads(sys.stdin.buffer.read())
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.close(null)
    {"code": _code, "tests": _tests}[order["role"]](order)


if __name__ == "__main__":
    main()
