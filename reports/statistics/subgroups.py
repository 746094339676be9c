"""How the best trial does on parts of the test fold: by sex, age, device, site and signal quality.

n records, K classes, R resamples. A class can be scored in a group that holds a positive and a negative of it; the
group's macro AUROC is the mean over those, so that two groups' values may be means over different classes. A
difference between a group and all other records is therefore taken over the classes that both have enough of, and in
resamples of all patients at once, since a patient may have records on both sides.

No group is left out for being small: it is marked, and what it cannot tell is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reports.folder import Predictions, Study, at_path
from reports.statistics.discrimination import Floats, Ranking, auroc
from reports.statistics.intervals import CONFIDENCE, ENOUGH_PATIENTS, Interval, bootstrap
from reports.statistics.operating_points import counts_of_patients, mean_of, shares_of
from reports.statistics.resamples import patient_resamples

COMPARED_PATIENTS = 10
"""Positive patients, and negative ones, that a class needs in a group to be shown by itself, and on both sides to be
compared. A group is marked where a class has fewer than intervals.ENOUGH_PATIENTS."""
AGE_BANDS = ((0, 18), (18, 40), (40, 65), (65, 75), (75, 85), (85, np.inf))
"""Children; adults in two halves; the old as ICH E7 asks for them (65 to 74, 75 to 84, 85 and over)."""
DIMENSIONS = ("sex", "age", "device", "site", "quality")
UNKNOWN = "unknown"
NO_FLAG = "no flag"
ALONE = "the records are of one patient"
MIN_DEFINED_SHARE = 0.9
"""Of the resamples, in which a difference must be defined to have an interval."""


@dataclass(frozen=True)
class Group:
    """Some records of the test fold."""

    name: str
    rows: NDArray[np.bool_]
    """(n,)."""


def subgroups(study: Study, metrics: Mapping[str, Any], *, num_resamples: int, seed: int) -> dict[str, Any]:
    """Every group's figures on the test fold, or the reason why there are none.

    Args:
        study: a study's folder, read.
        metrics: its other figures; thresholds that were chosen on validation are taken from them where they are there.
        num_resamples: R.
        seed: of the resamples.
    """
    if "best" not in study.predictions:
        return {"reason": "the best trial has not been evaluated on the test fold"}
    test = study.predictions["best"].of_split("test")
    if not len(test.scores):
        return {"reason": "there are no test records"}
    if test.attributes.empty:
        return {
            "reason": "the saved predictions do not say whose recordings they are, as an older version left it out; the"
            " line that searched, typed again where the recordings are, adds it without opening the test fold"
        }
    thresholds = thresholds_of(metrics)
    dimensions = {
        dimension: _dimension(test, dimension, thresholds, num_resamples=num_resamples, seed=seed)
        for dimension in DIMENSIONS
    }
    compared = [
        group["difference"]
        for content in dimensions.values()
        for group in _once_each(content["groups"])
        if group["difference"]["low"] is not None
    ]
    return {
        "enough_patients": ENOUGH_PATIENTS,
        "compared_patients": COMPARED_PATIENTS,
        "sensitivity": bool(thresholds),
        "num_differences": len(compared),
        "num_excluding_zero": sum(found["low"] > 0 or found["high"] < 0 for found in compared),
        "dimensions": dimensions,
    }


def thresholds_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Class -> the threshold chosen on validation, for those that have one."""
    classes = at_path(metrics, "operating_points.classes") or {}
    return {name: float(found["threshold"]) for name, found in classes.items() if found.get("threshold") is not None}


def groups_of(attributes: pd.DataFrame, dimension: str) -> list[Group]:
    """The groups of one dimension that have a record; those of which it is not known come last.

    Args:
        attributes: (n rows) of the records.
        dimension: one of DIMENSIONS. Groups of `quality` overlap: a record may have several flags.
    """
    if dimension not in attributes:
        return []
    if dimension == "quality":
        return _by_flag(attributes[dimension])
    if dimension == "age":
        ages = attributes[dimension].to_numpy(dtype=np.float64)
        named = [(_band(low, high), (ages >= low) & (ages < high)) for low, high in AGE_BANDS]  # 300, over 89: the last
        named.append((UNKNOWN, ~(ages >= 0)))
    else:
        column = attributes[dimension].astype(object)
        known = column[column.notna()].astype(str)
        named = [(name, (column == name).fillna(False).to_numpy(dtype=bool)) for name in known.value_counts().index]
        named.sort(key=lambda group: (-int(group[1].sum()), group[0]))
        named.append((UNKNOWN, column.isna().to_numpy()))
    return [Group(name, rows) for name, rows in named if rows.any()]


