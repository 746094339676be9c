"""A record drawn as the sheet that a cardiograph prints: 25 mm/s, 10 mm/mV, on a grid of 1 mm and 5 mm, as SVG.

The drawing's unit is the millimetre, and its width and height say so: printed at 100 % it can be measured with a ruler.
Traces are paths in steps of 0.05 mm, of which those points are left out that lie within 0.05 mm of the line that stays
(0.1 mm above 200 samples a second; the pen is 0.25 mm wide).

Shapes: C leads, T samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data.record import LEADS

Floats = NDArray[np.floating[Any]]
Layout = Literal["3x4", "6x2", "12x1"]

MM_PER_S, MM_PER_MV = 25.0, 10.0
STEP_MM = 0.05
"""Resolution of a trace: 2 ms along, 5 uV up."""
LIMIT_MM = 30.0
"""How far a trace may go from its baseline; what goes further is cut off, marked, and told in words."""
MARGIN_MM, PULSE_MM, LINE_MM = 5.0, 10.0, 5.0
LEAST_UP_MM, LEAST_DOWN_MM = 15.0, 10.0
COLUMN_S = 2.5
FEW_LEADS = 3
"""Up to so many leads have a row each; more have the twelve places of the standard layout."""
BIN_S = 0.04
"""How finely saliency is told apart in time: 1 mm."""
LEVELS = (0.2, 0.4, 0.7)
"""Shares of the largest saliency from which a band is light, medium and dark."""
FOR, AGAINST = "#e69f00", "#0072b2"
"""Orange and blue of Okabe and Ito's palette, told apart by colour-blind readers."""

STYLE = (
    ".ecg-p{fill:#fffdfa}.ecg-1,.ecg-5{fill:none;stroke:#f3cfc9;stroke-width:.1}.ecg-5{stroke:#e5a096;stroke-width:.2}"
    f".ecg-o{{fill:none;stroke:{AGAINST};stroke-width:5;stroke-linejoin:round}}"
    ".ecg-t,.ecg-u{fill:none;stroke:#111;stroke-width:5;stroke-linejoin:round}.ecg-u{stroke:#999}"
    ".ecg-m{fill:#111}text{font:3.2px Helvetica,Arial,sans-serif;fill:#111}.ecg-l{font-weight:700}.ecg-q{fill:#777}"
    f".ecg-f{{fill:{FOR}}}.ecg-a{{fill:{AGAINST}}}"
)


@dataclass(frozen=True)
class Panel:
    """A lead's place on the sheet: from when to when, and where it begins."""

    lead: str
    start_s: float
    end_s: float
    x_mm: float


@dataclass(frozen=True)
class _Row:
    """Panels side by side, and how far they reach above and below their baseline, in whole 5 mm."""

    panels: list[Panel]
    up_mm: float
    down_mm: float


