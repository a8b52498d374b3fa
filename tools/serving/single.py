"""What the server costs one caller: `overhead` against the library, `restart` after kill -9. Each starts a server of its own.

python tools/serving/single.py overhead --model nano --repeat 40
python tools/serving/single.py restart --repeat 5
"""

import argparse
import json
import signal
import socket
import statistics
import subprocess
import sys
import time
from typing import Any

import httpx

from diffusiongemma import DiffusionGemmaModel
from diffusiongemma.tasks.json_extract import JsonExtract


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve(model: str, port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "diffusiongemma", "serve", "--model", model, "--port", str(port)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def ask(client: httpx.Client, prompt: str, seed: int) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": prompt}], "seed": seed}
    response = client.post("/v1/chat/completions", json=body)
    response.raise_for_status()
    result: dict[str, Any] = response.json()
    return result


def wait_for(client: httpx.Client, until: float = 120.0) -> None:
    """Until a whole answer has come."""
    end = time.perf_counter() + until
    while True:
        try:
            ask(client, "hello", 1)
            return
        except httpx.TransportError:
            if time.perf_counter() > end:
                raise
            time.sleep(0.02)


def overhead(options: argparse.Namespace) -> dict[str, Any]:
    """The same requests by turns through the library and through the server, in two processes."""
    port = free_port()
    server = serve(options.model, port)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            wait_for(client)
            model = DiffusionGemmaModel.from_pretrained(options.model)
            prompts = [example.prompt for example in JsonExtract().examples(options.repeat, 5)]
            ours: list[float] = []
            theirs: list[float] = []
            for seed, prompt in enumerate([prompts[0], *prompts]):
                began = time.perf_counter()
                result = model.generate(prompt, seed=seed)
                between = time.perf_counter()
                reply = ask(client, prompt, seed)
                ended = time.perf_counter()
                assert reply["choices"][0]["message"]["content"] == result.text, "library and server disagree"
                ours.append(between - began)
                theirs.append(ended - between)
    finally:
        server.kill()
        server.wait()
    pairs = [server / library - 1 for library, server in zip(ours[1:], theirs[1:], strict=True)]
    return {
        "requests": len(pairs),
        "library_ms_median": 1000 * statistics.median(ours[1:]),
        "server_ms_median": 1000 * statistics.median(theirs[1:]),
        "overhead_median_of_pairs": statistics.median(pairs),
        "overhead_of_sums": sum(theirs[1:]) / sum(ours[1:]) - 1,
    }


def restart(options: argparse.Namespace) -> dict[str, Any]:
    """kill -9 and start again on the same port: seconds until the first whole answer."""
    port, result = free_port(), []
    server = serve(options.model, port)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            wait_for(client)
            for _ in range(options.repeat):
                server.send_signal(signal.SIGKILL)
                server.wait()
                began = time.perf_counter()
                server = serve(options.model, port)
                wait_for(client)
                result.append(time.perf_counter() - began)
    finally:
        server.kill()
        server.wait()
    return {"seconds": result, "median": statistics.median(result), "worst": max(result)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["overhead", "restart"])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--repeat", type=int, default=40)
    options = parser.parse_args()
    print(json.dumps((overhead if options.what == "overhead" else restart)(options), indent=2))


if __name__ == "__main__":
    main()
