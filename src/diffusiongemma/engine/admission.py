"""What an engine that many share takes, and what it refuses with the time to wait."""

from collections.abc import Collection, Sequence
from typing import Protocol

from diffusiongemma.engine.engine import Engine
from diffusiongemma.engine.request import Request, check, max_steps
from diffusiongemma.errors import InputError, OptionError, OverloadedError, PromptTooLongError

__all__ = ["CLIENT_STEPS", "Admission", "Live"]

USUAL_SECONDS = 1.0
"""What a request is taken to last before the first has ended."""
CLIENT_STEPS = 1 << 19
"""Steps a client may ask for at a time, unless told otherwise: 16 default answers of ``nano`` are 3,072, a single one may take
100,000 steps a canvas."""


class Live(Protocol):
    """Requests that were handed in together."""

    client: str | None
    """Who asked."""
    left: int
    """How many of them have not ended."""
    steps: int
    """The most that they take together."""


class Admission:
    """Bounds on what runs and waits.

    Args:
        max_batch: most requests that step at a time.
        max_waiting: most that wait.
        kv_bytes: most memory of all caches together.
        client_rows: most requests of a client that run or wait; None: all but ``max_batch``, which are kept for others.
        client_steps: most steps that the requests of a client may take together.

    Raises:
        OptionError: a bound outside what is allowed.
    """

    def __init__(
        self, max_batch: int, max_waiting: int, kv_bytes: int, client_rows: int | None = None, client_steps: int = CLIENT_STEPS
    ) -> None:
        if min(client_steps, 1 if client_rows is None else client_rows) < 1:
            raise OptionError(f"client_rows is {client_rows} and client_steps {client_steps}; at least 1 of each is needed")
        self.max_batch, self.client_steps = max_batch, client_steps
        self._bound, self._kv_bytes = max_batch + max_waiting, kv_bytes
        self._client_rows = client_rows or max(max_batch, max_waiting)
        self._usual_seconds = USUAL_SECONDS

    def checked(self, engine: Engine, requests: Sequence[Request]) -> int:
        """Refuse what never runs here; returns the steps that the requests take at most together.

        Raises:
            InputError, PromptTooLongError, OptionError: see ``request.check``; more requests, memory or steps than anybody gets.
        """
        client = requests[0].client if requests else None
        most = self._bound if client is None else min(self._bound, self._client_rows)
        if not 1 <= len(requests) <= most:
            raise InputError(f"there are {len(requests)} rows to run; this server takes 1 to {most} at a time")
        for number, request in enumerate(requests):
            slots = check(engine.model, request, number).slots
            needed = engine.cache_bytes(request, slots)
            if needed > self._kv_bytes:
                raise PromptTooLongError(
                    f"prompt and answer are {slots} tokens, whose cache takes {needed >> 20} MiB; this server gives all requests "
                    f"together {self._kv_bytes >> 20} MiB. Shorten the prompt or lower max_tokens"
                )
        steps = sum(max_steps(engine.model, request) for request in requests)
        if client is not None and steps > self.client_steps:
            raise OptionError(
                f"num_diffusion_steps, max_tokens and the number of answers allow {steps:,} steps together; this server gives a "
                f"client {self.client_steps:,}. Lower one of them"
            )
        return steps

    def admit(self, new: Live, live: Collection[Live]) -> None:
        """Refuse what is too much now.

        Args:
            new: requests, checked.
            live: what runs and waits already.

        Raises:
            OverloadedError: with the time to wait.
        """
        there, own = sum(one.left for one in live), [one for one in live if one.client == new.client]
        own_rows, own_steps = sum(one.left for one in own), sum(one.steps for one in own)
        wait = self._usual_seconds * max(1.0, (there - self.max_batch) / self.max_batch)
        said = None
        if there + new.left > self._bound:
            said = f"{there} requests run or wait, of at most {self._bound}"
        elif new.client is not None and own_rows + new.left > self._client_rows:
            said = f"{own_rows} requests of this client run or wait, of at most {self._client_rows}"
        elif new.client is not None and own_steps + new.steps > self.client_steps:
            said = f"requests of this client may take {own_steps:,} steps, of at most {self.client_steps:,}"
        if said is not None:
            raise OverloadedError(f"{said}; try again in {wait:.0f} seconds", retry_after=wait)

    def took(self, seconds: float) -> None:
        """Learn how long requests last."""
        self._usual_seconds += 0.1 * (seconds - self._usual_seconds)
