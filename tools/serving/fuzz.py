"""Hostile and clumsy requests against a fresh `diffusiongemma serve`, while a second client asks for its own.

    python tools/serving/fuzz.py --requests 10000 --clients 8 --seed 1 --json fuzz.json

What is sent is in fuzz_cases.py; every request is a function of the seed and its number. The second client comes from another
address and asks /health and a short chat all along: how much longer each took than alone is its wait. Reported are answers of 5xx,
the longest waits, answers that say `stop` and are not what was asked for, requests that got no answer, and the server's memory. The
status is 1 if anything of that is wrong. Ctrl-C ends it and reports what there is. Only the server that it starts is ever asked.
"""

import argparse
import json
import os
import random
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h11
import httpx
from fuzz_cases import CHAT, Case, cases
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

FUZZ, SECOND = "127.0.0.2", "127.0.0.1"
"""Addresses of the two clients: the server counts by address."""
SHORT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8, "num_diffusion_steps": 4, "seed": 1}
WAIT, TIMEOUT = 2.0, 120.0
"""Seconds: what the second client may wait at most, and after which a request counts as unanswered."""
STALL = 3.0


@contextmanager
def served(arguments: list[str], log: Path) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    command = [sys.executable, "-m", "diffusiongemma", "serve", "--port", "0", *arguments]
    with log.open("w") as errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
        assert process.stdout is not None
        try:
            result = re.search(r"http://\S+", process.stdout.readline())
            assert result, log.read_text()
            yield process, result[0]
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()


class Second:
    """The other client: its waits, and whether its answer is the same as alone."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=TIMEOUT, transport=httpx.HTTPTransport(local_address=SECOND))
        self.stopped = threading.Event()
        self.waits: dict[str, list[float]] = {"health": [], "chat": []}
        self.wrong: list[str] = []
        self.slow: list[dict[str, Any]] = []
        self.others: Callable[[], list[str]] = list
        alone = sorted(self._chat() for _ in range(5))
        self.alone, self.text = alone[2][0], alone[2][1]
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _chat(self) -> tuple[float, str]:
        began = time.monotonic()
        answer = self.http.post(CHAT, json=SHORT)
        seconds = time.monotonic() - began
        return seconds, answer.json()["choices"][0]["message"]["content"] if answer.status_code == 200 else f"! {answer.text}"

    def _run(self) -> None:
        while not self.stopped.wait(0.05):
            try:
                began = time.monotonic()
                health = self.http.get("/health")
                self.waits["health"].append(time.monotonic() - began)
                seconds, text = self._chat()
                self.waits["chat"].append(seconds - self.alone)
                if seconds - self.alone > WAIT:
                    self.slow.append({"seconds": round(seconds, 2), "beside": self.others()})
                if health.status_code != 200 or text != self.text:
                    self.wrong.append(f"/health {health.status_code}, chat {text[:200]!r}")
            except httpx.HTTPError as error:
                self.wrong.append(repr(error))

    def stop(self) -> int:
        """End; returns the requests that are under way still, a minute later at most."""
        self.stopped.set()
        self.thread.join()
        until, left = time.monotonic() + 60, 1
        while left and time.monotonic() < until:
            left = self.http.get("/health").json()["active"]
            time.sleep(0.05)
        return left


class Findings:
    """What the answers were."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.statuses: dict[str, Counter[str]] = {}
        self.servers: list[dict[str, Any]] = []
        self.broken: list[dict[str, Any]] = []
        self.unanswered: list[dict[str, Any]] = []
        self.slowest: list[tuple[float, int, str]] = []
        self.stops = 0
        self.under_way: dict[int, str] = {}

    def note(self, number: int, case: Case, status: str, seconds: float, said: str = "") -> None:
        entry = {
            "number": number,
            "kind": case.kind,
            "path": case.path[:80],
            "body": case.content[:2000].decode("latin-1"),
            "said": said,
        }
        with self.lock:
            self.statuses.setdefault(case.kind, Counter())[status] += 1
            self.slowest = sorted([*self.slowest, (round(seconds, 2), number, case.kind)], reverse=True)[:10]
            if status.startswith("5"):
                self.servers.append(entry)
            if status == "none":
                self.unanswered.append(entry)

    def judge(self, number: int, case: Case, choices: list[dict[str, Any]]) -> None:
        """Look at the answers that say ``stop``."""
        for choice in choices:
            if choice.get("finish_reason") == "stop":
                text = choice["text"] if "text" in choice else choice["message"]["content"] or ""
                try:
                    right = case.check is None or case.check(text, choice)
                except (ValueError, LookupError):
                    right = False
                with self.lock:
                    self.stops += 1
                    if not right:
                        self.broken.append({"number": number, "kind": case.kind, "body": case.body, "text": text})


