"""Drawings that stretch with the page: places across in percent, places down in pixels.

One drawing serves every width, where one with a view box would have to be drawn twice to be read on a narrow screen.
Marks are placed in percent. Lines cannot be; they lie in an inner view box of SPAN units across that is stretched, its
strokes kept as wide as they are. Many dots are drawn as one path of strokes without length, which round ends make dots.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from reports.charts import Axis

SPAN = 1000
"""Units across of the inner view box."""


@dataclass(frozen=True)
class Plane:
    """Two axes and a height in pixels; the largest value lies at the top."""

    x: Axis
    y: Axis
    height: int

    def left(self, value: float) -> str:
        """A place across, as an attribute."""
        return self.x.percent(value)

    def top(self, value: float) -> float:
        """A place down, in pixels."""
        return round(self.height * (1 - min(max(self.y.share(value), 0.0), 1.0)), 1)

    def units(self, value: float) -> float:
        """A place across in the inner view box."""
        return round(SPAN * min(max(self.x.share(value), 0.0), 1.0), 1)

    def dots(self, points: Iterable[tuple[float, float]]) -> str:
        """A path of dots."""
        return "".join(f"M{self.units(x):g} {self.top(y):g}h0" for x, y in points)

    def steps(self, points: Iterable[tuple[float, float]]) -> str:
        """A path that keeps each value until the next place across, and the last one to the right edge."""
        path, held = "", False
        for x, y in points:
            path += f"{'H' if held else 'M'}{self.units(x):g}{'V' if held else ' '}{self.top(y):g}"
            held = True
        return f"{path}H{SPAN}" if held else ""

    @property
    def ticks_across(self) -> list[tuple[str, str, str]]:
        """Place, text and anchor of each tick; the outer ones stay inside the drawing."""
        anchors = dict(zip([*self.x.ticks[:1], *self.x.ticks[-1:]], ("start", "end"), strict=False))
        return [(self.left(tick), self.x.name(tick), anchors.get(tick, "middle")) for tick in self.x.ticks]

    @property
    def ticks_up(self) -> list[tuple[float, str]]:
        """Place and text of each tick."""
        return [(self.top(tick), self.y.name(tick)) for tick in self.y.ticks]


def places(num: int) -> Axis:
    """An axis from 0 to 1 with room for `num` things side by side."""
    return Axis(0.0, 1.0, tuple(index / num for index in range(num + 1)))


def numbers(most: float, *, num_ticks: int = 5) -> Axis:
    """An axis from 0 to a count, with ticks at whole numbers only."""
    axis = Axis.around([0.0, max(most, 1.0)], num_ticks=num_ticks, least=0.0)
    whole = tuple(tick for tick in axis.ticks if tick == int(tick))
    return Axis(axis.low, axis.high, whole)


def hours(most: float, *, num_ticks: int = 5) -> Axis:
    """An axis from 0 to a time that ends where the time does."""
    axis = Axis.around([0.0, most], num_ticks=num_ticks, least=0.0)
    return Axis(0.0, max(most, 1e-9), tuple(tick for tick in axis.ticks if tick <= most))
