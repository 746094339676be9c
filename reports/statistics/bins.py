"""Records sorted into bins by their probability, and how far off the bins are: the expected calibration error.

n records, K classes, B bins, R weightings of the records (a bootstrap resample is the weighting by how often each
record was drawn).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import ndtri

from reports.statistics.discrimination import Floats
from reports.statistics.intervals import CONFIDENCE

NUM_BINS = 15
"""As in Guo et al. 2017 (arXiv:1706.04599) and by default in torchmetrics."""


def equal_width(probabilities: Floats) -> NDArray[np.int64]:
    """(n,) or (n, K): the bin of every probability among B of one width; the last one holds 1, too."""
    edges = np.linspace(0.0, 1.0, NUM_BINS + 1)
    bins = np.searchsorted(edges, probabilities, side="right") - 1
    return np.asarray(np.clip(bins, 0, NUM_BINS - 1), dtype=np.int64)


class EqualMass:
    """Bins that hold one share of the records each, as nearly as equal probabilities, which stay together, allow.

    A record's bin is where the middle of its tie group lies among all records by rank (Nixon et al. 2019,
    arXiv:1904.01685, call the error over such bins adaptive). Sorting does not depend on the weights and is done once.
    """

    def __init__(self, probabilities: Floats) -> None:
        self.order = np.argsort(probabilities, kind="stable")
        ascending = probabilities[self.order]
        self.first = np.searchsorted(ascending, ascending, side="left")
        self.end = np.searchsorted(ascending, ascending, side="right")

    def bins(self) -> NDArray[np.int64]:
        """(n,) the bin of every record where all weigh the same."""
        found = np.empty(len(self.order), dtype=np.int64)
        middle = (self.first + self.end) / 2
        found[self.order] = np.minimum(NUM_BINS * middle / len(found), NUM_BINS - 1).astype(np.int64)
        return found

    def sums(self, residuals: Floats, weights: Floats) -> Floats:
        """(B, R) weighted sums of residuals (n,) over the bins that each weighting (n, R) makes."""
        num = weights.shape[1]
        heavy = weights[self.order]
        below = np.zeros((len(heavy) + 1, num))
        np.cumsum(heavy, axis=0, out=below[1:])
        middle = (below[self.first] + below[self.end]) / 2
        bins = np.minimum(NUM_BINS * middle / below[-1], NUM_BINS - 1).astype(np.int64)
        cells = bins * num + np.arange(num)
        parts = heavy * residuals[self.order][:, None]
        sums = np.bincount(cells.ravel(), parts.ravel(), minlength=NUM_BINS * num)
        return np.asarray(sums, dtype=np.float64).reshape(NUM_BINS, num)


def width_sums(bins: NDArray[np.int64], residuals: Floats, weights: Floats) -> Floats:
    """(K, B, R) weighted sums of residuals (n, K) over fixed bins (n, K), under weightings (n, R)."""
    num_records, num_classes = bins.shape
    rows = bins + NUM_BINS * np.arange(num_classes)
    columns = np.broadcast_to(np.arange(num_records)[:, None], bins.shape)
    shape = (num_classes * NUM_BINS, num_records)
    matrix = csr_array((residuals.ravel(), (rows.ravel(), columns.ravel())), shape=shape)
    return np.asarray(matrix @ weights).reshape(num_classes, NUM_BINS, weights.shape[1])


def wilson(num_positive: NDArray[np.int64], count: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Score interval of a share (Wilson 1927, JASA 22:209), records taken as independent of each other.

    Args:
        num_positive: of each bin.
        count: of each bin, at least 1.

    Returns:
        lower and upper ends.
    """
    z = float(ndtri((1 + CONFIDENCE) / 2))
    share = num_positive / count
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return np.maximum(middle - half, 0.0), np.minimum(middle + half, 1.0)
