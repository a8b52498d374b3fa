"""A module any of whose matrices may be held as a packed record instead of a parameter."""

from collections.abc import Callable
from typing import Self, cast

import torch
from torch import Tensor, nn

from diffusiongemma.quant import PackedWeight, PlainWeight, Weight

__all__ = ["Packable"]


class Packable(nn.Module):
    """Mixed into a module: ``matrix`` is how it reads its weights.

    A record is no parameter: it is not in ``state_dict``, takes no gradient, and a change of dtype leaves it alone.
    """

    _packed: dict[str, PackedWeight] | None = None

    @property
    def packed(self) -> dict[str, PackedWeight]:
        """The records, by the names of the parameters whose places they took."""
        return self._packed or {}

    def pack(self, name: str, record: PackedWeight) -> None:
        """Put a record in a parameter's place.

        Args:
            name: of the parameter.
            record: of the parameter's shape.
        """
        parameter = cast(Tensor | None, getattr(self, name))
        expected = self.packed[name].shape if parameter is None else tuple(parameter.shape)
        assert record.shape == expected, f"{name} is {expected}, the record {record.shape}"
        self.register_parameter(name, None)
        self._packed = {**self.packed, name: record}

    def matrix(self, name: str) -> Weight:
        """A weight as a record; of a parameter, one that is made each time and holds it."""
        if self._packed and name in self._packed:
            return self._packed[name]
        return PlainWeight(cast(Tensor, getattr(self, name)))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self._packed:
            # What moves tensors may also convert floating-point ones, which codes and scales must not follow.
            device = fn(torch.empty(0, dtype=torch.uint8, device=next(iter(self._packed.values())).device)).device
            self._packed = {name: record.to(device) for name, record in self._packed.items()}
        return self
