"""Which configuration is chosen, and which of its models is delivered, from the values of confirmation runs; pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Candidate:
    """A trial that was confirmed.

    Attributes:
        trial: its number.
        estimate: its value in the search, by which it became a candidate.
        values: of its runs, by the index of their seeds; None for one that failed or diverged.
    """

    trial: int
    estimate: float
    values: tuple[float | None, ...]

    @property
    def complete(self) -> tuple[float, ...] | None:
        """All values; None where one is missing: the mean of those that survived would flatter the trial."""
        found = tuple(value for value in self.values if value is not None)
        return found if len(found) == len(self.values) and found else None


def choose(candidates: Sequence[Candidate], *, maximize: bool) -> dict[str, Any] | None:
    """Choose the candidate with the best mean, and of its models that of the median seed.

    Args:
        candidates: those that were confirmed; one that lacks a value is not chosen.
        maximize: whether more is better.

    Returns:
        trial, index (of the seed, from 1 on), value (that model's), mean, sd (None of one value), estimate, and
        ranking: all candidates, the best mean first, those without one last. None where no candidate is complete.
    """
    sign = -1 if maximize else 1
    rows = [_row(candidate, maximize=maximize) for candidate in candidates]
    rows.sort(key=lambda row: (row["mean"] is None, sign * (row["mean"] or 0.0), row["trial"]))
    if not rows or rows[0]["mean"] is None:
        return None
    first = rows[0]
    chosen = {key: first[key] for key in ("trial", "index", "mean", "sd", "estimate")}
    return {**chosen, "value": first["values"][first["index"] - 1], "ranking": rows}


def _row(candidate: Candidate, *, maximize: bool) -> dict[str, Any]:
    values = candidate.complete
    return {
        "trial": candidate.trial,
        "estimate": candidate.estimate,
        "values": list(candidate.values),
        "mean": None if values is None else math.fsum(values) / len(values),
        "sd": None if values is None or len(values) < 2 else statistics.stdev(values),
        "index": None if values is None else median_index(values, maximize=maximize),
    }


def median_index(values: Sequence[float], *, maximize: bool) -> int:
    """The index, from 1 on, of the value in the middle; of two in the middle the worse, of equals the first.

    Raises:
        ValueError: if there is none.
    """
    if not values:
        raise ValueError("a median needs at least one value, got none")
    sign = 1 if maximize else -1
    order = sorted(range(len(values)), key=lambda index: (sign * values[index], index))
    return order[(len(values) - 1) // 2] + 1
