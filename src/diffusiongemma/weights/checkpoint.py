"""A folder of safetensors files as the weights of a model: planned whole from the headers, then read one weight at a time.

Shapes: E experts, N rows, K columns.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusiongemma.errors import CheckpointError
from diffusiongemma.quant import PackedWeight
from diffusiongemma.weights.fields import Planned, plan
from diffusiongemma.weights.headers import Stored
from diffusiongemma.weights.linears import Linear, group
from diffusiongemma.weights.names import VISION_PREFIXES, expert_of, expert_parts, is_tied_copy, to_checkpoint, to_ours
from diffusiongemma.weights.schemes import Scheme, scheme_of
from diffusiongemma.weights.soundness import refuse_unsound
from diffusiongemma.weights.tensor_bytes import TensorBytes

__all__ = ["SafetensorsWeights", "Weight"]

log = logging.getLogger(__name__)
Progress = Callable[[str, int], None]
_WHOLE = (0, -1)
"""The place of a linear that is a whole weight; of a stack's parts it is (expert, part)."""


@dataclass
class Weight:
    """One weight of the model and the stored linears that it is made of.

    Attributes:
        name: ours.
        shape: of the values.
        pieces: the linears that lie on top of each other, for each expert of a stack; one list of one for a single matrix.
        copies: second copies of the linears, by the place of the first in ``pieces``.
    """

    name: str
    shape: tuple[int, ...]
    pieces: list[list[Planned]]
    copies: list[tuple[Planned, Linear]] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """``plain`` or the quantised kind."""
        return str(self.pieces[0][0].key[0])

    @property
    def stacked(self) -> bool:
        """Whether it is put together from several linears."""
        return len(self.pieces) > 1 or len(self.pieces[0]) > 1

    @property
    def nbytes(self) -> int:
        """Resident bytes, as it is stored."""
        return sum(one.nbytes for pieces in self.pieces for piece in pieces for one in piece.fields.values())

    def load(self, data: TensorBytes, scheme: Scheme | None, progress: Progress) -> Tensor | PackedWeight:
        """Read it.

        Raises:
            CheckpointError: a scale that is no sound number, or a file that ends too early.
        """
        first = self.pieces[0][0]
        if self.stacked:
            tensors = {name: self._stack(name, data, progress) for name in first.fields}
        else:
            tensors = {name: one.load(data) for name, one in first.fields.items()}
            progress(first.linear.name, sum(part.nbytes for part in first.linear.parts.values()))
        result = first.build(shape=self.shape, **tensors)
        if isinstance(result, PackedWeight):
            refuse_unsound(result, self._name_of, signed=scheme is not None and scheme.signed_scales)
        return result

    def _name_of(self, name: str, expert: int, height: float) -> str:
        """The checkpoint's name of a field's tensor."""
        pieces = self.pieces[expert]
        piece = pieces[int(height * len(pieces))]
        stored = piece.fields[name].stored
        return f"{piece.linear.base}.{next(suffix for suffix, part in piece.linear.parts.items() if part is stored)}"

    def _stack(self, name: str, data: TensorBytes, progress: Progress) -> Tensor:
        """One field of all linears, each read into its place."""
        heights = [piece.fields[name].shape[0] for piece in self.pieces[0]]
        one = self.pieces[0][0].fields[name]
        out = torch.empty(len(self.pieces), sum(heights), *one.shape[1:], dtype=one.dtype)
        for expert, pieces in enumerate(self.pieces):
            start = 0
            for piece, height in zip(pieces, heights, strict=True):
                result = piece.fields[name]
                result.load_into(data, out[expert, start : start + height])
                progress(piece.linear.name, result.stored.nbytes)
                start += height
        return out if len(self.shape) == 3 else out[0]


