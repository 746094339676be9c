"""Which patches a JEPA sees and which it predicts: three ways to draw them, for a whole batch at once.

Every position can be seen and be predicted, the ends as well as the middle, and the two directions of time are alike:
whatever is cut so that the records of a batch have equally many positions is cut anywhere. A block lies over the middle
more often than over the ends, as any block does that must fit.

Shapes: B records, N positions, K seen, M targets of H positions each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

Range = tuple[float, float]
"""Two shares between which one is drawn, uniformly, for each batch."""


class Masks(ABC):
    """A way to draw the positions that a JEPA sees and those that it predicts."""

    @abstractmethod
    def check(self, num_positions: int) -> None:
        """Refuse a number of positions on which this cannot always be drawn.

        Raises:
            ValueError: naming the keys.
        """

    @abstractmethod
    def draw(self, batch_size: int, num_positions: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw for a batch.

        Returns:
            context (B, K) and targets (B, M, H): int64 positions, ascending; K and H are the same for all records.
        """


@dataclass(frozen=True)
class MultiBlock(Masks):
    """Several target blocks, and a context block without them.

    Attributes:
        num_targets: M.
        target_share: H as a share of all positions.
        context_share: length of the context block, likewise.
        min_context: positions that are seen at the least.
        allow_overlap: whether targets may be seen.

    Source: I-JEPA, Assran et al. 2023, arXiv:2301.08243, sec. 3, in one dimension. Two differences: a block's start may
    be the last one possible (in the public code it cannot, so that the last position is never in a block), and a
    context that is longer than another's in the batch loses positions anywhere instead of its last ones. As there, a
    context shrinks a little with the batch: to the fewest positions of any of its records.
    """

    num_targets: int
    target_share: Range
    context_share: Range
    min_context: int
    allow_overlap: bool

    def check(self, num_positions: int) -> None:
        """See Masks."""
        if self.num_targets < 1:
            raise ValueError(f"num_targets must be at least 1, got {self.num_targets}")
        _check_range("target_share", self.target_share)
        _check_range("context_share", self.context_share)
        covered = 0 if self.allow_overlap else self.num_targets * _length(num_positions, self.target_share[1])
        if not 0 < self.min_context <= num_positions - covered:
            raise ValueError(
                f"min_context must lie between 1 and what the targets leave of {num_positions} patches, "
                f"{max(num_positions - covered, 0)} at worst; got {self.min_context} with num_targets="
                f"{self.num_targets} and target_share={list(self.target_share)}"
            )

    def draw(self, batch_size: int, num_positions: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """See Masks."""
        device = generator.device
        length = _length(num_positions, _drawn(self.target_share, generator))
        starts = _up_to(num_positions - length, (batch_size, self.num_targets), generator)
        targets = starts[..., None] + torch.arange(length, device=device)
        context_length = _length(num_positions, _drawn(self.context_share, generator))
        start = _up_to(num_positions - context_length, (batch_size, 1), generator)
        position = torch.arange(num_positions, device=device)
        in_block = (position >= start) & (position < start + context_length)
        free = torch.ones_like(in_block)
        if not self.allow_overlap:
            free = free.scatter(1, targets.flatten(1), False)
        # in order: what is in the block and no target, at random; then what is no target; then the targets
        noise = torch.rand(in_block.shape, generator=generator, device=device)
        rank = noise + (~in_block) + 2.0 * (~free)
        fewest = int((in_block & free).sum(dim=1).min())
        context = rank.argsort(dim=1)[:, : max(fewest, self.min_context)]
        return context.sort(dim=1).values, targets


@dataclass(frozen=True)
class InverseBlock(Masks):
    """Hidden blocks, all of them one target; what is between them is seen.

    All arrangements of the blocks among the seen positions are equally likely, blocks that touch included.

    Attributes:
        keep_share: K as a share of all positions.
        num_blocks: how many blocks are hidden; fewer where they would be shorter than min_block.
        min_block: positions of a block at the least.

    Source: Weimann & Conrad 2025, ECG-JEPA, arXiv:2410.13867 (there one block after another is put into what is left
    of the record, which favours the middle).
    """

    keep_share: Range
    num_blocks: int
    min_block: int

    def check(self, num_positions: int) -> None:
        """See Masks."""
        _check_range("keep_share", self.keep_share)
        if self.num_blocks < 1 or self.min_block < 1:
            raise ValueError(f"num_blocks and min_block must be at least 1, got {self.num_blocks} and {self.min_block}")
        hidden = num_positions - _length(num_positions, self.keep_share[1])
        if hidden < self.min_block:
            raise ValueError(
                f"keep_share must leave min_block={self.min_block} of {num_positions} patches to hide at the least, "
                f"got {list(self.keep_share)}, which leaves {hidden}"
            )

    def draw(self, batch_size: int, num_positions: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """See Masks."""
        device = generator.device
        num_kept = _length(num_positions, _drawn(self.keep_share, generator))
        num_hidden = num_positions - num_kept
        num_blocks = min(self.num_blocks, num_hidden // self.min_block)
        # what the blocks have beyond their least length is dealt out with bars: m - 1 of them between m blocks
        extra = num_hidden - num_blocks * self.min_block
        bars = _subset(extra + num_blocks - 1, num_blocks - 1, batch_size, generator)
        ends = torch.cat([bars, bars.new_full((batch_size, 1), extra + num_blocks - 1)], dim=1)
        begins = torch.cat([bars.new_full((batch_size, 1), -1), bars], dim=1)
        lengths = self.min_block + ends - begins - 1
        # and where the blocks stand among the seen positions is drawn as an order of both
        places = _subset(num_kept + num_blocks, num_blocks, batch_size, generator)
        before = places - torch.arange(num_blocks, device=device)  # seen positions in front of each block
        starts = before + lengths.cumsum(dim=1) - lengths
        position = torch.arange(num_positions, device=device)
        hidden = ((position >= starts[..., None]) & (position < (starts + lengths)[..., None])).any(dim=1)
        order = hidden.int().argsort(dim=1, stable=True)  # the seen ones first, both parts ascending
        return order[:, :num_kept], order[:, None, num_kept:]


@dataclass(frozen=True)
class RandomPositions(Masks):
    """Any positions are seen, all others are one target.

    Attributes:
        keep_share: K as a share of all positions.

    Source: Kim 2024, ECG-JEPA, arXiv:2410.08559 (random masking).
    """

    keep_share: Range

    def check(self, num_positions: int) -> None:
        """See Masks."""
        _check_range("keep_share", self.keep_share)
        if num_positions < 2:
            raise ValueError(f"a record must have two patches at least to see one and hide one, got {num_positions}")

    def draw(self, batch_size: int, num_positions: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """See Masks."""
        num_kept = min(_length(num_positions, _drawn(self.keep_share, generator)), num_positions - 1)
        noise = torch.rand(batch_size, num_positions, generator=generator, device=generator.device)
        kept, hidden = noise.argsort(dim=1).tensor_split([num_kept], dim=1)
        return kept.sort(dim=1).values, hidden.sort(dim=1).values[:, None]


def _check_range(name: str, shares: Range) -> None:
    if not 0 < shares[0] <= shares[1] <= 1:
        raise ValueError(f"{name} must be [LOW, HIGH] with 0 < LOW <= HIGH <= 1, got {list(shares)}")


def _drawn(shares: Range, generator: torch.Generator) -> float:
    noise = torch.rand((), generator=generator, device=generator.device, dtype=torch.float64)
    return shares[0] + (shares[1] - shares[0]) * float(noise)


def _length(num_positions: int, share: float) -> int:
    """Positions in a share of all, one at the least."""
    return max(1, round(num_positions * share))


def _up_to(most: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """int64 from 0 to `most`, both ends included."""
    return torch.randint(most + 1, shape, generator=generator, device=generator.device)


def _subset(size: int, number: int, batch_size: int, generator: torch.Generator) -> Tensor:
    """(B, number) of 0..size-1, ascending, all subsets equally likely."""
    noise = torch.rand(batch_size, size, generator=generator, device=generator.device)
    return noise.argsort(dim=1)[:, :number].sort(dim=1).values
