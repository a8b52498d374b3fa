"""A model with its engine, as the handlers use it."""

import threading
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread

from diffusiongemma.engine.threaded import ThreadedEngine
from diffusiongemma.errors import OverloadedError
from diffusiongemma.generation import AnyMode, DiffusionGemmaModel
from diffusiongemma.model.cache import KVCache

__all__ = ["ModelEndpoint", "Places", "public_name"]

T = TypeVar("T")
MAX_REWRITES = 16
"""Infills, edits and decisions of a model at a time."""
_CHATS = 4
"""Answers of unsaid length for each row of the engine that a client may wait for at a time."""
_COMPILING = 32
"""Threads for requests with a grammar. Most of those that wait there wait for large ones, of which few are compiled at once."""


def public_name(name: str) -> str:
    """What clients call a model: a built-in name or hub id as it is, of a folder only the last part."""
    path = Path(name).expanduser()
    return path.resolve().name if path.is_dir() else name


class Places:
    """Who may work in a thread of its own: so many at a time, of one client three quarters of them, so that others find one.

    Used from the event loop alone.

    Args:
        most: at a time.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._taken: Counter[str | None] = Counter()

    @property
    def taken(self) -> int:
        """How many work."""
        return self._taken.total()

    def take(self, client: str | None) -> None:
        """Take a place.

        Raises:
            OverloadedError: there is none left, or none for this client.
        """
        own, allowed = self._taken[client], max(1, self.most * 3 // 4)
        if self.taken >= self.most or (client is not None and own >= allowed):
            raise OverloadedError(
                f"{self.taken} rewrites and decisions run already, of at most {self.most}, {own} of this client, of at most "
                f"{allowed}; come back later",
                1.0,
            )
        self._taken[client] += 1

    def give_back(self, client: str | None) -> None:
        """Give it back."""
        self._taken[client] -= 1
        if not self._taken[client]:
            del self._taken[client]


class ModelEndpoint:
    """A model that is served.

    Args:
        name: what clients call it.
        model: for templates, tokens, grammars; it runs only through the engine.
        engine: of this model.
        rewrites: infills, edits and decisions at a time; each has a thread.
        mode: of chats and completions that name none.
    """

    def __init__(
        self,
        name: str,
        model: DiffusionGemmaModel,
        engine: ThreadedEngine,
        rewrites: int = MAX_REWRITES,
        mode: AnyMode = "diffusion",
    ) -> None:
        self.name = name
        self.mode: AnyMode = mode
        self.model = model
        self.engine = engine
        self.created = int(time.time())
        self.rewriting = Places(rewrites)
        self._preparing = anyio.CapacityLimiter(4)
        self._compiling = anyio.CapacityLimiter(_COMPILING)
        self._texts: dict[int, str] = {}

    async def prepare(self, work: Callable[..., T], *args: Any, **options: Any) -> T:
        """Run what needs no model pass, such as reading a long prompt, beside the event loop."""
        return await anyio.to_thread.run_sync(partial(work, *args, **options), limiter=self._preparing)

    async def compile(self, work: Callable[..., T], *args: Any) -> T:
        """The same where a grammar is compiled; the work gets ``gone``, which tells it that this call was cancelled, or the engine
        stopped.

        A large grammar takes seconds; who asks for plain text, or with a small one, does not wait for it.
        """
        left = threading.Event()

        def gone() -> bool:
            return left.is_set() or self.engine.draining

        try:
            return await anyio.to_thread.run_sync(partial(work, *args, gone=gone), limiter=self._compiling)
        finally:
            left.set()

    def token_text(self, token: int) -> str:
        """Text of a token alone, for drawing."""
        if token not in self._texts:
            self._texts[token] = self.model.tokenizer.token_text(token)
        return self._texts[token]

    def plain(self, text: str) -> list[int]:
        """Tokens of a text that is to be gone on with as it is, outside any conversation.

        Raises:
            InputError: the tokenizer cannot represent it.
        """
        bos = self.model.config.text.bos_token_id
        return [*([] if bos is None else [bos]), *self.model.tokenizer.encode(text, allow_special=False)]

    def room(self, prompt: int, canvas: int, steps: int) -> int:
        """Tokens that an answer may have where nobody says how many: what the model's positions leave.

        Within a row's share of the memory for caches, and of the steps that a client may ask for, so that one long answer keeps
        nobody waiting; but the checkpoint's own ``max_tokens`` are there in any case.

        Args:
            prompt: its tokens.
            canvas: tokens of a canvas.
            steps: of a canvas.
        """
        stats, config = self.engine.stats, self.model.config.text
        most, usual = config.max_position_embeddings - prompt, -(-self.model.defaults.max_tokens // canvas) * canvas
        wanted = most
        if stats.max_rows:
            share = stats.max_kv_bytes // stats.max_rows
            slots = bisect_right(
                range(1, config.max_position_embeddings + 1),
                share,
                key=lambda n: KVCache.bytes_of(config, n, self.model.transformer.cache_dtype),
            )
            wanted = min(slots - prompt, canvas * (stats.client_steps // (_CHATS * stats.max_rows) // steps))
        return max(min(most, max(wanted, usual)) // canvas * canvas, 1)

    def entry(self) -> dict[str, Any]:
        """The model's entry of ``/v1/models``."""
        text, defaults, template = self.model.config.text, self.model.defaults, self.model.tokenizer.template
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "diffusiongemma",
            "diffusiongemma": {
                "mode": self.mode,
                "canvas_length": self.model.config.canvas_length,
                "max_positions": text.max_position_embeddings,
                "vocab_size": text.vocab_size,
                "chat": template is not None,
                "template_options": sorted(template.options) if template is not None else [],
                "defaults": {name: list(v) if isinstance(v, tuple) else v for name, v in vars(defaults).items()},
            },
        }
