"""Load on a running `diffusiongemma serve`, by locust: a soak, and the curve of throughput against concurrency.

    python tools/serving/load.py soak  --host http://127.0.0.1:8000 --clients 64 --minutes 10 --json soak.json
    python tools/serving/load.py curve --host http://127.0.0.1:8000 --seconds 20 --json curve.json --plot curve.png

soak: streaming clients, one after another request each. First every request of the pool is asked alone; in the soak each reply
must be the same text. A tenth of the clients vanish in the middle of a stream, a tenth send something malformed, which must be
answered with 400. The memory of the server's process is read from /metrics.
curve: clients that send their next request when the last is answered, for each concurrency and for both roles of the weights.
"""

# ruff: noqa: E402
from gevent import monkey

monkey.patch_all()

import argparse
import json
import random
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import gevent
import requests
from locust import HttpUser, constant
from locust.env import Environment

from diffusiongemma.tasks.json_extract import JsonExtract

MALFORMED: list[dict[str, Any] | bytes] = [
    b"{",
    b'{"messages": "\xff"}',
    {"messages": []},
    {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 0},
    {"messages": [{"role": "user", "content": "hello"}], "max_token": 1},
    {"messages": [{"role": "user", "content": "hello"}], "seed": "one"},
    {"messages": [{"role": "user", "content": "word " * 100_000}]},
    {"messages": [{"role": "user", "content": "hello"}], "regex": "("},
]
CHAT = "/v1/chat/completions"


def pool(count: int, mode: str = "diffusion") -> list[dict[str, Any]]:
    """Requests of different lengths, options and seeds."""
    result = []
    for index, example in enumerate(JsonExtract().examples(count, 5)):
        body: dict[str, Any] = {"messages": [{"role": "user", "content": example.prompt}], "seed": index, "stream": True}
        body |= {"max_tokens": 64 if index % 3 else 128, "mode": mode, "stream_options": {"include_usage": True}}
        if mode == "diffusion" and index % 4 == 0:
            body |= {"response_format": {"type": "json_object"}}
        if mode == "diffusion" and index % 4 == 1:
            body |= {"diffusing": True}
        result.append(body)
    return result


def lines(response: Any) -> Any:
    """The data of each event that is a chunk of the answer."""
    name = ""
    for raw in response.iter_lines():
        line = raw.decode()
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: ") and line != "data: [DONE]":
            data = json.loads(line[6:])
            if "error" in data:
                raise RuntimeError(data["error"]["message"])
            if not name:
                yield data
        elif not line:
            name = ""


class Reply:
    """One streamed answer and when its parts came."""

    def __init__(self, response: Any, began: float, leave_after: int | None = None) -> None:
        self.text, self.first, self.tokens, self.left = "", None, 0, False
        for number, data in enumerate(lines(response)):
            for choice in data["choices"]:
                if piece := choice["delta"].get("content"):
                    self.first = self.first or time.perf_counter() - began
                    self.text += piece
            if data.get("usage"):
                self.tokens = data["usage"]["completion_tokens"]
            if leave_after is not None and number >= leave_after:
                self.left = True
                response.close()
                break
        self.seconds = time.perf_counter() - began


def memory(host: str) -> float:
    """Resident memory of the server's process, MiB."""
    text = requests.get(f"{host}/metrics", timeout=60).text
    return float(next(line.split()[1] for line in text.splitlines() if line.startswith("process_resident_memory_bytes"))) / 2**20


def alone(host: str, body: dict[str, Any]) -> str:
    with requests.post(host + CHAT, json=body, stream=True, timeout=120) as response:
        response.raise_for_status()
        return Reply(response, time.perf_counter()).text


def run(host: str, user: type[HttpUser], clients: int, seconds: float, each_second: Any = None) -> None:
    """Let users of one kind work for a time."""
    user.host = host
    environment = Environment(user_classes=[user])
    runner = environment.create_local_runner()
    runner.start(clients, spawn_rate=max(1, clients))
    until = time.time() + seconds
    while time.time() < until:
        gevent.sleep(1)
        if each_second is not None:
            each_second()
    runner.stop()
    runner.quit()