def _by_flag(column: pd.Series) -> list[Group]:
    known = np.array([isinstance(flags, tuple) for flags in column])
    of_record = [flags if isinstance(flags, tuple) else () for flags in column]
    names = sorted({flag for flags in of_record for flag in flags})
    groups = [Group(name, np.array([name in flags for flags in of_record])) for name in names]
    groups.sort(key=lambda group: (-int(group.rows.sum()), group.name))
    clean = Group(NO_FLAG, known & np.array([not flags for flags in of_record]))
    return [group for group in (clean, *groups, Group(UNKNOWN, ~known)) if group.rows.any()]


def _band(low: float, high: float) -> str:
    if low == 0:
        return f"under {high:g}"
    return f"{low:g} and over" if np.isinf(high) else f"{low:g}\N{EN DASH}{high - 1:g}"


def _dimension(
    test: Predictions, dimension: str, thresholds: Mapping[str, float], *, num_resamples: int, seed: int
) -> dict[str, Any]:
    groups = groups_of(test.attributes, dimension)
    if not groups or [group.name for group in groups] == [UNKNOWN]:
        return {"groups": [], "reason": "not known of any test record"}
    found = [_figures(test, group, thresholds, num_resamples=num_resamples, seed=seed) for group in groups]
    two_halves = len(groups) == 2 and bool((groups[0].rows != groups[1].rows).all())
    for index, group in enumerate(groups):
        if two_halves and index:
            found[1]["difference"] = _mirrored(found[0]["difference"])
        else:
            found[index]["difference"] = _difference(test, group, num_resamples=num_resamples, seed=seed)
    return {"groups": found, "two_halves": two_halves}


