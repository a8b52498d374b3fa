"""A file of requests -> a file of answers, through the server's own handlers, without a socket; a run that was killed goes on.

The input is OpenAI's batch format (a line: ``custom_id``, ``method``, ``url``, ``body``), or rows of one's own (JSON Lines, CSV,
Parquet, a text file of prompts) from which a template makes prompts. An answer is appended as it comes, in one write, and its
``id`` says of which run and row it is: what a run finds in its output it does not ask again. A row without a seed has one that is a
function of the run's seed and the row, so that answers do not depend on when a run was broken off.
"""

import asyncio
import csv
import hashlib
import json
import math
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message

from diffusiongemma.errors import InputError
from diffusiongemma.lines import LinesFile, json_line

__all__ = ["PATHS", "Asked", "BatchProgress", "batch_file", "read_requests", "without_failures"]

PATHS = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/edit/completions", "/v1/fim/completions",
    "/v1/decisions",
)  # fmt: skip
"""Where the requests of a batch may go."""
_ID = re.compile(r"batch_req_([0-9a-f]{12})_(\d+)")
_FIELD = re.compile(r"\{([^{}]*)\}")
_SEEDLESS = ("/v1/messages",)
"""Protocols whose requests have no seed."""


@dataclass(frozen=True)
class Asked:
    """A request of a batch.

    Attributes:
        path: of ``PATHS``.
        body: what is asked.
        custom_id: the caller's name for it; None: it was made from a row of the caller's own.
        row: that row.
    """

    path: str
    body: dict[str, Any]
    custom_id: str | None = None
    row: dict[str, Any] = field(default_factory=dict)


@dataclass
class BatchProgress:
    """How far a run is.

    Attributes:
        of: rows.
        resumed: answers that were there.
        done: answers, those of earlier runs included.
        failed: rows that were refused, of those.
        tokens: that this run wrote.
    """

    of: int
    resumed: int
    done: int
    failed: int
    tokens: int = 0


def read_requests(
    path: Path, template: str | None = None, system: str | None = None, defaults: Mapping[str, Any] | None = None
) -> list[Asked]:
    """The requests of a file.

    Args:
        path: JSON Lines, ``.csv``, ``.parquet`` (with the extra ``data``), or ``.txt`` with a prompt a line.
        template: of a row's prompt, with the row's fields in braces; None: the row's ``messages`` or ``prompt``.
        system: a system message for rows of one's own.
        defaults: fields of bodies that do not have them.

    Raises:
        InputError: the file cannot be read, or a line is no request, with its number.
    """
    rows = list(_rows(path))
    if not rows:
        raise InputError(f"{path} holds no rows")
    requests, named = [], dict[str, str]()
    for where, row in rows:
        if "custom_id" in row or ("url" in row and "body" in row):
            if template is not None or system is not None:
                raise InputError(
                    f"{where} is a request of its own, which a template or a system message cannot change; leave them out"
                )
            asked = _request(row, where)
            if (before := named.setdefault(asked.custom_id or "", where)) != where:
                raise InputError(f"{where} has the custom_id of {before}; every one must differ")
        else:
            asked = _made(row, where, template, system)
        requests.append(Asked(asked.path, dict(defaults or {}) | asked.body, asked.custom_id, asked.row))
    return requests


