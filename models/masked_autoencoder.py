"""Masked autoencoding of patches: the pretext task of ST-MEM, MTAE, MLAE and the signal MAE.

Hide most patches of each group (a lead's patches, or all there are), encode the rest, and have a light decoder fill in
what is hidden. The four differ in what a patch and a group are, which their encoders say, and in their losses' keys.

Shapes: B records, C leads, T samples, G groups, N patches of a group, P values of a patch, K patches kept and H hidden
of a group, S tokens that a group begins with beside its patches' (separators, a class token), D width of the encoder,
W width of the decoder.

Source: MAE, He et al. 2022, arXiv:2111.06377; for ECGs Na et al. 2024, arXiv:2402.09450, and Turgut et al. 2025,
arXiv:2308.05764.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from models.encoder import Encoder, Gift
from models.linear import Linear
from models.losses import cross_correlation, patch_mse, standardized_patches
from models.masking import num_kept_patches, split_by_noise, take
from models.patch_encoder import PatchEncoder
from models.pretext import Draws, PretextTask
from models.transformer import HEAD_WIDTH, Block, initialize, random_token

DECODER_WIDTH, DECODER_DEPTH = 256, 4
"""Of ST-MEM's decoder, which costs 20 times an encoder of the size laptop ..."""

NARROW_WIDTH, NARROW_DEPTH = 64, 1
"""... so that an encoder of less than a third of its width gets this one where nothing is told."""


