"""BYOL: from one view of a record, predict what a slowly following copy of the network makes of the other.

Grill et al. 2020, arXiv:2006.07733. Shapes: B records, C leads, T samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from models.encoder import Encoder
from models.losses import cosine_distance
from models.moving_average import check_momentum, follow, following, momentum_at
from models.pretext import Draws, PretextTask
from models.projector import Projector


class BYOL(PretextTask):
    """Predict each view's target projection from the other view.

    The target is an average over time of the encoder and its projector. It sees batches as they do, with the statistics
    of the batch, in which both views are; its running statistics are theirs.
    """

    least_batch: ClassVar[int] = 2
    num_views: ClassVar[int] = 2

    def __init__(
        self,
        *,
        encoder: Encoder,
        projector: Sequence[int],
        predictor: Sequence[int],
        momentum_start: float,
        momentum_end: float,
    ) -> None:
        """Put a projector and a predictor on an encoder, and a copy of encoder and projector beside them.

        Args:
            encoder: of any kind; taken as it is.
            projector: widths of its layers.
            predictor: widths of its hidden layers; its output is as wide as the projector's.
            momentum_start: how much of the target stays at the first step.
            momentum_end: the same at the last step; in between it rises in a straight line.

        Raises:
            ValueError: naming the argument that cannot be.
        """
        super().__init__()
        check_momentum(momentum_start, momentum_end)
        self.momentum = (momentum_start, momentum_end)
        self.encoder = encoder
        self.projector = Projector(encoder.width, projector, norm_last=False)
        self.predictor = Projector(projector[-1], [*predictor, projector[-1]], norm_last=False, key="predictor")
        self.target = nn.ModuleDict({"encoder": following(encoder), "projector": following(self.projector)})

    def forward(self, signal: Tensor, draws: Draws, **facts: Tensor) -> Tensor:
        """The distance of predictions from targets, both ways across the (B, 2, C, T) views."""
        views = signal.flatten(0, 1)
        predicted = self.predictor(self.projector(self.encoder(views))).view(*signal.shape[:2], -1)
        with torch.no_grad():
            target = self.target["projector"](self.target["encoder"](views)).view(*signal.shape[:2], -1)
        return cosine_distance(predicted[:, 0], target[:, 1]) + cosine_distance(predicted[:, 1], target[:, 0])

    def after_step(self, step: int, num_steps: int) -> None:
        """Let the target follow."""
        momentum = momentum_at(step, num_steps, *self.momentum)
        follow(self.target["encoder"], self.encoder, momentum)
        follow(self.target["projector"], self.projector, momentum)
