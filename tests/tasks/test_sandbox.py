"""What a model's code may do: compute. Everything else ends it, and nothing but reaching the end counts."""

import time
from pathlib import Path

import pytest

from diffusiongemma.tasks.sandbox import runs_to_its_end


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
