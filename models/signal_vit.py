"""The encoder of Turgut et al.'s signal MAE: an ECG as an image of one channel, leads by samples.

Turgut et al., Medical Image Analysis 2025, arXiv:2308.05764. The task is models.masked_autoencoder.MaskedAutoencoder.
Shapes: B records, C leads, L columns in time, K patches, P samples of a patch, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from models.encoder import LEADS, lead_rows
from models.linear import Linear
from models.patch_encoder import PatchEncoder, dimensions_of, num_patches_of
from models.transformer import random_token, sin_cos_grid

SignalSize = Literal[
    "laptop",
    "turgut_tiny",
    "turgut_small",
    "turgut_medium",
    "turgut_large",
    "turgut_small_deep",
    "turgut_medium_deep",
]

SIGNAL_SIZES: dict[str, tuple[int, int, int]] = {
    "laptop": (64, 3, 1),
    "turgut_tiny": (384, 3, 6),
    "turgut_small": (512, 4, 8),
    "turgut_medium": (640, 5, 10),
    "turgut_large": (864, 6, 12),
    "turgut_small_deep": (384, 12, 6),
    "turgut_medium_deep": (576, 12, 8),
}
"""Width, depth and heads. Named after their authors: their `small` is another than ViT's."""


class SignalViT(PatchEncoder):
    """A transformer over all patches of all leads, each of one lead, and a class token.

    Positions are fixed while pre-training (a classifier trains them), half of their width for the column and half for
    the row, and zero for the class token, which only helps the others: the embedding is the norm of the mean over the
    patches' tokens.
    """

    num_own_tokens = 1

    def __init__(
        self,
        *,
        leads: Sequence[str],
        num_samples: int,
        sampling_rate_hz: float,
        size: SignalSize,
        patch_duration_s: float,
    ) -> None:
        """Build the encoder with random weights.

        Args:
            leads: C names of standard leads, in the order of the input.
            num_samples: T.
            sampling_rate_hz: of the input.
            size: a key of SIGNAL_SIZES.
            patch_duration_s: a whole number of samples, of which the input is a whole number of times; paper: 0.2, 100
                samples at 500 Hz.

        Raises:
            ValueError: naming the argument that cannot be.
        """
        dimensions = dimensions_of(size, SIGNAL_SIZES)
        super().__init__(
            leads=leads,
            num_samples=num_samples,
            num_columns=num_patches_of(num_samples, sampling_rate_hz, patch_duration_s),
            dimensions=dimensions,
            leads_apart=True,
            grouped=False,
            head_width=dimensions[0] // dimensions[2],
            eps=1e-6,
        )
        self.patch_embedding = Linear(self.patch_size, self.width)
        positions = torch.cat([torch.zeros(1, self.width), self.position_table(self.width)])
        self.positions = nn.Parameter(positions, requires_grad=False)
        self.class_token = random_token(self.width)
        self._add_transformer()

    def position_table(self, width: int) -> Tensor:
        """(C L, width): the grid's places, lead by lead; a lead's row is its place among the standard ones."""
        grid = sin_cos_grid(len(LEADS), self.num_columns, width).view(len(LEADS), self.num_columns, width)
        return grid[lead_rows(self.leads)].flatten(0, 1)

    def _tokens(self, patches: Tensor, kept: Tensor | None, groups: Tensor | None) -> Tensor:
        positions = self.positions[1:]
        tokens: Tensor = self.patch_embedding(patches) + (positions if kept is None else positions[kept])
        first = (self.class_token + self.positions[0]).expand(
            tokens.shape[0], 1, 1, -1
        )  # len() would fix B in an export
        return torch.cat([first, tokens], dim=2)
