"""How far a metric could have come out otherwise: intervals over patients, of one model and of paired differences.

n records, I patients, K classes, R resamples. Patients are what is drawn, with all their records, because two records
of one patient are not two independent findings.

AUROC and AUPRC get a t interval on the logit scale. Its variance is the sum of the patients' squared influences
(influence.py): what the variance of a bootstrap over patients tends to with the number of resamples, and for
the AUROC that of Obuchowski 1997 (Biometrics 53:567-578). The logit keeps it within 0 and 1 (Pepe 2003, The Statistical
Evaluation of Medical Tests, sec. 5.2), degrees of freedom after Satterthwaite say from how few patients the variance is
known, and an AUPRC is moved down by its bootstrap bias (Efron and Tibshirani 1993, ch. 10). It was chosen by
simulation: near an AUROC of 1 and with few positives percentiles, BCa and the bootstrap-t hold the truth too rarely
(benchmarks/coverage.py; table in docs/statistics.md).

A difference of two models has a t interval and the p-value of the same t, from each patient's influence on the one less
that on the other. Percentiles of paired resamples, with few positives, called two equally good models different in 9 to
19 of 100 folds instead of 5.

A resample in which a class has no positive (or no negative) has no AUROC of that class. It is redrawn, as Strodthoff
et al. 2021 (arXiv:2004.13701) do. Putting 0.5 in its place, as some published code does, drags whole intervals down,
at times below the value that they are meant to surround.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from reports.statistics.discrimination import Floats, Ranking
from reports.statistics.influence import Influence, influence, of_difference
from reports.statistics.resamples import patient_resamples

METRICS = ("auroc", "auprc")
CONFIDENCE = 0.95
MIN_VALID_SHARE = 0.05
"""Redrawing ends when fewer resamples than this share hold every class: an interval over them would be conditional on
what almost never happens."""
EDGE = 1e-12
"""A value this near to 0 or 1 is there: every pair is told apart, or every record."""
ENOUGH_PATIENTS = 20
"""Positive patients from which on an interval of a class is promised to hold the truth in 93 to 97 % of folds."""
RARE_COVERAGE = {"auroc": (0.95, 1.0), "auprc": (0.95, 0.99)}
"""What it held in simulated folds where 5 or 10 positive patients were expected: docs/statistics.md."""
ALONE = "one patient alone has positive, or negative, records"
"""Why there is no interval: one patient does not tell how far another would have been off."""


@dataclass(frozen=True)
class Interval:
    """A metric on all records, with the interval around it; low and high are None where it has none."""

    value: float
    low: float | None
    high: float | None
    reason: str | None = None
    """Why there is no interval."""

    @property
    def excludes_value(self) -> bool:
        """Whether the value lies outside its own interval: possible with few positives, and then worth telling."""
        if self.low is None or self.high is None:
            return False
        return not self.low - 1e-12 <= self.value <= self.high + 1e-12

    def as_json(self) -> dict[str, Any]:
        """Value and bounds, with the reason where there are none."""
        bounds: dict[str, Any] = {"value": self.value, "low": self.low, "high": self.high}
        return bounds | ({"reason": self.reason} if self.reason else {})


def logit_interval(
    value: float, variance: float, degrees_of_freedom: float, *, num_patients: int, bias: float = 0.0
) -> Interval:
    """A t interval on the logit scale, for a value between 0 and 1.

    Args:
        value: the metric on all records.
        variance: of it.
        degrees_of_freedom: how well the variance is known.
        num_patients: those of the rarer kind. Where the value is 0 or 1 nothing scatters; the other bound is then
            exact: m pairs of patients are all told apart with a chance of at most v^m, so a v with v^m below 2.5 % is
            ruled out (for a share, Clopper and Pearson 1934).
        bias: how far the value is expected above the truth; the interval is moved down by it.

    Returns:
        The interval, which always holds the value.
    """
    alpha = 1 - CONFIDENCE
    if not EDGE < value < 1 - EDGE:
        reach = (alpha / 2) ** (1 / max(num_patients, 1))
        return Interval(value, reach, value) if value > 0.5 else Interval(value, value, 1 - reach)
    centre = min(max(value - bias, value / 4), (3 + value) / 4)
    error = math.sqrt(variance) / (centre * (1 - centre))
    reach = float(stdtrit(degrees_of_freedom, 1 - alpha / 2)) * error
    middle = math.log(centre / (1 - centre))
    low, high = (1 / (1 + math.exp(-min(max(end, -700.0), 700.0))) for end in (middle - reach, middle + reach))
    return Interval(value, min(low, value), max(high, value))


def percentile_interval(value: float, samples: Floats) -> Interval:
    """The middle CONFIDENCE of the samples; none without a sample."""
    if samples.size == 0:
        reason = (
            f"fewer than {MIN_VALID_SHARE:.0%} of the resamples hold a positive and a negative record"
            " of every class that is needed"
        )
        return Interval(value, None, None, reason)
    low, high = np.quantile(samples, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(value, float(low), float(high))


def mean_variance(influences: Floats, degrees_of_freedom: Floats) -> tuple[float, float]:
    """Variance and degrees of freedom of a mean over classes.

    A patient's influence on the mean is the mean of the influences on the classes, so what the classes share through
    their patients is in the variance. The degrees of freedom are the smaller of two: those of the classes' variances
    together (Welch 1947), and twice the square of the sum of squares over the sum of fourth powers.

    Args:
        influences: (K, I) of every patient, scaled as `Influence.total`.
        degrees_of_freedom: (K,) of the classes' own variances.
    """
    total = influences.mean(axis=0)
    variance = float(np.sum(total**2))
    own = np.sum(influences**2, axis=1) / len(influences) ** 2
    if variance == 0.0:
        return 0.0, 1.0
    welch = variance**2 / float(np.sum(own**2 / degrees_of_freedom))
    return variance, max(1.0, min(welch, 2 * variance**2 / float(np.sum(np.square(total**2)))))


@dataclass(frozen=True)
class Bootstrap:
    """The metrics of one model in every resample.

    Which resamples are drawn follows from seed, patients and targets, never from scores: column r of `macro` is the
    same resample for every model on the same records.
    """

    per_class: Floats
    """(2, K, R) METRICS of each class in the first R resamples that hold a positive and a negative of that class."""
    macro: Floats
    """(2, R) their mean over classes in the first R resamples that hold both for every class."""
    num_valid: NDArray[np.int64]
    """(K,) how many of the R columns of `per_class` are filled."""
    num_macro: int
    """How many of the R columns of `macro` are filled."""
    num_redrawn: int
    """Resamples passed over, for want of a positive or a negative of some class, up to the last one in `macro`."""

    influences: tuple[Influence, ...]
    """K, of the patients on each class's metrics."""

    def of_class(self, metric: str, index: int, value: float) -> Interval:
        """The interval of one class's metric around its value on all records."""
        row, found = METRICS.index(metric), self.influences[index]
        if found.num_patients < 2:
            return Interval(value, None, None, ALONE)
        return logit_interval(
            value,
            float(np.sum(found.total[row] ** 2)),
            float(found.degrees_of_freedom[row]),
            num_patients=found.num_patients,
            bias=float(self._bias(row)[index]),
        )

    def of_macro(self, metric: str, value: float) -> Interval:
        """The interval of a mean over classes."""
        row = METRICS.index(metric)
        if max(found.num_patients for found in self.influences) < 2:
            return Interval(value, None, None, f"in every class {ALONE}")
        totals = np.array([found.total[row] for found in self.influences])
        degrees = np.array([found.degrees_of_freedom[row] for found in self.influences])
        variance, degrees_of_freedom = mean_variance(totals, degrees)
        return logit_interval(
            value,
            variance,
            degrees_of_freedom,
            num_patients=min(found.num_patients for found in self.influences),
            bias=float(self._bias(row).mean()),
        )

    def percentiles_of_class(self, metric: str, index: int, value: float) -> Interval:
        """The percentile interval of one class, for comparison."""
        return self._percentiles(value, self.per_class[METRICS.index(metric), index], int(self.num_valid[index]))

    def percentiles_of_macro(self, metric: str, value: float) -> Interval:
        """The percentile interval of a mean over classes, for comparison."""
        return self._percentiles(value, self.macro[METRICS.index(metric)], self.num_macro)

    def of_difference(self, other: Bootstrap, metric: str) -> tuple[Interval, float | None]:
        """A t interval of this model's mean over classes less another's on the same records, and the two-sided p.

        A t statistic over patients: each one's influence on this model less that on the other. The interval leaves out
        zero exactly where p is below 1 - CONFIDENCE. Both are missing, for a reason, where a class has fewer than
        two positive or two negative patients, or where no patient tells the models apart.
        """
        row, pairs = METRICS.index(metric), list(zip(self.influences, other.influences, strict=True))
        value = float(np.mean([one.values[row] - its.values[row] for one, its in pairs]))
        if min(one.num_patients for one, _ in pairs) < 2:
            return Interval(value, None, None, ALONE), None
        found = [of_difference(*pair) for pair in pairs]
        variance, degrees_of_freedom = mean_variance(
            np.array([total[row] for total, _ in found]), np.array([degrees[row] for _, degrees in found])
        )
        if variance < EDGE**2:
            return Interval(value, None, None, "no patient tells the two models apart"), None
        error = math.sqrt(variance)
        reach = float(stdtrit(degrees_of_freedom, (1 + CONFIDENCE) / 2)) * error
        p = min(1.0, 2 * float(stdtr(degrees_of_freedom, -abs(value) / error)))
        return Interval(value, max(value - reach, -1.0), min(value + reach, 1.0)), p

    def _bias(self, row: int) -> Floats:
        """(K,) how far a class's AUPRC lies above the truth, as its resamples lie above it; an AUROC has no bias."""
        if METRICS[row] == "auroc":
            return np.zeros(len(self.influences))
        values = np.array([found.values[row] for found in self.influences])
        drawn = self.per_class[row]
        filled = np.isfinite(drawn)
        sums = np.where(filled, drawn, 0.0).sum(axis=1)
        return np.where(filled.any(axis=1), sums / np.maximum(filled.sum(axis=1), 1) - values, 0.0)

    @staticmethod
    def _percentiles(value: float, samples: Floats, filled: int) -> Interval:
        return percentile_interval(value, samples if filled == samples.size else samples[:0])


