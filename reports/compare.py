"""Studies side by side: what was set otherwise, what each found, and whether the difference is one.

Two best trials are compared on the test records that both studies predicted, patient by patient; figures on different
records, or under other labels, are never subtracted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reports.folder import Predictions, Study, at_path, read_study, why_not_comparable
from reports.html import templates
from reports.methods import method_of
from reports.metrics import figures_of_split, summary_of
from reports.places import is_place
from reports.provenance import provenance
from reports.report import put
from reports.sections.trials import outcomes
from reports.statistics.discrimination import auroc, average_precision
from reports.statistics.intervals import CONFIDENCE, METRICS, Bootstrap, bootstrap


def build(study_dirs: Sequence[Path], folder: Path, *, num_resamples: int = 1000, seed: int = 0) -> Path:
    """Write compare.html and compare.json.

    Args:
        study_dirs: two studies or more; the others are held against the first.
        folder: where the two files go.
        num_resamples: bootstrap resamples that show the bias of an AUPRC.
        seed: of the resamples.

    Returns:
        compare.html.

    Raises:
        ValueError: if a folder is no study's, or one is named twice.
        OSError: if the files cannot be written.
    """
    if len({path.resolve() for path in study_dirs}) < max(2, len(study_dirs)):
        raise ValueError("study_dirs must name two studies or more, each once")
    studies = [read_study(path) for path in study_dirs]
    content = compared(studies, _names(study_dirs), num_resamples=num_resamples, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    put(folder / "compare.json", json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    put(folder / "compare.html", templates().get_template("compare.html").render(**content))
    return folder / "compare.html"


def _names(study_dirs: Sequence[Path]) -> list[str]:
    """The last parts of the folders' paths, as few as tell them apart."""
    parts = [path.resolve().parts for path in study_dirs]
    for num in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-num:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("the folders differ")


def compared(studies: Sequence[Study], names: Sequence[str], *, num_resamples: int, seed: int) -> dict[str, Any]:
    """Everything on the page, as plain JSON values.

    Returns:
        studies: each one's line; settings: those that are not the same in all; differences: the others less the first,
        each with its intervals and p-values, or a reason why there are none; protocol.
    """
    first = studies[0]
    rows = [
        {"name": name, **_row(study, num_resamples=num_resamples, seed=seed)}
        for name, study in zip(names, studies, strict=True)
    ]
    differences = [
        {"name": name, **difference(study, first, num_resamples=num_resamples, seed=seed)}
        for name, study in zip(names[1:], studies[1:], strict=True)
    ]
    for metric in METRICS:
        held = [found for found in differences if found.get(metric, {}).get("p") is not None]
        for found, adjusted in zip(held, holm([found[metric]["p"] for found in held]), strict=True):
            found[metric]["p_holm"] = adjusted
    return {
        "studies": rows,
        "settings": settings_that_differ(studies),
        "differences": differences,
        "protocol": {"num_resamples": num_resamples, "seed": seed, "confidence": CONFIDENCE, "unit": "patient"},
    }


def _row(study: Study, *, num_resamples: int, seed: int) -> dict[str, Any]:
    """One study's line."""
    summary, source = summary_of(study), provenance(study)
    best = study.predictions.get("best")
    test = None if best is None else best.of_split("test")
    return {
        "search": str(study.setting("search.name", "unknown")),
        "data": str(study.setting("data.name", "unknown")),
        "labels": str(study.setting("task.labels", "unknown")),
        "method": method_of(study),
        "outcomes": outcomes(study),
        "metric": study.metric,
        "best_trial": summary["best_trial"],
        "best_value": summary["best_value"],
        "test": None
        if test is None or not test.record_ids.size
        else figures_of_split(test, "test", num_resamples=num_resamples, seed=seed),
        "device_seconds": summary["device_seconds"],
        "test_fold_openings": summary["test_fold_openings"],
        "revision": source["revisions"][-1] if source["revisions"] else "unknown",
        "store": source["store"],
        "split": at_path(source, "data.split.all"),
        "cautions": source["cautions"],
        "problems": list(study.problems),
    }


# -------- settings


