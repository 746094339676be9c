"""The learning curves of all trials."""

from __future__ import annotations

from typing import Any

from reports import charts
from reports.folder import Study
from reports.sections.trials import outcomes


def view(study: Study, metrics: dict[str, Any]) -> dict[str, Any]:
    """The drawing in two widths, and what the script shows under the pointer."""
    return {
        "curves": [_curves(study, metrics, *size) for size in ((1040, 420), (400, 330))],
        "curve_data": curve_data(study),
        "outcomes": outcomes(study),
    }


def _curves(study: Study, metrics: dict[str, Any], width: int, height: int) -> charts.Curves | None:
    probe = metrics["baselines"].get("random_encoder", {}).get("valid")
    comparable = probe and study.metric == "val/auroc"
    reference = probe["auroc_macro"]["value"] if comparable else None
    return charts.learning_curves(study, width=width, height=height, reference=reference)


def curve_data(study: Study) -> list[dict[str, Any]]:
    """What the page's script shows under the pointer."""
    return [
        {
            "trial": trial.number,
            "outcome": charts.outcome(trial),
            "pretrained": max((point.epoch for point in trial.curve if point.stage == "pretrain"), default=0),
            "then": trial.curve[-1].stage,
            "points": [[point.epoch, round(point.value, 5)] for point in trial.curve],
        }
        for trial in study.trials
        if trial.curve
    ]