def draw(
    signal_mv: Floats,
    leads: Sequence[str],
    sampling_rate_hz: float,
    *,
    title: str = "",
    notes: Sequence[str] = (),
    used: Sequence[str] | None = None,
    saliency: Floats | None = None,
    legend: str = "",
    overlay_mv: Floats | None = None,
    layout: Layout | None = None,
) -> str:
    """Draw a record.

    Each lead is drawn about its median, as a cardiograph takes its offset away. Samples that are no numbers leave a
    gap.

    Args:
        signal_mv: (C, T) in mV.
        leads: names of the C leads.
        sampling_rate_hz: samples a second.
        title: first line of the sheet.
        notes: further lines above the traces.
        used: the leads that a model was shown; others are drawn in grey. None for all.
        saliency: (C, T) how much each sample speaks for (above 0) or against something, in any unit; drawn as bands
            behind the traces.
        legend: a line below the traces, see `legend_for`.
        overlay_mv: (C, T) a second trace over each, in blue, about the same offset; NaN where there is none.
        layout: rows times columns; None for what is usual for the number of leads and the duration (see `layout_of`).

    Returns:
        SVG, the same text for the same arguments.

    Raises:
        ValueError: if shapes and leads do not fit one another, or there is nothing to draw.
    """
    signal, centres = _checked(signal_mv, leads, sampling_rate_hz)
    of_lead = dict(zip(leads, signal, strict=True))
    over = {} if overlay_mv is None else dict(zip(leads, np.asarray(overlay_mv, float) - centres, strict=True))
    duration_s = signal.shape[1] / sampling_rate_hz
    least = (10.0, 5.0) if layout == "12x1" else (LEAST_UP_MM, LEAST_DOWN_MM)
    rows = [_row(panels, of_lead, sampling_rate_hz, least) for panels in layout_of(leads, duration_s, layout)]
    head_mm = LINE_MM * (1 + bool(title) + len(notes))
    below = _footer(of_lead, sampling_rate_hz, legend)
    width = MARGIN_MM * 2 + PULSE_MM + max(p.x_mm + (p.end_s - p.start_s) * MM_PER_S for r in rows for p in r.panels)
    width = math.ceil(width / LINE_MM) * LINE_MM
    height = head_mm + sum(row.up_mm + row.down_mm for row in rows) + LINE_MM * (1 + len(below))
    bands = None if saliency is None else _levels(np.asarray(saliency, float), signal.shape, sampling_rate_hz)
    parts = [_grid(width, head_mm, height - LINE_MM * (1 + len(below)))]
    top = head_mm
    for row in rows:
        if bands is not None:
            parts.append(_bands(row, dict(zip(leads, bands, strict=True)), top))
        parts.append(_traces(row, of_lead, sampling_rate_hz, top + row.up_mm, leads if used is None else used))
        parts += [_overlay(panel, over, row, sampling_rate_hz, top + row.up_mm) for panel in row.panels if over]
        top += row.up_mm + row.down_mm
    lines = [*([title] if title else []), *notes]
    parts += [_text(line, MARGIN_MM, LINE_MM * (1 + n), "ecg-l" if n == 0 else "") for n, line in enumerate(lines)]
    parts += [_text(line, MARGIN_MM, top + LINE_MM * (1 + n), "") for n, line in enumerate(below)]
    size = f'width="{_mm(width)}mm" height="{_mm(height)}mm" viewBox="0 0 {_mm(width)} {_mm(height)}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img"><title>{escape(title or "12-lead ECG")}</title>'
        f"<style>{STYLE}</style>" + "".join(parts) + "</svg>\n"
    )


def layout_of(leads: Sequence[str], duration_s: float, layout: Layout | None = None) -> list[list[Panel]]:
    """Which lead stands where.

    3x4 is the standard of 10 s: four columns of 2.5 s that follow one another in time, and a rhythm strip of lead II
    (or of the first lead there is). 6x2 is for what is shorter: up to 5 s both columns hold the whole of it, else one
    half each above a rhythm strip. 12x1 shows all of every lead. A longer recording shows its first 10 s in 3x4.

    Returns:
        Panels row by row; a lead that is not there leaves its place empty.
    """
    there = [lead for lead in LEADS if lead in leads]
    if layout == "12x1" or (layout is None and len(there) <= FEW_LEADS):
        return [[Panel(lead, 0.0, duration_s, 0.0)] for lead in there]
    whole = 4 * COLUMN_S
    wide = layout == "3x4" or (layout is None and duration_s >= whole - 1e-6)
    num_rows, num_columns = (3, 4) if wide else (6, 2)
    shown_s = min(duration_s, whole) if wide else duration_s
    follows = wide or duration_s > 2 * COLUMN_S
    column_s = shown_s / num_columns if follows else shown_s
    rows = []
    for row in range(num_rows):
        panels = []
        for column in range(num_columns):
            lead, start = LEADS[column * num_rows + row], column * column_s if follows else 0.0
            if lead in there:
                panels.append(Panel(lead, start, start + column_s, column * column_s * MM_PER_S))
        rows.append(panels)
    strip = [[Panel("II" if "II" in there else there[0], 0.0, shown_s, 0.0)]] if follows else []
    return [row for row in rows if row] + strip


