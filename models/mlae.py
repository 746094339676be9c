"""MLAE: masked modelling of ECGs over leads, whole leads hidden.

Na, Park, Tae, Joo, ICLR 2024, arXiv:2402.09450, sec. 4 (a baseline of ST-MEM).

Shapes: B records, C leads, T samples, D width of the encoder. A patch is a whole lead.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from models.class_token_encoder import ClassTokenEncoder
from models.encoder import LEADS, lead_rows
from models.masked_autoencoder import MaskedAutoencoder, Size, width_of
from models.vit import sin_cos_table


class MLAEEncoder(ClassTokenEncoder):
    """A transformer over leads: a token is a whole lead, its position the lead's place among the standard ones."""

    def __init__(self, *, leads: Sequence[str], num_samples: int, size: Size, standardize_patches: bool) -> None:
        """Build the encoder with random weights.

        Args:
            leads: C names of standard leads, in the order of the input.
            num_samples: T.
            size: a key of SIZES.
            standardize_patches: whether a lead loses its mean and amplitude before it is embedded.

        Raises:
            ValueError: if the leads or the size are none of these.
        """
        super().__init__(
            leads=leads,
            positions=sin_cos_table(len(LEADS), width_of(size))[lead_rows(leads)],
            patch_size=num_samples,
            size=size,
            standardize_patches=standardize_patches,
        )

    def patches(self, signal: Tensor) -> Tensor:
        """Take each lead for a patch: (B, C, T) -> (B, 1, C, T), a view.

        Raises:
            ValueError: if the signal has another number of leads or samples than the encoder.
        """
        return self._checked(signal, self.patch_size).unsqueeze(1)


class MLAE(MaskedAutoencoder):
    """Hide most leads and reconstruct them from the rest."""

    def __init__(
        self,
        *,
        leads: Sequence[str],
        num_samples: int,
        sampling_rate_hz: float,
        size: Size,
        mask_ratio: float,
        norm_pix_loss: bool,
        standardize_patches: bool,
        decoder_width: int | None,
        decoder_depth: int | None,
        decoder_heads: int | None,
    ) -> None:
        """Build the model with random weights.

        Args:
            leads: C names of standard leads, in the order of the input; at least two.
            num_samples: T.
            sampling_rate_hz: of the input; of no account here.
            size: of the encoder: tiny, small or base.
            mask_ratio: the share of the leads to hide; paper: 0.75, 9 of 12.
            norm_pix_loss: whether target leads are standardised one by one.
            standardize_patches: whether the encoder sees the shape of each lead alone, without its mean and
                amplitude, as in the published models.
            decoder_width: even; None is the size's own (DECODERS), and so below.
            decoder_depth: blocks of the decoder.
            decoder_heads: heads of the decoder, 64 wide each.

        Raises:
            ValueError: naming the argument that cannot be.
        """
        encoder = MLAEEncoder(leads=leads, num_samples=num_samples, size=size, standardize_patches=standardize_patches)
        super().__init__(
            encoder,
            size=size,
            mask_ratio=mask_ratio,
            norm_pix_loss=norm_pix_loss,
            decoder_width=decoder_width,
            decoder_depth=decoder_depth,
            decoder_heads=decoder_heads,
        )
