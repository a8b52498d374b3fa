"""``diffusiongemma serve``."""

import gc
import ipaddress
import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffusiongemma.cli import common
from diffusiongemma.cli.command import command
from diffusiongemma.errors import OptionError
from diffusiongemma.server.settings import Settings

if TYPE_CHECKING:
    from diffusiongemma.server.endpoint import ModelEndpoint

__all__ = ["serve"]

_DEFAULT = ("nano", "sudoku")
_SHORTEST_KEY = 16
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s?#]+")
_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})


@command(but=("seed", "stop"))
def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="Built-in names, checkpoint folders, or hub ids; the first is the default. None: nano and sudoku.",
        ),
    ] = None,
    *,
    model: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="The same as an option; may be given several times.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on. Others than loopback need --api-key-file.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8000,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File with the key that clients send as Authorization: Bearer KEY; at least 16 characters.")
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host",
            help="A name that requests may come by (their Host header) without a key, beside localhost and --host; may be given "
            "several times.",
        ),
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(
            "--cors",
            metavar="ORIGIN",
            help="An origin whose web pages may use this server (https://example.org; '*': any); may be given several times.",
        ),
    ] = None,
    log_requests: Annotated[
        bool, typer.Option("--log-requests", help="A line for each request: client, method, path, status, seconds.")
    ] = False,
    max_batch: Annotated[int, typer.Option(min=1, max=4096, help="Answers that a model writes at the same time.")] = 8,
    max_waiting: Annotated[int, typer.Option(min=0, max=65536, help="Answers that may wait; more get 429 and Retry-After.")] = 64,
    client_rows: Annotated[
        int | None,
        typer.Option(min=1, help="Answers of one client (an address) that may run or wait; unset: as many as --max-waiting."),
    ] = None,
    client_steps: Annotated[
        int, typer.Option(min=1, help="Denoising steps that the requests of one client may take together, of each model.")
    ] = 1 << 19,
    max_connections: Annotated[int, typer.Option(min=1, help="Connections at a time, idle ones too.")] = 512,
    drain_seconds: Annotated[
        float, typer.Option(min=0, help="Seconds for what is under way to end after the first signal; then it is cut off.")
    ] = 30.0,
    max_body_bytes: Annotated[int, typer.Option(min=1024, help="Most bytes of a request.")] = 1 << 20,
    max_constraint_bytes: Annotated[
        int, typer.Option(min=64, help="Most bytes of a schema, regex, list of choices, grammar or list of tools.")
    ] = 1 << 15,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse requests with fields that mean nothing here, instead of reporting them.")
    ] = False,
    kv_mib: Annotated[
        int | None,
        typer.Option(min=1, help="Most MiB for keys and values, of all models together; unset: a quarter of the memory."),
    ] = None,
    prefix_mib: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="MiB a model keeps of what prompts begin with; 0: nothing; unset: 8,192 tokens (of the 26B in bfloat16 1,760 "
            "MiB), but no more than a quarter of its part of --kv-mib, and at least 64.",
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of a pass; unset: as many as there are cores.")] = None,
    dtype: common.DtypeOption = None,
    device: common.DeviceOption = None,
    quantize: common.QuantizeOption = None,
    mode: Annotated[
        str, typer.Option(help="Of chats and completions that name none: diffusion, causal, exact, or auto: the faster.")
    ] = "diffusion",
    sampling: dict[str, Any],
) -> None:
    """Serve models with OpenAI's API, and a page to talk to them (docs/api.md).

    The first SIGTERM or Ctrl-C finishes what is under way, within --drain-seconds; the second stops at once.
    """
    from diffusiongemma.engine.scheduler import default_kv_bytes
    from diffusiongemma.engine.threaded import ThreadedEngine
    from diffusiongemma.server.endpoint import ModelEndpoint, public_name

    key = None if api_key_file is None else _key(api_key_file)
    if key is None and not _is_loopback(host):
        raise OptionError(
            f"--host is {host}, which others can reach; give --api-key-file with a key that they must know, or --host 127.0.0.1"
        )
    settings = Settings(
        api_key=key,
        hosts=None if key is not None else _LOCAL | {host.lower()} | {name.lower() for name in allow_host or ()},
        origins=tuple(_origin(one) for one in cors or ()),
        log_requests=log_requests,
        strict=strict,
        max_body_bytes=max_body_bytes,
        max_constraint_bytes=max_constraint_bytes,
        max_choices=min(16, max_batch + max_waiting, client_rows or max(max_batch, max_waiting)),
        max_connections=max_connections,
        drain_seconds=drain_seconds,
        max_requests=4 * (max_batch + max_waiting),
    )
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    endpoints: dict[str, ModelEndpoint] = {}
    try:
        names = [*(models or ()), *(model or ())] or _DEFAULT
        for name in names:
            loaded = common.load(name, dtype, device, quantize)
            loaded.defaults = loaded.defaults.replaced(**sampling)  # what requests do not give
            # All models that are served share what one alone would take.
            memory = (default_kv_bytes(loaded.device) if kv_mib is None else kv_mib << 20) // len(names)
            engine = ThreadedEngine(
                loaded.transformer, loaded.tokenizer,
                max_batch=max_batch, max_waiting=max_waiting, kv_bytes=memory,
                prefix_bytes=None if prefix_mib is None else prefix_mib << 20,
                client_rows=client_rows, client_steps=client_steps,
            )  # fmt: skip
            endpoint = ModelEndpoint(public_name(name), loaded, engine, mode=mode)  # type: ignore[arg-type]
            if endpoint.name in endpoints:
                endpoint.engine.stop()
                raise OptionError(f"two models have the name {endpoint.name!r}; clients could not tell them apart")
            endpoints[endpoint.name] = endpoint
        _run(endpoints, settings, host, port)
    finally:
        for endpoint in endpoints.values():
            endpoint.engine.stop()


def _run(models: "dict[str, ModelEndpoint]", settings: Settings, host: str, port: int) -> None:
    from diffusiongemma.server.app import create_app
    from diffusiongemma.server.run import Server, config
    from diffusiongemma.server.state import State

    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("diffusiongemma.server.requests").setLevel(logging.INFO)
    state = State(models)
    app = create_app(models, settings, state)
    # What is there now stays: the collector need not look at it each time a request has made many objects.
    gc.collect()
    gc.freeze()
    server = Server(config(app, host, port, settings), state, _announce, settings.drain_seconds, lambda sig: os._exit(128 + sig))
    server.run()
    if server.failure is not None:
        common.err.print(f"ended: {server.failure}", markup=False, soft_wrap=True)
        raise typer.Exit(1)


def _announce(url: str) -> None:
    common.out.print(f"serving at {url}  (the page; {url}/v1 for clients; Ctrl-C ends)", soft_wrap=True)


def _origin(text: str) -> str:
    """An origin as browsers spell it."""
    if text != "*" and not _ORIGIN.fullmatch(text):
        raise OptionError(f"--cors is {text!r:.100}; give an origin such as https://example.org or http://localhost:3000, or '*'")
    return text


def _key(path: Path) -> str:
    key = common.read_text(path).strip()
    if len(key) < _SHORTEST_KEY or not key.isascii() or any(char.isspace() for char in key):
        raise OptionError(f"{path} must hold one key of at least {_SHORTEST_KEY} ASCII characters, without spaces")
    return key


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
