"""Every class on the test fold, with its interval and the other models."""

from __future__ import annotations

from typing import Any

from reports.charts import Axis, interval_axis
from reports.earlier import EARLIER
from reports.folder import Study
from reports.statistics.intervals import ENOUGH_PATIENTS, RARE_COVERAGE
from reports.words import DASH, MODELS


def view(study: Study, metrics: dict[str, Any]) -> dict[str, Any]:
    """The table of classes."""
    delong = metrics.get("delong", {}).get("classes", {})
    return {
        "classes": class_rows(metrics),
        "few_patients": ENOUGH_PATIENTS,
        "names": MODELS,
        "rare": {metric: f"{100 * low:.0f}{DASH}{100 * high:.0f} %" for metric, (low, high) in RARE_COVERAGE.items()},
        "delong": {name: found for name, found in delong.items() if found["differs"]},
    }


def class_rows(metrics: dict[str, Any]) -> dict[str, Any]:
    """Per-class figures on the test fold with one axis for all intervals of a metric."""
    best = metrics["best"].get("test")
    if best is None:
        return {"rows": [], "axes": {}}
    held_against = [model for model in MODELS if model not in ("best", "ensemble", EARLIER)]
    others = {model: metrics["baselines"].get(model, {}).get("test", {}) for model in held_against}
    rows = [
        {
            "name": name,
            "num_positive": found["num_positive"],
            "num_positive_patients": found["num_positive_patients"],
            "prevalence": found["num_positive"] / best["num_records"],
            "few": found["num_positive_patients"] < ENOUGH_PATIENTS,
            "figures": {metric: best[metric][name] for metric in ("auroc", "auprc")},
            "others": {
                metric: {model: block[metric][name]["value"] for model, block in others.items() if block}
                for metric in ("auroc", "auprc")
            },
        }
        for name, found in best["auroc"].items()
    ]
    compared = [{"value": value} for row in rows for value in row["others"]["auroc"].values()]
    axes = {
        "auroc": interval_axis([*best["auroc"].values(), *compared]),
        "auprc": Axis.around([0.0, 1.0], num_ticks=4),
    }
    return {"rows": rows, "axes": axes}
