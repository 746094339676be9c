"""The figures of a study: what metrics.json holds and the page shows, computed from saved predictions alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from reports import folds
from reports.earlier import EARLIER
from reports.folder import Predictions, Study, at_path
from reports.mistakes import figures_of_mistakes
from reports.provenance import provenance
from reports.search.choices import Comparison, Unknown, compare, tables
from reports.search.confirmation import confirmation
from reports.search.searching import searching
from reports.statistics.calibration import calibration
from reports.statistics.delong import crosscheck
from reports.statistics.discrimination import Floats, auroc, average_precision
from reports.statistics.intervals import CONFIDENCE, METRICS, Bootstrap, Interval, bootstrap, micro
from reports.statistics.operating_points import operating_points_of
from reports.statistics.protocols import named_protocol
from reports.statistics.published import published
from reports.statistics.subgroups import subgroups

SPLITS = ("test", "valid")


@dataclass(frozen=True)
class Scored:
    """One model on one split: values on all records, and in every resample of the patients."""

    predictions: Predictions
    """Of the split, with the classes that can be scored on it."""
    left_out: tuple[str, ...]
    """Classes without a positive or without a negative record in the split."""
    values: Floats
    """(2, K) METRICS of every class."""
    resamples: Bootstrap | None
    """None where no class is left."""

    def macro(self, metric: str) -> float:
        """The mean of a metric over classes, NaN without a class."""
        row = self.values[METRICS.index(metric)]
        return float(row.mean()) if row.size else float("nan")


def figures(study: Study, *, num_resamples: int, seed: int) -> dict[str, Any]:
    """Every figure of the report, as plain JSON values.

    Args:
        study: a study's folder, read.
        num_resamples: bootstrap resamples: of the bias of an AUPRC, of calibration and of subgroups' differences.
        seed: of the resamples.
    """
    scored = {
        model: _scored_splits(predictions, num_resamples=num_resamples, seed=seed)
        for model, predictions in study.predictions.items()
    }
    best, baselines = scored.pop("best", {}), scored
    blocks = {"best": _blocks(best), "baselines": {model: _blocks(splits) for model, splits in baselines.items()}}
    content = blocks | {
        "differences": {
            model: {split: _differences(best[split], splits[split], split) for split in SPLITS if split in splits}
            for model, splits in baselines.items()
            if best
        },
        **openings_of(study),
        **folds.figures(study.predictions.get("best")),
        "made_by": {model: _maker(predictions) for model, predictions in study.predictions.items()},
        "protocol": _protocol(study, best, num_resamples=num_resamples, seed=seed),
        "search": _search(study),
        "confirmation": confirmation(study),
        "ensemble": {"members": [], "reason": None} | study.ensemble,
        "provenance": provenance(study),
        "earlier": study.predictions[EARLIER].made_by.get("study") if EARLIER in study.predictions else None,
        "problems": list(study.problems),
        "mistakes": figures_of_mistakes(study),
        "operating_points": operating_points_of(study),
        "delong": crosscheck({model: splits.get("test") for model, splits in (("best", best), *baselines.items())}),
        "named_protocol": named_protocol(study, num_resamples=num_resamples, seed=seed),
        "published": published(study),
    }
    content |= {"intervals_excluding_value": _excluding(content)}
    # after it: the intervals of a calibration error are not percentiles
    content |= {"calibration": calibration(study, num_resamples=num_resamples, seed=seed)}
    content |= {"subgroups": subgroups(study, content, num_resamples=num_resamples, seed=seed)}
    content |= _choices(study, seed=seed)
    return content | searching(study, content["importance"])


def _scored_splits(predictions: Predictions, *, num_resamples: int, seed: int) -> dict[str, Scored]:
    parts = {split: predictions.of_split(split) for split in SPLITS}
    return {
        split: _score(part, num_resamples=num_resamples, seed=seed)
        for split, part in parts.items()
        if part.record_ids.size
    }


def _score(predictions: Predictions, *, num_resamples: int, seed: int) -> Scored:
    num_positive = predictions.targets.sum(axis=0)
    kept = np.flatnonzero((num_positive > 0) & (num_positive < len(predictions.targets)))
    classes = tuple(predictions.classes[index] for index in kept)
    part = predictions.with_classes(classes)
    columns = list(zip(part.targets.T, part.scores.T, strict=True))
    values = np.array([[metric(*column) for column in columns] for metric in (auroc, average_precision)])
    resamples = None
    if classes:
        resamples = bootstrap(part.targets, part.scores, part.patient_ids, num_resamples=num_resamples, seed=seed)
    left_out = tuple(name for name in predictions.classes if name not in classes)
    return Scored(part, left_out, values, resamples)


def _blocks(splits: dict[str, Scored]) -> dict[str, Any]:
    return {split: _block(scored) for split, scored in splits.items()}


def _block(scored: Scored) -> dict[str, Any]:
    """Macro and per-class figures of one model on one split."""
    part = scored.predictions
    block: dict[str, Any] = {}
    for metric in METRICS:
        if scored.resamples is None:
            reason = "no class has both a positive and a negative record"
            block[f"{metric}_macro"] = {"value": None, "low": None, "high": None, "reason": reason}
        else:
            block[f"{metric}_macro"] = scored.resamples.of_macro(metric, scored.macro(metric)).as_json()
            block[f"{metric}_micro"] = micro(part.targets, part.scores, part.patient_ids, metric).as_json()
    for metric in METRICS:
        block[metric] = {name: _class_figure(scored, metric, index) for index, name in enumerate(part.classes)}
    return block | {
        "num_records": int(part.record_ids.size),
        "num_patients": int(np.unique(part.patient_ids).size),
        "num_redrawn": 0 if scored.resamples is None else scored.resamples.num_redrawn,
    }


def _class_figure(scored: Scored, metric: str, index: int) -> dict[str, Any]:
    assert scored.resamples is not None
    value = float(scored.values[METRICS.index(metric), index])
    positive = scored.predictions.targets[:, index] > 0.5
    return scored.resamples.of_class(metric, index, value).as_json() | {
        "num_positive": int(positive.sum()),
        "num_positive_patients": int(np.unique(scored.predictions.patient_ids[positive]).size),
    }


def _differences(best: Scored, other: Scored, split: str) -> dict[str, Any]:
    """Best less other, on the same records; p on the test fold alone, as validation chose the best."""
    if best.resamples is None or other.resamples is None:
        return {}
    found = {}
    for metric in METRICS:
        interval, p = best.resamples.of_difference(other.resamples, metric)
        found[f"{metric}_macro"] = interval.as_json() | ({"p_value": p} if split == "test" else {})
    return found


def _maker(predictions: Predictions) -> dict[str, Any]:
    """Which trial, which of its seeds where it was confirmed, and which weights a model is."""
    return {key: predictions.made_by[key] for key in ("trial", "index", "digest") if key in predictions.made_by}


def openings_of(study: Study) -> dict[str, Any]:
    """Passes over the study's own test fold; one over other recordings, with a checkpoint of the study, is none.

    Where no start of the study says which recordings are its own, as earlier versions did not, all passes count.
    """
    keys = ("time", "model", "trial", "records")
    starts = (*study.of_event("study_started"), *study.of_event("study_resumed"))
    stores = {event.get("store") for event in starts} - {None}
    openings = [
        {key: event.get(key) for key in keys}
        for event in study.of_event("test_fold_opened")
        if not stores or event.get("store") is None or event["store"] in stores
    ]
    return {"test_fold_openings": len(openings), "openings": openings}


def _protocol(study: Study, best: dict[str, Scored], *, num_resamples: int, seed: int) -> dict[str, Any]:
    saved = study.predictions.get("best")
    tests = best.get("test")
    redrawn = tests.resamples.num_redrawn if tests and tests.resamples else 0
    return {
        "labels": study.setting("task.labels"),
        "classes": list(saved.classes if saved else at_path(study.best, "contract.classes", [])),
        "classes_left_out": {split: list(scored.left_out) for split, scored in best.items()},
        "bootstrap": {
            "num_resamples": num_resamples,
            "confidence": CONFIDENCE,
            "seed": seed,
            "unit": "patient",
            "redrawn": redrawn,
        },
    }


def _search(study: Study) -> dict[str, Any]:
    best = study.best_trial
    seconds = sum(trial.seconds or 0.0 for trial in study.trials)
    workers = int(study.setting("cluster.workers_per_trial", 1) or 1)
    return {
        "name": study.setting("search.name"),
        "metric": study.metric,
        "direction": "maximize" if study.maximizes else "minimize",
        "num_trials": len(study.trials),
        "states": dict(sorted(Counter(trial.state for trial in study.trials).items())),
        "num_non_finite": sum(trial.non_finite for trial in study.trials),
        "best_trial": best.number if best else None,
        "best_value": best.value if best else None,
        "trial_seconds": seconds,
        "device_seconds": seconds * workers,
    }


def _choices(study: Study, *, seed: int) -> dict[str, Any]:
    """What the trials had chosen and how they did: at which epoch they are compared, importances, a table a choice."""
    try:
        comparison = compare(study)
    except Unknown as error:
        return {"comparison": {"reason": str(error)}, "importance": {"reason": str(error)}, "choices": {}}
    return {
        "comparison": comparison.as_json(),
        "importance": _importance(study, comparison, seed=seed),
        "choices": tables(study, comparison),
    }


def _importance(study: Study, comparison: Comparison, *, seed: int) -> dict[str, Any]:
    """The importances, or the reason why there are none; a report can be made where Optuna is not installed."""
    if not any(trial.params for trial in study.trials):
        return {"reason": "nothing was searched"}
    try:
        from reports.search.importance import importance
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        return {"reason": "Optuna, which computes it, is not installed where this report was made"}
    try:
        return importance(study, comparison, seed=seed)
    except Unknown as error:
        return {"reason": str(error)}


def _excluding(content: dict[str, Any]) -> list[str]:
    """Where in `content` an interval does not hold its own value, as dotted paths; percentiles do not promise to."""
    found: list[str] = []

    def walk(node: Any, path: str) -> None:
        if not isinstance(node, dict):
            return
        if {"value", "low", "high"} <= node.keys():
            if node["value"] is not None and Interval(node["value"], node["low"], node["high"]).excludes_value:
                found.append(path)
            return
        for key, child in node.items():
            walk(child, f"{path}.{key}" if path else key)

    walk(content, "")
    return found


def figures_of_split(predictions: Predictions, split: str, *, num_resamples: int, seed: int) -> dict[str, Any]:
    """One model's figures on one split, as in the blocks of `figures`."""
    return _block(_score(predictions.of_split(split), num_resamples=num_resamples, seed=seed))


def summary_of(study: Study) -> dict[str, Any]:
    """What the search did and how often the test fold was opened, as in `figures`; nothing is resampled."""
    return _search(study) | openings_of(study)
