"""The best trial beside what it has to beat, on the test fold."""

from __future__ import annotations

from typing import Any

from reports.charts import interval_axis
from reports.folder import Study
from reports.words import MODELS, compared


def view(study: Study, metrics: dict[str, Any]) -> dict[str, Any]:
    """The main table."""
    return {"rows": model_rows(metrics), "compared": compared(metrics), "confirmed": metrics["confirmation"]["chosen"]}


def model_rows(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """The main table, best first: each model's blocks, its difference and the place of its interval."""
    blocks = {"best": metrics["best"], **metrics["baselines"]}
    shown = {model: blocks[model]["test"] for model in MODELS if "test" in blocks.get(model, {})}
    axis = interval_axis([block["auroc_macro"] for block in shown.values()])
    return [
        {
            "model": model,
            "name": MODELS[model],
            "test": block,
            "valid": blocks[model].get("valid"),
            "difference": metrics["differences"].get(model, {}).get("test"),
            "axis": axis,
        }
        for model, block in shown.items()
    ]
