"""Which parts of a model may be sharded one by one over the workers that train it (trainables.sharding)."""

from __future__ import annotations

from torch import nn


class Unit(nn.Module):
    """A block that computes by itself: nothing but its own `forward` touches its weights, and it is called as a module.

    Where a model is sharded, the weights of a unit are gathered as it is called and given back as it returns, so that a
    worker holds those of one unit at a time. A block without this base class is gathered with all that lies round it.
    """
