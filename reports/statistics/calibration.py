"""Whether probabilities are what they say: of the records that are given 0.3, three in ten are to be positive.

n records, K classes, R resamples. Every figure is given for the probabilities as the model answers them and again with
the one temperature that fits the validation fold best (temperature.py). The test fold takes no part in the fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reports.folder import Predictions, Study, at_path
from reports.statistics.bins import NUM_BINS, EqualMass, equal_width, width_sums, wilson
from reports.statistics.discrimination import Floats
from reports.statistics.intervals import CONFIDENCE, Interval
from reports.statistics.recalibration import CLIP, intercept, slope
from reports.statistics.resamples import patient_resamples
from reports.statistics.temperature import fitted, negative_log_likelihood, rescaled

NUM_SIMULATIONS = 200
"""Of labels that the probabilities are right about, for the error that chance alone makes."""
STAGES = ("before", "after")
"""Without and with the temperature."""
ERRORS = ("ece", "ece_adaptive")


@dataclass(frozen=True)
class Answers:
    """What is held against the labels: the columns of K classes, or the one of the model's first choice."""

    targets: Floats
    """(n, K) 0 or 1."""
    probabilities: Floats
    """(n, K)."""

    @property
    def residuals(self) -> Floats:
        """(n, K) probability less label."""
        return np.asarray(self.probabilities - self.targets)

    def first_choice(self) -> Answers:
        """(n, 1) whether the class with the largest probability is right, and that probability."""
        chosen = self.probabilities.argmax(axis=1)[:, None]
        taken = (np.take_along_axis(part, chosen, axis=1) for part in (self.targets, self.probabilities))
        return Answers(*taken)


@dataclass(frozen=True)
class Errors:
    """Brier score and calibration errors of every class under R weightings of the records."""

    brier: Floats
    """(K, R)."""
    ece: Floats
    """(K, R) over equal-width bins."""
    ece_adaptive: Floats
    """(K, R) over equal-mass bins."""
    ece_pooled: Floats
    """(R,) over equal-width bins, all classes' records together."""

    def of(self, name: str) -> Floats:
        """One of them by name."""
        found: Floats = getattr(self, name)
        return found


def calibration(study: Study, *, num_resamples: int, seed: int) -> dict[str, Any]:
    """The calibration of every model of a study; intervals for the best trial's alone.

    Args:
        study: a study's folder, read.
        num_resamples: R, of the patients.
        seed: of the resamples and of the simulated labels.
    """
    models = {
        model: of_model(predictions, label_kind(study, predictions), num_resamples=R, seed=seed)
        for model, predictions in study.predictions.items()
        for R in [num_resamples if model == "best" else 0]
    }
    return {"num_bins": NUM_BINS, "clip": CLIP, "models": models}


def label_kind(study: Study, predictions: Predictions) -> str:
    """How a record's classes go together (data.labels), from the contract, else from the answers themselves."""
    told = at_path(study.best, "contract.label_kind") or at_path(study.default, "contract.label_kind")
    if told in ("multilabel", "single_label"):
        return str(told)
    sums = predictions.scores.sum(axis=1)
    exclusive = len(predictions.classes) > 1 and bool(np.all(np.abs(sums - 1) < 1e-3))
    return "single_label" if exclusive and bool(np.all(predictions.targets.sum(axis=1) == 1)) else "multilabel"


def of_model(predictions: Predictions, kind: str, *, num_resamples: int, seed: int) -> dict[str, Any]:
    """One model's calibration on its test records, without and with a temperature from its validation records."""
    valid, test = predictions.of_split("valid"), predictions.of_split("test")
    temperature = _temperature(valid, kind)
    found: dict[str, Any] = {"label_kind": kind, "temperature": temperature}
    if not len(test.scores) or not np.isfinite(test.scores).all():
        return found | {"reason": "there are no test records" if not len(test.scores) else "a probability is no number"}
    answers = {"before": Answers(test.targets, test.scores)}
    if temperature["value"] is not None:
        answers["after"] = Answers(test.targets, rescaled(test.scores, temperature["value"], kind))
    samples = {
        stage: Resampled.of(given, test.patient_ids, num_resamples=num_resamples, seed=seed)
        for stage, given in answers.items()
    }
    blocks = {stage: _block(test, answers[stage], samples[stage], kind, seed=seed) for stage in answers}
    if "after" in samples:
        blocks["difference"] = _differences(test, samples)
    return found | {"num_records": len(test.scores), "num_patients": int(np.unique(test.patient_ids).size)} | blocks


