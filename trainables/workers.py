"""One worker's place among those that train a model together; alone, everything here costs nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainables.sharding import is_sharded, shard

T = TypeVar("T")


@dataclass(frozen=True)
class Workers:
    """Who takes part in a run, seen by one of them.

    Attributes:
        rank: this worker, from 0; rank 0 alone writes files.
        world_size: all of them; above 1, torch.distributed is initialised.
        device: where this worker computes.
        sharding: whether each holds the whole model (`none`) or a share of it (`full`).
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")
    sharding: Literal["none", "full"] = "none"

    @classmethod
    def of_this_process(cls, *, num_gpus: float = 0, sharding: Literal["none", "full"] = "none") -> Workers:
        """The place of this process, from torch.distributed where a gang has initialised it."""
        rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        device = torch.device("cpu")
        if num_gpus > 0 and torch.cuda.is_available():
            # Ray shows a worker its own devices alone, so the local rank counts only where it shows several
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
            torch.cuda.set_device(device)  # NCCL sends objects by way of the current device
        return cls(rank, world_size, device, sharding)

    def shared_out(self, module: nn.Module) -> nn.Module | None:
        """Leave of `module`, in place, this worker's share, where weights are sharded, before it gets an optimiser.

        Returns:
            Its form (trainables.sharding.shard); None where `module` stays whole.
        """
        if self.world_size == 1 or self.sharding == "none":
            return None
        return shard(module, self.device)

    def together(self, module: nn.Module) -> nn.Module:
        """`module` with its gradients averaged over the workers after every backward pass."""
        if self.world_size == 1 or is_sharded(module):
            return module
        device_ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=device_ids)

    def total(self, values: Tensor) -> Tensor:
        """The sum of `values` over all workers."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def joined(self, rows: NDArray[Any]) -> NDArray[Any]:
        """The workers' `rows` one after another, by rank, on every worker."""
        if self.world_size == 1:
            return rows
        shares: list[Any] = [None] * self.world_size
        dist.all_gather_object(shares, rows)
        return np.concatenate(shares)

    def told_by_first(self, value: T) -> T:
        """Rank 0's `value`, on every worker."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]