def thinned(x: Sequence[float], y: Sequence[float], tolerance: float) -> list[int]:
    """Points of a trace that are enough: every other one lies within `tolerance` of the line between its neighbours.

    The widest corridor is kept from the last point that stays, and the last point inside it stays next (the funnel of
    Reumann & Witkam's and Williams's algorithms); a point is compared once for each corridor.

    Args:
        x: ascending.
        y: of each x.
        tolerance: along y.

    Returns:
        Positions that stay, the first and the last among them.
    """
    kept, start, last = [0], 0, len(x) - 1
    while start < last:
        low, high, good, at = -math.inf, math.inf, start + 1, start + 1
        while at <= last:
            run, rise = x[at] - x[start], y[at] - y[start]
            if low <= rise / run <= high:
                good = at
            low, high = max(low, (rise - tolerance) / run), min(high, (rise + tolerance) / run)
            if low > high:
                break
            at += 1
        kept.append(good)
        start = good
    return kept


def legend_for(label: str) -> str:
    """What the bands of a signed saliency mean."""
    return f"Orange, with a bar above: speaks for {label}. Blue, with a bar below: speaks against it. Darker: more."


def _checked(signal_mv: Floats, leads: Sequence[str], sampling_rate_hz: float) -> tuple[Floats, Floats]:
    """The signal about each lead's median, and the (C, 1) medians."""
    signal = np.asarray(signal_mv, dtype=float)
    if signal.ndim != 2 or signal.shape[0] != len(leads) or signal.size == 0:
        raise ValueError(
            f"the signal must be ({len(leads)} leads, samples), one lead and sample at least, got {signal.shape}"
        )
    if unknown := [lead for lead in leads if lead not in LEADS]:
        raise ValueError(f"leads must be among {', '.join(LEADS)}, got {', '.join(unknown)}")
    if not 0 < sampling_rate_hz < math.inf:
        raise ValueError(f"sampling_rate_hz must be positive, got {sampling_rate_hz:g}")
    signal = np.where(np.isfinite(signal), signal, np.nan)
    centres = [np.median(lead[~np.isnan(lead)]) if (~np.isnan(lead)).any() else 0.0 for lead in signal]
    medians = np.array(centres)[:, None]
    return signal - medians, medians


def _part(panel: Panel, of_lead: dict[str, Floats], rate: float) -> Floats:
    """The samples of a panel, in mm about the baseline."""
    first, last = round(panel.start_s * rate), round(panel.end_s * rate)
    values: Floats = of_lead[panel.lead][first:last] * MM_PER_MV
    return values


def _row(panels: list[Panel], of_lead: dict[str, Floats], rate: float, least_mm: tuple[float, float]) -> _Row:
    values = np.concatenate([_part(panel, of_lead, rate) for panel in panels])
    values = values[~np.isnan(values)]
    highest, lowest = (float(values.max()), float(values.min())) if values.size else (0.0, 0.0)
    up, down = (min(math.ceil((reach + 2) / 5) * 5.0, LIMIT_MM) for reach in (highest, -lowest))
    return _Row(panels, max(up, least_mm[0]), max(down, least_mm[1]))


def _grid(width: float, top: float, bottom: float) -> str:
    """Paper and lines: thin ones each 1 mm, strong ones each 5 mm."""

    def lines(every: float, but: float) -> str:
        def along(first: float, last: float) -> list[float]:
            places = np.arange(round((last - first) / every) + 1) * every
            return [first + float(place) for place in places if not but or place % but]

        down = "".join(f"M{_mm(x)} {_mm(top)}V{_mm(bottom)}" for x in along(MARGIN_MM, width - MARGIN_MM))
        across = "".join(f"M5 {_mm(y)}H{_mm(width - MARGIN_MM)}" for y in along(top, bottom))
        return down + across

    paper = f'<path class="ecg-p" d="M0 0H{_mm(width)}V999H0z"/>'
    return paper + f'<path class="ecg-1" d="{lines(1, 5)}"/><path class="ecg-5" d="{lines(5, 0)}"/>'


