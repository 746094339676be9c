"""An encoder with a linear head: what fine-tuning trains and an evaluation runs.

Shapes: B records, C leads, T samples, K classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.encoder import Encoder
from models.masking import num_kept_patches, split_by_noise
from models.pretext import Draws


class Classifier(nn.Module):
    """A linear head on an encoder's embeddings.

    Every parameter of the encoder is made trainable, those too that pre-training holds fixed (position tables).
    A linear probe freezes them again.

    Attributes:
        encoder: embeds the signals.
        head: maps embeddings to logits.
    """

    def __init__(
        self,
        encoder: Encoder,
        num_classes: int,
        *,
        drop_path: float,
        head_init_std: float,
        mask_c_ratio: float = 0.0,
        mask_t_ratio: float = 0.0,
    ) -> None:
        """Put a new head on an encoder.

        Args:
            encoder: taken as it is, not copied.
            num_classes: K.
            drop_path: the probability, while training, that a branch of the last block is left out for a record; it
                rises linearly over the blocks, from 0 in the first.
            head_init_std: the head's weights are drawn from N(0, head_init_std), its biases are 0.
            mask_c_ratio: the share of the leads that are hidden from each record while training; 0 for any encoder but
                one that gives patches and tells leads apart.
            mask_t_ratio: the share of the patches in time that are hidden, likewise.

        Raises:
            ValueError: if a number is out of its range, or the encoder has no patches to hide.
        """
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path must be at least 0 and below 1, got {drop_path}")
        if not 0 <= head_init_std < math.inf:
            raise ValueError(f"head_init_std must be finite and at least 0, got {head_init_std}")
        self.drop_path = drop_path
        self._grid = {
            name: _kept(encoder, name, ratio)
            for name, ratio in (("rows", mask_c_ratio), ("columns", mask_t_ratio))
            if ratio != 0
        }
        self.encoder = encoder.requires_grad_(True)
        self.head = nn.Linear(encoder.width, num_classes)
        nn.init.normal_(self.head.weight, std=head_init_std)
        nn.init.zeros_(self.head.bias)

    def draw(self, batch_size: int, generator: torch.Generator) -> Draws:
        """Draw which branches a training step leaves out, and what it hides.

        Args:
            batch_size: B, the records of the global batch.
            generator: draws; the result lives on its device.

        Returns:
            `drop_path` (B, depth, 2): for each branch of each block 0, or 1 / the probability of being kept; and where
            leads or patches are hidden `rows` and `columns`, (B, ...) int64, those of the grid that are shown.

        Source: stochastic depth, Huang et al. 2016, arXiv:1603.09382 (there the scaling is done in the evaluation);
        hidden leads and times, Turgut et al. 2025, arXiv:2308.05764.
        """
        device = generator.device
        keep = 1 - torch.linspace(0, self.drop_path, self.encoder.depth, device=device)[:, None]
        noise = torch.rand((batch_size, self.encoder.depth, 2), generator=generator, device=device)
        draws = {"drop_path": (noise < keep) / keep}
        for name, (number, kept) in self._grid.items():
            draws[name], _ = split_by_noise(torch.rand((batch_size, number), generator=generator, device=device), kept)
        return draws

    def forward(self, signal: Tensor, draws: Draws | None = None) -> Tensor:
        """Classify signals.

        Args:
            signal: (B, C, T), standardised.
            draws: rows of `draw`'s result; without them, or in eval mode, nothing is left out or hidden.

        Returns:
            (B, K) logits.
        """
        drawn = {name: draw.to(signal.device) for name, draw in draws.items()} if draws and self.training else {}
        logits: Tensor = self.head(self.encoder(signal, **drawn))
        return logits

    def layer_of(self, parameter: str) -> int:
        """The layer of a parameter of this module, for layer decay: as in the encoder, and depth + 1 for the head."""
        part, _, rest = parameter.partition(".")
        return self.encoder.layer_of(rest) if part == "encoder" else self.encoder.depth + 1


def _kept(encoder: Encoder, name: str, ratio: float) -> tuple[int, int]:
    """How many rows or columns the encoder's grid has, and how many of them stay visible."""
    key = "mask_c_ratio" if name == "rows" else "mask_t_ratio"
    number = getattr(encoder, f"num_{name}", 0)
    if number < 2:
        apart = "tells leads apart" if name == "rows" else "cuts time into patches"
        raise ValueError(f"{key} needs an encoder that {apart}, got {type(encoder).__name__}; set it to 0")
    try:
        return number, num_kept_patches(number, ratio)
    except ValueError as error:
        raise ValueError(f"{key} must keep and hide at least one of {number} {name}, got {ratio}") from error
