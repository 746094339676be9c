"""Which patches a pretext task hides, and how tokens are picked by position: pure functions.

Shapes: B records, C leads, N patches of a lead, K of them kept, H = N - K hidden, D any width.
"""

from __future__ import annotations

import math

from torch import Tensor


def num_kept_patches(num_patches: int, mask_ratio: float) -> int:
    """How many of `num_patches` stay visible when the share `mask_ratio` is hidden.

    Args:
        num_patches: N, the patches that one split is made over.
        mask_ratio: the share to hide, between 0 and 1.

    Returns:
        K = floor(N * (1 - mask_ratio) + 1e-9); of 30 patches 7, 6, 3 at 0.75, 0.8, 0.9.

    Raises:
        ValueError: if no patch would be kept, or none hidden.
    """
    # Without the 1e-9 the float floor gives 5 and 2 at 0.8 and 0.9, since 1 - 0.8 is 0.19999...
    num_kept = math.floor(num_patches * (1 - mask_ratio) + 1e-9) if 0 <= mask_ratio <= 1 else 0
    if not 0 < num_kept < num_patches:
        raise ValueError(f"mask_ratio must keep and hide at least one of {num_patches} patches, got {mask_ratio}")
    return num_kept


def split_by_noise(noise: Tensor, num_kept: int) -> tuple[Tensor, Tensor]:
    """Split positions at random into kept and hidden ones, each leading index by itself.

    Args:
        noise: (..., N) independent uniform draws, one a patch.
        num_kept: K, how many are kept: those with the smallest draws.

    Returns:
        kept (..., K) and hidden (..., N - K): int64 positions along the last axis, ascending.

    Source: MAE, He et al. 2022, arXiv:2111.06377, sec. 3 (there the positions stay shuffled).
    """
    # A stable sort settles equal draws the same way on every device.
    order = noise.argsort(dim=-1, stable=True)
    kept, hidden = order.tensor_split([num_kept], dim=-1)
    return kept.sort(dim=-1).values, hidden.sort(dim=-1).values


def take(tokens: Tensor, positions: Tensor) -> Tensor:
    """Pick tokens by position.

    Args:
        tokens: (..., N, D).
        positions: (..., K) int64 in 0..N-1, with the leading shape of `tokens`.

    Returns:
        (..., K, D).
    """
    return tokens.gather(-2, positions.unsqueeze(-1).expand(*positions.shape, tokens.shape[-1]))