def _traces(row: _Row, of_lead: dict[str, Floats], rate: float, y_mm: float, used: Sequence[str]) -> str:
    """Calibration pulse, names and traces of a row whose baseline lies at `y_mm`."""
    pulse = "M0 0h50v-200h100v200h50"  # 2.5 mm of baseline, then 0.2 s of 1 mV
    parts = [_scaled(f'<path class="ecg-t" d="{pulse}"/>', MARGIN_MM, y_mm)]
    for panel in row.panels:
        x_mm = MARGIN_MM + PULSE_MM + panel.x_mm
        values = _part(panel, of_lead, rate)
        kind = "ecg-t" if panel.lead in used else "ecg-u"
        path = _path(np.clip(values, -row.down_mm, row.up_mm), rate)
        divider = f"M0 {_units(-5)}v{_units(3)}M0 {_units(2)}v{_units(3)}" if panel.x_mm else ""
        parts.append(_scaled(f'<path class="{kind}" d="{divider}{path}"/>', x_mm, y_mm))
        name = panel.lead if panel.lead in used else f"{panel.lead} (not used)"
        parts.append(_text(name, x_mm + 1.5, y_mm - row.up_mm + 4, "ecg-l" if panel.lead in used else "ecg-q"))
        parts += _cut_marks(values, row, rate, x_mm, y_mm)
    return "".join(parts)


def _overlay(panel: Panel, over: dict[str, Floats], row: _Row, rate: float, y_mm: float) -> str:
    path = _path(np.clip(_part(panel, over, rate), -row.down_mm, row.up_mm), rate)
    return _scaled(f'<path class="ecg-o" d="{path}"/>', MARGIN_MM + PULSE_MM + panel.x_mm, y_mm)


def _path(values_mm: Floats, rate: float) -> str:
    """Path data of one trace, relative, in steps; a new subpath after every gap."""
    there = np.flatnonzero(~np.isnan(values_mm))
    runs = np.split(there, np.flatnonzero(np.diff(there) > 1) + 1) if there.size else []
    found = []
    for run in runs:
        x = np.rint(run / rate * MM_PER_S / STEP_MM)
        y = -values_mm[run] / STEP_MM
        x, first = np.unique(x, return_index=True)  # above 500 Hz several samples share a step
        y = np.rint(y[first])
        stay = thinned(x.tolist(), y.tolist(), 1.0 if rate <= 200 else 2.0)
        points = np.stack([x[stay], y[stay]], axis=1).astype(int)
        steps = np.diff(points, axis=0)
        found.append(
            f"M{points[0, 0]} {points[0, 1]}" + ("l" if len(steps) else "h1") + _joined(steps.ravel().tolist())
        )
    return "".join(found)


def _joined(numbers: list[int]) -> str:
    """Numbers of a path as short as can be: a minus sign separates as well as a space."""
    return "".join(str(number) if number < 0 or place == 0 else f" {number}" for place, number in enumerate(numbers))


def _cut_marks(values: Floats, row: _Row, rate: float, x_mm: float, y_mm: float) -> list[str]:
    """A triangle where a trace is cut off, at its furthest."""
    marks: list[str] = []
    if np.isnan(values).all():
        return marks
    for at, edge, sign in ((np.nanargmax(values), row.up_mm, 1), (np.nanargmin(values), -row.down_mm, -1)):
        if sign * values[at] > sign * edge:
            x, y = x_mm + at / rate * MM_PER_S, y_mm - edge
            marks.append(
                f'<path class="ecg-m" d="M{_mm(x - 1)} {_mm(y + 1.6 * sign)}l1 {-1.6 * sign}l1 {1.6 * sign}z"/>'
            )
    return marks


