"""Write weights as one GGUF file, a tensor at a time; the package ``gguf`` rounds to its blocks and writes the container.

The file is made beside its place under another name and put there when it is whole. Shapes: N rows, K columns.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusiongemma.errors import CheckpointError, InputError, OptionError
from diffusiongemma.quant import PackedWeight, StoredWeight
from diffusiongemma.quant.gguf import GGUFWeight
from diffusiongemma.quant.gguf_blocks import BLOCK_TYPES, BlockType
from diffusiongemma.weights.gguf_names import ROPE_FREQS, to_gguf
from diffusiongemma.weights.quantise import PARTS, PartError, PartErrors, part_of_module
from diffusiongemma.weights.replacement import Replacement

__all__ = ["GGUF_PARTS", "WRITABLE", "file_type", "package", "write_gguf"]

WRITABLE = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "MXFP4", "BF16", "F16", "F32")
"""The block types that the package ``gguf`` rounds to and this runtime reads."""
GGUF_PARTS = (*PARTS, "embedding", "self_conditioning")
"""What may be quantised; router and norms are float32, as in all published files."""
_BLOCKS = {block.name: block for block in BLOCK_TYPES.values()}
_BITS_OF_EMBEDDING = 8
"""Fewer bits than these are not for the embedding, which is the head too: llama.cpp's recipes give it more than the layers."""
_TILE = 1 << 22
"""Weights that are rounded at a time."""
Row = tuple[str, BlockType]


