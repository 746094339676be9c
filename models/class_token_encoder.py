"""A transformer over one group of patches with a class token: the encoder of MTAE and MLAE.

Shapes: B records, N patches, P values of a patch, K patches kept, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from models.patch_encoder import PatchEncoder
from models.transformer import PatchEmbedding, random_token


class ClassTokenEncoder(PatchEncoder):
    """A transformer over one group of patches and a learnt class token, whose output is the embedding.

    Positions are fixed while pre-training (`requires_grad` is off) and zero for the class token; a classifier trains
    them. The final norm acts on every token.
    """

    num_own_tokens = 1

    def __init__(self, *, standardize_patches: bool, **grid: Any) -> None:
        """Build the encoder with random weights.

        Args:
            standardize_patches: whether a patch loses its mean and amplitude before it is embedded.
            grid: as PatchEncoder takes it, but for the groups.
        """
        super().__init__(grouped=False, **grid)
        self.patch_embedding = PatchEmbedding(self.patch_size, self.width, standardize=standardize_patches)
        positions = self.position_table(self.width)
        self.positions = nn.Parameter(torch.cat([torch.zeros(1, self.width), positions]), requires_grad=False)
        self.class_token = random_token(self.width)
        self._add_transformer()

    def forward(self, signal: Tensor, drop_path: Tensor | None = None, **shown: Tensor) -> Tensor:
        """Embed signals, as `PatchEncoder.forward`, but by the class token: (B, C, T) -> (B, D)."""
        embedding: Tensor = self.norm(self.tokens(signal, drop_path, **shown)[:, 0, 0])
        return embedding

    def _tokens(self, patches: Tensor, kept: Tensor | None, groups: Tensor | None) -> Tensor:
        positions = self.positions[1:]
        tokens: Tensor = self.patch_embedding(patches) + (positions if kept is None else positions[kept])
        first = (self.class_token + self.positions[0]).expand(
            tokens.shape[0], 1, 1, -1
        )  # len() would fix B in an export
        return torch.cat([first, tokens], dim=2)
