"""The one policy of batch invariance: whether a row's result has the same bits whatever shares its pass."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["AS_THEY_COME", "BATCH_INVARIANT", "BatchInvariance"]


@dataclass(frozen=True)
class BatchInvariance:
    """How sequences are filled up before a product.

    Products change their order of sums below 16 rows (measured with MKL, 1 to 777 rows, inner sizes of 16 to 1024; with two
    threads and an inner size of 1024 even 64 rows are not enough), and functions such as tanh have another last bit in the numbers
    that are left over after the last whole vector (docs/lab-log.md). So on a CPU in float32 a row has the same bits alone and in
    company where every pass has a multiple of 16 rows. Attention sees each row apart in any case, and the tiles of the canvas head
    depend on the checkpoint alone (decision 0007).

    Attributes:
        rows: sequences are filled up to a multiple of it; 1: they are computed as they come.
    """

    rows: int

    def fill(self, x: Tensor, dim: int = 0) -> Tensor:
        """A sequence with its last entry repeated up to a multiple of ``rows``."""
        missing = -x.shape[dim] % self.rows
        if not missing:
            return x
        last = x.narrow(dim, x.shape[dim] - 1, 1)
        return torch.cat((x, last.expand(*x.shape[:dim], missing, *x.shape[dim + 1 :])), dim=dim)


BATCH_INVARIANT, AS_THEY_COME = BatchInvariance(16), BatchInvariance(1)
