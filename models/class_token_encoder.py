"""A transformer over one sequence of patches with a class token: the encoder of MTAE and MLAE.

Shapes: B records, C leads, T samples, N patches, P values of a patch, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.encoder import lead_rows
from models.masked_autoencoder import PatchEncoder, Size
from models.vit import PatchEmbedding, random_token


class ClassTokenEncoder(PatchEncoder):
    """A transformer over one group of patches and a learnt class token, whose output is the embedding.

    Positions are fixed while pre-training (`requires_grad` is off) and zero for the class token; a classifier trains
    them. The final norm acts on every token.
    """

    num_groups = 1

    def __init__(
        self, *, leads: Sequence[str], positions: Tensor, patch_size: int, size: Size, standardize_patches: bool
    ) -> None:
        """Build the encoder with random weights.

        Args:
            leads: C names of standard leads, in the order of the input.
            positions: (N, D) of the patches.
            patch_size: P.
            size: a key of SIZES.
            standardize_patches: whether a patch loses its mean and amplitude before it is embedded.

        Raises:
            ValueError: if the leads or the size are none of these.
        """
        super().__init__(size)
        lead_rows(leads)  # refuses what are none
        self.leads = tuple(leads)
        self.num_patches, self.patch_size = len(positions), patch_size
        self.patch_embedding = PatchEmbedding(patch_size, self.width, standardize=standardize_patches)
        self.positions = nn.Parameter(torch.cat([torch.zeros(1, self.width), positions]), requires_grad=False)
        self.class_token = random_token(self.width)
        self._add_transformer()

    def forward(self, signal: Tensor, drop_path: Tensor | None = None) -> Tensor:
        """Embed whole signals, as `Encoder.forward` says: (B, C, T) -> (B, D)."""
        tokens = self.encode(self.patches(signal), drop_path=drop_path)
        embedding: Tensor = self.norm(tokens[:, 0, 0])
        return embedding

    def _tokens(self, patches: Tensor, kept: Tensor | None) -> Tensor:
        positions = self.positions[1:]
        tokens: Tensor = self.patch_embedding(patches) + (positions if kept is None else positions[kept])
        first = (self.class_token + self.positions[0]).expand(len(tokens), 1, 1, -1)
        return torch.cat([first, tokens], dim=2)
