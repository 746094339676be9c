"""What losses and layers need of the workers that share a batch: rows joined and sums taken with their gradients.

A gang averages its gradients after every step, each worker's loss weighed by its records (trainables.steps). With these
functions the average is the gradient of the loss over the global batch, whatever the number of workers. Alone, they
return what they are given.

Shapes: b records of this worker, B those of all workers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def several() -> bool:
    """Whether there are other workers to talk to."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def summed(values: Tensor) -> Tensor:
    """The sum over all workers, on every worker; its gradient is the sum of theirs."""
    return _Summed.apply(values) if several() else values  # type: ignore[no-untyped-call]


def gathered(rows: Tensor) -> tuple[Tensor, int]:
    """All workers' rows, in the order of the global batch.

    Args:
        rows: (b, ...); the workers may have different numbers of them, of one type and width.

    Returns:
        (B, ...) on every worker, and the position of this worker's first row. A gradient reaches each row from the
        losses of all workers.
    """
    if not several():
        return rows, 0
    counts = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=rows.device)
    counts[dist.get_rank()] = len(rows)
    dist.all_reduce(counts)
    sizes: list[int] = counts.tolist()
    everything: Tensor = _Gathered.apply(rows, sizes)  # type: ignore[no-untyped-call]
    return everything, sum(sizes[: dist.get_rank()])


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        # each worker puts its rows in their place of a zeroed whole: shares of different sizes need no padding
        whole = rows.new_zeros((sum(sizes), *rows.shape[1:]))
        whole[_own(sizes)] = rows
        dist.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[_own(ctx.sizes)], None


def _own(sizes: list[int]) -> slice:
    """The rows of this worker among those of all."""
    first = sum(sizes[: dist.get_rank()])
    return slice(first, first + sizes[dist.get_rank()])
