"""Whether the best trial's probabilities are what they say, without and with a temperature."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from reports.folder import Study
from reports.statistics.intervals import ENOUGH_PATIENTS
from reports.words import MODELS, counted, figure, listed

STAGE_NAMES = {"before": "as answered", "after": "with the temperature"}
OPEN_PANELS = 12
"""Reliability diagrams that are shown outright; those of the other classes unfold."""
WIDTH, HEIGHT = 250.0, 282.0
LEFT, RIGHT, TOP, BOTTOM = 38.0, 244.0, 8.0, 214.0
STRIP_TOP, STRIP_BOTTOM = 238.0, 272.0
"""Of the strip under a diagram, whose bars are the records in each bin."""


@dataclass(frozen=True)
class Mark:
    """One bin of a reliability diagram, in the units of the view box."""

    x: float
    y: float
    low: float
    high: float
    told: str


@dataclass(frozen=True)
class Bar:
    """The records in one bin."""

    x: float
    width: float
    y: float
    told: str


@dataclass(frozen=True)
class Panel:
    """The reliability diagram of one class."""

    name: str
    few: bool
    stages: dict[str, tuple[Mark, ...]]
    """By stage, the last one with its intervals on top."""
    bars: tuple[Bar, ...]
    """Of the last stage."""
    most: int
    """Records of the fullest bin."""

    def line(self, stage: str) -> str:
        """For a polyline."""
        return " ".join(f"{mark.x:g},{mark.y:g}" for mark in self.stages[stage])


def view(study: Study, metrics: dict[str, Any]) -> dict[str, Any]:
    """What the section shows; `found` is none where the best trial was not evaluated on the test fold."""
    content = metrics.get("calibration") or {}
    models = content.get("models") or {}
    found: dict[str, Any] = models.get("best") or {}
    shown = [] if "before" not in found else [stage for stage in STAGE_NAMES if stage in found]
    panels = [_panel(name, found, shown, content["num_bins"]) for name in found["before"]["classes"]] if shown else []
    if shown and "first_choice" in found["before"]:
        panels.insert(0, _first_choice_panel(found, shown, content["num_bins"]))
    return {
        "found": found,
        "stages": shown,
        "stage_names": STAGE_NAMES,
        "panels": panels,
        "open_panels": OPEN_PANELS,
        "summary": _summary(found, shown) if shown else [],
        "classes": _classes(found, shown) if shown else [],
        "others": _others(models),
        "without_positive": listed(found["temperature"]["classes_without_positive"]) if found else "",
        "size": {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM},
        "strip": (STRIP_TOP, STRIP_BOTTOM),
        "ticks": [(tick, _x(tick), _y(tick)) for tick in (0.0, 0.25, 0.5, 0.75, 1.0)],
        "few_patients": ENOUGH_PATIENTS,
        "size_of_test": f"{counted(found['num_records'], 'record')} of {counted(found['num_patients'], 'patient')}"
        if shown
        else "",
        "num_bins": content.get("num_bins"),
    }


def _summary(found: dict[str, Any], shown: list[str]) -> list[dict[str, Any]]:
    """The figures over all classes: name, what is right, each stage's, the difference."""
    rows = [
        ("Brier score", "mean over classes; 0 is best", ("brier_macro",)),
        ("ECE, equal-width bins", "mean over classes; 0 is best", ("ece_macro",)),
        ("ECE, equal-mass (adaptive) bins", "mean over classes; 0 is best", ("ece_adaptive_macro",)),
        ("ECE, classes pooled", "equal-width bins; 0 is best", ("pooled", "ece")),
        ("Slope, classes pooled", "1 is right; below 1: too extreme", ("pooled", "slope")),
        ("Intercept, classes pooled", "0 is right; below 0: too high", ("pooled", "intercept")),
    ]
    return [
        {
            "name": name,
            "aim": aim,
            "signed": path[-1] == "intercept",
            "figures": [_at(found[stage], path) for stage in shown],
            "difference": (found.get("difference") or {}).get(path[0]) if len(path) == 1 else None,
        }
        for name, aim, path in rows
    ]


def _at(block: dict[str, Any], path: tuple[str, ...]) -> Any:
    for key in path:
        block = block[key]
    return block


def _classes(found: dict[str, Any], shown: list[str]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "few": first["num_positive_patients"] < ENOUGH_PATIENTS,
            "num_positive": first["num_positive"],
            "prevalence": first["prevalence"],
            "stages": [found[stage]["classes"][name] for stage in shown],
        }
        for name, first in found["before"]["classes"].items()
    ]


def _others(models: dict[str, Any]) -> list[dict[str, Any]]:
    """The models side by side, where there are several."""
    rows = [
        {"model": model, "name": MODELS.get(model, model), "found": models[model]}
        for model in [*(name for name in MODELS if name in models), *sorted(models.keys() - MODELS.keys())]
        if "before" in models[model]
    ]
    return rows if len(rows) > 1 else []


def _panel(name: str, found: dict[str, Any], shown: list[str], num_bins: int) -> Panel:
    classes = {stage: found[stage]["classes"][name] for stage in shown}
    few = classes["before"]["num_positive_patients"] < ENOUGH_PATIENTS
    return _drawn(name, few, {stage: content["bins"] for stage, content in classes.items()}, num_bins)


def _first_choice_panel(found: dict[str, Any], shown: list[str], num_bins: int) -> Panel:
    return _drawn(
        "Largest probability", False, {stage: found[stage]["first_choice"]["bins"] for stage in shown}, num_bins
    )


def _drawn(name: str, few: bool, bins: dict[str, dict[str, list[Any]]], num_bins: int) -> Panel:
    last = bins[list(bins)[-1]]
    most = max(last["count"])
    return Panel(
        name=name,
        few=few,
        stages={stage: _marks(content) for stage, content in bins.items()},
        bars=tuple(
            Bar(
                x=round(_x(index / num_bins) + 0.5, 1),
                width=round((RIGHT - LEFT) / num_bins - 1, 1),
                # logarithmic: a bin of ten is seen beside one of a thousand
                y=round(STRIP_BOTTOM - (STRIP_BOTTOM - STRIP_TOP) * math.log1p(count) / math.log1p(most), 1),
                told=f"{index / num_bins:.2f} to {(index + 1) / num_bins:.2f}: {counted(count, 'record')}",
            )
            for index, count in zip(last["bin"], last["count"], strict=True)
        ),
        most=most,
    )


def _marks(bins: dict[str, list[Any]]) -> tuple[Mark, ...]:
    columns = ("count", "positive", "probability", "low", "high")
    return tuple(
        Mark(
            x=_x(probability),
            y=_y(positive / count),
            low=_y(low),
            high=_y(high),
            told=f"mean probability {figure(probability, 2)}, positive {positive} of {counted(count, 'record')}:"
            f" {figure(positive / count, 2)}, {figure(low, 2)} to {figure(high, 2)}",
        )
        for count, positive, probability, low, high in zip(*(bins[name] for name in columns), strict=True)
    )


def _x(share: float) -> float:
    return round(LEFT + (RIGHT - LEFT) * share, 1)


def _y(share: float) -> float:
    return round(BOTTOM - (BOTTOM - TOP) * share, 1)