def micro(targets: NDArray[Any], scores: NDArray[Any], patients: NDArray[Any], metric: str) -> Interval:
    """A metric over all pairs of record and class at once, and its interval.

    Frequent classes weigh more, and a score must mean the same for every class: micro averages say how well pairs are
    ranked, not how well each class is told.

    Args:
        targets: (n, K) 0 or 1; both are there.
        scores: (n, K) finite.
        patients: (n,) who each record is of.
        metric: one of METRICS.
    """
    _, patient_of_record = np.unique(patients, return_inverse=True)
    found = influence(targets.ravel(), scores.ravel(), np.repeat(patient_of_record, targets.shape[1]))
    row = METRICS.index(metric)
    if found.num_patients < 2:
        return Interval(float(found.values[row]), None, None, ALONE)
    return logit_interval(
        float(found.values[row]),
        float(np.sum(found.total[row] ** 2)),
        float(found.degrees_of_freedom[row]),
        num_patients=found.num_patients,
    )


def bootstrap(
    targets: NDArray[Any], scores: NDArray[Any], patients: NDArray[Any], *, num_resamples: int, seed: int
) -> Bootstrap:
    """Score a model in many resamples of the patients.

    Args:
        targets: (n, K) 0 or 1; every class has a positive and a negative record.
        scores: (n, K) finite, higher means more likely positive.
        patients: (n,) who each record is of.
        num_resamples: R.
        seed: of the draws of patients.

    Returns:
        The metrics by class and as means, with how many resamples had to be redrawn.

    Raises:
        ValueError: if `num_resamples` is not positive.
    """
    if num_resamples < 1:
        raise ValueError(f"num_resamples must be at least 1, got {num_resamples}")
    rankings = [Ranking.of(targets[:, index], scores[:, index]) for index in range(targets.shape[1])]
    _, patient_of_record = np.unique(patients, return_inverse=True)
    influences = tuple(influence(*columns, patient_of_record) for columns in zip(targets.T, scores.T, strict=True))
    per_class, num_valid, all_held = _each_class(rankings, patients, num_resamples=num_resamples, seed=seed)
    if all_held:  # no redraw anywhere: the classes' resamples are the macro's
        return Bootstrap(per_class, per_class.mean(axis=1), num_valid, num_resamples, 0, influences)
    chosen = _whole_resamples(targets, patients, num_resamples=num_resamples, seed=seed)
    macro = _mean_of_classes(rankings, patients, chosen, num_resamples=num_resamples, seed=seed)
    num_redrawn = int(chosen[-1]) + 1 - chosen.size if chosen.size else 0
    return Bootstrap(per_class, macro, num_valid, chosen.size, num_redrawn, influences)


