"""Where things lie in the drawings: axes, learning curves, interval bars. The templates turn these places into SVG.

Bars and strips are placed in percent, so that they stretch with their table; curves in the units of a view box.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from reports.folder import RANGES, Study, Trial

MANY_EPOCHS = 4000
"""Of all trials together: beyond it curves are drawn to whole units."""
MANY_TRIALS = 200
"""Beyond it the dots of a strip are one path, without a word of their own."""


@dataclass(frozen=True)
class Axis:
    """A range of values with the ticks worth naming."""

    low: float
    high: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    @classmethod
    def around(
        cls, values: Iterable[float], *, num_ticks: int, least: float = -math.inf, most: float = math.inf
    ) -> Axis:
        """An axis that holds all values and begins and ends at round ones, within [least, most]."""
        inside = list(values) or [0.0, 1.0]
        low, high = min(inside), max(inside)
        step = _round_step(max(high - low, 0.01) / num_ticks)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if first == last:  # one value, on a tick: make room where there is some
            first, last = (first - 1, last) if (last + 1) * step > most else (first, last + 1)
        ticks = [round(index * step, 10) for index in range(first, last + 1)]
        return cls(max(ticks[0], least), min(ticks[-1], most), tuple(tick for tick in ticks if least <= tick <= most))

    def name(self, tick: float) -> str:
        """A tick's value with the digits that tell ticks apart."""
        if len(self.ticks) < 2:
            return f"{tick:.3g}"
        step = self.ticks[1] - self.ticks[0]
        return f"{tick:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"

    def share(self, value: float) -> float:
        """How far along the axis a value lies, 0 to 1 between its ends."""
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def percent(self, value: float) -> str:
        """The same as an SVG coordinate; what lies beyond an end is put there."""
        return f"{100 * min(max(self.share(value), 0.0), 1.0):.2f}%"


def interval_axis(intervals: Iterable[dict[str, Any]]) -> Axis:
    """An axis that holds values of metrics between 0 and 1, and their intervals."""
    ends = [interval.get(end) for interval in intervals for end in ("value", "low", "high")]
    return Axis.around([end for end in ends if end is not None], num_ticks=3, least=0.0, most=1.0)


@dataclass(frozen=True)
class Curve:
    """One trial's objective over its epochs."""

    trial: Trial
    kind: str
    """best, default, complete, pruned, diverged, collapsed, failed or running."""
    points: str
    """For a polyline."""
    end: tuple[float, float]


@dataclass(frozen=True)
class Curves:
    """The learning curves of a study in a view box of `width` by `height`."""

    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    num_epochs: int
    x_ticks: tuple[tuple[float, int], ...]
    y_ticks: tuple[tuple[float, str], ...]
    low: float
    high: float
    boundary: float | None
    """x where pre-training ends and fine-tuning begins."""
    only_stage: str
    """The stage, where there is one only."""
    curves: tuple[Curve, ...]
    """In drawing order: the best one last, on top."""
    reference: float | None
    """y of the random encoder with a linear probe."""


def kind_of(trial: Trial, study: Study) -> str:
    """How a trial is drawn and called."""
    if study.best_trial and trial.number == study.best_trial.number:
        return "best"
    return "default" if trial.number == 0 and trial.state == "COMPLETE" else outcome(trial)


def outcome(trial: Trial) -> str:
    """How a trial ended, in the reader's words."""
    if trial.non_finite:
        return "diverged"
    if (trial.reason or "").startswith("collapsed"):
        return "collapsed"
    return {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}.get(
        trial.state, trial.state.lower()
    )


