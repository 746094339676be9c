"""What every self-supervised task promises to the pre-training loop.

Shapes: B records, V views of a record, C leads, T samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from models.encoder import Encoder, Gift

Fact = Literal["patients", "reports", "same_report", "same_codes"]
"""What is known of a record beside its signal: a number for its patient, the tokens of its report, a number that it
shares with all records of the same report or of the same codes."""

Draws = dict[str, Tensor]
"""Everything random of one step by name, each (B, ...): row i belongs to record i."""


class PretextTask(nn.Module, ABC):
    """An encoder with all that is needed to train it without labels.

    A step is `loss = task(signal, task.draw(batch_size, generator))`. Randomness is kept apart from the computation so
    that it can be drawn once for a global batch and sliced; what a loss needs of the other workers' records comes
    through models.across_workers. The step is then the same on one worker or many.

    Attributes:
        needs: what the encoder must give.
        least_batch: records without which a step teaches nothing.
        num_views: V, how many crops of each record a step sees, each with augmentations of its own.
        encoder: what is kept after pre-training.
    """

    needs: ClassVar[frozenset[Gift]] = frozenset({"vector"})
    least_batch: ClassVar[int] = 1
    num_views: ClassVar[int] = 1
    encoder: Encoder

    @property
    def reads(self) -> Sequence[Fact]:
        """What `forward` is told of each record beside its signal, by these names."""
        return ()

    def report_tokens(self, reports: Sequence[str]) -> Tensor:
        """Tokens of the training records' reports, where the task reads "reports": (n, L) int64."""
        raise NotImplementedError(f"{type(self).__name__} reads no reports")

    def draw(self, batch_size: int, generator: torch.Generator) -> Draws:
        """Draw everything random of one step, for the B = `batch_size` records of the global batch.

        Args:
            batch_size: B.
            generator: draws; the result lives on its device.
        """
        return {}

    @abstractmethod
    def forward(self, signal: Tensor, draws: Draws, **facts: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            signal: (B, C, T), standardised; (B, V, C, T) where the task sees several views.
            draws: the rows of `draw`'s result that belong to these records.
            facts: (B, ...) by the names in `reads`.

        Returns:
            A scalar: the mean of the records' losses.
        """

    def after_step(self, step: int, num_steps: int) -> None:
        """Follow an optimiser step, e.g. with a moving average of the weights; most tasks have nothing to do.

        Args:
            step: which of the stage's steps has been taken, from 0.
            num_steps: of the whole stage.
        """
        return
