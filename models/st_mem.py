"""The encoder of ST-MEM, masked modelling of ECGs over time and leads.

Na, Park, Tae, Joo: Guiding Masked Representation Learning to Capture Spatio-Temporal Relationship of
Electrocardiogram, ICLR 2024, arXiv:2402.09450, sec. 3. The task is models.masked_autoencoder.MaskedAutoencoder: each
lead is a group, whose patches are hidden by themselves.

Shapes: B records, C leads, T samples, N patches of a lead, P samples of a patch, K patches kept of a lead, S separator
tokens of a lead, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.encoder import LEADS, lead_rows
from models.patch_encoder import PatchEncoder, Size, dimensions_of, num_patches_of
from models.transformer import PatchEmbedding, random_token


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
        num_samples: int,
        sampling_rate_hz: float,
        size: Size,
        patch_duration_s: float,
        num_sep_tokens: int,
        standardize_patches: bool,
    ) -> None:
        """Build the encoder with random weights.

        Args:
            leads: C names of standard leads, in the order of the input.
            num_samples: T.
            sampling_rate_hz: of the input.
            size: a key of SIZES.
            patch_duration_s: a whole number of samples, of which the input is a whole number of times; paper: 0.3.
            num_sep_tokens: S: 2 as in the paper, 1, which tells as much (see above), or 0.
            standardize_patches: whether a patch loses its mean and amplitude before it is embedded, as in the
                published models.

        Raises:
            ValueError: naming the argument that cannot be.
        """
        super().__init__(
            leads=leads,
            num_samples=num_samples,
            num_columns=num_patches_of(num_samples, sampling_rate_hz, patch_duration_s),
            dimensions=dimensions_of(size),
            leads_apart=True,
            grouped=True,
        )
        if num_sep_tokens not in (0, 1, 2):
            raise ValueError(f"num_sep_tokens must be 0, 1 or 2, got {num_sep_tokens}")
        self.num_own_tokens = num_sep_tokens
        self.patch_embedding = PatchEmbedding(self.patch_size, self.width, standardize=standardize_patches)
        separators = torch.zeros(num_sep_tokens, self.width)
        positions = torch.cat([separators, self.position_table(self.width)])
        self.positions = nn.Parameter(positions, requires_grad=False)  # (S + N, D)
        if num_sep_tokens:
            self.sep_token = random_token(self.width)
        self.lead_embeddings = random_token(len(LEADS), self.width)
        self.register_buffer("lead_rows", torch.tensor(lead_rows(leads)), persistent=False)
        self.lead_rows: Tensor
        self._add_transformer()

    def _tokens(self, patches: Tensor, kept: Tensor | None, groups: Tensor | None) -> Tensor:
        num_sep = self.num_own_tokens
        positions = self.positions[num_sep:]
        tokens: Tensor = self.patch_embedding(patches) + (positions if kept is None else positions[kept])
        if num_sep:
            separators = self.sep_token + self.positions[:num_sep]
            tokens = torch.cat([separators.expand(*tokens.shape[:2], -1, -1), tokens], dim=2)
        # index_select: its gradient is added in one order, whatever the device
        rows = self.lead_rows if groups is None else self.lead_rows[groups.flatten()]
        embeddings = self.lead_embeddings.index_select(0, rows)
        return tokens + (embeddings if groups is None else embeddings.view(*groups.shape, -1))[..., None, :]
