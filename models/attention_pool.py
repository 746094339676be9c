"""Pooling by attention: an encoder's patches weighed by how they answer to their own mean, learnt with labels.

Turgut et al. 2025, arXiv:2308.05764. Shapes: B records, C leads, T samples, L tokens, D width.
"""

from __future__ import annotations

from torch import Tensor, nn

from models.encoder import Encoder
from models.patch_encoder import PatchEncoder


class AttentionPooled(Encoder):
    """An encoder that gives patches, with one layer of attention in the place of its own way to one embedding."""

    def __init__(self, encoder: Encoder) -> None:
        """Put attention on an encoder, with random weights.

        Args:
            encoder: taken as it is; its norm follows the attention.
        """
        super().__init__()
        assert isinstance(encoder, PatchEncoder), "an encoder that gives patches is a PatchEncoder"
        self.width, self.depth, self.leads = encoder.width, encoder.depth, encoder.leads
        self.num_samples, self.segment_samples = encoder.num_samples, encoder.segment_samples
        self.num_rows, self.num_columns = encoder.num_rows, encoder.num_columns
        self.encoder = encoder
        self.attention = nn.MultiheadAttention(encoder.width, encoder.num_heads, batch_first=True)

    def forward(self, signal: Tensor, drop_path: Tensor | None = None, **shown: Tensor) -> Tensor:
        """Embed signals: (B, C, T) -> (B, D); `shown` as PatchEncoder.tokens takes it."""
        tokens = self.encoder.patch_tokens(signal, drop_path, **shown)  # (B, L, D)
        pooled, _ = self.attention(tokens.mean(dim=1, keepdim=True), tokens, tokens, need_weights=False)
        embedding: Tensor = self.encoder.norm(pooled[:, 0])
        return embedding

    def layer_of(self, parameter: str) -> int:
        """As the encoder's own; the attention follows its blocks."""
        part, _, rest = parameter.partition(".")
        return self.encoder.layer_of(rest) if part == "encoder" else self.depth + 1
