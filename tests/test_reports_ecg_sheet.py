"""The sheet: what is measured on it is what was recorded."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.record import LEADS
from reports.checkpoints.ecg_sheet import AGAINST, FOR, LIMIT_MM, STEP_MM, draw, layout_of, legend_for, thinned

SVG = "{http://www.w3.org/2000/svg}"
RATE = 100.0


def traces(svg, kind="ecg-t"):
    """Every path of traces as (x, y) mm of its points, absolute on the sheet, a list a subpath."""
    found = []
    for group in ET.fromstring(svg).iter(f"{SVG}g"):
        x0, y0, scale = map(
            float, re.fullmatch(r"translate\((\S+) (\S+)\)scale\((\S+)\)", group.get("transform")).groups()
        )
        assert scale == STEP_MM
        for path in group.iter(f"{SVG}path"):
            if path.get("class") == kind:
                found.append([np.array([x0, y0]) + scale * points for points in points_of(path.get("d"))])
    return found


def points_of(data):
    """Subpaths of path data with M, l, h and v alone."""
    subpaths = []
    for command, text in re.findall(r"([Mlhv])([^Mlhv]*)", data):
        numbers = np.array([float(number) for number in re.findall(r"-?[\d.]+", text)])
        if command == "M":
            subpaths.append([numbers])
            continue
        steps = numbers.reshape(-1, 2) if command == "l" else [[n, 0] if command == "h" else [0, n] for n in numbers]
        for step in steps:
            subpaths[-1].append(subpaths[-1][-1] + step)
    return [np.array(points) for points in subpaths]


def one_lead(signal, **how):
    """The trace of a record of lead II alone; the pulse comes first."""
    (_, trace) = traces(draw(signal[None], ["II"], RATE, **how))
    return trace


def test_the_pulse_is_10_mm_high_and_5_mm_wide():
    (pulse, _) = traces(draw(np.zeros((1, 250)), ["II"], RATE))
    x, y = pulse[0].T
    assert y.max() - y.min() == pytest.approx(10)
    high = x[y == y.min()]
    assert high.max() - high.min() == pytest.approx(5)


def test_a_step_of_1_mv_is_10_mm_and_1_s_is_25_mm():
    signal = np.zeros(400)
    signal[150:250] = 1.0  # one second
    (trace,) = one_lead(signal)
    x, y = trace.T
    assert y.max() - y.min() == pytest.approx(10)
    up, down = (x[np.flatnonzero(np.diff(y) * sign > 0)[0] + 1] for sign in (-1, 1))
    assert down - up == pytest.approx(25)
    assert x.max() - x.min() == pytest.approx(25 * 3.99)  # from the first of 400 samples to the last


@pytest.mark.parametrize("duration_s", [10.0, 2.4, 7.0])
def test_width_and_height_are_true_millimetres(duration_s):
    svg = ET.fromstring(draw(np.zeros((12, int(duration_s * RATE))), LEADS, RATE))
    width, height = (svg.get(key) for key in ("width", "height"))
    assert svg.get("viewBox") == f"0 0 {width.removesuffix('mm')} {height.removesuffix('mm')}"


def test_ten_seconds_are_three_rows_of_four_and_a_strip_of_lead_II():
    rows = layout_of(LEADS, 10.0)
    assert [[panel.lead for panel in row] for row in rows] == [
        ["I", "aVR", "V1", "V4"],
        ["II", "aVL", "V2", "V5"],
        ["III", "aVF", "V3", "V6"],
        ["II"],
    ]
    assert [(panel.start_s, panel.end_s, panel.x_mm) for panel in rows[0]] == [
        (0.0, 2.5, 0.0),
        (2.5, 5.0, 62.5),
        (5.0, 7.5, 125.0),
        (7.5, 10.0, 187.5),
    ]
    assert (rows[3][0].start_s, rows[3][0].end_s) == (0.0, 10.0)


@pytest.mark.parametrize(("duration_s", "spans"), [(2.4, {(0.0, 2.4)}), (8.0, {(0.0, 4.0), (4.0, 8.0)})])
def test_shorter_windows_are_six_rows_of_two(duration_s, spans):
    rows = layout_of(LEADS, duration_s)
    assert [[panel.lead for panel in row] for row in rows[:6]] == [[LEADS[n], LEADS[n + 6]] for n in range(6)]
    assert {(panel.start_s, panel.end_s) for row in rows[:6] for panel in row} == spans
    assert len(rows) == (7 if duration_s > 5 else 6)


def test_leads_that_are_not_there_leave_their_place_empty_and_those_not_used_are_grey():
    signal = np.random.default_rng(0).normal(0, 0.2, (11, 1000))
    leads = [lead for lead in LEADS if lead != "II"]
    svg = draw(signal, leads, RATE, used=leads[:-1])
    assert [[panel.lead for panel in row] for row in layout_of(leads, 10.0)][3] == ["I"]
    assert len(traces(svg, "ecg-u")) == 1
    assert ">V6 (not used)<" in svg
    assert ">II<" not in svg


def test_what_is_too_large_is_cut_off_marked_and_told():
    signal = np.zeros(400)
    signal[100] = 5.0
    svg = draw(signal[None], ["II"], RATE)
    _, (trace,) = traces(svg)
    assert trace[:, 1].max() - trace[:, 1].min() == pytest.approx(LIMIT_MM)
    assert svg.count('class="ecg-m"') == 1
    assert "II reaches +5.0 mV" in svg
    assert "ecg-m" not in draw(np.clip(signal, -1, 1)[None], ["II"], RATE).partition("</style>")[2]


def test_a_gap_stays_a_gap():
    signal = np.sin(np.arange(400) / 5)
    signal[100:200] = np.nan
    assert len(one_lead(signal)) == 2
    draw(np.full((12, 1000), np.nan), LEADS, RATE)  # nothing but gaps


def test_an_offset_is_taken_away_as_a_cardiograph_does():
    signal = np.sin(np.arange(400) / 5)
    assert draw(signal[None] + 7, ["II"], RATE) == draw(signal[None], ["II"], RATE)


@given(st.lists(st.integers(-600, 600), min_size=1, max_size=120))
def test_what_is_left_out_lies_on_the_line_that_stays(values):
    x = list(range(0, 5 * len(values), 5))
    stay = thinned(x, values, 1.0)
    assert stay[0] == 0
    assert stay[-1] == len(values) - 1
    between = np.interp(x, [x[n] for n in stay], [values[n] for n in stay])
    assert np.abs(between - values).max() <= 1 + 1e-9


@given(rate=st.sampled_from([100.0, 250.0, 257.0, 500.0, 1000.0]), seed=st.integers(0, 20))
def test_a_trace_is_true_to_a_fifth_of_a_millimetre(rate, seed):
    signal = np.cumsum(np.random.default_rng(seed).normal(0, 0.02, int(2 * rate)))
    signal = np.clip(signal - np.median(signal), -2.5, 2.5)
    (_, (trace,)) = traces(draw(signal[None], ["V1"], rate))
    x, y = trace.T
    baseline = y[0] + (signal[0] - np.median(signal)) * 10
    times = np.arange(len(signal)) / rate * 25
    expected = baseline - (signal - np.median(signal)) * 10
    # half a step of time may shift a steep line: compared with the span of the samples around
    reach = 1 + int(rate // 501)  # samples that may fall into one step of time
    spans = [expected[max(0, n - reach) : n + reach + 1] for n in range(len(expected))]
    low, high = (np.array([end(span) for span in spans]) for end in (np.min, np.max))
    drawn = np.interp(times, x - x[0], y)
    assert np.all(drawn >= low - 0.2)
    assert np.all(drawn <= high + 0.2)


@pytest.mark.parametrize("rate", [100.0, 500.0])
def test_a_whole_sheet_is_well_under_60_kb(rate):
    noise = np.random.default_rng(0).normal(0, 0.01, (12, int(10 * rate)))
    time = np.arange(int(10 * rate)) / rate
    beats = np.exp(-((time % 0.8 - 0.4) ** 2) / 0.0004)
    saliency = np.sin(np.outer(np.arange(1, 13), 9 * time)) * beats
    assert len(draw(beats + noise, LEADS, rate, saliency=saliency).encode()) < 60_000


def test_saliency_is_a_band_where_it_is_and_tells_its_sign_without_colour():
    saliency = np.zeros((1, 400))
    saliency[0, 100:120] = 1.0  # 1.0 s to 1.2 s
    saliency[0, 200:220] = -1.0
    svg = draw(np.zeros((1, 400)), ["II"], RATE, saliency=saliency, legend=legend_for("MI"))
    bands = re.findall(r'class="ecg-([fa])" fill-opacity="0.62" d="M(\S+) (\S+)h(\S+)v(\S+)h', svg)
    assert {kind: (float(x) - 15, float(width)) for kind, x, _, width, _ in bands} == {"f": (25, 5), "a": (50, 5)}
    bars = {kind: float(y) for kind, y in re.findall(r'class="ecg-([fa])" d="M\S+? ([\d.]+)h', svg)}
    assert bars["f"] < bars["a"]  # above, below
    assert FOR in svg
    assert AGAINST in svg
    assert "speaks for MI" in svg
    plain = draw(np.zeros((1, 400)), ["II"], RATE, saliency=np.zeros((1, 400)))
    assert 'class="ecg-f"' not in plain


def test_a_second_trace_lies_about_the_offset_of_the_first():
    signal = np.sin(np.arange(400) / 5) + 3
    over = np.where(np.arange(400) < 200, signal, np.nan)
    svg = draw(signal[None], ["II"], RATE, overlay_mv=over[None])
    _, (first,) = traces(svg)
    ((second,),) = traces(svg, "ecg-o")
    assert second[0].tolist() == first[0].tolist()
    assert second[:, 0].max() - second[:, 0].min() == pytest.approx(25 * 1.99)


def test_what_cannot_be_drawn_is_refused_in_words():
    with pytest.raises(ValueError, match=r"the signal must be \(2 leads, samples\)"):
        draw(np.zeros((1, 100)), ["I", "II"], RATE)
    with pytest.raises(ValueError, match="leads must be among"):
        draw(np.zeros((1, 100)), ["X"], RATE)
    with pytest.raises(ValueError, match="saliency must be of the signal's shape"):
        draw(np.zeros((1, 100)), ["I"], RATE, saliency=np.zeros((1, 99)))


def test_text_is_escaped():
    assert "<script>" not in draw(np.zeros((1, 100)), ["I"], RATE, title="<script>", notes=["<script>"])