def _temperature(valid: Predictions, kind: str) -> dict[str, Any]:
    """The temperature that an export applies, or why there is none."""
    told = {
        "fitted_on": "valid",
        "num_records": len(valid.scores),
        "formula": "softmax(log(p) / T)" if kind == "single_label" else "sigmoid(logit(p) / T)",
        "applies_to": "the probability averaged over a record's crops",
        "clip": CLIP,
        "classes_without_positive": [
            name for name, num in zip(valid.classes, valid.targets.sum(axis=0), strict=True) if num == 0
        ],
    }
    try:
        value = fitted(valid.targets, valid.scores, kind)
    except ValueError as error:
        return {"value": None, "reason": str(error)} | told
    after = rescaled(valid.scores, value, kind)
    losses = {
        stage: negative_log_likelihood(valid.targets, scores, kind)
        for stage, scores in zip(STAGES, (valid.scores, after), strict=True)
    }
    return {"value": value} | told | {"negative_log_likelihood": losses}


@dataclass(frozen=True)
class Resampled:
    """Errors of all records, and in every resample of the patients."""

    all_records: Errors
    """R = 1."""
    resamples: Errors
    """As many as asked for; none is possible."""
    reason: str | None
    """Why there are no intervals."""

    @classmethod
    def of(cls, answers: Answers, patients: NDArray[Any], *, num_resamples: int, seed: int) -> Resampled:
        """Measure in all records and in resamples, which follow from seed and patients alone."""
        measure = _Measure(answers)
        everyone = measure.errors(np.ones((len(patients), 1)))
        num_patients = np.unique(patients).size
        if not num_resamples or num_patients < 2:
            reason = "not computed for this model" if num_patients > 1 else "the records are of one patient"
            return cls(everyone, everyone, reason)
        resamples = patient_resamples(patients, num_resamples=num_resamples, seed=seed)
        drawn = [measure.errors(weights) for weights in resamples]
        joined = {name: np.concatenate([part.of(name) for part in drawn], axis=-1) for name in Errors.__annotations__}
        return cls(everyone, Errors(**joined), None)

    def interval(self, name: str, rows: list[int] | None = None) -> Interval:
        """A figure's value and interval: the mean over some classes, or the pooled one where None.

        A resample holds the noise of the data and that of drawing, so that its calibration error lies above that of
        the data as this lies above the truth. The interval of an error is therefore turned around the value (basic
        bootstrap, Davison and Hinkley 1997, ch. 5): its ends are twice the value less a quantile, and at least 0.
        """
        value, samples = (self._mean(part, name, rows) for part in (self.all_records, self.resamples))
        if self.reason:
            return Interval(float(value[0]), None, None, self.reason)
        return _around(float(value[0]), samples, turned=name != "brier", least=0.0)

    def difference(self, before: Resampled, name: str, rows: list[int]) -> Interval:
        """The interval of this figure less that of another stage, resample by resample."""
        values, samples = (
            self._mean(mine, name, rows) - self._mean(its, name, rows)
            for mine, its in ((self.all_records, before.all_records), (self.resamples, before.resamples))
        )
        if self.reason:
            return Interval(float(values[0]), None, None, self.reason)
        return _around(float(values[0]), samples, turned=name != "brier", least=-np.inf)

    @staticmethod
    def _mean(errors: Errors, name: str, rows: list[int] | None) -> Floats:
        return errors.of(name) if rows is None else np.asarray(errors.of(name)[rows].mean(axis=0))