def package() -> ModuleType:
    """The package ``gguf``.

    Raises:
        InputError: it is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise InputError(
            "GGUF files are written by the package gguf; install it with: pip install 'diffusiongemma[gguf]'"
        ) from error
    return gguf


def file_type(kind: str) -> int:
    """``general.file_type`` of a file whose matrices are mostly of a block type; an unknown one is refused by ``write_gguf``."""
    names = {"F32": "ALL_F32", "MXFP4": "MOSTLY_MXFP4_MOE"}
    members = package().LlamaFileType.__members__
    return int(members.get(names.get(kind, f"MOSTLY_{kind}"), members["GUESSED"]))


def write_gguf(
    path: Path,
    kind: str,
    metadata: Mapping[str, Any],
    weights: Iterable[tuple[str, StoredWeight]],
    shapes: Mapping[str, tuple[int, ...]],
    rope_freqs: Tensor,
    *,
    parts: Sequence[str] | None = None,
    check: Callable[[Path], None] = lambda path: None,
) -> list[PartError]:
    """Write a file.

    Args:
        path: of the file, which must not be there.
        kind: of ``WRITABLE``: the block type of the matrices. A matrix whose rows it does not divide is BF16; the embedding
            has 8 bits at least; MXFP4 is for experts, the others are Q8_0 then.
        metadata: key -> number, bool, string, or list of them.
        weights: of the model by our names, in the order of ``shapes``; one is held at a time.
        shapes: our name -> shape, of all weights.
        rope_freqs: float32, see ``gguf_config``.
        parts: which of ``GGUF_PARTS`` take that type, the others staying in BF16; None: all.
        check: called with a file that has the header and no weights yet; what it raises ends the work.

    Returns:
        The error of each part of each layer (layer -1: of what is no layer's).

    Raises:
        OptionError: an unknown type or part, or a tensor that the format has no place for.
        CheckpointError: a path that is taken, or a value that the type cannot hold.
        InputError: the package gguf is not installed.
    """
    gguf = package()
    types = _types(kind, shapes, parts)
    if path.exists():
        raise CheckpointError(f"{path} is there already; give the name of a new file")
    with Replacement(path.parent) as files:
        temporary = files.file(path.name)
        writer = gguf.GGUFWriter(temporary, metadata["general.architecture"])
        try:
            _begin(gguf, writer, metadata, types, shapes, rope_freqs)
            end = temporary.stat().st_size + sum(_padded(_row_bytes(shape, types[name])) for name, shape in shapes.items())
            with temporary.open("rb+") as file:
                file.truncate(end)
            check(temporary)
            errors = PartErrors()
            for name, weight in weights:
                blocks = _Rounding(gguf, name, types[name]).of(weight, errors)
                writer.write_tensor_data(blocks)
        finally:
            writer.close()
    return errors.listed()


def part_of(name: str) -> str:
    """The part of ``GGUF_PARTS`` that one of our tensors belongs to; empty for router and norms."""
    if name == "embed_tokens.weight":
        return "embedding"
    if name.startswith("self_conditioning.") and "norm" not in name:
        return "self_conditioning"
    return part_of_module(name)


def _types(kind: str, shapes: Mapping[str, tuple[int, ...]], parts: Sequence[str] | None) -> dict[str, BlockType]:
    """The block type of each tensor."""
    if kind not in WRITABLE:
        raise OptionError(
            f"format is 'gguf:{kind.lower()}'; the package gguf rounds to {', '.join(one.lower() for one in WRITABLE)}. "
            "K-quants and IQ types are made by llama.cpp's llama-quantize, from a gguf:bf16 file"
        )
    chosen = GGUF_PARTS if parts is None else tuple(parts)
    if not chosen or set(chosen) - set(GGUF_PARTS):
        raise OptionError(f"parts are {list(chosen)}; allowed: {', '.join(GGUF_PARTS)}, at least one")
    result = {}
    for name, shape in shapes.items():
        try:
            to_gguf(name)
        except KeyError as error:
            raise OptionError(f"a GGUF file of this architecture has no place for {name}; write another format") from error
        part = part_of(name)
        block = _BLOCKS[_type_of_part(kind, part) if part in chosen else "BF16" if part else "F32"]
        result[name] = _BLOCKS["BF16"] if shape[-1] % block.weights else block
    return result


def _type_of_part(kind: str, part: str) -> str:
    block = _BLOCKS[kind]
    few = 8 * block.nbytes / block.weights < _BITS_OF_EMBEDDING
    return "Q8_0" if (kind == "MXFP4" and part != "experts") or (few and part == "embedding") else kind


def _begin(
    gguf: ModuleType,
    writer: Any,
    metadata: Mapping[str, Any],
    types: Mapping[str, BlockType],
    shapes: Mapping[str, tuple[int, ...]],
    rope_freqs: Tensor,
) -> None:
    """Header, metadata, places of the tensors, and ``rope_freqs``, which is part of the configuration."""
    for key, value in metadata.items():
        # The container is the writer's own affair.
        if key not in ("general.architecture", "general.alignment"):
            unsigned = isinstance(value, int) and not isinstance(value, bool) and value >= 0
            kind = gguf.GGUFValueType.UINT32 if unsigned else gguf.GGUFValueType.get_type(value)
            writer.add_array(key, value) if isinstance(value, list) else writer.add_key_value(key, value, kind)
    table = rope_freqs.float().numpy()
    writer.add_tensor_info(ROPE_FREQS, table.shape, table.dtype, table.nbytes)
    for name, shape in shapes.items():
        block = types[name]
        stored = (*shape[:-1], shape[-1] // block.weights * block.nbytes)
        number = gguf.GGMLQuantizationType[block.name]
        writer.add_tensor_info(to_gguf(name), stored, np.dtype(np.uint8), _row_bytes(shape, block), number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.write_tensor_data(table)
    writer.flush()


def _row_bytes(shape: Sequence[int], block: BlockType) -> int:
    """Bytes of a tensor."""
    return int(np.prod(shape, dtype=np.int64)) // block.weights * block.nbytes


def _padded(nbytes: int) -> int:
    return nbytes + -nbytes % 32


class _Rounding:
    """One tensor to blocks.

    Args:
        gguf: the package.
        name: of the tensor, ours.
        block: their type.
    """

    def __init__(self, gguf: ModuleType, name: str, block: BlockType) -> None:
        self._quantize = gguf.quants.quantize
        self._number = gguf.GGMLQuantizationType[block.name]
        self._name, self._block = name, block

    def of(self, weight: StoredWeight, errors: PartErrors) -> np.ndarray[Any, Any]:
        """The blocks, uint8 ``[N, bytes of a row]``; those of a GGUF file that are of the type already, as they are."""
        part = part_of(self._name)
        if isinstance(weight, GGUFWeight) and weight.block is self._block:
            return weight.blocks.flatten(-2).numpy()
        columns = weight.shape[-1]
        out = np.empty((int(np.prod(weight.shape[:-1])), columns // self._block.weights * self._block.nbytes), np.uint8)
        at = 0
        for values in _tiles(weight):
            with np.errstate(over="ignore", invalid="ignore"):  # what does not fit is seen below
                raw = self._quantize(values.numpy(), self._number).view(np.uint8).reshape(len(values), -1)
            blocks = torch.from_numpy(raw).view(len(values), -1, self._block.nbytes)
            if not self._block.scales_finite(blocks):
                raise CheckpointError(f"{self._name} has a value that is NaN, infinite, or too large for {self._block.name}")
            out[at : at + len(values)] = raw
            at += len(values)
            if part:
                error = float((self._block.dequantize(blocks) - values).double().square().sum())
                errors.add(self._name, part, error, error, float(values.double().square().sum()))
        return out


def _tiles(weight: StoredWeight) -> Iterator[Tensor]:
    """All rows as float32 ``[n, K]``, some at a time."""
    if len(weight.shape) == 3:
        for index in range(weight.shape[0]):
            yield from _tiles(weight.expert(index) if isinstance(weight, PackedWeight) else weight[index])
        return
    if isinstance(weight, Tensor):
        weight = weight.reshape(-1, weight.shape[-1])
    step = max(1, _TILE // weight.shape[-1])
    for start in range(0, weight.shape[0], step):
        end = min(start + step, weight.shape[0])
        yield weight[start:end].float() if isinstance(weight, Tensor) else weight.dequantize(start, end)