def soak(options: argparse.Namespace) -> dict[str, Any]:
    bodies = pool(options.pool)
    expected = [alone(options.host, body) for body in bodies]
    assert [alone(options.host, body) for body in bodies] == expected, "the same request alone gave two answers"
    print(f"{len(bodies)} requests asked alone, twice; {len(set(expected))} different replies", flush=True)
    counts: Counter[str] = Counter()
    statuses: Counter[int] = Counter()
    memories: list[float] = []
    chance = random.Random(0)

    class Client(HttpUser):
        wait_time = constant(0)

        def on_start(self) -> None:
            self.client.timeout = 300

        def task(self) -> None:
            kind = chance.random()
            if kind < 0.1:
                body = chance.choice(MALFORMED)
                given = {"data": body} if isinstance(body, bytes) else {"json": body}
                response = requests.post(self.host + CHAT, headers={"Content-Type": "application/json"}, timeout=300, **given)
                statuses[response.status_code] += 1
                counts["malformed, refused" if response.status_code == 400 else f"malformed, answered {response.status_code}"] += 1
                return
            index = chance.randrange(len(bodies))
            leave = chance.randrange(3) if kind < 0.2 else None
            began = time.perf_counter()
            try:
                with requests.post(self.host + CHAT, json=bodies[index], stream=True, timeout=300) as response:
                    statuses[response.status_code] += 1
                    if response.status_code == 429:
                        counts["told to wait"] += 1
                        gevent.sleep(float(response.headers["Retry-After"]))
                        return
                    reply = Reply(response, began, leave)
            except Exception as error:
                counts[f"broken: {type(error).__name__}: {error}"[:200]] += 1
                return
            if reply.left:
                counts["vanished"] += 1
            else:
                counts["the same as alone" if reply.text == expected[index] else "NOT the same as alone"] += 1

        tasks = [task]

    def look() -> None:
        if not options.seconds_between or len(memories) <= (time.time() - began) / options.seconds_between:
            memories.append(memory(options.host))
            print(f"{time.time() - began:5.0f} s  {memories[-1]:7.1f} MiB  {dict(counts)}", flush=True)

    began = time.time()
    run(options.host, Client, options.clients, 60 * options.minutes, look)
    gevent.sleep(3)
    memories.append(memory(options.host))
    return {
        "clients": options.clients,
        "minutes": options.minutes,
        "counts": dict(counts),
        "statuses": dict(statuses),
        "memory_mib": [round(one, 1) for one in memories],
        "health_after": requests.get(f"{options.host}/health", timeout=60).json(),
    }


def quantile(values: list[float], share: float) -> float:
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


def curve(options: argparse.Namespace) -> dict[str, Any]:
    points = []
    for clients in options.concurrency:
        for mode in ("diffusion", "causal"):
            bodies = [body | {"response_format": {"type": "text"}} for body in pool(options.pool, mode)]
            for body in bodies:
                body.pop("diffusing", None)
                body["max_tokens"] = 128
            replies: list[Reply] = []
            chance = random.Random(clients)

            class Client(HttpUser):
                wait_time = constant(0)

                def task(self, bodies: Any = bodies, replies: Any = replies, chance: Any = chance) -> None:
                    began = time.perf_counter()
                    with requests.post(self.host + CHAT, json=chance.choice(bodies), stream=True, timeout=300) as response:
                        response.raise_for_status()
                        replies.append(Reply(response, began))

                tasks = [task]

            began = time.perf_counter()
            run(options.host, Client, clients, options.seconds)
            took = time.perf_counter() - began
            firsts, wholes = [r.first for r in replies if r.first is not None], [r.seconds for r in replies]
            points.append(
                {
                    "concurrency": clients,
                    "mode": mode,
                    "requests": len(replies),
                    "tokens_per_second": sum(r.tokens for r in replies) / took,
                    "requests_per_second": len(replies) / took,
                    "first_text_p50": statistics.median(firsts),
                    "first_text_p99": quantile(firsts, 0.99),
                    "whole_p50": statistics.median(wholes),
                    "whole_p99": quantile(wholes, 0.99),
                }
            )
            print(json.dumps(points[-1]), flush=True)
    if options.plot:
        plot(points, options.plot)
    return {"points": points}


def plot(points: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4))
    for mode in ("diffusion", "causal"):
        mine = [point for point in points if point["mode"] == mode]
        xs = [point["concurrency"] for point in mine]
        axes[0].plot(xs, [point["tokens_per_second"] for point in mine], "o-", label=mode)
        for name, style in (("whole_p50", "o-"), ("whole_p99", "o--")):
            axes[1].plot(xs, [point[name] for point in mine], style, label=f"{mode}, whole reply {name[-3:]}")
    for axis, title in zip(axes, ("tokens a second", "seconds"), strict=True):
        axis.set(xlabel="clients at a time", ylabel=title, xscale="log")
        axis.set_xticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(required=True)
    for name, work in (("soak", soak), ("curve", curve)):
        kind = kinds.add_parser(name)
        kind.set_defaults(work=work)
        kind.add_argument("--host", default="http://127.0.0.1:8000", help="a server on this machine")
        kind.add_argument("--pool", type=int, default=40, help="different requests")
        kind.add_argument("--json", type=Path, help="where the numbers go")
    kinds.choices["soak"].add_argument("--clients", type=int, default=64)
    kinds.choices["soak"].add_argument("--minutes", type=float, default=10)
    kinds.choices["soak"].add_argument("--seconds-between", type=float, default=20, help="between looks at the memory")
    kinds.choices["curve"].add_argument("--concurrency", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    kinds.choices["curve"].add_argument("--seconds", type=float, default=20, help="for each point")
    kinds.choices["curve"].add_argument("--plot", type=Path)
    options = parser.parse_args()
    result = options.work(options)
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
