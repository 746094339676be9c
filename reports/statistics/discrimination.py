"""How well scores tell positives from negatives: AUROC and AUPRC, exact with ties, for many weightings at once.

n records, R weightings of them (a bootstrap resample is the weighting by how often each record was drawn).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ranking:
    """The records of one class in descending order of a model's scores, with the tie group of every positive.

    Sorting is the dear part and does not depend on the weights, so it is done once and serves every weighting.
    Only the P positives need look-ups: both metrics are sums over them.
    """

    order: NDArray[np.int64]
    """(n,) record positions, highest score first."""
    positives: NDArray[np.int64]
    """(P,) positions within `order` of the positive records, ascending."""
    first: NDArray[np.int64]
    """(P,) where the tie group of each positive begins in `order`."""
    end: NDArray[np.int64]
    """(P,) one past where it ends."""

    @classmethod
    def of(cls, targets: NDArray[Any], scores: NDArray[Any]) -> Self:
        """Sort the records of one class.

        Args:
            targets: (n,) 1 for a positive, 0 for a negative.
            scores: (n,) finite, higher means more likely positive.
        """
        assert targets.ndim == 1
        assert targets.shape == scores.shape
        order = np.argsort(-scores, kind="stable")
        descending = -scores[order]
        positives = np.flatnonzero(targets[order] > 0.5)
        first = np.searchsorted(descending, descending[positives], side="left")
        end = np.searchsorted(descending, descending[positives], side="right")
        return cls(order=order, positives=positives, first=first, end=end)

    def auroc_and_auprc(self, weights: Floats) -> Floats:
        """Both metrics under every weighting.

        AUROC is the Mann-Whitney probability that a positive outranks a negative, ties counting half. AUPRC is
        average precision, the sum over thresholds of precision times the gain in recall, records of one score
        entering together: what scikit-learn's `average_precision_score` computes, not a trapezoid.

        Args:
            weights: (n, R) not negative, in the order of the records (not of the ranking).

        Returns:
            (2, R) AUROC and AUPRC; NaN where no positive or no negative has weight.
        """
        positive = weights[self.order[self.positives]]  # (P, R)
        positive_above = _running_total(positive)
        before = positive_above[np.searchsorted(self.positives, self.first)]
        true_selected = positive_above[np.searchsorted(self.positives, self.end)]
        selected_before, selected = self._weight_above(weights)
        num_positive = positive_above[-1]
        num_negative = weights.sum(axis=0) - num_positive
        false_midway = ((selected - true_selected) + (selected_before - before)) / 2
        precision = np.divide(true_selected, selected, out=np.zeros_like(selected), where=selected > 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            auroc = np.einsum("pr,pr->r", positive, num_negative - false_midway) / (num_positive * num_negative)
            auprc = np.einsum("pr,pr->r", positive, precision) / num_positive
        return np.stack([auroc, np.where(num_negative > 0, auprc, np.nan)])

    def _weight_above(self, weights: Floats) -> tuple[Floats, Floats]:
        """(P, R) weight of the records ranked above each positive's tie group, and of those down to its end.

        Summed between the at most 2P places that are asked for: four times as fast for a rare class as all n sums.
        """
        edges = np.unique(np.concatenate([[0], self.first, self.end]))
        edges = edges[edges < len(self.order)]
        above = _running_total(np.add.reduceat(weights[self.order], edges, axis=0))  # row i: what lies above edge i
        return above[np.searchsorted(edges, self.first)], above[np.searchsorted(edges, self.end)]


def auroc(targets: NDArray[Any], scores: NDArray[Any], weights: NDArray[Any] | None = None) -> float:
    """Area under the receiver operating characteristic of one class (Hanley and McNeil 1982), ties counting half.

    Args:
        targets: (n,) 1 for a positive, 0 for a negative.
        scores: (n,) higher means more likely positive.
        weights: (n,) not negative; all one unless given.

    Raises:
        ValueError: if there is no positive or no negative, for which the area is not defined.
    """
    return _point(targets, scores, weights)[0]


def average_precision(targets: NDArray[Any], scores: NDArray[Any], weights: NDArray[Any] | None = None) -> float:
    """Area under the precision-recall curve of one class, as average precision; chance level is the prevalence.

    Args and errors are those of `auroc`.
    """
    return _point(targets, scores, weights)[1]


def _point(targets: NDArray[Any], scores: NDArray[Any], weights: NDArray[Any] | None) -> tuple[float, float]:
    column = np.ones((len(targets), 1)) if weights is None else np.asarray(weights, dtype=np.float64)[:, None]
    area, precision = Ranking.of(targets, scores).auroc_and_auprc(column)[:, 0]
    if np.isnan(area):
        num_positive = int(np.count_nonzero(np.asarray(targets)[column[:, 0] > 0] > 0.5))
        raise ValueError(
            f"a class needs a positive and a negative record to be scored, got {num_positive} positives"
            f" among {np.count_nonzero(column)} records: leave the class out or use more records"
        )
    return float(area), float(precision)


def _running_total(rows: Floats) -> Floats:
    """Cumulative sums down the rows, with a row of zeros before the first."""
    total = np.zeros((len(rows) + 1, rows.shape[1]))
    np.cumsum(rows, axis=0, out=total[1:])
    return total
