"""The tensors of a GGUF file by our names: quantised matrices as records of the memory map, all others as plain tensors."""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from diffusiongemma.errors import CheckpointError
from diffusiongemma.quant import PackedWeight, Weight
from diffusiongemma.quant.gguf import GGUFWeight, JoinedRows
from diffusiongemma.weights.gguf import GGUFFile
from diffusiongemma.weights.gguf_names import GATE_EXPERTS, ROPE_FREQS, UNTIED_HEAD, UP_EXPERTS, to_gguf, to_ours

__all__ = ["read_weights"]

_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_TABLE = "token_embd.weight"


def read_weights(
    file: GGUFFile, shapes: Mapping[str, tuple[int, ...]], progress: Callable[[str, int], None] | None = None
) -> Iterator[tuple[str, Weight]]:
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
    sources = _sources(file, shapes)
    _check_shapes(file, sources, shapes)
    _check_head(file)
    return _weights(file, sources, progress)


def _weights(
    file: GGUFFile, sources: Mapping[str, tuple[str, ...]], progress: Callable[[str, int], None] | None
) -> Iterator[tuple[str, Weight]]:
    for ours, names in sources.items():
        for name in names:
            tensor = file.tensors[name]
            file.read_ahead(name)
            if not tensor.block.scales_finite(file.blocks(name)):
                raise CheckpointError(
                    f"{file.path}: {name} ({tensor.block.name}) has a scale or a value that is NaN or infinite; "
                    "the file is damaged: download it again"
                )
            if progress:
                progress(name, tensor.nbytes)
        if all(file.tensors[name].block.name in _PLAIN or len(file.tensors[name].shape) == 1 for name in names):
            parts = [_numbers(file, name) for name in names]
            yield ours, parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)
        else:
            yield ours, _record(file, names)


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
            if (found := file.tensors[name].shape) != wanted:
                raise CheckpointError(
                    f"{file.path}: {name} has shape {list(found)}; the metadata asks for {list(wanted)} (outermost dimension first)"
                )


def _check_head(file: GGUFFile) -> None:
    head, table = file.tensors.get(UNTIED_HEAD), file.tensors[_TABLE]
    if head is None:
        return
    same = (head.shape, head.block) == (table.shape, table.block) and torch.equal(file.blocks(UNTIED_HEAD), file.blocks(_TABLE))
    if not same:
        raise CheckpointError(f"{file.path}: {UNTIED_HEAD} differs from {_TABLE}; only models whose head is the embedding are run")


def _numbers(file: GGUFFile, name: str) -> Tensor:
    """A tensor as plain numbers, in the file's dtype where it has them; a copy, since the map cannot be written to."""
    tensor = file.tensors[name]
    if (dtype := _PLAIN.get(tensor.block.name)) is None:
        return tensor.block.dequantize(file.blocks(name))
    return file.blocks(name).view(dtype).view(tensor.shape).clone()


def _record(file: GGUFFile, names: tuple[str, ...]) -> PackedWeight:
    parts = [GGUFWeight(shape=file.tensors[n].shape, blocks=file.blocks(n), block=file.tensors[n].block) for n in names]
    if len(parts) == 1:
        return parts[0]
    first, second = parts
    shape = (*first.shape[:-2], first.shape[-2] + second.shape[-2], first.shape[-1])
    return JoinedRows(shape=shape, first=first, second=second)


def _listed(names: list[str]) -> str:
    noun = "the tensor" if len(names) == 1 else f"{len(names)} tensors:"
    return f"{noun} {', '.join(names[:5])}{' and more' if len(names) > 5 else ''}"