def _once_each(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where the groups are each other's rest, their differences are one."""
    return groups[:1] if len(groups) == 2 and groups[1]["difference"].get("mirrored") else groups


def _figures(
    test: Predictions, group: Group, thresholds: Mapping[str, float], *, num_resamples: int, seed: int
) -> dict[str, Any]:
    """Counts, AUROC and sensitivity of one group."""
    part = _rows(test, group.rows)
    scorable = [name for name, (positive, negative) in _records(part).items() if positive and negative]
    patients = {name: counts for name, counts in _patients(part).items() if name in scorable}
    fewest = min(((min(counts), name) for name, counts in patients.items()), default=None)
    found: dict[str, Any] = {
        "name": group.name,
        "num_records": len(part.scores),
        "num_patients": int(np.unique(part.patient_ids).size),
        "num_classes": len(scorable),
        "left_out": [name for name in part.classes if name not in scorable],
        "fewest": {"class": fewest[1], "num_patients": fewest[0]} if fewest else None,
        "small": fewest is None or fewest[0] < ENOUGH_PATIENTS,
    }
    enough = [name for name, counts in patients.items() if min(counts) >= COMPARED_PATIENTS]
    aurocs = _aurocs(part.with_classes(scorable), num_resamples=num_resamples, seed=seed)
    sensitivities = _sensitivities(part, scorable, thresholds)
    return found | {
        "auroc_macro": aurocs["macro"],
        "sensitivity_macro": sensitivities["macro"],
        "classes": {
            name: {
                "num_positive": int(part.targets[:, part.classes.index(name)].sum()),
                "num_positive_patients": patients[name][0],
                "auroc": aurocs["classes"][name],
                "sensitivity": sensitivities["classes"].get(name),
            }
            for name in enough
        },
    }


def _rows(test: Predictions, rows: NDArray[np.bool_]) -> Predictions:
    return Predictions(
        classes=test.classes,
        record_ids=test.record_ids[rows],
        patient_ids=test.patient_ids[rows],
        splits=test.splits[rows],
        targets=test.targets[rows],
        scores=test.scores[rows],
    )


def _records(part: Predictions) -> dict[str, tuple[int, int]]:
    """Class -> its positive and negative records."""
    positive = part.targets.sum(axis=0).astype(np.int64)
    return {name: (int(num), len(part.targets) - int(num)) for name, num in zip(part.classes, positive, strict=True)}


def _patients(part: Predictions) -> dict[str, tuple[int, int]]:
    """Class -> patients with a positive record, and with a negative one."""
    return {
        name: (
            int(np.unique(part.patient_ids[column > 0.5]).size),
            int(np.unique(part.patient_ids[column < 0.5]).size),
        )
        for name, column in zip(part.classes, part.targets.T, strict=True)
    }


def _aurocs(part: Predictions, *, num_resamples: int, seed: int) -> dict[str, Any]:
    """Of each class, which all can be scored, and their mean."""
    if not part.classes:
        return {"macro": _none("no class has both a positive and a negative record"), "classes": {}}
    values = [auroc(*columns) for columns in zip(part.targets.T, part.scores.T, strict=True)]
    mean = float(np.mean(values))
    if np.unique(part.patient_ids).size < 2:
        return {
            "macro": Interval(mean, None, None, ALONE).as_json(),
            "classes": {
                name: Interval(value, None, None, ALONE).as_json()
                for name, value in zip(part.classes, values, strict=True)
            },
        }
    drawn = bootstrap(part.targets, part.scores, part.patient_ids, num_resamples=num_resamples, seed=seed)
    return {
        "macro": _with_width(drawn.of_macro("auroc", mean)).as_json(),
        "classes": {
            name: _with_width(drawn.of_class("auroc", index, values[index])).as_json()
            for index, name in enumerate(part.classes)
        },
    }


def _with_width(interval: Interval) -> Interval:
    """The interval, unless it is a point: where positives and negatives are apart, resamples of a few cannot vary."""
    if interval.low is None or interval.low != interval.high:
        return interval
    return Interval(interval.value, None, None, "every resample gives the same value")


def _sensitivities(part: Predictions, names: list[str], thresholds: Mapping[str, float]) -> dict[str, Any]:
    """Shares of the positives that reach their class's threshold, and their mean over the classes that have one.

    With the intervals of operating_points.py, as the table of decisions has them.
    """
    kept = [name for name in names if name in thresholds]
    if not kept:
        return {"macro": None, "classes": {}}
    chosen = part.with_classes(kept)
    called = chosen.scores >= np.array([thresholds[name] for name in kept])
    shares = shares_of(*counts_of_patients(chosen, called, np.ones(called.shape)).ratio("sensitivity"))
    found = {"macro": mean_of(shares), "classes": {name: one.as_json() for name, one in zip(kept, shares, strict=True)}}
    if np.unique(part.patient_ids).size < 2:
        for figure in (found["macro"], *found["classes"].values()):
            figure.update(low=None, high=None, reason=ALONE)
    return found


def _difference(test: Predictions, group: Group, *, num_resamples: int, seed: int) -> dict[str, Any]:
    """Macro AUROC of a group less that of all other records, over the classes that both have enough of."""
    rest = ~group.rows
    if not rest.any():
        return _none("there are no other records")
    sides = [_rows(test, group.rows), _rows(test, rest)]
    counts = [_patients(side) for side in sides]
    shared = [name for name in test.classes if min(min(found[name]) for found in counts) >= COMPARED_PATIENTS]
    if not shared:
        reason = f"no class has {COMPARED_PATIENTS} positive and {COMPARED_PATIENTS} negative patients on both sides"
        return _none(reason) | {"few": True}
    rankings = [_rankings(side.with_classes(shared)) for side in sides]
    values = [_mean_auroc(ranked, np.ones((len(side.scores), 1))) for ranked, side in zip(rankings, sides, strict=True)]
    drawn = [
        _mean_auroc(rankings[0], weights[group.rows]) - _mean_auroc(rankings[1], weights[rest])
        for weights in patient_resamples(test.patient_ids, num_resamples=num_resamples, seed=seed)
    ]
    interval = _percentiles(float(values[0][0] - values[1][0]), np.concatenate(drawn))
    return interval.as_json() | {"classes": shared}


def _rankings(part: Predictions) -> list[Ranking]:
    return [Ranking.of(targets, scores) for targets, scores in zip(part.targets.T, part.scores.T, strict=True)]


def _mean_auroc(rankings: list[Ranking], weights: Floats) -> Floats:
    """(R,) mean over classes; NaN where one has no positive or no negative with weight."""
    return np.asarray(np.mean([ranking.auroc_and_auprc(weights)[0] for ranking in rankings], axis=0))


def _mirrored(difference: dict[str, Any]) -> dict[str, Any]:
    """The same difference from the other side."""
    if difference["value"] is None:
        return difference | {"mirrored": True}
    ends = (difference["high"], difference["low"])
    low, high = (None if end is None else -end for end in ends)
    return difference | {"value": -difference["value"], "low": low, "high": high, "mirrored": True}


def _percentiles(value: float, samples: Floats) -> Interval:
    """The percentile interval over the resamples in which the figure is defined, if that is nearly all of them."""
    defined = samples[np.isfinite(samples)]
    if defined.size < MIN_DEFINED_SHARE * samples.size:
        return Interval(value, None, None, "too many resamples lack a positive record of a class")
    low, high = np.quantile(defined, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return _with_width(Interval(value, float(low), float(high)))


def _none(reason: str) -> dict[str, Any]:
    return {"value": None, "low": None, "high": None, "reason": reason}
