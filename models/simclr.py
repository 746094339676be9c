"""SimCLR: two augmented views of a record are to find each other among those of all other records.

Chen et al. 2020, arXiv:2002.05709. Shapes: B records, C leads, T samples, D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from models.encoder import Encoder
from models.losses import nt_xent
from models.pretext import Draws, PretextTask
from models.projector import Projector


class SimCLR(PretextTask):
    """Contrast the projected embeddings of two views of each record."""

    least_batch: ClassVar[int] = 2
    num_views: ClassVar[int] = 2

    def __init__(self, *, encoder: Encoder, projector: Sequence[int], temperature: float) -> None:
        """Put a projector on an encoder.

        Args:
            encoder: of any kind; taken as it is.
            projector: widths of its layers.
            temperature: what similarities are divided by; 0.1 in ECG-SSL.

        Raises:
            ValueError: naming the argument that cannot be.
        """
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.temperature = temperature
        self.encoder = encoder
        self.projector = Projector(encoder.width, projector, norm_last=True)

    def forward(self, signal: Tensor, draws: Draws, **facts: Tensor) -> Tensor:
        """The contrastive loss of (B, 2, C, T) views."""
        projected = self.projector(self.encoder(signal.flatten(0, 1))).view(*signal.shape[:2], -1)
        return nt_xent(projected[:, 0], projected[:, 1], temperature=self.temperature)
