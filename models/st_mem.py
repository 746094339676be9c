"""ST-MEM: masked modelling of ECGs over time and leads.

Na, Park, Tae, Joo: Guiding Masked Representation Learning to Capture Spatio-Temporal Relationship of
Electrocardiogram, ICLR 2024, arXiv:2402.09450, sec. 3.

Shapes: B records, C leads, T samples, N patches of a lead, P samples of a patch, K patches kept of a lead, S separator
tokens of a lead, D width of the encoder. A lead is a group of models.masked_autoencoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.encoder import LEADS, lead_rows
from models.masked_autoencoder import MaskedAutoencoder, PatchEncoder, Size, patch_grid
from models.vit import PatchEmbedding, random_token, sin_cos_table


class STMEMEncoder(PatchEncoder):
    """A transformer over the patches of all leads together.

    A token is the embedding of one patch of one lead, plus that of its position in time, plus that of its lead. Each
    lead brings `num_sep_tokens` separators: one learnt vector, the same for all, plus the lead's embedding. A
    transformer knows of order only what the position table says, so the separators stand in front of their lead's
    patches here where the paper puts them around: the result is the same. For the same reason the paper's left and
    right separator, with equal vectors and zero positions, are equal at every layer, and stay so when fine-tuned, as
    both receive the same gradient. One a lead therefore tells the others as much as two (it is only attended to with
    half the weight, which keys can learn), in a ninth fewer tokens at a mask ratio of 0.75 of 30 patches.

    Positions are fixed while pre-training (`requires_grad` is off) and zero for separators; a classifier trains them.
    The final norm acts on every token while pre-training, and on the mean over all patches' tokens in `forward`.

    The weights do not depend on `leads`: all hold the embeddings of the twelve standard leads, and `leads` says which
    of them the input brings, in which order. Weights trained on twelve leads are those of a model of one.
    """

    def __init__(
        self,
        *,
        leads: Sequence[str],
        num_patches: int,
        patch_size: int,
        num_sep_tokens: int,
        size: Size,
        standardize_patches: bool,
    ) -> None:
        """Build the encoder with random weights.

        Args:
            leads: C names of standard leads, in the order of the input.
            num_patches: N.
            patch_size: P.
            num_sep_tokens: S, 0 to 2.
            size: a key of SIZES.
            standardize_patches: whether a patch loses its mean and amplitude before it is embedded.

        Raises:
            ValueError: if the leads, the number of separators or the size are none of these.
        """
        super().__init__(size)
        if num_sep_tokens not in (0, 1, 2):
            raise ValueError(f"num_sep_tokens must be 0, 1 or 2, got {num_sep_tokens}")
        rows = lead_rows(leads)
        self.leads = tuple(leads)
        self.num_groups, self.num_patches, self.patch_size = len(self.leads), num_patches, patch_size
        self.num_sep_tokens = num_sep_tokens
        self.patch_embedding = PatchEmbedding(patch_size, self.width, standardize=standardize_patches)
        separators = torch.zeros(num_sep_tokens, self.width)
        positions = torch.cat([separators, sin_cos_table(num_patches, self.width)])
        self.positions = nn.Parameter(positions, requires_grad=False)  # (S + N, D)
        if num_sep_tokens:
            self.sep_token = random_token(self.width)
        self.lead_embeddings = random_token(len(LEADS), self.width)
        self.register_buffer("lead_rows", torch.tensor(rows), persistent=False)
        self.lead_rows: Tensor
        self._add_transformer()

    def forward(self, signal: Tensor, drop_path: Tensor | None = None) -> Tensor:
        """Embed whole signals, as `Encoder.forward` says: (B, C, T) -> (B, D)."""
        tokens = self.encode(self.patches(signal), drop_path=drop_path)
        embedding: Tensor = self.norm(tokens[:, :, self.num_sep_tokens :].mean(dim=(1, 2)))
        return embedding

    def patches(self, signal: Tensor) -> Tensor:
        """Cut signals into patches: (B, C, T) -> (B, C, N, P), a view.

        Raises:
            ValueError: if the signal has another number of leads or samples than the encoder.
        """
        signal = self._checked(signal, self.num_patches * self.patch_size)
        return signal.reshape(*signal.shape[:2], self.num_patches, self.patch_size)

    def _tokens(self, patches: Tensor, kept: Tensor | None) -> Tensor:
        num_sep = self.num_sep_tokens
        positions = self.positions[num_sep:]
        tokens: Tensor = self.patch_embedding(patches) + (positions if kept is None else positions[kept])
        if num_sep:
            separators = self.sep_token + self.positions[:num_sep]
            tokens = torch.cat([separators.expand(*tokens.shape[:2], -1, -1), tokens], dim=2)
        return tokens + self.lead_embeddings.index_select(0, self.lead_rows)[:, None]


class STMEM(MaskedAutoencoder):
    """Hide most patches of every lead, each lead's by itself, and reconstruct them from what all leads still show."""

    encoder: STMEMEncoder

    def __init__(
        self,
        *,
        leads: Sequence[str],
        num_samples: int,
        sampling_rate_hz: float,
        size: Size,
        patch_duration_s: float,
        mask_ratio: float,
        num_sep_tokens: int,
        norm_pix_loss: bool,
        standardize_patches: bool,
        decoder_width: int | None,
        decoder_depth: int | None,
        decoder_heads: int | None,
    ) -> None:
        """Build the model with random weights.

        Args:
            leads: C names of standard leads, in the order of the input.
            num_samples: T.
            sampling_rate_hz: of the input.
            size: of the encoder: tiny, small or base.
            patch_duration_s: a whole number of samples, of which the input is a whole number of times; paper: 0.3.
            mask_ratio: the share of each lead's patches to hide; paper: 0.75.
            num_sep_tokens: separators of a lead: 2 as in the paper, 1, which tells as much (see STMEMEncoder), or 0.
            norm_pix_loss: whether target patches are standardised one by one.
            standardize_patches: whether the encoder sees the shape of each patch alone, without its mean and
                amplitude, as in the published models.
            decoder_width: W, even; None is the size's own (DECODERS), and so below.
            decoder_depth: blocks of the decoder.
            decoder_heads: heads of the decoder, 64 wide each.

        Raises:
            ValueError: naming the argument that cannot be.
        """
        patch_size, num_patches = patch_grid(num_samples, sampling_rate_hz, patch_duration_s)
        encoder = STMEMEncoder(
            leads=leads,
            num_patches=num_patches,
            patch_size=patch_size,
            num_sep_tokens=num_sep_tokens,
            size=size,
            standardize_patches=standardize_patches,
        )
        super().__init__(
            encoder,
            size=size,
            mask_ratio=mask_ratio,
            norm_pix_loss=norm_pix_loss,
            decoder_width=decoder_width,
            decoder_depth=decoder_depth,
            decoder_heads=decoder_heads,
        )