def learning_curves(study: Study, *, width: int, height: int, reference: float | None) -> Curves | None:
    """Place every trial's objective over its epochs; None where no epoch has been seen.

    Args:
        study: whose trials.
        width: of the view box; drawings for narrow screens are drawn anew, a shrunk one could not be read.
        height: of the view box.
        reference: objective of an untrained encoder, drawn as a line.
    """
    shown = [trial for trial in study.trials if trial.curve]
    if not shown:
        return None
    epochs = [point for trial in shown for point in trial.curve]
    num_epochs = max(point.epoch for point in epochs)
    values = [point.value for point in epochs] + ([] if reference is None else [reference])
    axis = Axis.around(values, num_ticks=6 if height > 300 else 4)
    left, right, top, bottom = 46.0, width - 12.0, 42.0, height - 34.0
    digits = 1 if len(epochs) <= MANY_EPOCHS else 0  # a line among hundreds may lie half a unit beside its place

    def x(epoch: float) -> float:
        return round(left + (right - left) * (epoch - 0.5) / num_epochs, digits)

    def y(value: float) -> float:
        return round(bottom - (bottom - top) * axis.share(value), digits)

    rank = {"best": 2, "default": 1}
    curves = [
        Curve(
            trial=trial,
            kind=kind_of(trial, study),
            points=" ".join(f"{x(point.epoch):g},{y(point.value):g}" for point in trial.curve),
            end=(x(trial.curve[-1].epoch), y(trial.curve[-1].value)),
        )
        for trial in shown
    ]
    last_pretrain = max((point.epoch for point in epochs if point.stage == "pretrain"), default=0)
    stride = max(1, math.ceil(num_epochs / (width / 45)))
    return Curves(
        width=width,
        height=height,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        num_epochs=num_epochs,
        x_ticks=tuple((x(epoch), epoch) for epoch in range(1, num_epochs + 1) if (epoch - 1) % stride == 0),
        y_ticks=tuple((y(tick), axis.name(tick)) for tick in axis.ticks),
        low=axis.low,
        high=axis.high,
        boundary=x(last_pretrain + 0.5) if 0 < last_pretrain < num_epochs else None,
        only_stage={0: "fine-tuning", num_epochs: "pre-training"}.get(last_pretrain, ""),
        curves=tuple(sorted(curves, key=lambda curve: rank.get(curve.kind, 0))),
        reference=None if reference is None else y(reference),
    )


@dataclass(frozen=True)
class Strip:
    """A searched parameter's range as a line, with every trial a dot on it."""

    axis: Axis
    low: str
    high: str
    dots: tuple[tuple[str, Trial, str], ...]
    """Place, trial, kind; the best last, on top. Of many trials only the default and the best."""
    many: str = ""
    """Path of the others' dots, where they are many; across 1000 units, at 11 down."""


def parameter_strip(study: Study, name: str) -> Strip | None:
    """Place every trial's choice of one parameter; None where the choices are not numbers."""
    chosen = [(trial, trial.params[name]) for trial in study.trials if name in trial.params]
    if not chosen or any(isinstance(value, bool) or not isinstance(value, int | float) for _, value in chosen):
        return None
    kind, ends = study.distribution_of(name)
    values = [float(value) for _, value in chosen] + (ends if kind in RANGES else [])
    low, high = min(values), max(values)
    if low == high:
        return None
    axis = Axis(low, high, (), logarithmic="log" in kind and low > 0)
    rank = {"best": 2, "default": 1}
    dots = [(axis.percent(float(value)), trial, kind_of(trial, study)) for trial, value in chosen]
    many = ""
    if len(dots) > MANY_TRIALS:
        many = "".join(f"M{1000 * axis.share(float(value)):.0f} 11h0" for _, value in chosen)
        dots = [dot for dot in dots if dot[2] in rank]
    return Strip(axis, f"{low:.3g}", f"{high:.3g}", tuple(sorted(dots, key=lambda dot: rank.get(dot[2], 0))), many)


def distribution(study: Study, name: str) -> str:
    """What a parameter was drawn from, in a few words; empty where the configuration does not say."""
    kind, content = study.distribution_of(name)
    if kind == "choice":
        return "one of " + ", ".join(str(option) for option in content)
    return f"{content[0]:g} to {content[1]:g}{', logarithmic' if 'log' in kind else ''}" if kind else ""


def _round_step(step: float) -> float:
    """The least of 1, 2 and 5 times a power of ten that is not below `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))
