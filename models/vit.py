"""A plain vision transformer over time, without a class token: the encoder of ECG-JEPA and its kin.

Dosovitskiy et al. 2021, arXiv:2010.11929, in one dimension: a token is a patch of all leads together, its position
fixed. Shapes: B records, K patches, P values of a patch, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from models.linear import Linear
from models.patch_encoder import PatchEncoder, Size, dimensions_of, num_patches_of


class ViT1d(PatchEncoder):
    """Patches of all leads, embedded by one matrix; the embedding is the norm of the mean over their tokens."""

    def __init__(
        self,
        *,
        leads: Sequence[str],
        num_samples: int,
        sampling_rate_hz: float,
        size: Size,
        patch_duration_s: float,
    ) -> None:
        """Build the encoder with random weights.

        Args:
            leads: C names of standard leads, in the order of the input.
            num_samples: T.
            sampling_rate_hz: of the input.
            size: a key of SIZES.
            patch_duration_s: a whole number of samples, of which the input is a whole number of times.

        Raises:
            ValueError: naming the argument that cannot be.
        """
        super().__init__(
            leads=leads,
            num_samples=num_samples,
            num_columns=num_patches_of(num_samples, sampling_rate_hz, patch_duration_s),
            dimensions=dimensions_of(size),
            leads_apart=False,
            grouped=False,
            eps=1e-6,
        )
        self.patch_embedding = Linear(self.patch_size, self.width)
        self.positions = nn.Parameter(self.position_table(self.width), requires_grad=False)
        self._add_transformer()

    def _tokens(self, patches: Tensor, kept: Tensor | None, groups: Tensor | None) -> Tensor:
        tokens: Tensor = self.patch_embedding(patches) + (self.positions if kept is None else self.positions[kept])
        return tokens
