"""One number that makes probabilities milder or bolder without changing who is ranked above whom: the temperature.

n records, K classes. Every logit is divided by it: above 1 it makes probabilities milder, below 1 bolder (Guo et al.
2017, arXiv:1706.04599). It is fitted on the validation fold alone, one for all classes. Within a class of a multi-label
model the ranks stay, so AUROC and AUPRC are the same before and after.

What is divided is the logit of the answer, that is of the probability averaged over a record's crops, as an
application receives it, not the network's own output for one crop.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, log_softmax, softmax

from reports.statistics.discrimination import Floats
from reports.statistics.recalibration import CLIP, logit

LOWEST, HIGHEST = 0.01, 100.0
"""Beyond these a temperature means that there is none: the likelihood rises for ever."""


def rescaled(probabilities: NDArray[Any], temperature: float, kind: str) -> Floats:
    """(n, K) probabilities under a temperature.

    Args:
        probabilities: (n, K); clipped to at least `recalibration.CLIP` (and at most 1 less it, where multi-label).
        temperature: positive.
        kind: "multilabel", a sigmoid for each class, or "single_label", one softmax.
    """
    scaled = logits_of(probabilities, kind) / temperature
    return np.asarray(softmax(scaled, axis=1) if kind == "single_label" else expit(scaled))


def logits_of(probabilities: NDArray[Any], kind: str) -> Floats:
    """(n, K) what a sigmoid or a softmax makes the probabilities of; a softmax leaves a constant of each row open."""
    if kind == "single_label":
        return np.asarray(np.log(np.maximum(probabilities, CLIP)), dtype=np.float64)
    return logit(probabilities)


def fitted(targets: NDArray[Any], probabilities: NDArray[Any], kind: str) -> float:
    """The temperature under which the labels are most likely.

    The mean negative log-likelihood is convex in 1 / T, so its derivative there has one root.

    Args:
        targets: (n, K) 0 or 1; exactly one 1 in each row where `kind` is "single_label".
        probabilities: (n, K).
        kind: as in `rescaled`.

    Raises:
        ValueError: if there is no such temperature; the message says why.
    """
    if not len(targets):
        raise ValueError("there are no validation records")
    if kind == "single_label" and not (targets.sum(axis=1) == 1).all():
        raise ValueError("a validation record has not exactly one class")
    logits = logits_of(probabilities, kind)
    if _slope(1 / HIGHEST, logits, targets, kind) >= 0:
        raise ValueError("on validation the probabilities tell no more than none would: no temperature helps")
    if _slope(1 / LOWEST, logits, targets, kind) <= 0:
        raise ValueError("on validation every record is told rightly, so that the best temperature would be zero")
    root = brentq(
        lambda inverse: _slope(inverse, logits, targets, kind), 1 / HIGHEST, 1 / LOWEST, xtol=1e-13, rtol=1e-13
    )
    return float(1 / root)


def negative_log_likelihood(targets: NDArray[Any], probabilities: NDArray[Any], kind: str) -> float:
    """Mean over records, and over classes where each is a question of its own, in nats; probabilities are clipped."""
    logits = logits_of(probabilities, kind)
    if kind == "single_label":
        return float(-np.sum(targets * log_softmax(logits, axis=1)) / len(targets))
    return float(np.mean(np.logaddexp(0.0, logits) - targets * logits))


def _slope(inverse: float, logits: Floats, targets: NDArray[Any], kind: str) -> float:
    """Derivative of the mean negative log-likelihood by 1 / T."""
    expected = softmax(inverse * logits, axis=1) if kind == "single_label" else expit(inverse * logits)
    return float(np.sum((expected - targets) * logits) / len(targets))