def _rows(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    try:
        if path.suffix == ".parquet":
            yield from ((f"{path}, row {number}", row) for number, row in enumerate(_parquet(path), 1))
            return
        with path.open(encoding="utf-8", newline="") as file:
            if path.suffix == ".csv":
                yield from ((f"{path}, row {number}", dict(row)) for number, row in enumerate(csv.DictReader(file), 1))
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    where = f"{path}, line {number}"
                    yield where, {"prompt": line.rstrip("\r\n")} if path.suffix == ".txt" else _object(line, where)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        parquet = import_module("pyarrow.parquet")
    except ImportError as error:
        raise InputError(f"{path} is a Parquet file, which needs pyarrow: pip install 'diffusiongemma[data]'") from error
    try:
        return list(parquet.read_table(path).to_pylist())
    except (OSError, ValueError) as error:  # of which pyarrow's are some
        raise InputError(f"{path} is no Parquet file: {error}") from error


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {error}") from error
    if isinstance(row, str):
        return {"prompt": row}
    if not isinstance(row, dict):
        raise InputError(f"{where} must be a JSON object, or a string, which is a prompt")
    return row


def _request(row: Mapping[str, Any], where: str) -> Asked:
    name, body, path = row.get("custom_id"), row.get("body"), row.get("url")
    if not isinstance(name, str) or not name:
        raise InputError(f"{where} has no custom_id; give each request a name of its own")
    if row.get("method", "POST") != "POST":
        raise InputError(f"{where} has the method {row['method']!r:.40}; requests are POST")
    if path not in PATHS:
        raise InputError(f"{where} has the url {path!r:.100}; allowed: {', '.join(PATHS)}")
    if not isinstance(body, dict):
        raise InputError(f"{where} has no body, a JSON object")
    if body.get("stream"):
        raise InputError(f"{where} asks for a stream, and a file gets whole answers; leave stream out")
    return Asked(path, body, name)


def _made(row: dict[str, Any], where: str, template: str | None, system: str | None) -> Asked:
    if template is None:
        said, prompt = row.get("messages"), row.get("prompt")
        if not isinstance(said, list) and not isinstance(prompt, str):
            has = ", ".join(row) or "no fields"
            raise InputError(f"{where} has neither messages nor a prompt ({has}); say with --template how it becomes one")
    else:
        said, prompt = None, _FIELD.sub(lambda found: _filled(found[1], row, where), template)
    messages = said if isinstance(said, list) else [{"role": "user", "content": prompt}]
    before = [{"role": "system", "content": system}] if system else []
    return Asked(PATHS[0], {"messages": [*before, *messages]}, None, row)


def _filled(name: str, row: Mapping[str, Any], where: str) -> str:
    if name not in row:
        raise InputError(f"{where} has no field {name!r}, which the template asks for; it has {', '.join(row)}")
    value = row[name]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def without_failures(target: Path) -> int:
    """Take the rows that failed out of an output, so that a run asks them again; returns how many there were.

    Raises:
        InputError: the file cannot be read or replaced.
    """
    if not target.exists():
        return 0
    try:
        lines = [line for line in target.read_bytes().split(b"\n") if line]
        kept = [line for line in lines if not _failed(json.loads(line))]
        if len(kept) < len(lines):
            new = target.with_name(f".{target.name}.new")
            new.write_bytes(b"".join(line + b"\n" for line in kept))
            new.replace(target)
    except (OSError, ValueError) as error:
        raise InputError(f"{target} cannot be mended: {error}") from error
    return len(lines) - len(kept)


def _failed(line: Any) -> bool:
    return bool(line.get("error")) or (line.get("response") or {}).get("status_code", 200) >= 400


async def batch_file(
    app: ASGIApp,
    requests: Sequence[Asked],
    target: Path,
    *,
    model_key: str,
    seed: int,
    at_once: int,
    on_progress: Callable[[BatchProgress], None] = lambda progress: None,
) -> BatchProgress:
    """Answer requests, those that the target has answers to left out.

    Args:
        app: the server's application.
        requests: see ``read_requests``.
        target: JSON Lines; a file that a run of the same requests, seed and model began is gone on with.
        model_key: what tells the checkpoint from others.
        seed: of rows without one.
        at_once: requests under way.
        on_progress: called before the first and after each.

    Raises:
        InputError: a target of another run, or that cannot be written.
    """
    content = json.dumps([[one.path, one.body, one.custom_id, one.row] for one in requests], default=str, sort_keys=True)
    run = hashlib.sha256(f"{model_key} {seed} {content}".encode()).hexdigest()[:12]
    with LinesFile(target, "answers", lambda line, where: _entry(line, where, run, len(requests))) as file:
        there = dict(file.entries)
        if len(there) < len(file.entries):
            raise InputError(f"{target} has answers to one row twice: two runs wrote to it; name another file")
        file.keep(len(file.entries))
        progress = BatchProgress(len(requests), len(there), len(there), sum(there.values()))
        on_progress(progress)
        left = (at for at in range(len(requests)) if at not in there)
        async for at, status, answer in _answers(app, requests, left, seed, at_once):
            file.append(json_line(_line(requests[at], at, run, status, answer), default=str))
            progress.done, progress.failed = progress.done + 1, progress.failed + (status >= 400)
            progress.tokens += int((answer.get("usage") or {}).get("completion_tokens") or 0)
            on_progress(progress)
    return progress


def _entry(line: bytes, where: str, run: str, count: int) -> tuple[int, bool]:
    """The row of an answer, and whether that failed."""
    try:
        data = json.loads(line)
        found = _ID.fullmatch(data["id"])
        failed = _failed(data)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        found, failed = None, False
    if found is None:
        raise InputError(f"{where} is no answer that a batch wrote; name another file with -o, or remove this one")
    if found[1] != run or int(found[2]) >= count:
        raise InputError(f"{where} comes from a run of other requests, settings or another checkpoint; name another file")
    return int(found[2]), failed


async def _answers(
    app: ASGIApp, requests: Sequence[Asked], left: Iterable[int], seed: int, at_once: int
) -> AsyncIterator[tuple[int, int, dict[str, Any]]]:
    """Rows, statuses and bodies, as they come."""

    async def ask(at: int) -> tuple[int, int, dict[str, Any]]:
        one = requests[at]
        # There is one model, whatever a request calls it.
        body = {name: value for name, value in one.body.items() if name != "model"}
        body = body if one.path in _SEEDLESS else {"seed": _seed(seed, at)} | body
        return at, *await post(app, one.path, body)

    rows, under_way = iter(left), set[asyncio.Task[tuple[int, int, dict[str, Any]]]]()
    try:
        while True:
            while len(under_way) < at_once and (at := next(rows, None)) is not None:
                under_way.add(asyncio.create_task(ask(at)))
            if not under_way:
                return
            done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                yield task.result()
    finally:
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


def _seed(seed: int, row: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{row}".encode()).digest()[:6])


def _line(one: Asked, at: int, run: str, status: int, answer: dict[str, Any]) -> dict[str, Any]:
    name = f"batch_req_{run}_{at}"
    if one.custom_id is not None:
        response = {"status_code": status, "request_id": answer.get("id") or name, "body": answer}
        return {"id": name, "custom_id": one.custom_id, "response": response, "error": None}
    if status >= 400:
        return {"id": name, "row": at, "input": one.row, "error": answer.get("error", answer)}
    [choice] = answer["choices"][:1]
    judged = [token["logprob"] for token in (choice.get("logprobs") or {}).get("content") or ()]
    confidence = {"confidence": math.exp(sum(judged) / len(judged)) if judged else None} if "logprobs" in one.body else {}
    return {
        "id": name, "row": at, "input": one.row, "text": choice["message"]["content"], "finish_reason": choice["finish_reason"],
        "usage": answer["usage"], **confidence, "error": None,
        **({"choices": answer["choices"]} if len(answer["choices"]) > 1 else {}),
    }  # fmt: skip


async def post(app: ASGIApp, path: str, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """A request to an application, without a socket: the status, and the body as JSON."""
    content = json_line(dict(body), default=str)
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http", "path": path,
        "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": headers, "client": None, "server": None,
    }  # fmt: skip
    incoming, status, parts = [{"type": "http.request", "body": content, "more_body": False}], 500, list[bytes]()
    forever = asyncio.Event()

    async def receive() -> Message:
        if incoming:
            return incoming.pop()
        await forever.wait()  # nobody goes away
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            parts.append(message.get("body", b""))

    await app(scope, receive, send)
    data = json.loads(b"".join(parts))
    return status, data if isinstance(data, dict) else {"data": data}
