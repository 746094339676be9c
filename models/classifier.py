"""An encoder with a linear head: what fine-tuning trains and an evaluation runs.

Shapes: B records, C leads, T samples, K classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.encoder import Encoder


class Classifier(nn.Module):
    """A linear head on an encoder's embeddings.

    Every parameter of the encoder is made trainable, those too that pre-training holds fixed (position tables).
    A linear probe freezes them again.

    Attributes:
        encoder: embeds the signals.
        head: maps embeddings to logits.
    """

    def __init__(self, encoder: Encoder, num_classes: int, *, drop_path: float, head_init_std: float) -> None:
        """Put a new head on an encoder.

        Args:
            encoder: taken as it is, not copied.
            num_classes: K.
            drop_path: the probability, while training, that a branch of the last block is left out for a record; it
                rises linearly over the blocks, from 0 in the first.
            head_init_std: the head's weights are drawn from N(0, head_init_std), its biases are 0.

        Raises:
            ValueError: if a number is out of its range.
        """
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path must be at least 0 and below 1, got {drop_path}")
        if not 0 <= head_init_std < math.inf:
            raise ValueError(f"head_init_std must be finite and at least 0, got {head_init_std}")
        self.drop_path = drop_path
        self.encoder = encoder.requires_grad_(True)
        self.head = nn.Linear(encoder.width, num_classes)
        nn.init.normal_(self.head.weight, std=head_init_std)
        nn.init.zeros_(self.head.bias)

    def draw(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """Draw which branches a training step leaves out.

        Args:
            batch_size: B, the records of the global batch.
            generator: draws; the result lives on its device.

        Returns:
            (B, depth, 2): for each branch of each block 0, or 1 / the probability of being kept.

        Source: stochastic depth, Huang et al. 2016, arXiv:1603.09382 (there the scaling is done in the evaluation).
        """
        device = generator.device
        keep = 1 - torch.linspace(0, self.drop_path, self.encoder.depth, device=device)[:, None]
        noise = torch.rand((batch_size, self.encoder.depth, 2), generator=generator, device=device)
        return (noise < keep) / keep

    def forward(self, signal: Tensor, draws: Tensor | None = None) -> Tensor:
        """Classify signals.

        Args:
            signal: (B, C, T), standardised.
            draws: (B, depth, 2), rows of `draw`'s result; without them, or in eval mode, no branch is left out.

        Returns:
            (B, K) logits.
        """
        drop_path = draws.to(signal.device) if draws is not None and self.training else None
        logits: Tensor = self.head(self.encoder(signal, drop_path))
        return logits

    def layer_of(self, parameter: str) -> int:
        """The layer of a parameter of this module, for layer decay: as in the encoder, and depth + 1 for the head."""
        part, _, rest = parameter.partition(".")
        return self.encoder.layer_of(rest) if part == "encoder" else self.encoder.depth + 1
