"""Where in the space the trials lay and how they did there: what slices, the map and parallel coordinates show.

All trials are compared by their value at one epoch (`choices.compare`), those that were stopped later included.
Nothing is interpolated: the map shows means of the trials in each of its cells, and leaves a cell without trials empty.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reports.folder import RANGES, Study
from reports.search.choices import Comparison, same, written

BEST_SHARE = 0.1
"""The share of the compared trials that is drawn as the best."""
MIN_FOR_MAP = 40
"""Trials below which no map is drawn: its 3 x 3 cells would hold four of them on average."""
MIN_FOR_MEDIANS = 50
"""Trials below which no medians of fifths are drawn: a fifth would be fewer than ten."""
MAX_CELLS = 8
"""Of a side of the map."""


@dataclass(frozen=True)
class Parameter:
    """A searched parameter as an axis."""

    name: str
    options: tuple[Any, ...]
    """Of a choice; empty for a number."""
    low: float = 0.0
    high: float = 1.0
    logarithmic: bool = False

    def place(self, value: Any) -> float | None:
        """How far along the axis a value lies, 0 to 1; an option in the middle of its part. None: it is on no axis."""
        if self.options:
            found = [index for index, option in enumerate(self.options) if same(option, value)]
            return (found[0] + 0.5) / len(self.options) if found else None
        if not _is_number(value):
            return None
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low) if value > 0 else None
        return float((value - self.low) / (self.high - self.low))


def searched(study: Study, comparison: Comparison, importance: Mapping[str, Any]) -> dict[str, Any]:
    """The compared trials and their choices, as plain JSON values.

    Args:
        study: a study's folder, read.
        comparison: the epoch to compare at.
        importance: as metrics.json has it; orders the parameters, the most important first.

    Returns:
        parameters: name, ends or options, share (None where unknown), num_trials that have it, and medians: of each
        option, or of each fifth of the trials by the parameter. trials: number, value, whether among the best share,
        and choices. map: of the two most important numbers, or the reason why there is none.
    """
    chosen = choices_of(study)
    values = {number: comparison.values[number] for number in sorted(comparison.values) if number in chosen}
    known = (importance.get("at_epoch") or {}).get("parameters") or {}
    shares = {name: entry.get("share") for name, entry in known.items()}
    ordered = _by_importance(chosen, values, shares)
    parameters = [found for name in ordered if (found := parameter_of(study, name, chosen, values)) is not None]
    best = _best(study, values)
    return {
        "epoch": comparison.epoch,
        "best_share": BEST_SHARE,
        "parameters": [_parameter_json(one, shares.get(one.name), chosen, values) for one in parameters],
        "trials": [
            {"trial": number, "value": value, "best": number in best, "params": chosen[number]}
            for number, value in values.items()
        ],
        "map": _map(parameters, shares, chosen, values),
    }


def _by_importance(
    chosen: Mapping[int, Mapping[str, Any]], values: Mapping[int, float], shares: Mapping[str, float | None]
) -> list[str]:
    """The parameters, the most important first; those of some trials come after those of all, of which shares are."""
    having = Counter(name for number in values for name in chosen[number])
    return sorted(
        having,
        key=lambda name: (having[name] < len(values), shares.get(name) is None, -(shares.get(name) or 0.0), name),
    )


def choices_of(study: Study) -> dict[int, dict[str, Any]]:
    """Trial -> its choices, from the events: a table holds neither lists nor an option that is null."""
    found = {event["trial"]: dict(event.get("params") or {}) for event in study.of_event("trial_started")}
    return {trial.number: found.get(trial.number, trial.params) for trial in study.trials}


def parameter_of(
    study: Study, name: str, chosen: Mapping[int, Mapping[str, Any]], numbers: Mapping[int, Any]
) -> Parameter | None:
    """A parameter as an axis: from the configuration, else from what was chosen; None if all chose the same."""
    taken = [chosen[number][name] for number in numbers if name in chosen[number]]
    kind, content = study.distribution_of(name)
    numeric = all(_is_number(value) for value in taken)
    if kind == "choice" or not numeric:
        options = list(content) if kind == "choice" else []
        for value in taken:
            options += [] if any(same(value, known) for known in options) else [value]
        return Parameter(name, tuple(options)) if len(options) > 1 else None
    ends = [*taken, *(content if kind in RANGES else [])]
    low, high = float(min(ends)), float(max(ends))
    return Parameter(name, (), low, high, "log" in kind and low > 0) if low < high else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _best(study: Study, values: Mapping[int, float]) -> set[int]:
    """The trials of the best share, at least one; ties go to the earlier trial."""
    sign = -1 if study.maximizes else 1
    ordered = sorted(values, key=lambda number: (sign * values[number], number))
    return set(ordered[: max(1, math.ceil(BEST_SHARE * len(ordered) - 1e-9))]) if ordered else set()


def _parameter_json(
    parameter: Parameter, share: float | None, chosen: Mapping[int, Mapping[str, Any]], values: Mapping[int, float]
) -> dict[str, Any]:
    placed = [
        (place, value)
        for number, value in values.items()
        if parameter.name in chosen[number] and (place := parameter.place(chosen[number][parameter.name])) is not None
    ]
    of_number = {"low": parameter.low, "high": parameter.high, "logarithmic": parameter.logarithmic}
    return {
        "name": parameter.name,
        **({"options": [written(option) for option in parameter.options]} if parameter.options else of_number),
        "share": share,
        "num_trials": len(placed),
        "medians": _of_options(parameter, placed) if parameter.options else _of_fifths(placed),
    }


def _of_options(parameter: Parameter, placed: list[tuple[float, float]]) -> list[dict[str, Any]]:
    """The median of every option that was taken, and how far it reaches along the axis."""
    num = len(parameter.options)
    groups = [[value for place, value in placed if int(place * num) == index] for index in range(num)]
    return [
        {"from": index / num, "to": (index + 1) / num, "median": statistics.median(group), "num_trials": len(group)}
        for index, group in enumerate(groups)
        if group
    ]


def _of_fifths(placed: list[tuple[float, float]]) -> list[dict[str, Any]]:
    """The medians of fifths of the trials in the order of the parameter; none where fifths would be too few."""
    if len(placed) < MIN_FOR_MEDIANS:
        return []
    ordered = sorted(placed)
    cuts = [round(index * len(ordered) / 5) for index in range(6)]
    parts = [ordered[first:end] for first, end in zip(cuts, cuts[1:], strict=False)]
    return [
        {
            "from": part[0][0],
            "to": part[-1][0],
            "median": statistics.median(value for _, value in part),
            "num_trials": len(part),
        }
        for part in parts
    ]


def _map(
    parameters: list[Parameter],
    shares: Mapping[str, float | None],
    chosen: Mapping[int, Mapping[str, Any]],
    values: Mapping[int, float],
) -> dict[str, Any]:
    """Means in cells of the plane of the two most important numbers, over the trials that have both."""
    numbers = [one for one in parameters if not one.options and shares.get(one.name) is not None]
    if len(numbers) < 2:
        return {"reason": "there are not two numbers whose importance is known"}
    across, up = numbers[:2]
    both = {number: value for number, value in values.items() if {across.name, up.name} <= chosen[number].keys()}
    if len(both) < MIN_FOR_MAP:
        return {"reason": f"{len(both)} trials have {across.name} and {up.name}, and {MIN_FOR_MAP} are needed"}
    side = min(MAX_CELLS, math.isqrt(len(both) // 4))  # four trials in a cell, were they spread evenly
    cells: dict[tuple[int, int], list[float]] = {}
    for number, value in both.items():
        column, row = (_cell(one.place(chosen[number][one.name]), side) for one in (across, up))
        cells.setdefault((column, row), []).append(value)
    return {
        "across": across.name,
        "up": up.name,
        "num_trials": len(both),
        "side": side,
        "cells": [
            {"column": column, "row": row, "mean": statistics.fmean(found), "num_trials": len(found)}
            for (column, row), found in sorted(cells.items())
        ],
    }


def _cell(place: float | None, side: int) -> int:
    return min(max(int((place or 0.0) * side), 0), side - 1)
