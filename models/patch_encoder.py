"""Transformers over the patches of a signal, which can be given some of the patches alone.

A signal is cut into a grid of patches: columns in time, and rows where the leads are told apart. The rows are one group
each or one group together: tasks hide patches, and decoders fill them in, group by group.

Shapes: B records, C leads, T samples, R rows (C, or 1 where a patch holds all leads), L columns, G groups (R or 1),
N = R L / G patches of a group, P values of a patch, K patches kept of a group, S tokens that a group begins with beside
its patches' (separators, a class token), D width of the encoder.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from models.encoder import Encoder, Gift, lead_rows
from models.masking import take
from models.transformer import HEAD_WIDTH, Block, initialize, sin_cos_table

Size = Literal["laptop", "tiny", "small", "base"]

SIZES: dict[str, tuple[int, int, int]] = {
    "laptop": (64, 3, 1),
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
}
"""Width, depth and heads (64 wide each). The last three are ViT's, and small and base ST-MEM's; laptop is ours."""


def dimensions_of(size: str, sizes: dict[str, tuple[int, int, int]] = SIZES) -> tuple[int, int, int]:
    """Width, depth and heads of a size.

    Raises:
        ValueError: if there is no such size.
    """
    if size not in sizes:
        raise ValueError(f"size must be one of {', '.join(sizes)}, got {size!r}")
    return sizes[size]


class PatchEncoder(Encoder):
    """An encoder whose transformer can be given some of a signal's patches.

    A subclass makes tokens of patches (`_tokens`), and says where they are (`position_table`).

    Attributes:
        num_rows: R.
        num_columns: L.
        num_groups: G.
        num_patches: N.
        patch_size: P.
        num_own_tokens: S.
        num_heads: of each block.
        blocks: the transformer.
        norm: of every token while pre-training, and of the embedding.
    """

    gives: ClassVar[frozenset[Gift]] = frozenset({"vector", "patches", "segments"})
    num_own_tokens: int = 0

    def __init__(
        self,
        *,
        leads: Sequence[str],
        num_samples: int,
        num_columns: int,
        dimensions: tuple[int, int, int],
        leads_apart: bool,
        grouped: bool,
        head_width: int = HEAD_WIDTH,
        eps: float = 1e-5,
    ) -> None:
        """Set the grid and the sizes; the subclass makes its tokens' parts and then calls `_add_transformer`.

        Args:
            leads: C names of standard leads, in the order of the input.
            num_samples: T, a multiple of `num_columns`.
            num_columns: L.
            dimensions: width, depth and heads.
            leads_apart: whether a patch is of one lead; else it holds all of them.
            grouped: whether each row is a group of its own.
            head_width: of every head.
            eps: of every norm.

        Raises:
            ValueError: if the leads are no standard ones.
        """
        super().__init__()
        lead_rows(leads)  # refuses what are none
        self.leads, self.num_samples = tuple(leads), num_samples
        self.segment_samples = num_samples // num_columns
        self.width, self.depth, self.num_heads = dimensions
        self._head_width, self._eps = head_width, eps
        self.num_rows, self.num_columns = (len(leads) if leads_apart else 1), num_columns
        self.num_groups = self.num_rows if grouped else 1
        self.num_patches = self.num_rows * num_columns // self.num_groups
        self.patch_size = len(leads) * num_samples // (self.num_rows * num_columns)

    def _add_transformer(self) -> None:
        """Add the blocks and the norm, and initialise every layer there is."""
        self.blocks = nn.ModuleList(
            Block(self.width, self.num_heads, self._head_width, eps=self._eps) for _ in range(self.depth)
        )
        self.norm = nn.LayerNorm(self.width, eps=self._eps)
        initialize(self)

    @abstractmethod
    def _tokens(self, patches: Tensor, kept: Tensor | None, groups: Tensor | None) -> Tensor:
        """The blocks' input: (B, g, K, P) -> (B, g, S + K, D).

        Args:
            patches: of g groups.
            kept: (B, g, K) int64 positions of the patches in their group, or None for 0..N-1.
            groups: (B, g) int64, which groups these are, or None for all in order.
        """

    def position_table(self, width: int) -> Tensor:
        """(N, width) fixed encodings of the places of a group's patches, for a decoder of that width."""
        return sin_cos_table(self.num_patches, width)

    def patches(self, signal: Tensor) -> Tensor:
        """Cut signals into patches: (B, C, T) -> (B, G, N, P).

        Raises:
            ValueError: if the signal has another number of leads than the encoder, or is no whole number of columns.
        """
        self._check(signal)
        if signal.shape[2] % self.segment_samples:
            raise ValueError(
                f"the signal must be a whole number of patches of {self.segment_samples} samples, got {signal.shape[2]}"
            )
        cut = signal.reshape(*signal.shape[:2], -1, self.segment_samples)  # (B, C, L, samples)
        if self.num_rows == 1:
            cut = cut.transpose(1, 2).flatten(2).unsqueeze(1)  # a patch holds its leads one after another
        return cut if self.num_groups == self.num_rows else cut.flatten(1, 2).unsqueeze(1)

    def signal_of(self, patches: Tensor) -> Tensor:
        """The reverse of `patches`: (B, G, N, P) -> (B, C, T)."""
        num_leads = len(self.leads)
        if self.num_rows == 1:
            cut = patches.reshape(len(patches), -1, num_leads, self.segment_samples).transpose(1, 2)
        else:
            cut = patches.reshape(len(patches), num_leads, -1, self.patch_size)
        return cut.flatten(2)

    def encode(
        self,
        patches: Tensor,
        *,
        kept: Tensor | None = None,
        groups: Tensor | None = None,
        drop_path: Tensor | None = None,
    ) -> Tensor:
        """Encode some or all patches of some or all groups, without the final norm; all tokens attend to all.

        Args:
            patches: (B, g, K, P), the patches to encode.
            kept: (B, g, K) int64 positions of these patches in their group, or None for 0..N-1.
            groups: (B, g) int64, which groups these are, or None for all G.
            drop_path: (B, depth, 2) factors of the blocks' branches, or None.

        Returns:
            (B, g, S + K, D): every group's own tokens, then its patches'.
        """
        tokens = self._tokens(patches, kept, groups)
        sequence = tokens.flatten(1, 2)
        for index, block in enumerate(self.blocks):
            sequence = block(sequence, None if drop_path is None else drop_path[:, index])
        return sequence.view(tokens.shape)

    def positions_at(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Where patches of the grid lie in their groups.

        Args:
            rows: (B, r) int64 rows of the grid.
            columns: (B, k) int64 columns of it.

        Returns:
            (B, r, k) positions where each row is a group, else (B, 1, r k), row by row.
        """
        if self.num_groups == self.num_rows:
            return columns[:, None].expand(-1, rows.shape[1], -1)
        return (rows[:, :, None] * self.num_columns + columns[:, None]).flatten(1)[:, None]

    def tokens(
        self,
        signal: Tensor,
        drop_path: Tensor | None = None,
        *,
        rows: Tensor | None = None,
        columns: Tensor | None = None,
    ) -> Tensor:
        """Encode a signal, or what a part of the rows and columns of its grid shows, without the final norm.

        Args:
            signal: (B, C, T), or shorter by whole columns.
            drop_path: as for `encode`.
            rows: (B, r) int64, what is shown of the rows; None for all.
            columns: (B, k) int64, what is shown of the columns; None for all that the signal has.

        Returns:
            (B, g, S + K, D), as `encode`.
        """
        patches = self.patches(signal)
        present = patches.shape[1] * patches.shape[2] // self.num_rows  # columns of this signal
        if rows is None and columns is None and present == self.num_columns:
            return self.encode(patches, drop_path=drop_path)
        rows = _all_of(self.num_rows, signal) if rows is None else rows
        columns = _all_of(present, signal) if columns is None else columns
        kept = self.positions_at(rows, columns)
        if self.num_groups == 1:
            shown = (rows[:, :, None] * present + columns[:, None]).flatten(1)[:, None]
            return self.encode(take(patches, shown), kept=kept, drop_path=drop_path)
        of_rows = take(patches.flatten(2), rows).view(*rows.shape, *patches.shape[2:])
        return self.encode(take(of_rows, kept), kept=kept, groups=rows, drop_path=drop_path)

    def patch_tokens(self, signal: Tensor, drop_path: Tensor | None = None, **shown: Tensor) -> Tensor:
        """The patches' tokens in one sequence, without the final norm: (B, C, T) -> (B, G N, D); `shown` as above."""
        return self.tokens(signal, drop_path, **shown)[:, :, self.num_own_tokens :].flatten(1, 2)

    def forward(self, signal: Tensor, drop_path: Tensor | None = None, **shown: Tensor) -> Tensor:
        """Embed signals, as `Encoder.forward` says: the norm of the mean over the patches' tokens, (B, D).

        `shown` are the rows and columns that may be seen, as for `tokens`.
        """
        embedding: Tensor = self.norm(self.patch_tokens(signal, drop_path, **shown).mean(dim=1))
        return embedding

    def layer_of(self, parameter: str) -> int:
        """The layer of a parameter, as `Encoder.layer_of` says."""
        part, _, rest = parameter.partition(".")
        if part == "blocks":
            return int(rest.partition(".")[0]) + 1
        return self.depth + 1 if part == "norm" else 0


def _all_of(number: int, signal: Tensor) -> Tensor:
    """(B, number) positions 0, 1, ... for every record."""
    return torch.arange(number, device=signal.device).expand(len(signal), -1)


def num_patches_of(num_samples: int, sampling_rate_hz: float, patch_duration_s: float) -> int:
    """Patches in time of a window.

    Raises:
        ValueError: if a patch is no whole number of samples, or the window no whole number of patches.
    """
    exact = patch_duration_s * sampling_rate_hz
    patch_size = round(exact) if math.isfinite(exact) else 0
    if patch_size < 2 or abs(exact - patch_size) > 1e-6:
        raise ValueError(
            f"patch_duration_s must be a whole number of samples, two or more, at {sampling_rate_hz:g} Hz; "
            f"got {patch_duration_s:g} s, which is {exact:g} samples"
        )
    if num_samples % patch_size:
        raise ValueError(
            f"patch_duration_s must divide the window of {num_samples} samples; "
            f"got {patch_duration_s:g} s, which is {patch_size} samples"
        )
    return num_samples // patch_size
