"""The encoder of MLAE, masked modelling of ECGs over leads: whole leads are hidden.

Na, Park, Tae, Joo, ICLR 2024, arXiv:2402.09450, sec. 4 (a baseline of ST-MEM). The task is
models.masked_autoencoder.MaskedAutoencoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from models.class_token_encoder import ClassTokenEncoder
from models.encoder import LEADS, Gift, lead_rows
from models.patch_encoder import Size, dimensions_of
from models.transformer import sin_cos_table


class MLAEEncoder(ClassTokenEncoder):
    """A transformer over leads: a token is a whole lead, its position the lead's place among the standard ones."""

    gives: ClassVar[frozenset[Gift]] = frozenset({"vector", "patches"})  # a patch is a lead as long as the window

    def __init__(
        self,
        *,
        leads: Sequence[str],
        num_samples: int,
        sampling_rate_hz: float,
        size: Size,
        standardize_patches: bool,
    ) -> None:
        """Build the encoder with random weights.

        Args:
            leads: C names of standard leads, in the order of the input.
            num_samples: T.
            sampling_rate_hz: of the input; of no account here.
            size: a key of SIZES.
            standardize_patches: whether a lead loses its mean and amplitude before it is embedded, as in the published
                models.

        Raises:
            ValueError: if the leads or the size are none of these.
        """
        super().__init__(
            leads=leads,
            num_samples=num_samples,
            num_columns=1,
            dimensions=dimensions_of(size),
            leads_apart=True,
            standardize_patches=standardize_patches,
        )

    def position_table(self, width: int) -> Tensor:
        """(C, width): a lead has the same position whichever others there are."""
        return sin_cos_table(len(LEADS), width)[lead_rows(self.leads)]
