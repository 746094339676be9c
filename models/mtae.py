"""MTAE: masked modelling of ECGs over time, the patches of all leads hidden together.

Na, Park, Tae, Joo, ICLR 2024, arXiv:2402.09450, sec. 4 (a baseline of ST-MEM).

Shapes: B records, C leads, T samples, N patches in time, P values of a patch, D width of the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from models.class_token_encoder import ClassTokenEncoder
from models.masked_autoencoder import MaskedAutoencoder, Size, patch_grid, width_of
from models.vit import sin_cos_table


class MTAEEncoder(ClassTokenEncoder):
    """A plain vision transformer over time: a token is a patch of all leads together."""

    def __init__(
        self, *, leads: Sequence[str], num_patches: int, lead_patch_size: int, size: Size, standardize_patches: bool
    ) -> None:
        """Build the encoder with random weights.

        Args:
            leads: C names of standard leads, in the order of the input.
            num_patches: N.
            lead_patch_size: samples of a patch; it holds P = C times as many values.
            size: a key of SIZES.
            standardize_patches: whether a patch loses its mean and amplitude before it is embedded.

        Raises:
            ValueError: if the leads or the size are none of these.
        """
        super().__init__(
            leads=leads,
            positions=sin_cos_table(num_patches, width_of(size)),
            patch_size=len(leads) * lead_patch_size,
            size=size,
            standardize_patches=standardize_patches,
        )

    def patches(self, signal: Tensor) -> Tensor:
        """Cut signals into patches: (B, C, T) -> (B, 1, N, P), each with its leads one after another.

        Raises:
            ValueError: if the signal has another number of leads or samples than the encoder.
        """
        num_leads = len(self.leads)
        signal = self._checked(signal, self.num_patches * self.patch_size // num_leads)
        cut = signal.reshape(len(signal), num_leads, self.num_patches, -1)
        return cut.transpose(1, 2).flatten(2).unsqueeze(1)


class MTAE(MaskedAutoencoder):
    """Hide most patches in time, all leads together, and reconstruct them from the rest."""

    def __init__(
        self,
        *,
        leads: Sequence[str],
        num_samples: int,
        sampling_rate_hz: float,
        size: Size,
        patch_duration_s: float,
        mask_ratio: float,
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
            mask_ratio: the share of the patches to hide; paper: 0.75.
            norm_pix_loss: whether target patches are standardised one by one, all leads of a patch together.
            standardize_patches: whether the encoder sees the shape of each patch alone, without its mean and
                amplitude, as in the published models.
            decoder_width: even; None is the size's own (DECODERS), and so below.
            decoder_depth: blocks of the decoder.
            decoder_heads: heads of the decoder, 64 wide each.

        Raises:
            ValueError: naming the argument that cannot be.
        """
        lead_patch_size, num_patches = patch_grid(num_samples, sampling_rate_hz, patch_duration_s)
        encoder = MTAEEncoder(
            leads=leads,
            num_patches=num_patches,
            lead_patch_size=lead_patch_size,
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