def joined(text: str) -> tuple[list[dict[str, Any]], str]:
    """The choices of a stream as of a whole answer, and an error that came in it."""
    result: dict[int, dict[str, Any]] = {}
    for line in text.splitlines():
        if not line.startswith("data: {"):
            continue
        data = json.loads(line.removeprefix("data: "))
        if "error" in data:
            return [], json.dumps(data["error"])
        for choice in data.get("choices", ()):
            so_far = result.setdefault(choice["index"], {"text": ""})
            so_far["text"] += choice["text"] if "text" in choice else choice["delta"].get("content") or ""
            so_far["finish_reason"] = choice["finish_reason"] or so_far.get("finish_reason")
    return list(result.values()), ""


def ask(http: httpx.Client, number: int, case: Case, findings: Findings) -> None:
    """A request that is sent whole and whose answer is read."""
    began = time.monotonic()
    content = None if case.body is None else case.content
    headers = {"Content-Type": "application/json"} | case.headers
    try:
        answer = http.request(case.method, case.path, content=content, headers=headers)
    except (httpx.InvalidURL, httpx.LocalProtocolError, h11.LocalProtocolError, UnicodeEncodeError):
        return findings.note(number, case, "cannot be sent", 0)
    except httpx.HTTPError as error:
        cut = isinstance(error, httpx.ReadError | httpx.WriteError | httpx.RemoteProtocolError)
        return findings.note(
            number, case, "cut off" if cut and len(content or b"") > 1 << 20 else "none", time.monotonic() - began, repr(error)
        )
    status, choices, error = str(answer.status_code), list[dict[str, Any]](), ""
    if status == "200" and answer.headers["content-type"].startswith("text/event-stream"):
        choices, error = joined(answer.text)
        # A stream has begun with 200 whatever comes; its error tells what it would have been.
        status = (
            status
            if not error
            else "500 in a stream"
            if '"internal_error"' in error or '"engine_error"' in error
            else "error in a stream"
        )
    elif status == "200" and case.method == "POST":
        choices = answer.json().get("choices", [])
    findings.note(number, case, status, time.monotonic() - began, error or (answer.text[:500] if status[0] == "5" else ""))
    findings.judge(number, case, choices)
    return None