def _each_class(
    rankings: list[Ranking], patients: NDArray[Any], *, num_resamples: int, seed: int
) -> tuple[Floats, NDArray[np.int64], bool]:
    """(2, K, R) METRICS in each class's own valid resamples, (K,) how many, and whether none was passed over."""
    values = np.full((len(METRICS), len(rankings), num_resamples), np.nan)
    num_valid = np.zeros(len(rankings), dtype=np.int64)
    num_drawn = 0
    for weights in _resamples(patients, num_resamples=num_resamples, seed=seed):
        for index in np.flatnonzero(num_valid < num_resamples):
            drawn = rankings[index].auroc_and_auprc(weights)
            drawn = drawn[:, np.isfinite(drawn[0])][:, : num_resamples - num_valid[index]]
            values[:, index, num_valid[index] : num_valid[index] + drawn.shape[1]] = drawn
            num_valid[index] += drawn.shape[1]
        num_drawn += weights.shape[1]
        if (num_valid == num_resamples).all():
            break
    return values, num_valid, num_drawn == num_resamples


def _whole_resamples(
    targets: NDArray[Any], patients: NDArray[Any], *, num_resamples: int, seed: int
) -> NDArray[np.int64]:
    """Which draws hold a positive and a negative of every class, ascending; the first R of them, or fewer."""
    chosen = np.zeros(0, dtype=np.int64)
    num_drawn = 0
    needed = [rows for column in targets.T for rows in (np.flatnonzero(column > 0.5), np.flatnonzero(column < 0.5))]
    needed.sort(key=len)  # what is rare rules out most draws, and is looked up fastest
    for weights in _resamples(patients, num_resamples=num_resamples, seed=seed):
        columns = np.arange(weights.shape[1])
        for rows in needed:
            columns = columns[_drawn(weights, rows, columns)]
        chosen = np.concatenate([chosen, num_drawn + columns])
        num_drawn += weights.shape[1]
        if chosen.size >= num_resamples:
            break
    return chosen[:num_resamples]