class SafetensorsWeights:
    """All weights of a checkpoint, planned.

    Args:
        stored: every tensor of the checkpoint by name.
        shapes: of our weights, by name.
        quantization: config.json's ``quantization_config``; None: there is none.
        folder: for messages.

    Attributes:
        scheme: what config.json says of the quantisation.
        skipped: names of vision tensors, which are not loaded.

    Raises:
        CheckpointError: a missing, left-over, unknown or mis-shaped tensor; a scale without its weight; a format that is not
            read, or is another than config.json says.
    """

    def __init__(
        self,
        stored: Mapping[str, Stored],
        shapes: Mapping[str, tuple[int, ...]],
        quantization: Mapping[str, Any] | None,
        folder: Path,
    ) -> None:
        self.folder = folder
        self.skipped = [name for name in stored if name.startswith(VISION_PREFIXES)]
        linears, self._passive = group({name: one for name, one in stored.items() if not name.startswith(VISION_PREFIXES)})
        quantised = next((one for one in linears.values() if one.kind != "plain"), None)
        if quantised is not None and quantization is None:
            raise CheckpointError(
                f"{folder}: {quantised.name} is quantised ({quantised.kind}), and config.json has no quantization_config; "
                "take config.json and the weights from the same checkpoint"
            )
        self.scheme = None if quantization is None else scheme_of(quantization)
        if self.scheme is not None and quantised is None:
            raise CheckpointError(
                f"{folder}: config.json's quantization_config ({self.scheme.method}) says that weights are quantised, but none is; "
                "take config.json and the weights from the same checkpoint"
            )
        self.weights = _arrange(linears, shapes, self.scheme, folder)

    @property
    def quantised(self) -> bool:
        """Whether any weight is packed."""
        return self.scheme is not None

    @property
    def kinds(self) -> Counter[str]:
        """How many of the checkpoint's linears are of each quantised kind."""
        result: Counter[str] = Counter()
        for weight in self.weights:
            if weight.kind != "plain":
                result[weight.kind] += sum(len(pieces) for pieces in weight.pieces)
        return result

    @property
    def nbytes(self) -> int:
        """Resident bytes of all weights, as they are stored."""
        return sum(weight.nbytes for weight in self.weights)

    @property
    def file_bytes(self) -> int:
        """Bytes of what is read: for progress."""
        return sum(
            part.nbytes
            for weight in self.weights
            for pieces in weight.pieces
            for piece in pieces
            for part in ({one.stored for one in piece.fields.values()})
        )

    def load(self, progress: Progress | None = None) -> Iterator[tuple[str, Tensor | PackedWeight]]:
        """Every weight by name, as it is stored; one is made at a time.

        Args:
            progress: called with a tensor's name and the bytes that were read of it.

        Raises:
            CheckpointError: a value that cannot be, copies of a tied tensor that differ, or a file that ends too early.
        """
        tell = progress or (lambda name, size: None)
        with TensorBytes() as data:
            for weight in self.weights:
                for pieces in weight.pieces:
                    for piece in pieces:
                        piece.check(data)
            differing = _Differing()
            for weight in self.weights:
                result = weight.load(data, self.scheme, tell)
                for piece, copy in weight.copies:
                    differing.compare(piece, copy, data)
                yield weight.name, result
        self._tell(differing)

    def _tell(self, differing: "_Differing") -> None:
        if self.skipped:
            log.info("%s: %d vision tensors are not loaded: images are not supported yet", self.folder, len(self.skipped))
        if self._passive:
            count, one = len(self._passive), self._passive[0]
            log.info("%s: %d scales of activations and of the cache are not used (%s, ...)", self.folder, count, one)
        for note in self.scheme.notes if self.scheme else ():
            log.info("%s: %s", self.folder, note)
        if differing.name:
            log.warning(
                "%s: the encoder's copies of the quantised weights differ from the decoder's (%s); the decoder's serve both roles",
                self.folder,
                differing.name,
            )


class _Differing:
    """Compares second copies with the first; of quantised ones no further than to the first that differs.

    Attributes:
        name: of a quantised copy that differs.
    """

    def __init__(self) -> None:
        self.name: str | None = None

    def compare(self, piece: Planned, copy: Linear, data: TensorBytes) -> None:
        """One linear with its copy; see ``SafetensorsWeights.load``."""
        if piece.linear.kind == copy.kind == "plain":
            first, second = data.read(piece.linear.parts["weight"]), data.read(copy.parts["weight"])
            if not torch.equal(second.to(first.dtype), first):
                raise CheckpointError(
                    f"{copy.name} differs from {piece.linear.name}, its tied copy; only checkpoints whose copies are equal are read"
                )
        elif copy.base == "lm_head":
            raise CheckpointError(
                f"{copy.name} is {copy.kind} and {piece.linear.name} is {piece.linear.kind}; only checkpoints whose head is the "
                "embedding are read"
            )
        elif self.name is None and not _equal(piece.linear, copy, data):
            self.name = copy.name