class MaskedDecoder(nn.Module):
    """A light transformer that fills in the hidden patches of each group from that group's tokens alone.

    All groups share it. They are folded into the batch, so that no token sees another group's.
    """

    def __init__(
        self,
        encoder: PatchEncoder,
        *,
        width: int,
        depth: int,
        num_heads: int,
        head_width: int = HEAD_WIDTH,
        output_size: int | None = None,
    ) -> None:
        """Build the decoder with random weights.

        Args:
            encoder: whose tokens it is given.
            width: W, even.
            depth: number of blocks.
            num_heads: of each block.
            head_width: of each head.
            output_size: values that are told of a hidden patch; None for the P of the patch itself.

        Raises:
            ValueError: naming the size that cannot be.
        """
        super().__init__()
        if width < 2 or width % 2:
            raise ValueError(f"decoder_width must be even and positive, got {width}")
        if depth < 1:
            raise ValueError(f"decoder_depth must be at least 1, got {depth}")
        if num_heads < 1:
            raise ValueError(f"decoder_heads must be at least 1, got {num_heads}")
        if head_width < 1:
            raise ValueError(f"decoder_head_width must be at least 1, got {head_width}")
        try:
            positions = encoder.position_table(width)
        except ValueError as error:
            raise ValueError(f"decoder_width: {error}") from error
        self.embedding = Linear(encoder.width, width)
        self.mask_token = random_token(width)
        self.register_buffer("positions", positions)  # (N, W); zeros for a group's own tokens
        self.positions: Tensor
        self.blocks = nn.ModuleList(Block(width, num_heads, head_width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = Linear(width, encoder.patch_size if output_size is None else output_size)
        initialize(self)

    def forward(self, tokens: Tensor, kept: Tensor, hidden: Tensor, *, visible_too: bool = False) -> Tensor:
        """Reconstruct the hidden patches, or all that there is a token for.

        Args:
            tokens: (B, G, S + K, D) the encoder's output, every group's own tokens first.
            kept: (B, G, K) int64 positions of its patches.
            hidden: (B, G, H) int64 positions of others.
            visible_too: whether the kept patches are reconstructed as well.

        Returns:
            (B, G, H, P) in the order of `hidden`, or (B, G, K + H, P) in that of `kept` and then of `hidden`.
        """
        num_own = tokens.shape[2] - kept.shape[2]
        own, visible = self.embedding(tokens).tensor_split([num_own], dim=2)
        masks = self.mask_token + self.positions[hidden]
        # The hidden patches' tokens stay at the end: their order is told by their positions alone.
        tokens = torch.cat([own, visible + self.positions[kept], masks], dim=2)
        sequence = tokens.flatten(0, 1)  # (B G, S + N, W)
        for block in self.blocks:
            sequence = block(sequence)
        asked = sequence[:, num_own:] if visible_too else sequence[:, -hidden.shape[2] :]
        reconstruction: Tensor = self.head(self.norm(asked))
        return reconstruction.view(*hidden.shape[:2], *reconstruction.shape[1:])


class MaskedAutoencoder(PretextTask):
    """Hide most patches of every group, each group's by itself, and reconstruct them from what all groups still show.

    Attributes:
        num_kept: K.
    """

    needs: ClassVar[frozenset[Gift]] = frozenset({"patches"})
    encoder: PatchEncoder

    def __init__(
        self,
        *,
        encoder: Encoder,
        mask_ratio: float,
        norm_pix_loss: bool,
        loss_on: Literal["hidden", "all"],
        ncc_weight: float,
        decoder_width: int | None,
        decoder_depth: int | None,
        decoder_heads: int | None,
        decoder_head_width: int,
    ) -> None:
        """Put a decoder beside an encoder.

        Args:
            encoder: one that gives patches; taken as it is.
            mask_ratio: the share of each group's patches to hide; ST-MEM 0.75, signal MAE 0.8.
            norm_pix_loss: whether target patches are standardised one by one.
            loss_on: the hidden patches alone, or all of them, as the signal MAE.
            ncc_weight: w of the loss (1 - w) * MSE + w * (1 - NCC), NCC being the correlation of each lead with its
                reconstruction; 0 in MAE, 0.1 in the signal MAE.
            decoder_width: W, even; None for 256, or 64 under an encoder of less than a third of that.
            decoder_depth: blocks of the decoder; None for 4, or 1 under such an encoder. Signal MAE: 2.
            decoder_heads: heads of the decoder; None for as many as the width holds.
            decoder_head_width: width of each of them; 64 in ST-MEM, 32 in the signal MAE.

        Raises:
            ValueError: naming the argument that cannot be.
        """
        super().__init__()
        assert isinstance(encoder, PatchEncoder), "an encoder that gives patches is a PatchEncoder"
        if not 0 <= ncc_weight <= 1:
            raise ValueError(f"ncc_weight must lie between 0 and 1, got {ncc_weight}")
        self.num_kept = num_kept_patches(encoder.num_patches, mask_ratio)
        self.norm_pix_loss, self.loss_on, self.ncc_weight = norm_pix_loss, loss_on, ncc_weight
        self.encoder = encoder
        narrow = 3 * encoder.width < DECODER_WIDTH
        usual = (NARROW_WIDTH, NARROW_DEPTH) if narrow else (DECODER_WIDTH, DECODER_DEPTH)
        width = usual[0] if decoder_width is None else decoder_width
        heads_held = width // decoder_head_width if decoder_head_width > 0 else 1
        self.decoder = MaskedDecoder(
            encoder,
            width=width,
            depth=usual[1] if decoder_depth is None else decoder_depth,
            num_heads=max(1, heads_held) if decoder_heads is None else decoder_heads,
            head_width=decoder_head_width,
        )

    def draw(self, batch_size: int, generator: torch.Generator) -> Draws:
        """`noise`: uniform (B, G, N), which decides what patches are hidden, on the generator's device."""
        shape = (batch_size, self.encoder.num_groups, self.encoder.num_patches)
        return {"noise": torch.rand(shape, generator=generator, device=generator.device)}

    def forward(self, signal: Tensor, draws: Draws, **facts: Tensor) -> Tensor:
        """The error of the reconstruction: (B, C, T) -> scalar."""
        kept, hidden = self._split(draws["noise"].to(signal.device))
        patches = self.encoder.patches(signal)
        target = standardized_patches(patches) if self.norm_pix_loss else patches
        if self.loss_on == "hidden" and self.ncc_weight == 0:
            return patch_mse(self._decoded(patches, kept, hidden), take(target, hidden))
        decoded = self._decoded(patches, kept, hidden, visible_too=True)
        whole = torch.empty_like(decoded).scatter(2, _along(torch.cat([kept, hidden], dim=2), decoded), decoded)
        asked = whole if self.loss_on == "all" else take(whole, hidden)
        error = patch_mse(asked, target if self.loss_on == "all" else take(target, hidden))
        if self.ncc_weight == 0:
            return error
        similarity = cross_correlation(self.encoder.signal_of(whole), self.encoder.signal_of(target)).mean()
        return (1 - self.ncc_weight) * error + self.ncc_weight * (1 - similarity)

    def reconstruct(self, signal: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Hide patches and reconstruct them.

        Args:
            signal: (B, C, T), standardised.
            draws: from `draw`.

        Returns:
            prediction (B, G, H, P), standardised patch by patch if `norm_pix_loss`, and hidden (B, G, H), the int64
            positions of these patches, ascending.
        """
        kept, hidden = self._split(draws["noise"].to(signal.device))
        return self._decoded(self.encoder.patches(signal), kept, hidden), hidden

    def _split(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Positions kept and hidden in every group: (B, G, N) -> (B, G, K), (B, G, H)."""
        expected = (self.encoder.num_groups, self.encoder.num_patches)
        assert noise.shape[1:] == expected, f"noise must be (B, {expected}), got {tuple(noise.shape)}"
        return split_by_noise(noise, self.num_kept)

    def _decoded(self, patches: Tensor, kept: Tensor, hidden: Tensor, *, visible_too: bool = False) -> Tensor:
        tokens = self.encoder.norm(self.encoder.encode(take(patches, kept), kept=kept))
        decoded: Tensor = self.decoder(tokens, kept, hidden, visible_too=visible_too)
        return decoded


def _along(positions: Tensor, values: Tensor) -> Tensor:
    """(..., N) positions for a scatter of (..., N, P) values."""
    return positions.unsqueeze(-1).expand_as(values)
