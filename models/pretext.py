"""What every self-supervised task promises to the pre-training loop.

Shapes: B records, C leads, T samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from models.encoder import Encoder


class PretextTask(nn.Module, ABC):
    """An encoder with all that is needed to train it without labels.

    A step is `loss = task(signal, task.draw(batch_size, generator))`. Randomness is kept apart from the computation
    so that it can be drawn once for a global batch and sliced: the step is then the same on one worker or many.

    Attributes:
        encoder: what is kept after pre-training.
    """

    encoder: Encoder

    @abstractmethod
    def draw(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """Draw everything random of one step.

        Args:
            batch_size: B, the records of the global batch.
            generator: draws; the result lives on its device.

        Returns:
            (B, ...): row i belongs to record i.
        """

    @abstractmethod
    def forward(self, signal: Tensor, draws: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            signal: (B, C, T), standardised.
            draws: (B, ...), the rows of `draw`'s result that belong to these records.

        Returns:
            A scalar: the mean of the records' losses.
        """
