"""Where the trials lay in the space: parallel coordinates, a slice a parameter, a map of the two that mattered most."""

from __future__ import annotations

import math
from typing import Any

from reports.charts import Axis
from reports.folder import Study
from reports.planes import SPAN, Plane, places
from reports.search.choices import written
from reports.search.space import Parameter
from reports.words import epoch_compared, figure, short

MOST_AXES = 12
"""Parameters of the parallel coordinates; the most important ones where there are more."""
PARALLEL_HEIGHT = 260
SLICE_HEIGHT = 130
MAP_HEIGHT = 280
BELOW = 1.12
"""Where the line of a trial passes an axis that it does not have, as a share of the drawing's height."""


def view(study: Study, metrics: dict[str, Any]) -> dict[str, Any]:
    """The drawings; none where no trials can be compared or nothing was searched."""
    found = metrics["space"]
    if found.get("reason") or not found["parameters"] or len(found["trials"]) < 2:
        return {"space": None}
    axes = [_axis(entry) for entry in found["parameters"]]
    values = Axis.around([row["value"] for row in found["trials"]], num_ticks=3)
    return {
        "space": found,
        "where": epoch_compared(metrics),
        "num_best": sum(row["best"] for row in found["trials"]),
        "parallel": _parallel(found, axes[:MOST_AXES], values, maximizes=study.maximizes),
        "slices": [_slice(found, axis, entry, values) for axis, entry in zip(axes, found["parameters"], strict=True)],
        "map": _map(found, axes, maximizes=study.maximizes),
    }


def _axis(entry: dict[str, Any]) -> Parameter:
    if "options" in entry:
        return Parameter(entry["name"], tuple(entry["options"]))
    return Parameter(entry["name"], (), entry["low"], entry["high"], entry["logarithmic"])


def _place(axis: Parameter, row: dict[str, Any]) -> float | None:
    """Where a trial lies on an axis, 0 to 1; None where its branch of the space does not have it."""
    if axis.name not in row["params"]:
        return None
    value = row["params"][axis.name]
    return axis.place(written(value) if axis.options else value)


def _parallel(found: dict[str, Any], axes: list[Parameter], values: Axis, *, maximizes: bool) -> dict[str, Any]:
    """A line a trial across all axes, the value last."""
    num = len(axes)
    best: list[dict[str, Any]] = []
    others, absent = "", False
    for row in found["trials"]:
        shares = [_place(axis, row) for axis in axes]
        absent = absent or None in shares
        ups = [1 - BELOW if share is None else share for share in shares] + [values.share(row["value"])]
        path = "".join(
            f"{'L' if at else 'M'}{round(SPAN * at / num)} {round(PARALLEL_HEIGHT * (1 - up))}"
            for at, up in enumerate(ups)
        )
        if row["best"]:
            best.append({"trial": row["trial"], "value": row["value"], "path": path})
        else:
            others += path
    return {
        "height": PARALLEL_HEIGHT,
        "below": round(PARALLEL_HEIGHT * BELOW),
        "absent": absent,
        "others": others,
        "best": sorted(best, key=lambda line: line["value"], reverse=not maximizes),
        "axes": [
            {"left": f"{100 * at / num:.2f}%", "at": at, "name": axis.name, "ticks": _ticks(axis, PARALLEL_HEIGHT)}
            for at, axis in enumerate(axes)
        ],
        "value_ticks": [
            (round(PARALLEL_HEIGHT * (1 - values.share(tick))), values.name(tick)) for tick in values.ticks
        ],
        "num_axes": num,
        "left_out": len(found["parameters"]) - num,
    }


def _ticks(axis: Parameter, height: int) -> list[tuple[float, str]]:
    """Places down and texts: the two ends of a number, every option of a choice."""
    if not axis.options:
        return [(height, short(axis.low)), (0, short(axis.high))]
    num = len(axis.options)
    return [(round(height * (1 - (index + 0.5) / num), 1), str(name)) for index, name in enumerate(axis.options)]


def _slice(found: dict[str, Any], axis: Parameter, entry: dict[str, Any], values: Axis) -> dict[str, Any]:
    """Every trial's value over one parameter; trials of one option lie side by side in its part."""
    plane = Plane(places(max(len(axis.options), 1)), values, SLICE_HEIGHT)
    groups: dict[str, list[tuple[float, float]]] = {"others": [], "best": [], "default": []}
    for row in found["trials"]:
        place = _place(axis, row)
        if place is None:
            continue
        if axis.options:  # spread evenly by the golden section, the same way in every report
            place += 0.7 * (math.modf(row["trial"] * 0.618034)[0] - 0.5) / len(axis.options)
        groups["best" if row["best"] else "others"].append((place, row["value"]))
        if row["trial"] == 0:
            groups["default"].append((place, row["value"]))
    medians = "".join(
        f"M{plane.units(part['from']):g} {plane.top(part['median']):g}H{plane.units(part['to']):g}"
        for part in entry["medians"]
    )
    num = len(axis.options)
    options = [(f"{100 * (index + 0.5) / num:.2f}%", str(name)) for index, name in enumerate(axis.options)]
    return {
        "name": axis.name,
        "share": entry["share"],
        "num_trials": entry["num_trials"],
        "plane": Plane(Axis(0.0, 1.0, ()), values, SLICE_HEIGHT),
        "options": options if num <= 6 else [],
        "listed": [] if num <= 6 else [str(name) for name in axis.options],
        "ends": None if axis.options else (short(axis.low), short(axis.high)),
        "logarithmic": axis.logarithmic,
        "dots": {name: plane.dots(points) for name, points in groups.items()},
        "medians": medians,
    }


def _map(found: dict[str, Any], axes: list[Parameter], *, maximizes: bool) -> dict[str, Any] | None:
    """Cells shaded by their mean, the trials as dots on them."""
    drawn: dict[str, Any] = found["map"]
    if "reason" in drawn:
        return None
    named = {axis.name: axis for axis in axes}
    across, up = named[drawn["across"]], named[drawn["up"]]
    means = [cell["mean"] for cell in drawn["cells"]]
    low, high = min(means), max(means)
    side = drawn["side"]
    plane = Plane(places(side), places(side), MAP_HEIGHT)

    def strength(mean: float) -> float:
        share = (mean - low) / (high - low) if high > low else 0.5
        return round(0.06 + 0.84 * (share if maximizes else 1 - share), 2)

    points = [(row["best"], _place(across, row), _place(up, row)) for row in found["trials"]]
    placed = [(best, (x, y)) for best, x, y in points if x is not None and y is not None]
    return drawn | {
        "height": MAP_HEIGHT,
        "cells": [
            {
                "x": f"{100 * cell['column'] / side:.2f}%",
                "y": round(MAP_HEIGHT * (1 - (cell["row"] + 1) / side), 1),
                "width": f"{100 / side:.2f}%",
                "height": round(MAP_HEIGHT / side, 1),
                "strength": strength(cell["mean"]),
                "said": f"{figure(cell['mean'])}, mean of {cell['num_trials']}",
            }
            for cell in drawn["cells"]
        ],
        "empty": side * side - len(drawn["cells"]),
        "low": low,
        "high": high,
        "plane": Plane(Axis(0.0, 1.0, ()), Axis(0.0, 1.0, ()), MAP_HEIGHT),
        "dots": plane.dots(point for best, point in placed if not best),
        "best": plane.dots(point for best, point in placed if best),
        "ends": [(short(axis.low), short(axis.high), axis.logarithmic) for axis in (across, up)],
    }
