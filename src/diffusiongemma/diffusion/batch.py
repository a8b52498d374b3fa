"""Sampling parameters of the rows of a batch, each with its own.

Shapes: B rows, L canvas, K stop tokens.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from diffusiongemma.options.sampling import AcceptRule, CommitRule, SamplingParams, Schedule, StopRule

__all__ = ["BatchParams", "PerRow"]

T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True)
class PerRow(Generic[T]):
    """The rule that each row follows, of those that the batch has.

    Attributes:
        masks: rule to the rows that follow it, ``[B]`` bool; None where it is the only one.
    """

    masks: dict[T, Tensor | None]

    @classmethod
    def of(cls, rules: Sequence[T], device: torch.device) -> "PerRow[T]":
        """From the rule of each row."""
        distinct = dict.fromkeys(rules)
        if len(distinct) == 1:
            return cls(dict.fromkeys(distinct))
        return cls({rule: torch.tensor([one == rule for one in rules], device=device) for rule in distinct})

    def pick(self, compute: Callable[[T], Tensor]) -> Tensor:
        """Each row of what its own rule computes; a rule computes all rows at once, and one that no row follows nothing.

        Args:
            compute: from a rule to ``[B, ...]``, of the same shape for each.
        """
        (first, _), *others = self.masks.items()
        out = compute(first)
        for rule, mask_B in others:
            assert mask_B is not None
            out = torch.where(mask_B.view(-1, *[1] * (out.dim() - 1)), compute(rule), out)
        return out


@dataclass(frozen=True)
class BatchParams:
    """``SamplingParams`` of each row as tensors, so that rows with different ones share every call.

    Attributes:
        num_diffusion_steps_B: int64, most steps a canvas.
        entropy_bound_B: float32, nats.
        accept_probability_B: float32.
        accept_count_B: int64, positions a step; 0: an even share of the canvas.
        t_min_B: float32, temperature at the last step.
        t_span_B: float32, by how much the first step's is higher.
        stability_B: int64, steps the most probable canvas must stay the same before a stop.
        confidence_B: float32, nats.
        early_stop_B: bool.
        stop_ids_BK: int64, token ids that end an answer, -1 in rows that have fewer; for the stop rule ``"answer"``.
        accept: which draws a step accepts.
        schedule: how the temperature falls.
        stop_rule: of which positions stability and confidence are asked.
        commit: which tokens a finished canvas gives to the answer.
    """

    num_diffusion_steps_B: Tensor
    entropy_bound_B: Tensor
    accept_probability_B: Tensor
    accept_count_B: Tensor
    t_min_B: Tensor
    t_span_B: Tensor
    stability_B: Tensor
    confidence_B: Tensor
    early_stop_B: Tensor
    stop_ids_BK: Tensor
    accept: PerRow[AcceptRule]
    schedule: PerRow[Schedule]
    stop_rule: PerRow[StopRule]
    commit: PerRow[CommitRule]

    @classmethod
    def of(
        cls, rows: Sequence[SamplingParams], device: torch.device, stop_ids: Sequence[Sequence[int]] | None = None
    ) -> "BatchParams":
        """From the parameters of each row.

        Args:
            rows: B of them, at least one.
            device: of the tensors.
            stop_ids: token ids of each row that end its answer; None: none.
        """
        ids = [()] * len(rows) if stop_ids is None else stop_ids
        longest = max(map(len, ids))
        reals = [(one.entropy_bound, one.accept_probability, one.t_min, one.t_max - one.t_min, one.confidence) for one in rows]
        whole = [(one.num_diffusion_steps, one.accept_count or 0, one.stability, one.early_stop) for one in rows]
        entropy_bound_B, accept_probability_B, t_min_B, t_span_B, confidence_B = torch.tensor(reals, device=device).unbind(1)
        num_diffusion_steps_B, accept_count_B, stability_B, early_stop_B = torch.tensor(whole, device=device).unbind(1)
        return cls(
            num_diffusion_steps_B=num_diffusion_steps_B,
            entropy_bound_B=entropy_bound_B,
            accept_probability_B=accept_probability_B,
            accept_count_B=accept_count_B,
            t_min_B=t_min_B,
            t_span_B=t_span_B,
            stability_B=stability_B,
            confidence_B=confidence_B,
            early_stop_B=early_stop_B.bool(),
            stop_ids_BK=torch.tensor([[*one, *[-1] * (longest - len(one))] for one in ids], dtype=torch.int64, device=device),
            accept=PerRow.of([one.accept for one in rows], device),
            schedule=PerRow.of([one.schedule for one in rows], device),
            stop_rule=PerRow.of([one.stop_rule for one in rows], device),
            commit=PerRow.of([one.commit for one in rows], device),
        )
