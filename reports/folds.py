"""Validation figures of a model of k folds: each fold's by the model that has not seen it, and their mean.

The other validation figures pool the out-of-fold predictions of all k models. The search followed the mean.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from reports.folder import Predictions, Study
from reports.statistics.discrimination import auroc, average_precision
from reports.words import DASH, figure, listed

SCORES = {"auroc_macro": auroc, "average_precision_macro": average_precision}


def figures(predictions: Predictions | None) -> dict[str, Any]:
    """Macro figures of each fold, with mean and sample standard deviation, as metrics.json holds them under `folds`.

    Args:
        predictions: of one model; None where there are none.

    Returns:
        {"folds": {"classes", "num_records", one list for each of SCORES, "mean", "sd"}}; nothing where the model is not
        of several folds. Means are over the classes that every fold holds both ways, None where there is no such class.
    """
    if predictions is None or predictions.answered_by is None:
        return {}
    valid = predictions.of_split("valid")
    assert valid.answered_by is not None
    parts = [valid.answered_by == number for number in np.unique(valid.answered_by) if number > 0]
    if len(parts) < 2:
        return {}
    carried = [valid.targets[part].mean(axis=0) for part in parts]
    kept = [k for k in range(len(valid.classes)) if all(0 < share[k] < 1 for share in carried)]
    found: dict[str, Any] = {
        "classes": [valid.classes[k] for k in kept],
        "num_records": [int(part.sum()) for part in parts],
    }
    if not kept:
        return {"folds": found | dict.fromkeys([*SCORES, "mean", "sd"])}
    for name, score in SCORES.items():
        found[name] = [
            float(np.mean([score(valid.targets[part, k], valid.scores[part, k]) for k in kept])) for part in parts
        ]
    return {
        "folds": found
        | {
            "mean": {name: float(np.mean(found[name])) for name in SCORES},
            "sd": {name: float(np.std(found[name], ddof=1)) for name in SCORES},
        }
    }


def facts(study: Study, metrics: dict[str, Any]) -> dict[str, str]:
    """What the head of the page says of training and validation, where a trial has k folds; else nothing.

    Args:
        study: read from its folder.
        metrics: its figures.
    """
    num_folds = int(study.setting("task.folds", 1) or 1)
    if num_folds < 2:
        return {}
    published = sorted({*study.setting("data.train_folds", []), *study.setting("data.valid_folds", [])})
    whole = f"{published[0]}{DASH}{published[-1]}" if len(published) > 2 else listed(published)
    most = {part: study.setting(f"data.max_{part}_patients") for part in ("train", "valid")}
    limited = {part: "" if number is None else f", at most {number} patients each" for part, number in most.items()}
    said = {
        "Training": f"{num_folds} models, each on all but one of {num_folds} folds made of the published folds {whole}"
        + limited["train"],
        "Validation": f"each record by the model that was not trained on its patient{limited['valid']}",
    }
    found = metrics.get("folds") or {}
    if found.get("auroc_macro"):
        each = listed(figure(value) for value in found["auroc_macro"])
        mean, spread = (figure(found[key]["auroc_macro"]) for key in ("mean", "sd"))
        said["Validation"] += f"; macro AUROC of the folds {each}: mean {mean}, standard deviation {spread}"
    return said
