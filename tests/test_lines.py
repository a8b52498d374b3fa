"""Whole lines or none, whatever the disk, a kill or a second writer does."""

import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from diffusiongemma.errors import InputError
from diffusiongemma.lines import LinesFile, json_line

LINES = [json_line({"number": number, "text": "x" * number}) for number in range(40)]


def read(line: bytes, where: str) -> bytes:
    try:
        json.loads(line)["number"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{where} is not ours") from error
    return line


def opened(path: Path) -> "LinesFile[bytes]":
    return LinesFile(path, "numbers", read)


def written(path: Path, count: int = len(LINES)) -> bytes:
    with opened(path) as file:
        file.append(*LINES[:count])
    return path.read_bytes()


def test_lines_come_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folders" / "lines"
    whole = written(path)
    with opened(path) as file:
        assert file.entries == LINES
        file.append(LINES[0])
        file.keep(2)
        file.append(LINES[5], LINES[6])
        file.append()
    assert path.read_bytes() == b"".join(line + b"\n" for line in [*LINES[:2], *LINES[5:7]])
    assert whole == b"".join(line + b"\n" for line in LINES)


def test_half_of_a_pair_is_an_escape() -> None:
    assert json.loads(json_line({"a": "\ud800é\u2028"}).replace(b"\\u", b"\\u")) == {"a": "\ud800é\u2028"}


def test_a_cut_line_is_taken_away_by_the_next_writer_and_by_no_reader(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    whole = written(path)
    for cut in [1, 2, len(LINES[0]), len(LINES[0]) + 1, *random.Random(0).sample(range(len(whole)), 20)]:
        path.write_bytes(whole[:cut])
        there = whole[:cut].count(b"\n")
        with opened(path) as file:
            assert file.entries == LINES[:there]
        assert path.read_bytes() == whole[:cut], "nothing is changed where nothing is written"
        with opened(path) as file:
            file.append(*LINES[there:])
        assert path.read_bytes() == whole, cut


@pytest.mark.parametrize("content", ["a diary", "a diary\n", '{"mine": 1}', '{"mine": 1}\n', '{\n  "mine": 1\n}\n', "[1]", "\x00"])
def test_another_file_is_left_as_it_is(tmp_path: Path, content: str) -> None:
    path = tmp_path / "mine"
    path.write_text(content)
    with pytest.raises(InputError, match="mine, line 1 is not ours"):
        opened(path)
    assert path.read_text() == content


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("")
    for path in (
        tmp_path,
        tmp_path / "pipe",
        tmp_path / "loop",
        Path("/dev/null"),
        tmp_path / "file" / "x",
        tmp_path / ("x" * 300),
    ):
        with pytest.raises(InputError, match="numbers cannot be kept in"):
            opened(path)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    with opened(path) as file:
        with pytest.raises(InputError, match=f"is being written by .*{os.getpid() if sys.platform == 'linux' else ''}"):
            opened(path)
        file.append(LINES[0])
        code = "import sys; from pathlib import Path; from tests.test_lines import opened; opened(Path(sys.argv[1]))"
        other = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
        assert f"is being written by process {os.getpid()} (" in other.stderr or sys.platform != "linux"
        assert "InputError" in other.stderr
    with opened(path) as file:
        assert file.entries == LINES[:1]
    forgotten: list[Any] = [opened(path)]
    forgotten.append(forgotten)  # a cycle: only the collector finds it
    del forgotten
    opened(path).close()


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lines"
    written(path, 3)
    write, room = os.write, 100

    def short(handle: int, data: Any) -> int:
        """As a disk with little room does: what fits is written, and nobody is told before the next call."""
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = write(handle, bytes(data)[: min(room, 7)])
        room -= taken
        return taken

    monkeypatch.setattr(os, "write", short)
    with opened(path) as file:
        kept = 3
        with pytest.raises(InputError, match="No space left on device; whole lines that are there stay"):
            while True:
                file.append(LINES[kept], LINES[kept + 1])
                kept += 2
        assert path.read_bytes() == b"".join(line + b"\n" for line in LINES[:kept])
        room = 10_000
        file.append(*LINES[kept:])
    assert path.read_bytes() == b"".join(line + b"\n" for line in LINES)


def test_a_real_limit_on_the_size(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    code = (
        "import resource, sys; from pathlib import Path; from tests.test_lines import *\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))\n"
        "with opened(Path(sys.argv[1])) as file:\n  for line in LINES: file.append(line)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and "numbers cannot be kept in" in ended.stderr and "File too large" in ended.stderr
    content = path.read_bytes()
    assert 400 < len(content) <= 500 and content == b"".join(line + b"\n" for line in LINES[: content.count(b"\n")])
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 500


def test_an_interrupted_write_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lines"
    write = os.write

    def interrupted(handle: int, data: Any) -> int:
        write(handle, bytes(data)[:5])
        raise KeyboardInterrupt

    with opened(path) as file:
        file.append(LINES[0])
        with monkeypatch.context() as broken:
            broken.setattr(os, "write", interrupted)
            with pytest.raises(KeyboardInterrupt):
                file.append(LINES[1])
        file.append(LINES[2])
    assert path.read_bytes() == LINES[0] + b"\n" + LINES[2] + b"\n"


def test_kill_at_any_moment_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """A process that goes on where the last one was killed, and says which lines it knows to be there."""
    path = tmp_path / "lines"
    code = (
        "import sys; from pathlib import Path; from tests.test_lines import *\n"
        "with opened(Path(sys.argv[1])) as file:\n"
        "  for number in range(len(file.entries), 30000):\n"
        "    file.append(json_line({'number': number, 'text': 'x' * 3000})); print(number, flush=True)"
    )
    known = -1
    for seconds in (0.05, 0.2, 0.01):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        said = [process.stdout.readline()]
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        said += process.stdout.read().splitlines()
        process.wait()
        assert int(said[0]) == known + 1 or int(said[0]) == known + 2  # a line that was written and not told yet
        with opened(path) as file:
            numbers = [json.loads(line)["number"] for line in file.entries]
        known = numbers[-1]
        assert numbers == list(range(len(numbers))) and known >= max(int(text) for text in said if text.strip().isdigit())
