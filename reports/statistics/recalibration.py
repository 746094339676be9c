"""How a class's probabilities would have to be stretched and shifted to be right: calibration slope and intercept.

n records. The slope is b of logit P(positive) = a + b logit(p) (Cox 1958, Biometrika 45:562): below 1 the probabilities
are too extreme, above 1 too timid. The intercept is a with b fixed at 1, calibration in the large: above 0 the
probabilities are too low on the whole, below 0 too high (names and use: Van Calster et al. 2019, BMC Medicine 17:230).

Both are fitted by maximum likelihood. Their intervals are Wald's, with the variance that stays right when records of
one patient are alike (Liang and Zeger 1986, Biometrika 73:13): it sums the scores' outer products over patients.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtri

from reports.statistics.discrimination import Floats
from reports.statistics.intervals import CONFIDENCE, Interval

CLIP = 2.0**-24
"""Probabilities are kept this far from 0 and 1 before their logit is taken; no float32 but 1 lies closer to 1."""
_QUANTILE = float(ndtri((1 + CONFIDENCE) / 2))
_STEPS = 100
_TOLERANCE = 1e-12


def logit(probabilities: NDArray[Any]) -> Floats:
    """log(p / (1 - p)) in float64, with p brought into [CLIP, 1 - CLIP] first: at most 16.6 in size."""
    kept = np.clip(np.asarray(probabilities, dtype=np.float64), CLIP, 1 - CLIP)
    return np.asarray(np.log(kept) - np.log1p(-kept), dtype=np.float64)


def slope(targets: NDArray[Any], probabilities: NDArray[Any], patients: NDArray[Any]) -> Interval:
    """The calibration slope of one class, with its interval.

    Args:
        targets: (n,) 0 or 1.
        probabilities: (n,) of being 1.
        patients: (n,) who each record is of.

    Raises:
        ValueError: if there is no such slope; the message says why.
    """
    logits = logit(probabilities)
    _need_both(targets)
    positive, negative = logits[targets > 0.5], logits[targets < 0.5]
    if np.ptp(logits) == 0:
        raise ValueError("all records have the same probability")
    if positive.min() >= negative.max() or positive.max() <= negative.min():
        raise ValueError(
            "the probabilities tell positives and negatives apart without an overlap: the slope has no end"
        )
    spread = float(logits.std())
    design = np.column_stack([np.ones_like(logits), (logits - logits.mean()) / spread])  # well conditioned
    found, variance = _fit(design, np.zeros_like(logits), targets, patients)
    return _interval(found[1] / spread, variance[1, 1] / spread**2, patients)


def intercept(targets: NDArray[Any], probabilities: NDArray[Any], patients: NDArray[Any]) -> Interval:
    """The calibration intercept of one class, the slope being 1, with its interval.

    Args and errors are those of `slope`.
    """
    logits = logit(probabilities)
    _need_both(targets)
    found, variance = _fit(np.ones((len(logits), 1)), logits, targets, patients)
    return _interval(found[0], variance[0, 0], patients)


def _need_both(targets: NDArray[Any]) -> None:
    num_positive = int(np.count_nonzero(targets > 0.5))
    if num_positive in (0, len(targets)):
        raise ValueError("no record is positive" if num_positive == 0 else "no record is negative")


def _fit(
    design: Floats, offset: Floats, targets: NDArray[Any], patients: NDArray[Any]
) -> tuple[Floats, NDArray[np.float64]]:
    """Maximum likelihood of a logistic regression by Newton's method, its steps halved where they overshoot.

    Args:
        design: (n, D) of full rank; the maximum exists.
        offset: (n,) added to the linear predictor.
        targets: (n,) 0 or 1.
        patients: (n,) for the variance.

    Returns:
        (D,) coefficients and their (D, D) variance.

    Raises:
        ValueError: if no maximum is found: the data all but separate.
    """
    found = np.zeros(design.shape[1])
    likelihood = _log_likelihood(design @ found + offset, targets)
    for _ in range(_STEPS):
        expected = expit(design @ found + offset)
        gradient = design.T @ (targets - expected)
        information = (design * (expected * (1 - expected))[:, None]).T @ design
        try:
            step = np.linalg.solve(information, gradient)
        except np.linalg.LinAlgError:
            break
        while (after := _log_likelihood(design @ (found + step) + offset, targets)) < likelihood - 1e-12 * abs(
            likelihood
        ):
            step = step / 2
        found, likelihood = found + step, after
        if np.abs(step).max() < _TOLERANCE * (1 + np.abs(found).max()):
            return found, _clustered_variance(design, targets - expit(design @ found + offset), information, patients)
    raise ValueError("the fit does not converge: the probabilities all but separate positives from negatives")


def _log_likelihood(predictor: Floats, targets: NDArray[Any]) -> float:
    return float(np.sum(targets * predictor - np.logaddexp(0.0, predictor)))


def _clustered_variance(
    design: Floats, residuals: Floats, information: Floats, patients: NDArray[Any]
) -> NDArray[np.float64]:
    """(D, D) sandwich of the information around the patients' scores, times m / (m - 1) of m patients."""
    _, patient_of_record = np.unique(patients, return_inverse=True)
    num_patients = int(patient_of_record.max()) + 1
    scores = np.zeros((num_patients, design.shape[1]))
    np.add.at(scores, patient_of_record, design * residuals[:, None])
    bread = np.linalg.inv(information)
    correction = num_patients / max(num_patients - 1, 1)
    return np.asarray(correction * bread @ (scores.T @ scores) @ bread)


def _interval(value: float, variance: float, patients: NDArray[Any]) -> Interval:
    if np.unique(patients).size < 2:
        return Interval(float(value), None, None, "the records are of one patient")
    half = _QUANTILE * float(np.sqrt(variance))
    return Interval(float(value), float(value) - half, float(value) + half)
