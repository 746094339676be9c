"""CLOCS: two segments of a record, or of a patient, are to find each other among those of other patients.

Kiyasseh et al. 2021, arXiv:2005.13249, contrastive multi-segment coding. Shapes: B records, C leads, T samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from models.encoder import Encoder, Gift
from models.losses import alignment_loss
from models.pretext import Draws, Fact, PretextTask
from models.projector import Projector


class CLOCS(PretextTask):
    """Contrast the projected embeddings of the two halves of each window.

    They share no sample, and adjoin but for the patch in the middle of a window of an odd number of patches.
    """

    needs: ClassVar[frozenset[Gift]] = frozenset({"vector", "segments"})
    least_batch: ClassVar[int] = 2

    def __init__(
        self,
        *,
        encoder: Encoder,
        projector: Sequence[int],
        temperature: float,
        same_patient: Literal["exclude", "positive", "ignore"],
    ) -> None:
        """Put a projector on an encoder.

        Args:
            encoder: one that embeds segments; taken as it is.
            projector: widths of its layers.
            temperature: what similarities are divided by; paper: 0.1.
            same_patient: what other records of the same patient in a batch are: further positives as in the paper,
                left out, or negatives (`ignore`).

        Raises:
            ValueError: naming the argument that cannot be, or if the encoder cannot embed half of its window.
        """
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.scale, self.same_patient = 1 / temperature, same_patient
        self.encoder = encoder
        self._segment = encoder.num_samples // (2 * encoder.segment_samples) * encoder.segment_samples
        if self._segment == 0:
            raise ValueError(
                f"the window must hold two segments of {encoder.segment_samples} samples, got {encoder.num_samples}"
            )
        self.projector = Projector(encoder.width, projector, norm_last=True)

    @property
    def reads(self) -> Sequence[Fact]:
        """The patients, where their other records are no negatives."""
        return () if self.same_patient == "ignore" else ("patients",)

    def forward(self, signal: Tensor, draws: Draws, **facts: Tensor) -> Tensor:
        """The contrastive loss of (B, C, T) windows, each cut into two segments."""
        segments = torch.stack([signal[..., : self._segment], signal[..., -self._segment :]], dim=1).flatten(0, 1)
        projected = self.projector(self.encoder(segments)).view(len(signal), 2, -1)
        return alignment_loss(
            projected[:, 0],
            projected[:, 1],
            scale=self.scale,
            same=facts.get("patients"),
            treatment=self.same_patient,
        )
