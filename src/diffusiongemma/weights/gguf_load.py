"""The tensors of a GGUF file by our names: quantised matrices as records of the memory map, all others as plain tensors."""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from diffusiongemma.errors import CheckpointError
from diffusiongemma.quant import PackedWeight, StoredWeight
from diffusiongemma.quant.gguf import GGUFWeight, JoinedRows
from diffusiongemma.weights.gguf import GGUFFile, GGUFTensor
from diffusiongemma.weights.gguf_names import GATE_EXPERTS, ROPE_FREQS, UNTIED_HEAD, UP_EXPERTS, to_gguf, to_ours

__all__ = ["PLAIN", "read_weights", "tensors_of"]

PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_TABLE = "token_embd.weight"


def read_weights(
    file: GGUFFile, shapes: Mapping[str, tuple[int, ...]], progress: Callable[[str, int], None] | None = None
) -> Iterator[tuple[str, StoredWeight]]:
    """Every weight of a model, by our names: records whose blocks are views of the file, and copies of what is plain numbers.

    Names and shapes are checked before the first weight, values as they come.

    Args:
        file: of this architecture.
        shapes: our name -> shape of all weights that the model needs.
        progress: called with each tensor's name and size in bytes, once its scales have been looked at.

    Raises:
        CheckpointError: a tensor that is missing, left over or unknown, of another shape, or with a scale or value that is NaN
            or infinite; a head that is not the embedding.
    """
    sources = tensors_of(file, shapes)
    _check_head(file)
    return _weights(file, sources, progress)


def tensors_of(file: GGUFFile, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[GGUFTensor, ...]]:
    """Our names, each with the tensors of the file that make it up; nothing but the header is read.

    Args: see ``read_weights``.

    Raises:
        CheckpointError: a tensor that is missing, left over or unknown, or of another shape.
    """
    sources = _sources(file, shapes)
    _check_shapes(file, sources, shapes)
    return {ours: tuple(file.tensors[name] for name in names) for ours, names in sources.items()}


def _weights(
    file: GGUFFile, sources: Mapping[str, tuple[GGUFTensor, ...]], progress: Callable[[str, int], None] | None
) -> Iterator[tuple[str, StoredWeight]]:
    for ours, tensors in sources.items():
        for tensor in tensors:
            file.read_ahead(tensor.name)
            if not tensor.block.scales_finite(file.blocks(tensor.name)):
                raise CheckpointError(
                    f"{file.path}: {tensor.name} ({tensor.block.name}) has a scale or a value that is NaN or infinite; "
                    "the file is damaged: download it again"
                )
            if progress:
                progress(tensor.name, tensor.nbytes)
        if all(tensor.block.name in PLAIN or len(tensor.shape) == 1 for tensor in tensors):
            parts = [_numbers(file, tensor) for tensor in tensors]
            yield ours, parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)
        else:
            yield ours, _record(file, tensors)


def _sources(file: GGUFFile, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[str, ...]]:
    """Our names, each with the tensors of the file that make it up."""
    sources: dict[str, tuple[str, ...]] = {}
    expected: set[str] = {ROPE_FREQS, UNTIED_HEAD}
    missing = []
    for ours in shapes:
        whole = to_gguf(ours)
        names: tuple[str, ...] = (whole,)
        if ours.endswith("experts.gate_up_proj") and whole not in file.tensors:
            root = whole.removesuffix("ffn_gate_up_exps.weight")
            if any(root + part in file.tensors for part in (GATE_EXPERTS, UP_EXPERTS)):
                names = (root + GATE_EXPERTS, root + UP_EXPERTS)
        missing += [name for name in names if name not in file.tensors]
        expected.update(names)
        sources[ours] = names
    if missing:
        raise CheckpointError(f"{file.path} lacks {_listed(missing)}; download the file again, or convert the model again")
    if left := [name for name in file.tensors if name not in expected]:
        strangers = [name for name in left if to_ours(name) is None]
        what = f"of them unknown {_listed(strangers)}" if strangers else "which its metadata does not describe"
        raise CheckpointError(f"{file.path} has {_listed(left)} left over, {what}; only whole models of this architecture are read")
    return sources


def _check_shapes(file: GGUFFile, sources: Mapping[str, tuple[str, ...]], shapes: Mapping[str, tuple[int, ...]]) -> None:
    for ours, names in sources.items():
        wanted = shapes[ours]
        if len(names) == 2:
            wanted = (wanted[0], wanted[1] // 2, wanted[2])
        for name in names:
            if (result := file.tensors[name].shape) != wanted:
                raise CheckpointError(
                    f"{file.path}: {name} has shape {list(result)}; the metadata asks for {list(wanted)} "
                    "(outermost dimension first)"
                )


def _check_head(file: GGUFFile) -> None:
    head, table = file.tensors.get(UNTIED_HEAD), file.tensors[_TABLE]
    if head is None:
        return
    same = (head.shape, head.block) == (table.shape, table.block) and torch.equal(file.blocks(UNTIED_HEAD), file.blocks(_TABLE))
    if not same:
        raise CheckpointError(f"{file.path}: {UNTIED_HEAD} differs from {_TABLE}; only models whose head is the embedding are run")


def _numbers(file: GGUFFile, tensor: GGUFTensor) -> Tensor:
    """A tensor as plain numbers, in the file's dtype where it has them; a copy, since the map cannot be written to."""
    blocks = file.blocks(tensor.name)
    if (dtype := PLAIN.get(tensor.block.name)) is None:
        return tensor.block.dequantize(blocks)
    return blocks.view(dtype).view(tensor.shape).clone()


def _record(file: GGUFFile, tensors: tuple[GGUFTensor, ...]) -> PackedWeight:
    parts = [GGUFWeight(shape=one.shape, blocks=file.blocks(one.name), block=one.block) for one in tensors]
    if len(parts) == 1:
        return parts[0]
    first, second = parts
    shape = (*first.shape[:-2], first.shape[-2] + second.shape[-2], first.shape[-1])
    return JoinedRows(shape=shape, first=first, second=second)


def _listed(names: list[str]) -> str:
    noun = "the tensor" if len(names) == 1 else f"{len(names)} tensors:"
    return f"{noun} {', '.join(names[:5])}{' and more' if len(names) > 5 else ''}"
