"""DeLong's interval and test for AUROCs, as a cross-check of the bootstrap: no draws, one formula.

m positives, n negatives, M models scored on the same records.

A record's placement is the share of the other kind's records that it is ranked rightly against. The AUROC is the mean
of either kind's placements, and how they scatter gives its variance (DeLong et al. 1988, Biometrics 44:837-845).
Midranks give all placements at the price of three sorts (Sun and Xu 2014, IEEE Signal Processing Letters
21:1389-1393).

The formula takes records as independent. Several records of one patient are not, so where patients have several this
interval is too narrow, and the report quotes the bootstrap's, which draws patients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reports.statistics.discrimination import Floats

if TYPE_CHECKING:
    from reports.metrics import Scored

CONFIDENCE = 0.95
NOTABLE = 0.25
"""Intervals differ notably where a bound moves by more than this share of the report's own interval."""


@dataclass(frozen=True)
class Areas:
    """AUROCs of M models on the same records, with their covariance."""

    values: Floats
    """(M,)"""
    covariance: Floats
    """(M, M); NaN where there is one positive or one negative only, which have no scatter."""

    def interval(self, model: int = 0) -> tuple[float, float]:
        """The normal interval of one model's area, cut at 0 and 1; NaN without a variance."""
        reach = _quantile() * math.sqrt(self.covariance[model, model])
        return tuple(np.clip([self.values[model] - reach, self.values[model] + reach], 0.0, 1.0).tolist())

    def difference(self) -> tuple[float, float, float, float]:
        """The first model's area less the second's: value, low, high and two-sided p.

        Two models that rank alike have no scatter between them: the interval is the value, and p is 1.
        """
        value = float(self.values[0] - self.values[1])
        variance = float(self.covariance[0, 0] + self.covariance[1, 1] - 2 * self.covariance[0, 1])
        error = math.sqrt(max(variance, 0.0)) if math.isfinite(variance) else math.nan
        if error <= 1e-12:
            return value, value, value, 1.0 if abs(value) <= 1e-12 else 0.0
        p = math.erfc(abs(value) / error / math.sqrt(2))
        return value, value - _quantile() * error, value + _quantile() * error, p


def delong(targets: NDArray[Any], *scores: NDArray[Any]) -> Areas:
    """The areas of one or more models on one class, with their covariance.

    Args:
        targets: (m + n,) 1 for a positive, 0 for a negative.
        scores: each (m + n,), of one model; higher means more likely positive.

    Raises:
        ValueError: if there is no positive or no negative.
    """
    positive = np.asarray(targets) > 0.5
    if positive.all() or not positive.any():
        raise ValueError(
            f"an AUROC needs a positive and a negative record, got {int(positive.sum())} positives among"
            f" {positive.size} records: leave the class out or use more records"
        )
    placements = [_placements(of_model[positive], of_model[~positive]) for of_model in map(np.asarray, scores)]
    of_positives = np.stack([pair[0] for pair in placements])
    of_negatives = np.stack([pair[1] for pair in placements])
    return Areas(of_positives.mean(axis=1), _scatter(of_positives) + _scatter(of_negatives))


def midranks(values: NDArray[Any]) -> Floats:
    """Ranks from 1, equal values sharing the mean of theirs; (n,) for (n,)."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]


def differs_notably(low: float | None, high: float | None, other_low: float | None, other_high: float | None) -> bool:
    """Whether the second interval has a bound far from the first one's, as NOTABLE says; False where one is missing."""
    if low is None or high is None or other_low is None or other_high is None:
        return False
    return max(abs(low - other_low), abs(high - other_high)) > NOTABLE * (high - low) + 1e-12


def crosscheck(scored: Mapping[str, Scored | None]) -> dict[str, Any]:
    """DeLong's figures beside the report's own, class by class on the test fold, as plain JSON values.

    Args:
        scored: each model on the test fold, the best trial's as "best"; None where it has not been evaluated.

    Returns:
        `classes`: value, low, high, the bootstrap's percentiles, and whether the report's interval differs notably;
        `differences`: of the best trial and each other model, class by class, with DeLong's p.
    """
    best = scored.get("best")
    if best is None or best.resamples is None:
        return {"classes": {}, "differences": {}}
    part, classes = best.predictions, {}
    for index, name in enumerate(part.classes):
        areas = delong(part.targets[:, index], part.scores[:, index])
        low, high = (_finite(bound) for bound in areas.interval())
        value = float(areas.values[0])
        own = best.resamples.of_class("auroc", index, value)
        drawn = best.resamples.percentiles_of_class("auroc", index, value)
        classes[name] = {
            "value": value,
            "low": low,
            "high": high,
            "percentiles": [drawn.low, drawn.high],
            "differs": differs_notably(own.low, own.high, low, high),
        }
    others = {model: other for model, other in scored.items() if model != "best" and other is not None}
    return {
        "classes": classes,
        "differences": {model: _differences(best, other) for model, other in others.items()},
    }


def _differences(best: Scored, other: Scored) -> dict[str, Any]:
    found = {}
    for index, name in enumerate(best.predictions.classes):
        scores = (best.predictions.scores[:, index], other.predictions.scores[:, index])
        value, low, high, p = delong(best.predictions.targets[:, index], *scores).difference()
        found[name] = {"value": value, "low": _finite(low), "high": _finite(high), "p_value": _finite(p)}
    return found


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _placements(positives: NDArray[Any], negatives: NDArray[Any]) -> tuple[Floats, Floats]:
    """(m,) of every positive among the negatives, and (n,) of every negative among the positives."""
    together = midranks(np.concatenate([positives, negatives]))
    of_positives = (together[: positives.size] - midranks(positives)) / negatives.size
    of_negatives = 1 - (together[positives.size :] - midranks(negatives)) / positives.size
    return of_positives, of_negatives


def _scatter(placements: Floats) -> Floats:
    """(M, M) covariance of the mean of (M, n) placements."""
    num_models, size = placements.shape
    if size < 2:
        return np.full((num_models, num_models), np.nan)
    centred = placements - placements.mean(axis=1, keepdims=True)
    return np.asarray(centred @ centred.T / (size - 1) / size)


def _quantile() -> float:
    return NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
