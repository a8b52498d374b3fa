"""Keys and values of prompts' beginnings, so that what several prompts begin with is encoded once.

A block is a fixed number of tokens; its name is a digest of all tokens up to its end. It has two parts. Going on after one takes
the full layers' part of every block before, and the sliding layers' part of those that the window reaches back to. So parts are
kept and dropped apart: the sliding layers' of a long prompt, which at the 26B's shape are ten times as large, can go where those of
the full layers stay. The least recently used parts go first, before others are copied: the bound holds at every moment.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

import torch

from diffusiongemma.kernels import KeysValues
from diffusiongemma.model.cache import RowCache
from diffusiongemma.model.config import TextConfig

__all__ = ["PrefixCache", "block_bytes", "default_prefix_bytes"]

DEFAULT_TOKENS, DEFAULT_BYTES = 8192, 64 << 20

Part = tuple[bytes, bool]
"""A block's name, and whether the part is that of the sliding layers."""


def block_bytes(config: TextConfig, tokens: int, dtype: torch.dtype, *, sliding: bool) -> int:
    """Memory of one part of a block."""
    layers = [layer for layer in config.layers if layer.is_sliding is sliding]
    return sum(2 * tokens * layer.num_key_value_heads * layer.head_dim for layer in layers) * dtype.itemsize


def default_prefix_bytes(config: TextConfig, dtype: torch.dtype, block: int, kv_bytes: int) -> int:
    """Memory for a prefix cache where nobody says: ``DEFAULT_TOKENS`` of the model, but no more than a quarter of what all rows'
    caches may take; at least ``DEFAULT_BYTES``, and a block."""
    size = sum(block_bytes(config, block, dtype, sliding=sliding) for sliding in (False, True))
    return max(DEFAULT_BYTES, size, min(size * DEFAULT_TOKENS // block, kv_bytes // 4))


class PrefixCache:
    """Blocks of encoded tokens within a bound of memory.

    Args:
        config: layers and window.
        dtype: of keys and values.
        block: tokens of a block. A prompt is encoded in passes of as many, so that a block has the same bits whether it was
            computed or found.
        max_bytes: of all blocks together; 0 keeps none.

    Attributes:
        bytes: of all blocks now.
        reused: tokens that were found.
    """

    def __init__(self, config: TextConfig, dtype: torch.dtype, block: int, max_bytes: int) -> None:
        self._block, self._max_bytes = block, max_bytes
        self._reach = config.sliding_window - 1 if any(layer.is_sliding for layer in config.layers) else 0
        self._sizes = {False: block_bytes(config, block, dtype, sliding=False), True: 0}
        if self._reach:
            self._sizes[True] = block_bytes(config, block, dtype, sliding=True)
        self._parts: OrderedDict[Part, list[KeysValues]] = OrderedDict()
        self.bytes = 0
        self.reused = 0

    def names(self, prompt: Sequence[int]) -> list[bytes]:
        """The names of a prompt's whole blocks; none where nothing is kept."""
        names, name = [], b""
        for end in range(self._block, len(prompt) + 1 if self._max_bytes else 0, self._block):
            name = hashlib.blake2b(name + array("q", prompt[end - self._block : end]).tobytes(), digest_size=16).digest()
            names.append(name)
        return names

    def load(self, names: Sequence[bytes], cache: RowCache, most: int) -> int:
        """Put the longest beginning of a prompt that is here into an empty cache; returns its tokens.

        Args:
            names: of the prompt's blocks.
            cache: an empty row.
            most: tokens. The last of a prompt is always left: what follows it is predicted by its hidden state, which is not kept.
        """
        names = names[: most // self._block]
        there = next((count for count, name in enumerate(names) if (name, False) not in self._parts), len(names))
        while there and not all((name, True) in self._parts for name in self._seen(names[:there])):
            there -= 1
        if not there:
            return 0
        result = names[:there]
        full, sliding = ([self._parts[name, part] for name in used] for part, used in ((False, result), (True, self._seen(result))))
        cache.restore(there * self._block, full, sliding)
        self._touch(result)
        self.reused += there * self._block
        return there * self._block

    def store(self, names: Sequence[bytes], cache: RowCache) -> None:
        """Keep the block that has just been encoded, if one ends where the row stands and there is room beside those before it."""
        count, rest = divmod(cache.length, self._block)
        if rest or not 0 < count <= len(names):
            return
        mine = names[:count]
        if any((name, False) not in self._parts for name in mine[:-1]):
            return
        missing = [sliding for sliding in (False, True) if self._sizes[sliding] and (mine[-1], sliding) not in self._parts]
        # Both parts or none: one without the other would cost the place that is there to go on from.
        if missing and self._made_room(sum(self._sizes[sliding] for sliding in missing), mine):
            for sliding in missing:
                self._parts[mine[-1], sliding] = cache.read(cache.length - self._block, cache.length, sliding=sliding)
                self.bytes += self._sizes[sliding]
        self._touch(mine)

    def _seen(self, names: Sequence[bytes]) -> Sequence[bytes]:
        """The last of some blocks: those whose tokens the next token sees in sliding layers."""
        return names[max(0, len(names) * self._block - self._reach) // self._block :] if self._reach else ()

    def _touch(self, names: Sequence[bytes]) -> None:
        # A block is of no use without those before it: they go last. What the window does not reach goes first.
        seen = set(self._seen(names))
        for name in reversed(names):
            for part in ((name, True), (name, False)):
                if part in self._parts and (name in seen or not part[1]):
                    self._parts.move_to_end(part)

    def _made_room(self, size: int, mine: Sequence[bytes]) -> bool:
        """Drop what it takes: the least recently used parts of other prompts, then of this one what the window does not reach."""
        own, needed = set(mine), set(self._seen(mine))
        others = [part for part in self._parts if part[0] not in own]
        behind = [(name, True) for name in mine if name not in needed and (name, True) in self._parts]
        victims, freed = [], 0
        for part in [*others, *behind]:
            if self.bytes - freed + size <= self._max_bytes:
                break
            victims.append(part)
            freed += self._sizes[part[1]]
        if self.bytes - freed + size > self._max_bytes:
            return False
        for part in victims:
            self._drop(part)
        return True

    def _drop(self, part: Part) -> None:
        for gone in (part, (part[0], True)):
            if self._parts.pop(gone, None) is not None:
                self.bytes -= self._sizes[gone[1]]