def settings_that_differ(studies: Sequence[Study]) -> list[dict[str, Any]]:
    """The settings that are not the same in all studies, by their dotted names; None where a study has no such key."""
    trees = [_leaves(study.config) for study in studies]
    names = sorted({name for tree in trees for name in tree})
    rows = [{"key": name, "values": [tree.get(name) for tree in trees]} for name in names if not is_place(name)]
    return [row for row in rows if any(value != row["values"][0] for value in row["values"])]


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """The values of a configuration by dotted name, as text; a distribution of the space is one value."""
    found: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and prefix != "space.":
            found |= _leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = json.dumps(value, ensure_ascii=False, default=str).strip('"')
    return found


# -------- differences


def difference(study: Study, first: Study, *, num_resamples: int, seed: int) -> dict[str, Any]:
    """The study's best trial less the first study's, on the test records of both.

    Returns:
        num_records and num_patients that both predicted, of how many each; by metric the macro values of both with
        their intervals, the difference and its own, and its p-value; or a `reason`.
    """
    if (reason := _why_not(study, first)) is not None:
        return {"reason": reason}
    one, other = study.predictions["best"].of_split("test"), first.predictions["best"].of_split("test")
    common = np.intersect1d(one.record_ids, other.record_ids)
    sizes = {"of": [int(other.record_ids.size), int(one.record_ids.size)]}
    one, other = _with_records(one, common), _with_records(other, common).with_classes(one.classes)
    names = ("the study", "the first")
    if (reason := why_not_comparable(one, other, names=names)) is not None:
        return {"reason": reason.replace(": evaluate both again", "")}
    positives = one.targets.sum(axis=0)
    scored = [name for name, num in zip(one.classes, positives, strict=True) if 0 < num < len(common)]
    if not scored:
        return {"reason": "no class has both a positive and a negative record among the common ones"}
    one, other = one.with_classes(scored), other.with_classes(scored)
    drawn = [
        bootstrap(of.targets, of.scores, of.patient_ids, num_resamples=num_resamples, seed=seed) for of in (one, other)
    ]
    content: dict[str, Any] = sizes | {
        "num_records": len(common),
        "num_patients": int(np.unique(one.patient_ids).size),
        "classes": scored,
    }
    return content | {metric: _of_metric(metric, (one, other), (drawn[0], drawn[1])) for metric in METRICS}


def _why_not(study: Study, first: Study) -> str | None:
    """Why two studies' predictions must not be subtracted; None where they may, as far as their settings tell."""
    for of, whose in ((first, "the first study"), (study, "it")):
        if "best" not in of.predictions or not (of.predictions["best"].splits == "test").any():
            return f"{whose} has no predictions of its best trial on the test fold"
    for key, word in (("data.name", "data"), ("task.labels", "labels")):
        one, other = study.setting(key), first.setting(key)
        if one != other:
            return f"its {word} are {one}, the first study's {other}"
    kinds = [at_path(of.best, "contract.label_kind") for of in (study, first)]
    if kinds[0] != kinds[1]:
        return f"its labels are {kinds[0]}, the first study's {kinds[1]}"
    one, other = (of.predictions["best"].of_split("test") for of in (study, first))
    if set(one.classes) != set(other.classes):
        alone = sorted(set(one.classes) ^ set(other.classes))
        return f"only one of the two has the classes {', '.join(alone)}"
    if not np.isin(one.record_ids, other.record_ids).any():
        return "no test record is in both studies"
    return None


def _with_records(predictions: Predictions, ids: Any) -> Predictions:
    """Some of the records, ascending by id."""
    return predictions.of_rows(np.isin(predictions.record_ids, ids))


def _of_metric(
    metric: str, pair: tuple[Predictions, Predictions], drawn: tuple[Bootstrap, Bootstrap]
) -> dict[str, Any]:
    """One macro metric of both, their difference, and the p-value of none."""
    values = [_macro(metric, of) for of in pair]
    interval, p = drawn[0].of_difference(drawn[1], metric)
    return {
        "study": drawn[0].of_macro(metric, values[0]).as_json(),
        "first": drawn[1].of_macro(metric, values[1]).as_json(),
        "difference": interval.as_json(),
        "p": p,
    }


def _macro(metric: str, predictions: Predictions) -> float:
    of = {"auroc": auroc, "auprc": average_precision}[metric]
    return float(np.mean([of(*column) for column in zip(predictions.targets.T, predictions.scores.T, strict=True)]))


def holm(values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number by Holm's step-down procedure (Holm 1979), in their order."""
    order = sorted(range(len(values)), key=lambda place: values[place])
    adjusted = [0.0] * len(values)
    highest = 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = highest
    return adjusted
