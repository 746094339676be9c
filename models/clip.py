"""CLIP of ECGs and their reports, and MECLIP: what records of one diagnosis are to each other is said, not ignored.

Radford et al. 2021, arXiv:2103.00020. The treatments of repeated diagnoses are those of ECG-SSL's MECLIP, restated so
that they are defined for every batch and agree where nothing is repeated (models.losses.alignment_loss).

Shapes: B records, C leads, T samples, L tokens of a report.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from models.encoder import Encoder
from models.losses import alignment_loss
from models.pretext import Draws, Fact, PretextTask
from models.projector import Projector
from models.text import TextEncoder

MAX_SCALE = 100.0
"""A learnt temperature does not fall below 0.01, as in CLIP, sec. 2.5."""


class CLIP(PretextTask):
    """Bring a record's embedding and its report's together, and those of different records apart."""

    least_batch: ClassVar[int] = 2

    def __init__(
        self,
        *,
        encoder: Encoder,
        text_encoder: TextEncoder,
        projector: Sequence[int],
        temperature: float,
        learn_temperature: bool,
        duplicates: Literal["exclude", "positive", "ignore"],
        duplicates_share: Literal["report", "codes"],
        ecg_weight: float,
    ) -> None:
        """Put projectors on an ECG's encoder and a text's.

        Args:
            encoder: of any kind; taken as it is.
            text_encoder: of the reports.
            projector: widths of each projector's layers.
            temperature: what similarities are divided by, at first where it is learnt; at least 0.01.
            learn_temperature: whether it is a weight like others.
            duplicates: what records that share their diagnosis with another of the batch are to it: left out, further
                positives, or negatives as in plain CLIP (`ignore`).
            duplicates_share: what such records have in common: the very text of the report, or all their codes.
            ecg_weight: weight of the direction in which an ECG finds its report; 0.5 in CLIP.

        Raises:
            ValueError: naming the argument that cannot be.
        """
        super().__init__()
        if not 1 / MAX_SCALE <= temperature < math.inf:
            raise ValueError(f"temperature must be at least {1 / MAX_SCALE:g}, got {temperature}")
        if not 0 <= ecg_weight <= 1:
            raise ValueError(f"ecg_weight must lie between 0 and 1, got {ecg_weight}")
        self.duplicates, self.duplicates_share, self.ecg_weight = duplicates, duplicates_share, ecg_weight
        self.encoder, self.text_encoder = encoder, text_encoder
        self.ecg_projector = Projector(encoder.width, projector, norm_last=False)
        self.text_projector = Projector(text_encoder.width, projector, norm_last=False)
        # a row of its own: what is sharded over workers is cut by rows
        self.log_scale = nn.Parameter(torch.tensor([-math.log(temperature)]), requires_grad=learn_temperature)

    @property
    def reads(self) -> Sequence[Fact]:
        """The reports, and who shares a diagnosis where that makes a difference."""
        if self.duplicates == "ignore":
            return ("reports",)
        return ("reports", "same_report" if self.duplicates_share == "report" else "same_codes")

    def report_tokens(self, reports: Sequence[str]) -> Tensor:
        """See PretextTask."""
        return self.text_encoder.tokens(reports)

    def forward(self, signal: Tensor, draws: Draws, **facts: Tensor) -> Tensor:
        """The contrastive loss of (B, C, T) signals and the (B, L) tokens of their reports."""
        of_ecgs = self.ecg_projector(self.encoder(signal))
        of_texts = self.text_projector(self.text_encoder(facts["reports"]))
        return alignment_loss(
            of_ecgs,
            of_texts,
            scale=self.log_scale.exp(),
            same=facts.get("same_report", facts.get("same_codes")),
            treatment=self.duplicates,
            first_weight=self.ecg_weight,
        )

    @torch.no_grad()
    def after_step(self, step: int, num_steps: int) -> None:
        """Hold a learnt temperature at its least; clamped in the loss it would get no gradient to come back by."""
        self.log_scale.clamp_(max=math.log(MAX_SCALE))