def _equal(first: Linear, second: Linear, data: TensorBytes) -> bool:
    if {name: (one.dtype, one.shape) for name, one in first.parts.items()} != {
        name: (one.dtype, one.shape) for name, one in second.parts.items()
    }:
        return False
    for suffix, one in first.parts.items():
        mine, other = (data.read(part).reshape(-1).view(torch.uint8) for part in (one, second.parts[suffix]))
        if not torch.equal(mine, other):
            return False
    return True


def _arrange(
    linears: Mapping[str, Linear], shapes: Mapping[str, tuple[int, ...]], scheme: Scheme | None, folder: Path
) -> list[Weight]:
    """Each stored linear to the weight it belongs to; nothing may be left over or missing."""
    places: dict[str, dict[tuple[int, int], Planned]] = {}
    copies: dict[str, list[tuple[tuple[int, int], Linear]]] = {}
    unknown = []
    # The decoder's names first: where both stacks are stored, its copies are taken.
    for linear in sorted(linears.values(), key=lambda one: is_tied_copy(one.name)):
        place = _place(linear, shapes)
        if place is None:
            unknown.append(linear.name)
            continue
        name, at, shape = place
        if at in places.setdefault(name, {}):
            copies.setdefault(name, []).append((at, linear))
            continue
        places[name][at] = plan(linear, shape, scheme)
    if unknown:
        raise CheckpointError(
            f"{folder} has {len(unknown)} tensor(s) that this model has no place for: {', '.join(sorted(unknown)[:5])}"
            f"{' and more' if len(unknown) > 5 else ''}; config.json does not describe these weights"
        )
    weights: list[Weight] = []
    named: list[str] = []
    missing = 0
    for name, shape in shapes.items():
        result = places.get(name, {})
        whole = len(shape) < 3 or _WHOLE in result or not result
        experts, parts = (1, 1) if whole else (shape[0], len(expert_parts(name)))
        if len(result) > experts * parts:
            raise CheckpointError(f"{folder} has {result[_WHOLE].linear.name} whole and the same experts one by one")
        if lacking := experts * parts - len(result):
            missing += lacking
            every = iter([_WHOLE]) if whole else ((expert, part) for expert in range(experts) for part in range(parts))
            named += islice((_lacking(name, at) for at in every if at not in result), max(0, 5 - len(named)))
            continue
        ordered = sorted(result)
        pieces = [[result[at] for at in ordered[start : start + parts]] for start in range(0, len(ordered), parts)]
        _refuse_mixed(pieces)
        weights.append(Weight(name, shape, pieces, [(result[at], copy) for at, copy in copies.get(name, [])]))
    if missing:
        raise CheckpointError(
            f"{folder} lacks {missing} tensor(s): {', '.join(named)}{' and more' if missing > 5 else ''}; "
            "download the rest of the checkpoint, or mend config.json"
        )
    return weights


def _place(linear: Linear, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, tuple[int, int], tuple[int, ...]] | None:
    """Our weight, the expert and part of it that a linear is, and the linear's shape."""
    if (expert := expert_of(linear.base)) is not None:
        shape = shapes.get(expert.name)
        if shape is None or expert.expert >= shape[0]:
            return None
        return expert.name, (expert.expert, expert.part), (shape[1] // expert.parts, shape[2])
    name = to_ours(linear.name if linear.kind == "plain" else f"{linear.base}.weight")
    return None if name is None or name not in shapes else (name, _WHOLE, shapes[name])


def _lacking(name: str, at: tuple[int, int]) -> str:
    if at == _WHOLE:
        return to_checkpoint(name)
    return to_checkpoint(name).replace(name.rpartition(".")[2], f"{at[0]}.{expert_parts(name)[at[1]]}")


def _refuse_mixed(pieces: list[list[Planned]]) -> None:
    first = pieces[0][0]
    for row in pieces:
        for piece in row:
            if piece.key != first.key:
                raise CheckpointError(
                    f"{piece.linear.name} is stored as {_told(piece)} and {first.linear.name} as {_told(first)}; "
                    "the experts of a layer must be stored alike"
                )


def _told(piece: Planned) -> str:
    return " ".join(str(part).removeprefix("torch.") for part in piece.key)
