"""The encoder of MTAE, masked modelling of ECGs over time: the patches of all leads are hidden together.

Na, Park, Tae, Joo, ICLR 2024, arXiv:2402.09450, sec. 4 (a baseline of ST-MEM). The task is
models.masked_autoencoder.MaskedAutoencoder.
"""

from __future__ import annotations

from collections.abc import Sequence

from models.class_token_encoder import ClassTokenEncoder
from models.patch_encoder import Size, dimensions_of, num_patches_of


class MTAEEncoder(ClassTokenEncoder):
    """A vision transformer over time: a token is a patch of all leads together."""

    def __init__(
        self,
        *,
        leads: Sequence[str],
        num_samples: int,
        sampling_rate_hz: float,
        size: Size,
        patch_duration_s: float,
        standardize_patches: bool,
    ) -> None:
        """Build the encoder with random weights.

        Args:
            leads: C names of standard leads, in the order of the input.
            num_samples: T.
            sampling_rate_hz: of the input.
            size: a key of SIZES.
            patch_duration_s: a whole number of samples, of which the input is a whole number of times; paper: 0.3.
            standardize_patches: whether a patch loses its mean and amplitude before it is embedded, all leads
                together, as in the published models.

        Raises:
            ValueError: naming the argument that cannot be.
        """
        super().__init__(
            leads=leads,
            num_samples=num_samples,
            num_columns=num_patches_of(num_samples, sampling_rate_hz, patch_duration_s),
            dimensions=dimensions_of(size),
            leads_apart=False,
            standardize_patches=standardize_patches,
        )
