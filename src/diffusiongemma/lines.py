r"""A file of lines that runs append to: whole lines or none, one writer at a time, found again by the next run.

A line is in the file when ``append`` returns, whatever happens to the process then; after a loss of power at most the last
``SYNC_SECONDS`` are missing. What a kill or a full disk leaves of a line is taken away by the next run that opens the file. The
writer holds a lock (``flock``) until it is closed or its process ends; where the system or the file system has none, nobody is kept
out.
"""

import contextlib
import errno
import gc
import itertools
import json
import logging
import os
import re
import stat
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

from diffusiongemma.errors import InputError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["LinesFile", "json_line"]

T = TypeVar("T")

log = logging.getLogger(__name__)
SYNC_SECONDS = 5.0
_BREAK = re.compile("[\u0085\u2028\u2029]")
"""Line breaks beyond those that JSON escapes anyway."""


class LinesFile(Generic[T]):
    """JSON objects, one a line.

    Nothing is changed before the first ``append`` or ``keep``: a file that turns out to be another one stays as it is.

    Args:
        path: of a regular file; made, with its folders, if it is not there.
        what: the lines are, for messages.
        read: from a line and where it stands to an entry; raises InputError where the line is none of ours.

    Attributes:
        entries: what was there when the file was opened.

    Raises:
        InputError: it cannot be made, read or locked, is no regular file, or holds something else.
    """

    def __init__(self, path: Path, what: str, read: Callable[[bytes, str], T]) -> None:
        self.path, self._what = path, what
        self._handle = -1
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NONBLOCK", 0)
            self._handle = os.open(path, flags, 0o666)
            if not stat.S_ISREG(os.fstat(self._handle).st_mode):
                raise InputError(f"{what} cannot be kept in {path}: it is no regular file; name another one")
            self._lock()
            with open(self._handle, "rb", closefd=False) as file:
                content = file.read()
            *lines, tail = content.split(b"\n")
            self.entries = [read(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]
            if tail and not lines and (not tail.startswith(b"{") or _is_json(tail)):
                read(tail, f"{path}, line 1")  # all there is, and not what a kill leaves of a line
        except BaseException as error:
            handle, self._handle = self._handle, -1
            if handle >= 0:
                os.close(handle)
            if isinstance(error, OSError):
                raise self._failed(error) from error
            raise
        self._ends = list(itertools.accumulate(len(line) + 1 for line in lines))
        self._size, self._cut = len(content) - len(tail), bool(tail)
        self._synced = time.monotonic()

    def keep(self, count: int) -> None:
        """Take away all lines but the first.

        Args:
            count: of those that stay.

        Raises:
            InputError: the file cannot be written.
        """
        if count < len(self.entries):
            self.entries = self.entries[:count]
            self._size, self._cut = self._ends[count - 1] if count else 0, True
        self._mend()

    def _mend(self) -> None:
        if self._cut:
            try:
                os.ftruncate(self._handle, self._size)
            except OSError as error:
                raise self._failed(error) from error
            self._cut = False

    def append(self, *lines: bytes) -> None:
        """Append lines, all or none; they are not added to ``entries``.

        Raises:
            InputError: they cannot be written; the file is as before.
        """
        self._mend()
        data = b"".join(line + b"\n" for line in lines)
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self._handle, left) :]
            if time.monotonic() - self._synced > SYNC_SECONDS:
                self._sync()
        except BaseException as error:
            self._cut = True
            with contextlib.suppress(InputError):  # what cannot be taken away now is a cut line to the next run
                self._mend()
            if isinstance(error, OSError):
                raise self._failed(error) from error
            raise
        self._size += len(data)

    def close(self) -> None:
        """Let others write; harmless twice.

        Raises:
            InputError: what was appended is not on the disk.
        """
        handle, self._handle = self._handle, -1
        if handle < 0:
            return
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):
                raise self._failed(error) from error
        finally:
            os.close(handle)

    def __enter__(self) -> "LinesFile[T]":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(InputError, OSError):
            self.close()

    def _sync(self) -> None:
        os.fsync(self._handle)
        self._synced = time.monotonic()

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            if _locked(self._handle):
                return
            gc.collect()  # a writer of this process that nobody uses any more
            if _locked(self._handle):
                return
        except OSError as error:
            log.warning("%s cannot be locked here (%s): do not let two runs write to it", self.path, error.strerror)
            return
        raise InputError(f"{self.path} is being written by {_holder(self._handle)}; wait for its end, or name another file")

    def _failed(self, error: OSError) -> InputError:
        return InputError(
            f"{self._what} cannot be kept in {self.path}: {error.strerror or error}; whole lines that are there stay. Mend that, "
            "or name another file"
        )


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(handle: int) -> str:
    """The process that has the lock, as far as the system tells."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        inode = str(os.fstat(handle).st_ino)
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5].rpartition(":")[2] == inode:
                command = Path(f"/proc/{fields[4]}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                return f"process {fields[4]} ({command.strip()[:100]})"
    return "another process"


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def json_line(data: object, **options: Any) -> bytes:
    """JSON as one line, whoever reads it: what Unicode calls a line break, too, is written as an escape.

    Many readers end a line there (``str.splitlines``, httpx's ``iter_lines``, and all who read server-sent events with them). Half
    of a surrogate pair, which UTF-8 cannot hold, is written as an escape as well.

    Args:
        data: what JSON can hold.
        options: of ``json.dumps``.
    """
    text = json.dumps(data, ensure_ascii=False, **options)
    return _BREAK.sub(lambda result: f"\\u{ord(result[0]):04x}", text).encode("utf-8", "backslashreplace")
