"""What a model decides once its probabilities are cut: sensitivity, specificity, PPV, NPV and F1 at fixed thresholds.

n records, K classes, R resamples. A class's threshold is chosen on the validation fold and then holds on the test fold,
where nothing is chosen any more. A record is called positive where its probability is at least the threshold.

The intervals are over the test patients with the threshold held fixed: they say how far the value could have come out
otherwise with other test patients, not what another validation fold would have chosen. All measures are ratios of sums
over patients, so each patient's influence is plain arithmetic and the interval is the t interval on the logit scale of
`reports.statistics.intervals`. A share of 0 or 1 gets the exact bound: 10 of 10 found is no proof that all will be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from reports.folder import Predictions, Study
from reports.statistics.discrimination import Floats
from reports.statistics.intervals import logit_interval, mean_variance

Criterion = Literal["f1", "youden", "sensitivity", "g_beta"]
CRITERIA = ("f1", "youden", "sensitivity")
"""What a study may choose its thresholds by; g_beta goes with evaluate.beta."""
MEASURES = ("sensitivity", "specificity", "ppv", "npv", "f1")


@dataclass(frozen=True)
class Rule:
    """How thresholds are chosen, and what else is shown."""

    criterion: Criterion = "f1"
    """The largest F1, the largest sensitivity + specificity (Youden 1950), or the largest threshold that reaches
    `min_sensitivity`, all on validation."""
    min_sensitivity: float = 0.9
    beta: float | None = None
    """Of F-beta and G-beta, which are shown with thresholds of their own; None shows neither."""


@dataclass(frozen=True)
class Counts:
    """Records told rightly and wrongly; arrays of one shape, weighted where the records are."""

    tp: Floats
    fp: Floats
    fn: Floats
    tn: Floats

    def of(self, measure: str) -> Floats:
        """One of MEASURES; NaN where it divides by nothing."""
        return _quotient(*self.ratio(measure))

    def ratio(self, measure: str, beta: float = 1.0) -> tuple[Floats, Floats]:
        """What a measure divides, and by what.

        F-beta is (1 + b^2) TP / ((1 + b^2) TP + FP + b^2 FN), G-beta TP / (TP + FP + b FN); both are the PhysioNet/CinC
        challenge's of 2020. For b = 1 they are the F1 and the Jaccard index.
        """
        tp, fp, fn, tn = self.tp, self.fp, self.fn, self.tn
        ratios = {
            "sensitivity": (tp, tp + fn),
            "specificity": (tn, tn + fp),
            "ppv": (tp, tp + fp),
            "npv": (tn, tn + fn),
            "f1": (2 * tp, 2 * tp + fp + fn),
            "f_beta": ((1 + beta**2) * tp, (1 + beta**2) * tp + fp + beta**2 * fn),
            "g_beta": (tp, tp + fp + beta * fn),
        }
        return ratios[measure]


def operating_points_of(study: Study) -> dict[str, Any] | None:
    """The best trial's operating points, by the study's rule; None where it has not been evaluated on both folds.

    {"reason"} alone where the rule is another version's.
    """
    best = study.predictions.get("best")
    if best is None:
        return None
    valid, test = best.of_split("valid"), best.of_split("test")
    if not valid.record_ids.size or not test.record_ids.size:
        return None
    criterion = study.setting("evaluate.threshold", "f1")
    if criterion not in CRITERIA:
        said = f"this version does not know evaluate.threshold={criterion}, only {', '.join(CRITERIA)}"
        return {"reason": f"{said}: type evaluate.threshold=f1 with command=report"}
    rule = Rule(
        criterion,
        float(study.setting("evaluate.min_sensitivity", 0.9)),
        study.setting("evaluate.beta"),
    )
    return operating_points(valid, test, rule)


def operating_points(valid: Predictions, test: Predictions, rule: Rule) -> dict[str, Any]:
    """Every figure of a model's decisions on the test fold, as plain JSON values.

    Args:
        valid: the model's predictions on validation, where thresholds are chosen.
        test: on test, with the same classes.
        rule: how.
    """
    thresholds = {
        name: threshold(valid.targets[:, index], valid.scores[:, index], rule)
        for index, name in enumerate(valid.classes)
    }
    left_out = _left_out(thresholds, test)
    content: dict[str, Any] = {
        "criterion": rule.criterion,
        "min_sensitivity": rule.min_sensitivity if rule.criterion == "sensitivity" else None,
        "left_out": left_out,
        "classes": {},
        "macro": {},
        "beta": None,
    }
    names = [name for name in test.classes if name not in left_out]
    if not names:
        return content
    part = test.with_classes(names)
    called = part.scores >= np.array([thresholds[name] for name in names])
    counts = counts_of_patients(part, called, np.ones(called.shape))
    shares = {measure: shares_of(*counts.ratio(measure)) for measure in MEASURES}
    for index, name in enumerate(names):
        content["classes"][name] = {
            "threshold": thresholds[name],
            "num_positive": int(part.targets[:, index].sum()),
            "num_called": int(called[:, index].sum()),
            **{measure: found[index].as_json() for measure, found in shares.items()},
        }
    content["macro"] = {measure: mean_of(found) for measure, found in shares.items()}
    return content | {"beta": _beta(valid, part, rule)}


def threshold(targets: NDArray[Any], scores: NDArray[Any], rule: Rule) -> float | None:
    """The threshold that a rule chooses for one class; the highest of equally good ones.

    Args:
        targets: (n,) 0 or 1.
        scores: (n,) probabilities.
        rule: how.

    Returns:
        One of the scores; None where there is no positive, or no negative, to choose by.
    """
    num_positive = float(targets.sum())
    if not 0 < num_positive < len(targets):
        return None
    levels, place = np.unique(-scores, return_inverse=True)  # ascending, so the highest score first
    positive = targets > 0.5
    tp, fp = (
        np.cumsum(np.bincount(place[kind], minlength=levels.size)).astype(np.float64) for kind in (positive, ~positive)
    )
    counts = Counts(tp, fp, num_positive - tp, len(targets) - num_positive - fp)
    if rule.criterion == "sensitivity":
        worth = (counts.of("sensitivity") >= rule.min_sensitivity - 1e-12).astype(np.float64)
    elif rule.criterion == "youden":
        worth = counts.of("sensitivity") + counts.of("specificity")
    elif rule.criterion == "g_beta":
        worth = _quotient(*counts.ratio("g_beta", rule.beta or 1.0))
    else:
        worth = counts.of("f1")
    return float(-levels[np.flatnonzero(worth >= worth.max() - 1e-12)[0]])


def _quotient(above: Floats, below: Floats) -> Floats:
    return np.asarray(np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 0))


def label_weights(targets: NDArray[Any]) -> Floats:
    """(n, 1) one over each record's number of labels, at least 1.

    In the challenge's F-beta and G-beta every record weighs the same, however many labels it carries.
    """
    return np.asarray(1 / np.maximum(targets.sum(axis=1, keepdims=True), 1.0))


def _beta(valid: Predictions, test: Predictions, rule: Rule) -> dict[str, Any] | None:
    """F-beta and G-beta, means over classes, at the thresholds with the largest G-beta on validation."""
    if rule.beta is None:
        return None
    by_g = Rule("g_beta", beta=rule.beta)
    columns = [valid.classes.index(name) for name in test.classes]
    chosen = [threshold(valid.targets[:, column], valid.scores[:, column], by_g) for column in columns]
    called = test.scores >= np.array(chosen, dtype=np.float64)
    counts = counts_of_patients(test, called, np.broadcast_to(label_weights(test.targets), called.shape))
    measured = {name: mean_of(shares_of(*counts.ratio(name, rule.beta))) for name in ("f_beta", "g_beta")}
    return {"beta": rule.beta, **measured}


def _left_out(thresholds: dict[str, float | None], test: Predictions) -> dict[str, str]:
    """Class -> why it has no operating point."""
    left_out = {}
    for index, name in enumerate(test.classes):
        positives = test.targets[:, index].sum()
        if thresholds.get(name) is None:
            left_out[name] = "no positive or no negative record on validation to choose a threshold by"
        elif not 0 < positives < len(test.targets):
            left_out[name] = "no positive or no negative record on test"
    return left_out


def counts_of_patients(part: Predictions, called: NDArray[np.bool_], weights: Floats) -> Counts:
    """(I, K) counts of each patient's records, with (n, K) weights."""
    positive = part.targets > 0.5
    _, patient_of_record = np.unique(part.patient_ids, return_inverse=True)
    kinds = [positive & called, ~positive & called, positive & ~called, ~positive & ~called]
    sums = np.zeros((4, int(patient_of_record.max()) + 1, called.shape[1]))
    for place, kind in zip(sums, kinds, strict=True):
        np.add.at(place, patient_of_record, kind * weights)
    return Counts(sums[0], sums[1], sums[2], sums[3])


