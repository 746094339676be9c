"""JEPA: from what is seen of a record, predict the embeddings of what is not.

Assran et al. 2023, arXiv:2301.08243, for records in one dimension: the targets are what a slowly following copy of the
encoder makes of the whole record, so that nothing is predicted sample by sample.

Shapes: B records, C leads, T samples, G groups and N patches of a group (models.patch_encoder), L columns in time, M
target blocks, D width of the encoder.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from models.encoder import Encoder, Gift
from models.jepa_masks import InverseBlock, Masks, MultiBlock, RandomPositions, Range
from models.masked_autoencoder import MaskedDecoder
from models.masking import take
from models.moving_average import check_momentum, follow, following, momentum_at
from models.patch_encoder import PatchEncoder
from models.pretext import Draws, PretextTask
from models.transformer import HEAD_WIDTH


class JEPA(PretextTask):
    """Predict the target encoder's tokens of hidden columns from the encoder's tokens of the seen ones.

    Masks hide time: a column of all leads at once, since leads that are shown tell much of one that is hidden. Where
    the patches are whole leads, leads are hidden instead.
    """

    needs: ClassVar[frozenset[Gift]] = frozenset({"patches"})
    encoder: PatchEncoder

    def __init__(
        self,
        *,
        encoder: Encoder,
        mask_mode: Literal["multiblock", "inverse_block", "random"],
        num_targets: int,
        target_share: Range,
        context_share: Range,
        min_context: int,
        allow_overlap: bool,
        keep_share: Range,
        num_blocks: int,
        min_block: int,
        loss: Literal["l1", "smooth_l1"],
        normalize_targets: bool,
        momentum_start: float,
        momentum_end: float,
        predictor_width: int | None,
        predictor_depth: int | None,
    ) -> None:
        """Put a predictor on an encoder, and a copy of the encoder beside it.

        Args:
            encoder: one that gives patches; taken as it is.
            mask_mode: how what is seen and what is predicted are drawn (models.jepa_masks): `multiblock` as I-JEPA,
                `inverse_block` and `random` as the two ECG-JEPAs.
            num_targets: of multiblock, as the next four.
            target_share: [LOW, HIGH] length of a target block as a share of the record.
            context_share: [LOW, HIGH] length of the context block.
            min_context: patches seen at the least.
            allow_overlap: whether targets may be seen.
            keep_share: of inverse_block and random: [LOW, HIGH] share of the record that is seen.
            num_blocks: of inverse_block: hidden blocks.
            min_block: of inverse_block: patches of a block at the least.
            loss: of each predicted value; l1 or, as in I-JEPA, smooth_l1 (quadratic below 1).
            normalize_targets: whether each target token is brought to mean 0 and variance 1, as in I-JEPA.
            momentum_start: how much of the target encoder stays at the first step.
            momentum_end: the same at the last step; in between it rises in a straight line.
            predictor_width: None for half of the encoder's; a multiple of 4.
            predictor_depth: None for half of the encoder's blocks, one at the least.

        Raises:
            ValueError: naming the argument that cannot be.
        """
        super().__init__()
        assert isinstance(encoder, PatchEncoder), "an encoder that gives patches is a PatchEncoder"
        check_momentum(momentum_start, momentum_end)
        self.momentum = (momentum_start, momentum_end)
        self.loss, self.normalize_targets = loss, normalize_targets
        modes: dict[str, Masks] = {
            "multiblock": MultiBlock(num_targets, target_share, context_share, min_context, allow_overlap),
            "inverse_block": InverseBlock(keep_share, num_blocks, min_block),
            "random": RandomPositions(keep_share),
        }
        self.masks = modes[mask_mode]
        if encoder.num_columns == 1 and encoder.num_groups > 1:
            raise ValueError("the window must hold two patches of each lead or more, to see one and hide one; got 1")
        self.num_positions = encoder.num_columns if encoder.num_columns > 1 else encoder.num_rows
        self.masks.check(self.num_positions)
        self.encoder = encoder
        self.target = following(encoder)
        width = encoder.width // 2 if predictor_width is None else predictor_width
        if width < 4 or width % 4:
            raise ValueError(f"predictor_width must be a positive multiple of 4, got {width}")
        depth = max(1, encoder.depth // 2) if predictor_depth is None else predictor_depth
        if depth < 1:
            raise ValueError(f"predictor_depth must be at least 1, got {depth}")
        self.predictor = MaskedDecoder(
            encoder,
            width=width,
            depth=depth,
            num_heads=max(1, width // HEAD_WIDTH),
            head_width=min(width, HEAD_WIDTH),
            output_size=encoder.width,
        )

    def draw(self, batch_size: int, generator: torch.Generator) -> Draws:
        """`context` (B, K) and `targets` (B, M, H): int64 columns that are seen and predicted."""
        context, targets = self.masks.draw(batch_size, self.num_positions, generator)
        return {"context": context, "targets": targets}

    def forward(self, signal: Tensor, draws: Draws, **facts: Tensor) -> Tensor:
        """The mean of `losses`: (B, C, T) -> scalar."""
        return self.losses(signal, draws).mean()

    def losses(self, signal: Tensor, draws: Draws) -> Tensor:
        """Each record's own loss, which no other record has a part in: (B, C, T) -> (B,)."""
        patches = self.encoder.patches(signal)
        targets = draws["targets"].to(signal.device)
        num_targets = targets.shape[1]
        kept = self._positions(draws["context"].to(signal.device))
        hidden = self._positions(targets.flatten(0, 1))  # (B M, ...): the targets of a record one after another
        with torch.no_grad():
            wanted = self.target.norm(self.target.encode(patches))[:, :, self.encoder.num_own_tokens :].float()
            if self.normalize_targets:
                wanted = F.layer_norm(wanted, wanted.shape[-1:])
            wanted = take(wanted.repeat_interleave(num_targets, dim=0), hidden)
        tokens = self.encoder.norm(self.encoder.encode(take(patches, kept), kept=kept))
        tokens, kept = (values.repeat_interleave(num_targets, dim=0) for values in (tokens, kept))
        predicted = self.predictor(tokens, kept, hidden).float()
        error = F.l1_loss if self.loss == "l1" else F.smooth_l1_loss
        return error(predicted, wanted, reduction="none").view(len(signal), -1).mean(dim=1)

    def after_step(self, step: int, num_steps: int) -> None:
        """Let the target encoder follow."""
        follow(self.target, self.encoder, momentum_at(step, num_steps, *self.momentum))

    def _positions(self, drawn: Tensor) -> Tensor:
        """Positions within the groups of drawn columns, or of drawn leads where the patches are whole leads."""
        everything = torch.arange(self.encoder.num_rows, device=drawn.device).expand(len(drawn), -1)
        if self.encoder.num_columns > 1:
            return self.encoder.positions_at(everything, drawn)
        return self.encoder.positions_at(drawn, everything[:, :1])
