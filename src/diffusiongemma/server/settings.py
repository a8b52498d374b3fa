"""What whoever starts the server may choose."""

from dataclasses import dataclass

__all__ = ["Settings"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Limits and the key; the defaults suit one machine.

    Attributes:
        api_key: asked of every request but those for the page, its parts, ``/docs``, ``/openapi.json``, ``/health``; None: none.
        hosts: names that a Host header may carry; None: any. Without a key it keeps out a web page whose own name was made to
            point at this machine.
        origins: origins whose web pages may use the server; ``"*"``: any.
        log_requests: whether each request gets a line of the log.
        strict: whether fields of a request that mean nothing here are refused, instead of reported.
        max_body_bytes: of a request.
        head_seconds: that a request's head may take to come.
        body_seconds: that a body may take to come.
        write_seconds: after which a client that takes nothing of its answer is cut off.
        max_connections: at a time; for a new one the oldest that waits for its client is closed.
        max_constraint_bytes: of a schema, regex, list of choices, grammar, or all tools together.
        max_choices: answers one request may ask for (``n`` times its prompts).
        max_requests: requests that are worked on or wait; more are told to come back.
        drain_seconds: that requests under way are given to end after the first signal.
    """

    api_key: str | None = None
    hosts: frozenset[str] | None = None
    origins: tuple[str, ...] = ()
    log_requests: bool = False
    strict: bool = False
    max_body_bytes: int = 1 << 20
    head_seconds: float = 10.0
    body_seconds: float = 30.0
    write_seconds: float = 30.0
    max_connections: int = 512
    max_constraint_bytes: int = 1 << 15
    max_choices: int = 16
    max_requests: int = 256
    drain_seconds: float = 30.0