@dataclass(frozen=True)
class Share:
    """A ratio of sums over patients, with what its interval needs."""

    value: float
    """NaN where it divides by nothing."""
    influence: Floats
    """(I,) scaled so that the sum of squares is the variance."""
    degrees_of_freedom: float
    num_patients: int
    """Who count in what is divided by."""

    def as_json(self) -> dict[str, Any]:
        """Value and bounds, or the reason why there are none."""
        if not np.isfinite(self.value):
            return {"value": None, "low": None, "high": None, "reason": "no record is called so"}
        variance = float(np.sum(self.influence**2))
        found = logit_interval(self.value, variance, self.degrees_of_freedom, num_patients=self.num_patients)
        return found.as_json()


def shares_of(above: Floats, below: Floats) -> list[Share]:
    """One of each column of (I, K) sums."""
    return [_share(*columns) for columns in zip(above.T, below.T, strict=True)]


def _share(above: Floats, below: Floats) -> Share:
    size = int(np.count_nonzero(below))
    if size == 0:
        return Share(np.nan, np.zeros(len(below)), 1.0, 0)
    value = float(above.sum() / below.sum())
    influence = (above - value * below) / below.sum() * np.sqrt(size / max(size - 1, 1))
    if np.abs(influence).max() < 1e-15:  # nothing scatters: as in reports.statistics.influence
        smoothed = (size * value + 1) / (size + 2)
        influence[np.flatnonzero(below)[0]] = np.sqrt(smoothed * (1 - smoothed) / size)
    square = float(np.sum(influence**2))
    fourth = float(np.sum(np.square(influence**2))) - square**2 / size
    degrees = min(size - 1.0, 2 * square**2 / fourth) if fourth > 0 else size - 1.0
    return Share(value, influence, max(degrees, 1.0), size)


def mean_of(shares: list[Share]) -> dict[str, Any]:
    """The mean over classes where it is defined."""
    defined = [share for share in shares if np.isfinite(share.value)]
    if not defined:
        return {"value": None, "low": None, "high": None, "reason": "it is defined for no class"}
    variance, degrees = mean_variance(
        np.array([share.influence for share in defined]), np.array([share.degrees_of_freedom for share in defined])
    )
    value = float(np.mean([share.value for share in defined]))
    num_patients = min(share.num_patients for share in defined)
    found = logit_interval(value, variance, degrees, num_patients=num_patients).as_json()
    return found | ({"num_classes": len(defined)} if len(defined) < len(shares) else {})