def leave(address: tuple[str, int], number: int, case: Case, findings: Findings) -> None:
    """A request whose client goes away, or takes nothing."""
    content, rng = case.content, random.Random(number)
    length = case.headers.get("Content-Length", str(len(content)))
    kind = "Host: 127.0.0.1\r\nContent-Type: application/json"
    head = f"POST {case.path} HTTP/1.1\r\n{kind}\r\nContent-Length: {length}\r\n\r\n".encode()
    sent = {"half a head": head[: rng.randrange(len(head))], "head": head, "half a body": head + content[: len(content) // 2]}
    began = time.monotonic()
    raws = []
    with suppress(OSError):
        for _ in range(16 if case.manner == "storm" else 1):
            raws.append(socket.create_connection(address, TIMEOUT, (FUZZ, 0)))
            if case.manner == "stalled":
                raws[-1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raws[-1].sendall(sent.get(case.manner, head + content))
        if case.manner == "gone in the answer":
            raws[0].recv(rng.choice([1, 100, 5000]))
        time.sleep(STALL if case.manner == "stalled" else rng.choice([0, 0, 0.05, 0.5]))
    for raw in raws:
        if rng.random() < 0.5:  # a reset in place of an end
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raw.close()
    findings.note(number, case, case.manner, time.monotonic() - began)


def run(url: str, second: Second, seed: int, count: int, clients: int, console: Console) -> Findings:
    """Send everything, or all there is time for until Ctrl-C."""
    host, port = url.removeprefix("http://").split(":")
    findings, todo, ended = Findings(), iter(enumerate(cases(seed, count))), threading.Event()
    second.others = lambda: list(findings.under_way.values())
    bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console)

    def client() -> None:
        with httpx.Client(base_url=url, timeout=TIMEOUT, transport=httpx.HTTPTransport(local_address=FUZZ)) as http:
            while not ended.is_set():
                with findings.lock:
                    number, make = next(todo, (None, None))
                if number is None or make is None:
                    return
                case = make()
                findings.under_way[number] = f"{number} {case.kind}"
                if case.manner == "whole":
                    ask(http, number, case, findings)
                else:
                    leave((host, int(port)), number, case, findings)
                del findings.under_way[number]
                bar.advance(task)

    with bar:
        task = bar.add_task("requests", total=count)
        threads = [threading.Thread(target=client, daemon=True) for _ in range(clients)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except KeyboardInterrupt:
            ended.set()
            for thread in threads:
                thread.join()
    return findings


def memory(pid: int) -> dict[str, int]:
    """MiB of a process: now, and the most it had; empty where the system does not tell."""
    with suppress(OSError):
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return {name: int(lines[field].split()[0]) >> 10 for name, field in (("now", "VmRSS"), ("most", "VmHWM"))}
    return {}


def report(findings: Findings, second: Second, process: "subprocess.Popen[str]", log: Path, seconds: float) -> dict[str, Any]:
    waits = {name: {"asked": len(result), "longest": round(max(result), 3), "p99": round(sorted(result)[int(len(result) * 0.99)], 3)}
             for name, result in second.waits.items() if result}  # fmt: skip
    said = log.read_text("utf-8", "replace")
    total: Counter[str] = sum(findings.statuses.values(), Counter())
    return {
        "requests": total.total(), "seconds": round(seconds, 1), "statuses": dict(total.most_common()),
        "kinds": {kind: dict(result.most_common()) for kind, result in sorted(findings.statuses.items())},
        "5xx": findings.servers, "unanswered": findings.unanswered, "broken": findings.broken, "said_stop": findings.stops,
        "second_client": {"alone": round(second.alone, 3), **waits, "wrong": second.wrong[:20], "slow": second.slow},
        "slowest": findings.slowest, "memory_mib": memory(process.pid), "ended": process.poll(),
        "load": os.getloadavg(), "log": sorted({line[:200] for line in said.splitlines()})[:20],
        "log_lines": said.count("\n"), "tracebacks": said.count("Traceback"),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=8, help="requests under way at a time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where all that was found goes; unset: only a summary is shown")
    parser.add_argument("--serve", default="--model nano", help="options of the server that is started")
    given = parser.parse_args()
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        with served(given.serve.split(), log) as (process, url):
            second, began = Second(url), time.monotonic()
            findings = run(url, second, given.seed, given.requests, given.clients, console)
            left = second.stop() if process.poll() is None else 0
            result = report(findings, second, process, log, time.monotonic() - began)
            if result["tracebacks"] or result["ended"] is not None:
                console.print(log.read_text("utf-8", "replace")[-5000:], markup=False)
    result["left_over"] = left
    if given.json is not None:
        given.json.write_text(json.dumps(result, indent=1))
    for name in ("5xx", "unanswered", "broken"):
        result[name] = len(result[name])
    Console().print_json(json.dumps(result))
    wait = max(result["second_client"].get(name, {}).get("longest", 0) for name in ("health", "chat"))
    bad = [name for name in ("5xx", "unanswered", "broken", "tracebacks", "left_over") if result[name]]
    bad += ["second client"] if result["second_client"]["wrong"] or wait > WAIT else []
    bad += ["the server ended"] if result["ended"] is not None else []
    sys.exit(f"wrong: {', '.join(bad)}" if bad else 0)


if __name__ == "__main__":
    main()
