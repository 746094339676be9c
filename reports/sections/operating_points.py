"""What the best trial decides at thresholds chosen on validation."""

from __future__ import annotations

from typing import Any

from reports.folder import Study
from reports.statistics.operating_points import MEASURES

NAMES = {"sensitivity": "Sensitivity", "specificity": "Specificity", "ppv": "PPV", "npv": "NPV", "f1": "F1"}
CRITERIA = {
    "f1": "with the largest F1",
    "youden": "with the largest sum of sensitivity and specificity (Youden’s J)",
}


def view(study: Study, metrics: dict[str, Any]) -> dict[str, Any]:
    """The table of operating points; nothing where the best trial has none."""
    points = metrics.get("operating_points")
    if not points or "reason" in points:
        return {"points": None, "measures": {}, "criterion": "", "points_reason": (points or {}).get("reason")}
    criterion = CRITERIA.get(points["criterion"]) or (
        f"that is the largest to reach a sensitivity of {points['min_sensitivity']:g}"
    )
    return {
        "points": points,
        "measures": {measure: NAMES[measure] for measure in MEASURES},
        "criterion": criterion,
        "points_reason": None,
    }
