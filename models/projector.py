"""Heads that contrastive tasks put on an encoder while it is pre-trained, and leave behind."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from models.batch_norm import BatchNorm
from models.linear import Linear


class Projector(nn.Sequential):
    """Linear layers with batch norm and ReLU between them: (B, D) -> (B, sizes[-1]).

    Batch norm follows the last layer too where `norm_last` is set. Layers before a batch norm need no bias.
    """

    def __init__(self, width: int, sizes: Sequence[int], *, norm_last: bool, key: str = "projector") -> None:
        """Build the layers with random weights.

        Args:
            width: D, of what comes in.
            sizes: widths of the layers' outputs, in order.
            norm_last: whether the output is standardised over the batch.
            key: what the sizes are called where they are chosen.

        Raises:
            ValueError: if there is no layer, or one has no output.
        """
        if not sizes or min(sizes) < 1:
            raise ValueError(f"{key} must name the widths of one or more layers, each at least 1, got {list(sizes)}")
        layers: list[nn.Module] = []
        for before, after in zip([width, *sizes[:-1]], sizes, strict=True):
            last = len(layers) == 3 * (len(sizes) - 1)
            normed = norm_last or not last
            layers.append(Linear(before, after, bias=not normed))
            if normed:
                layers.append(BatchNorm(after))
            if not last:
                layers.append(nn.ReLU())
        super().__init__(*layers)
