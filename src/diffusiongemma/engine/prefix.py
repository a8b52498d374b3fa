"""Keys and values of prompts' beginnings, so that what several prompts begin with is encoded once.

A block is a fixed number of tokens; its name is a digest of all tokens up to its end. The least recently used blocks go first.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from torch import Tensor

from diffusiongemma.model.cache import KVCache

__all__ = ["PrefixCache"]

Block = list[tuple[Tensor, Tensor]]


class PrefixCache:
    """Blocks of encoded tokens within a bound of memory.

    Args:
        block: tokens of a block. A prompt is encoded in passes of as many, so that a block has the same bits whether it was
            computed or found.
        max_bytes: of all blocks together; 0 keeps none.
    """

    def __init__(self, block: int, max_bytes: int) -> None:
        self._block, self._max_bytes = block, max_bytes
        self._blocks: OrderedDict[bytes, Block] = OrderedDict()
        self.bytes = 0
        self.reused = 0

    def load(self, prompt: Sequence[int], cache: KVCache) -> int:
        """Put the blocks a prompt begins with into an empty cache; returns their tokens.

        The last token is always left: what follows it is foretold by its hidden state, which is not kept.
        """
        found = []
        for name in self._names(prompt[:-1]):
            if name not in self._blocks:
                break
            found.append(name)
        for name in found:
            cache.write(self._blocks[name])
        self._touch(found)
        self.reused += len(found) * self._block
        return len(found) * self._block

    def store(self, prompt: Sequence[int], cache: KVCache) -> None:
        """Keep the whole blocks of a prompt that has been encoded."""
        if not self._max_bytes:
            return
        names = list(self._names(prompt))
        for place, name in enumerate(names):
            if name not in self._blocks:
                block = cache.read(place * self._block, (place + 1) * self._block)
                self._blocks[name] = block
                self.bytes += _bytes(block)
        self._touch(names)
        while self.bytes > self._max_bytes:
            self.bytes -= _bytes(self._blocks.popitem(last=False)[1])

    def _names(self, tokens: Sequence[int]) -> Iterator[bytes]:
        name = b""
        for start in range(0, len(tokens) - self._block + 1, self._block):
            here = array("q", tokens[start : start + self._block])
            name = hashlib.blake2b(name + here.tobytes(), digest_size=16).digest()
            yield name

    def _touch(self, names: Sequence[bytes]) -> None:
        # A block is of no use without those before it: they go last.
        for name in reversed(names):
            self._blocks.move_to_end(name)


def _bytes(block: Block) -> int:
    return sum(k.numel() * k.element_size() + v.numel() * v.element_size() for k, v in block)