def _around(value: float, samples: Floats, *, turned: bool, least: float) -> Interval:
    low, high = np.quantile(samples, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    if turned:
        low, high = 2 * value - high, 2 * value - low
    return Interval(value, max(float(low), least), max(float(high), least))


class _Measure:
    """What the errors need of the answers, made once for many weightings."""

    def __init__(self, answers: Answers) -> None:
        self.residuals = answers.residuals
        self.bins = equal_width(answers.probabilities)
        self.masses = [EqualMass(column) for column in answers.probabilities.T]

    def errors(self, weights: Floats) -> Errors:
        """Under every weighting (n, R)."""
        total = weights.sum(axis=0)
        sums = width_sums(self.bins, self.residuals, weights)
        adaptive = [mass.sums(column, weights) for mass, column in zip(self.masses, self.residuals.T, strict=True)]
        return Errors(
            brier=(self.residuals.T**2) @ weights / total,
            ece=np.abs(sums).sum(axis=1) / total,
            ece_adaptive=np.abs(np.stack(adaptive)).sum(axis=1) / total,
            ece_pooled=np.abs(sums.sum(axis=0)).sum(axis=0) / (total * len(sums)),
        )


def _block(test: Predictions, answers: Answers, samples: Resampled, kind: str, *, seed: int) -> dict[str, Any]:
    """All figures of one stage."""
    kept = scorable(test)
    # what a comparison beside the best trial does not need is not simulated either
    chance = {} if samples.resamples is samples.all_records else _by_chance(answers, kind, seed=seed)
    block: dict[str, Any] = {"num_classes": len(kept)}
    for name in ("brier", *ERRORS):
        block[f"{name}_macro"] = (
            samples.interval(name, kept).as_json()
            if kept
            else _none("no class has both a positive and a negative record")
        )
        if kept and name in chance:
            block[f"{name}_macro"] |= _chance(chance[name][kept].mean(axis=0))
    block["pooled"] = {"ece": samples.interval("ece_pooled").as_json() | _chance(chance.get("ece_pooled"))}
    block["pooled"] |= _pooled(test, answers, kind)
    block["negative_log_likelihood"] = negative_log_likelihood(answers.targets, answers.probabilities, kind)
    if kind == "single_label":
        block["first_choice"] = _first_choice(answers)
    block["classes"] = {name: _class(test, answers, samples, chance, index) for index, name in enumerate(test.classes)}
    return block


def scorable(predictions: Predictions) -> list[int]:
    """The classes with a positive and a negative record, over which means are taken."""
    num_positive = predictions.targets.sum(axis=0)
    return np.flatnonzero((num_positive > 0) & (num_positive < len(predictions.targets))).tolist()


def _class(
    test: Predictions, answers: Answers, samples: Resampled, chance: dict[str, Floats], index: int
) -> dict[str, Any]:
    targets, probabilities = answers.targets[:, index], answers.probabilities[:, index]
    positive = targets > 0.5
    prevalence = float(positive.mean())
    brier = samples.interval("brier", [index]).as_json()
    of_prevalence = prevalence * (1 - prevalence)
    return {
        "num_positive": int(positive.sum()),
        "num_positive_patients": int(np.unique(test.patient_ids[positive]).size),
        "prevalence": prevalence,
        "mean_probability": float(probabilities.mean()),
        "brier": brier,
        "brier_skill": 1 - brier["value"] / of_prevalence if of_prevalence else None,
        **{
            name: samples.interval(name, [index]).as_json() | _chance(chance[name][index] if chance else None)
            for name in ERRORS
        },
        "slope": _fit(slope, targets, probabilities, test.patient_ids),
        "intercept": _fit(intercept, targets, probabilities, test.patient_ids),
        "bins": reliability(targets, probabilities),
    }


def _pooled(test: Predictions, answers: Answers, kind: str) -> dict[str, Any]:
    """Slope and intercept of all classes' records together; a patient's records of all classes are one cluster."""
    patients = np.repeat(test.patient_ids, answers.targets.shape[1])
    flat = (answers.targets.ravel(), answers.probabilities.ravel(), patients)
    if kind == "single_label":
        shift = _none("0 of itself: a record's probabilities and its labels both add up to 1")
    else:
        shift = _fit(intercept, *flat)
    return {"slope": _fit(slope, *flat), "intercept": shift}


def _first_choice(answers: Answers) -> dict[str, Any]:
    """The error of the largest probability as a forecast of being right, which is what Guo et al. 2017 measure."""
    chosen = answers.first_choice()
    found = _Measure(chosen).errors(np.ones((len(chosen.targets), 1)))
    targets, probabilities = chosen.targets[:, 0], chosen.probabilities[:, 0]
    return {
        "accuracy": float(targets.mean()),
        "mean_probability": float(probabilities.mean()),
        "ece": float(found.ece[0, 0]),
        "ece_adaptive": float(found.ece_adaptive[0, 0]),
        "bins": reliability(targets, probabilities),
    }


def _differences(test: Predictions, samples: dict[str, Resampled]) -> dict[str, Any]:
    """With the temperature less without it, in the same resamples."""
    kept = scorable(test)
    if not kept:
        return {}
    found = {name: samples["after"].difference(samples["before"], name, kept) for name in ("brier", *ERRORS)}
    return {f"{name}_macro": interval.as_json() for name, interval in found.items()}


def reliability(targets: NDArray[Any], probabilities: NDArray[Any]) -> dict[str, list[Any]]:
    """The reliability diagram of one column: each filled bin's records, mean probability and share of positives.

    The interval of a share is Wilson's, of records that are independent of each other.
    """
    bins = equal_width(probabilities)
    count = np.bincount(bins, minlength=NUM_BINS)
    filled = np.flatnonzero(count)
    positive = np.bincount(bins, targets, minlength=NUM_BINS)[filled].astype(np.int64)
    low, high = wilson(positive, count[filled])
    return {
        "bin": filled.tolist(),
        "count": count[filled].tolist(),
        "positive": positive.tolist(),
        "probability": (np.bincount(bins, probabilities, minlength=NUM_BINS)[filled] / count[filled]).tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
    }


def _by_chance(answers: Answers, kind: str, *, seed: int) -> dict[str, Floats]:
    """Calibration errors (K, S) and pooled (S,) of labels drawn from the probabilities, which are then right.

    It is what Bröcker and Smith 2007 (Weather and Forecasting 22:651) call consistency resampling.
    """
    bins = {
        "ece": equal_width(answers.probabilities),
        "ece_adaptive": np.column_stack([EqualMass(column).bins() for column in answers.probabilities.T]),
    }
    found: dict[str, list[Floats]] = {name: [] for name in bins}
    pooled = np.zeros((NUM_BINS, NUM_SIMULATIONS))
    for index, labels in enumerate(_right_labels(answers.probabilities, kind, seed=seed)):
        for name, all_bins in bins.items():
            column = all_bins[:, [index]]
            expected = np.bincount(column[:, 0], answers.probabilities[:, index], minlength=NUM_BINS)
            gaps = expected[:, None] - width_sums(column, np.ones(column.shape), labels)[0]
            found[name].append(np.abs(gaps).sum(axis=0) / len(labels))
            pooled += gaps if name == "ece" else 0.0
    return {name: np.stack(rows) for name, rows in found.items()} | {
        "ece_pooled": np.abs(pooled).sum(axis=0) / answers.targets.size
    }


def _right_labels(probabilities: Floats, kind: str, *, seed: int) -> Iterator[Floats]:
    """(n, S) labels of one class after another, as the probabilities would have them."""
    rng = np.random.default_rng([seed, 1])
    num_records, num_classes = probabilities.shape
    if kind == "single_label":
        upto = np.cumsum(probabilities, axis=1)
        drawn = rng.random((num_records, NUM_SIMULATIONS)) * upto[:, -1:]
        chosen = np.stack([np.searchsorted(row, values, side="right") for row, values in zip(upto, drawn, strict=True)])
        chosen = np.minimum(chosen, num_classes - 1)
        yield from (np.asarray(chosen == index, dtype=np.float64) for index in range(num_classes))
        return
    for column in probabilities.T:
        yield np.asarray(rng.random((num_records, NUM_SIMULATIONS)) < column[:, None], dtype=np.float64)


def _chance(samples: Floats | None) -> dict[str, float]:
    return (
        {}
        if samples is None
        else {"by_chance": float(samples.mean()), "by_chance_high": float(np.quantile(samples, CONFIDENCE))}
    )


def _fit(fit: Any, targets: NDArray[Any], probabilities: NDArray[Any], patients: NDArray[Any]) -> dict[str, Any]:
    try:
        found: Interval = fit(targets, probabilities, patients)
    except ValueError as error:
        return _none(str(error))
    return found.as_json()


def _none(reason: str) -> dict[str, Any]:
    return {"value": None, "low": None, "high": None, "reason": reason}