def _drawn(weights: Floats, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether any of the rows has weight, for each of the columns."""
    found = np.asarray(weights[np.ix_(rows[:64], columns)].any(axis=0))  # settles it for all but the rarest class
    unsettled = np.flatnonzero(~found)
    found[unsettled] = weights[np.ix_(rows[64:], columns[unsettled])].any(axis=0)
    return found


def _mean_of_classes(
    rankings: list[Ranking], patients: NDArray[Any], chosen: NDArray[np.int64], *, num_resamples: int, seed: int
) -> Floats:
    """(2, R) METRICS, means over classes, in the chosen draws; NaN beyond their number."""
    values = np.full((len(METRICS), num_resamples), np.nan)
    done = 0
    for weights in _packed(_resamples(patients, num_resamples=num_resamples, seed=seed), chosen):
        total = np.sum([ranking.auroc_and_auprc(weights) for ranking in rankings], axis=0)
        values[:, done : done + weights.shape[1]] = total / len(rankings)
        done += weights.shape[1]
    return values


def _packed(resamples: Iterator[Floats], chosen: NDArray[np.int64]) -> Iterator[Floats]:
    """The chosen draws in full chunks: where few are chosen, a chunk of three costs nearly as much as one of 100."""
    waiting: list[Floats] = []
    num_drawn = num_taken = num_waiting = 0
    while num_taken < chosen.size:
        weights = next(resamples)
        columns = chosen[(chosen >= num_drawn) & (chosen < num_drawn + weights.shape[1])] - num_drawn
        waiting.append(weights[:, columns])
        num_drawn += weights.shape[1]
        num_taken += columns.size
        num_waiting += columns.size
        if num_waiting >= weights.shape[1] or num_taken == chosen.size:
            yield np.concatenate(waiting, axis=1)
            waiting, num_waiting = [], 0


def _resamples(patients: NDArray[Any], *, num_resamples: int, seed: int) -> Iterator[Floats]:
    """(n, r) weights of the first resamples, then of as many spare ones as MIN_VALID_SHARE allows."""
    most = math.ceil(num_resamples / MIN_VALID_SHARE)
    return patient_resamples(patients, num_resamples=num_resamples, seed=seed, num_spare=most - num_resamples)
