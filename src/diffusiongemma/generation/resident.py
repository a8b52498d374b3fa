"""How much memory a checkpoint will take, told from its headers, and which of the published files of the 26B fit.

What is counted is the weights once all of them have been used: matrices in a mapped file come into memory as they are read.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from diffusiongemma.errors import CheckpointError
from diffusiongemma.model.config import ModelConfig, TextConfig
from diffusiongemma.model.expected import text_shapes
from diffusiongemma.model.fast import TABLE, rounds_to_int8
from diffusiongemma.quant.fast_int8 import stays_packed
from diffusiongemma.weights.checkpoint import SafetensorsWeights
from diffusiongemma.weights.gguf import GGUFFile
from diffusiongemma.weights.gguf_load import tensors_of
from diffusiongemma.weights.headers import BITS, Stored
from diffusiongemma.weights.load import open_weights
from diffusiongemma.weights.quantise import part_of_module

if TYPE_CHECKING:
    from diffusiongemma.generation.check.layout import Layout

__all__ = ["PUBLISHED", "Published", "Resident", "planned_weights", "resident_bytes", "stored_weights"]


@dataclass(frozen=True)
class Resident:
    """A weight before it is loaded.

    Attributes:
        name: ours.
        shape: of its values.
        nbytes: as it is stored.
        kind: of its packing, or ``plain``.
    """

    name: str
    shape: tuple[int, ...]
    nbytes: int
    kind: str


def stored_weights(path: Path, config: ModelConfig) -> list[Resident]:
    """The weights of a checkpoint that is here, from its headers.

    Raises:
        CheckpointError: there are none, or they are not those of the configuration.
    """
    shapes = text_shapes(config.text)
    if not path.is_file():
        planned = open_weights(path, shapes, config.quantization).weights
        return [Resident(weight.name, weight.shape, weight.nbytes, weight.kind) for weight in planned]
    result = []
    for name, tensors in tensors_of(GGUFFile(path), shapes).items():
        block = max((tensor.block for tensor in tensors), key=lambda block: block.weights)
        kind = "plain" if block.weights == 1 or len(shapes[name]) == 1 else f"gguf-{block.name.lower()}"
        result.append(Resident(name, shapes[name], sum(tensor.nbytes for tensor in tensors), kind))
    return result


def planned_weights(layout: "Layout", config: ModelConfig) -> list[Resident] | None:
    """The same of a checkpoint of which only config.json is here; None where its layout is not known."""
    if layout.tensors is None:
        return None
    stored = {}
    for name, asked in layout.tensors.items():
        dtype = "BF16" if "BF16" in asked.dtypes else min(asked.dtypes)
        nbytes = BITS[dtype] * math.prod(asked.shapes[0]) // 8
        stored[name] = Stored(dtype, asked.shapes[0], nbytes, Path("config.json"), 0)
    try:
        planned = SafetensorsWeights(stored, text_shapes(config.text), config.quantization, Path("config.json"))
    except CheckpointError:
        return None
    return [Resident(weight.name, weight.shape, weight.nbytes, weight.kind) for weight in planned.weights]


def resident_bytes(weights: Iterable[Resident], dtype: torch.dtype, device: str = "cpu", quantize: str | None = None) -> int:
    """Bytes of weights in memory.

    Args:
        weights: of a checkpoint.
        dtype: of the computation.
        device: ``cpu``, or of a GPU.
        quantize: as for ``from_pretrained``.
    """
    weights = list(weights)
    # As they are stored, on a CPU: see ``model.assemble``.
    keeps = device == "cpu" and any(weight.kind != "plain" for weight in weights)
    total = 0
    for weight in weights:
        few = weight.kind != "plain" and weight.name != TABLE and stays_packed(weight.shape, weight.nbytes)
        if quantize == "int8" and rounds_to_int8(weight.name) and not few:
            total += math.prod(weight.shape) + 4 * math.prod(weight.shape[:-1])
        elif weight.kind != "plain" or (keeps and len(weight.shape) > 1):
            total += weight.nbytes
        else:
            total += math.prod(weight.shape) * dtype.itemsize
    return total


@dataclass(frozen=True)
class Published:
    """A file of the 26B that can be had.

    Attributes:
        name: of its repository, or of its file there.
        nbytes: of the files.
        bytes_of: bytes of a weight of the parts that are quantised; others have 2. None: all of the file is mapped.
    """

    name: str
    nbytes: float
    bytes_of: Mapping[str, float] | None

    def resident(self, text: TextConfig) -> int:
        """Bytes of its weights in memory, bfloat16 computed with; without vision."""
        if self.bytes_of is None:
            return int(self.nbytes)
        total = 0.0
        for name, shape in text_shapes(text).items():
            total += math.prod(shape) * self.bytes_of.get(part_of_module(name), 2.0)
        return int(total)


def _each(parts: Sequence[str], size: float) -> dict[str, float]:
    return dict.fromkeys(parts, size)


_ALL = ("attention", "mlp", "experts")
PUBLISHED = (
    Published("google/diffusiongemma-26B-A4B-it", 51.65e9, {}),
    Published("RedHatAI/diffusiongemma-26B-A4B-it-FP8-dynamic", 27.20e9, _each(_ALL, 1.0)),
    Published("nvidia/diffusiongemma-26B-A4B-it-NVFP4", 18.82e9, _each(("experts",), 0.5625)),
    Published("RedHatAI/diffusiongemma-26B-A4B-it-NVFP4", 18.05e9, _each(("mlp", "experts"), 0.5625)),
    Published("cyankiwi/diffusiongemma-26B-A4B-it-AWQ-INT4", 17.22e9, _each(("attention", "experts"), 0.5625)),
    Published("Intel/diffusiongemma-26B-A4B-it-int4-AutoRound", 30.6e9, _each(_ALL, 0.53125)),
    Published("aidendle94/diffusiongemma-26B-A4B-it-INT8-dynamic", 26e9, _each(_ALL, 1.0)),
    Published("unsloth/diffusiongemma-26B-A4B-it-GGUF:Q8_0", 26.9e9, None),
    Published("unsloth/diffusiongemma-26B-A4B-it-GGUF:Q6_K", 22e9, None),
    Published("unsloth/diffusiongemma-26B-A4B-it-GGUF:Q5_K_M", 19.1e9, None),
    Published("unsloth/diffusiongemma-26B-A4B-it-GGUF:Q4_K_M", 16.8e9, None),
)
"""Sizes are those that the repositories state, or follow from their formats."""
