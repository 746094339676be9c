"""Parts of transformers over patches of signals: patch embedding, position tables, block, initialisation.

Shapes: B sequences, L tokens, D width, N patches, P samples of a patch, A heads, E width
of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.linear import Linear
from models.unit import Unit

HEAD_WIDTH = 64
"""Width of an attention head, whatever the width of the tokens, unless a model says otherwise."""


def sin_cos_table(num_positions: int, width: int) -> Tensor:
    """Fixed encodings of the positions 0, 1, ...: half sines, half cosines, of wavelengths from 2 pi to 20000 pi.

    Returns:
        (num_positions, width) float32: sin(n / 10000^(2k / width)) for k < width / 2, then the cosines.

    Raises:
        ValueError: if `width` is odd.

    Source: Vaswani et al. 2017, arXiv:1706.03762, sec. 3.5 (there sines and cosines alternate).
    """
    if width % 2:
        raise ValueError(f"the width of a sin/cos position table must be even, got {width}")
    frequency = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angle = torch.arange(num_positions, dtype=torch.float64)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()


def sin_cos_grid(num_rows: int, num_columns: int, width: int) -> Tensor:
    """Fixed encodings of the places of a grid: half of the width tells the column, half the row.

    Returns:
        (num_rows * num_columns, width) float32, row by row.

    Raises:
        ValueError: if `width` is no multiple of 4.

    Source: MAE, He et al. 2022, arXiv:2111.06377, appendix A.1.
    """
    if width % 4:
        raise ValueError(f"the width of a grid of sin/cos positions must be a multiple of 4, got {width}")
    columns = sin_cos_table(num_columns, width // 2).expand(num_rows, -1, -1)
    rows = sin_cos_table(num_rows, width // 2)[:, None].expand(-1, num_columns, -1)
    return torch.cat([columns, rows], dim=-1).flatten(0, 1)


class PatchEmbedding(nn.Sequential):
    """Standardise each patch if asked, project it, normalise the result: (..., P) -> (..., D).

    Standardising takes every patch's mean and amplitude away: tokens then tell of shape alone.
    """

    def __init__(self, patch_size: int, width: int, *, standardize: bool) -> None:
        first = nn.LayerNorm(patch_size) if standardize else nn.Identity()
        super().__init__(first, Linear(patch_size, width), nn.LayerNorm(width))


class Attention(nn.Module):
    """Multi-head self-attention with heads of a width E of their own: (B, L, D) -> (B, L, D).

    Source: Vaswani et al. 2017, arXiv:1706.03762, sec. 3.2; softmax(Q K^T / sqrt(E)) V, biases everywhere.
    """

    def __init__(self, width: int, num_heads: int, head_width: int = HEAD_WIDTH) -> None:
        super().__init__()
        self.num_heads, self.head_width = num_heads, head_width
        self.qkv = Linear(width, 3 * num_heads * head_width)
        self.out = Linear(num_heads * head_width, width)

    def forward(self, tokens: Tensor, visible: Tensor | None = None) -> Tensor:
        """Let every token of a sequence attend to all of them, or to the `visible` ones (B, L): (B, L, D) -> (B, L, D).

        A sequence of which nothing is visible attends to all.
        """
        qkv = self.qkv(tokens).view(*tokens.shape[:2], 3, self.num_heads, self.head_width)
        # unbound before it is transposed: the gradients are then put together as they are needed, in one copy
        query, key, value = (part.transpose(1, 2) for part in qkv.unbind(2))
        mask = None if visible is None else (visible | ~visible.any(dim=1, keepdim=True))[:, None, None]
        heads = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)  # (B, A, L, E)
        mixed: Tensor = self.out(heads.transpose(1, 2).flatten(2))
        return mixed

    def weights(self, tokens: Tensor) -> Tensor:
        """How much every token draws from each: (B, L, D) -> (B, A, L, L), rows of sum 1; for looking at a model.

        `forward` never makes this matrix, which is why it is as fast as it is; here the queries and keys are made anew.
        """
        qkv = self.qkv(tokens).view(*tokens.shape[:2], 3, self.num_heads, self.head_width)
        query, key, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        weights: Tensor = (query @ key.transpose(-2, -1) / self.head_width**0.5).softmax(dim=-1)
        return weights


class Block(Unit):
    """A pre-norm transformer block: attention, then a feed-forward net four times as wide, each added to its input.

    Source: ViT, Dosovitskiy et al. 2021, arXiv:2010.11929, eq. 2-3.
    """

    def __init__(self, width: int, num_heads: int, head_width: int = HEAD_WIDTH, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.attention = Attention(width, num_heads, head_width)
        self.mlp_norm = nn.LayerNorm(width, eps=eps)
        self.mlp = nn.Sequential(Linear(width, 4 * width), nn.GELU(), Linear(4 * width, width))

    def forward(self, tokens: Tensor, drop_path: Tensor | None = None, *, visible: Tensor | None = None) -> Tensor:
        """Transform a sequence.

        Args:
            tokens: (B, L, D).
            drop_path: (B, 2) factors of the attention and of the feed-forward branch; None stands for ones.
            visible: (B, L) bool, the tokens that may be attended to; None stands for all.

        Returns:
            (B, L, D).

        Source: stochastic depth, Huang et al. 2016, arXiv:1603.09382.
        """
        attended: Tensor = self.attention(self.attention_norm(tokens), visible)
        tokens = _added(tokens, attended, None if drop_path is None else drop_path[:, 0])
        changed: Tensor = self.mlp(self.mlp_norm(tokens))
        return _added(tokens, changed, None if drop_path is None else drop_path[:, 1])


def _added(tokens: Tensor, change: Tensor, factor: Tensor | None) -> Tensor:
    """(B, L, D) tokens and what a branch makes of them, times the (B,) factors of the records, in one pass."""
    return tokens + change if factor is None else torch.addcmul(tokens, change, factor[:, None, None])


def initialize(module: nn.Module) -> None:
    """Initialise every layer in `module` in place: linear ones Xavier-uniform with zero bias, norms to the identity.

    Draws come from torch's global generator. Source: MAE, He et al. 2022, arXiv:2111.06377, appendix A.1.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.LayerNorm):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)


def random_token(*shape: int) -> nn.Parameter:
    """Learnt vectors that enter a sequence or are added to it, drawn from N(0, 0.02)."""
    return nn.Parameter(nn.init.normal_(torch.empty(*shape), std=0.02))