def _footer(of_lead: dict[str, Floats], rate: float, legend: str) -> list[str]:
    """The scale, what was cut off, and what the colours mean."""
    lines = [f"25 mm/s · 10 mm/mV · {rate:g} samples a second · each lead about its median"]
    cut = [
        f"{lead} reaches {value:+.1f} mV".replace("-", "\N{MINUS SIGN}")
        for lead, values in of_lead.items()
        if not np.isnan(values).all()
        for value in (np.nanmax(values), np.nanmin(values))
        if abs(value) * MM_PER_MV > LIMIT_MM
    ]
    if cut:
        lines.append("Cut off at 3 mV: " + ", ".join(cut))
    return [*lines, legend] if legend else lines


def _levels(saliency: Floats, shape: tuple[int, ...], rate: float) -> NDArray[np.int64]:
    """(C, bins) from -3 (strongly against) to 3 (strongly for); 0 where little is said.

    Raises:
        ValueError: if the saliency is not of the signal's shape.
    """
    if saliency.shape != shape:
        raise ValueError(f"the saliency must be of the signal's shape {shape}, got {saliency.shape}")
    values = np.nan_to_num(saliency, nan=0.0, posinf=0.0, neginf=0.0)
    bins = (np.arange(shape[1]) / rate / BIN_S + 1e-9).astype(int)
    sums = np.stack([np.bincount(bins, weights=lead) for lead in values]) / np.bincount(bins)
    largest = np.abs(sums).max()
    if largest == 0:
        return np.zeros(sums.shape, np.int64)
    level: NDArray[np.int64] = np.searchsorted(LEVELS, np.abs(sums) / largest, side="right") * np.sign(sums).astype(int)
    return level


def _bands(row: _Row, bands: dict[str, NDArray[np.int64]], top_mm: float) -> str:
    """Coloured bands behind a row's traces, one path a sign and level, with a bar at the edge that tells the sign."""
    paths: dict[int, list[str]] = {}
    bars: dict[int, list[str]] = {}
    height, width = row.up_mm + row.down_mm, BIN_S * MM_PER_S
    for panel in row.panels:
        first, last = round(panel.start_s / BIN_S), round(panel.end_s / BIN_S)
        levels = bands[panel.lead][first:last]
        edges = np.flatnonzero(np.diff(levels, prepend=0, append=0))
        for start, end in zip(edges, edges[1:], strict=False):
            if (level := int(levels[start])) == 0:
                continue
            x, length = MARGIN_MM + PULSE_MM + panel.x_mm + start * width, (end - start) * width
            paths.setdefault(level, []).append(_box(x, top_mm + 0.5, length, height - 1))
            y = top_mm + 0.5 if level > 0 else top_mm + height - 1.5
            bars.setdefault(level, []).append(_box(x, y, length, 1))
    return "".join(
        f'<path class="{"ecg-f" if level > 0 else "ecg-a"}" fill-opacity="{(0, 0.22, 0.42, 0.62)[abs(level)]}" '
        f'd="{"".join(paths[level])}"/><path class="{"ecg-f" if level > 0 else "ecg-a"}" d="{"".join(bars[level])}"/>'
        for level in sorted(paths)
    )


def _box(x: float, y: float, width: float, height: float) -> str:
    return f"M{_mm(x)} {_mm(y)}h{_mm(width)}v{_mm(height)}h{_mm(-width)}z"


def _scaled(content: str, x_mm: float, y_mm: float) -> str:
    return f'<g transform="translate({_mm(x_mm)} {_mm(y_mm)})scale({STEP_MM:g})">{content}</g>'


def _text(content: str, x_mm: float, y_mm: float, kind: str) -> str:
    chosen = f' class="{kind}"' if kind else ""
    return f'<text{chosen} x="{_mm(x_mm)}" y="{_mm(y_mm)}">{escape(content)}</text>'


def _units(mm: float) -> int:
    return round(mm / STEP_MM)


def _mm(value: float) -> str:
    return f"{round(float(value), 2):g}" if abs(value) < 1e5 else f"{value:.2f}"
