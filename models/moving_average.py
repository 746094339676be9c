"""A network that follows another's weights: the target of BYOL and JEPA."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def following(online: Network) -> Network:
    """A copy of `online` that no gradient reaches, to be moved by `follow`."""
    return copy.deepcopy(online).requires_grad_(False)


@torch.no_grad()
def follow(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """Move `target` towards `online`: weights to momentum * target + (1 - momentum) * online, buffers all the way.

    Buffers are statistics (of batch norm) that lag behind the weights already.
    """
    own, theirs = ([*map(torch.Tensor.detach, network.parameters())] for network in (target, online))
    torch._foreach_lerp_(own, theirs, 1 - momentum)
    for buffer, other in zip(target.buffers(), online.buffers(), strict=True):
        buffer.copy_(other)


def momentum_at(step: int, num_steps: int, start: float, end: float) -> float:
    """The momentum after an optimiser step, from `start` at the first to `end` at the last, in a straight line."""
    return start + (end - start) * (step / max(num_steps - 1, 1))


def check_momentum(start: float, end: float) -> None:
    """Refuse a schedule of momenta that cannot be.

    Raises:
        ValueError: naming the keys.
    """
    if not 0 <= start <= end <= 1:
        raise ValueError(f"momentum_start and momentum_end must rise between 0 and 1, got {start} and {end}")
