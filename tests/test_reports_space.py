"""Where trials lay: on axes as they were drawn, the best told apart, means only where trials were."""

import json
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reports.charts import Axis
from reports.folder import Epoch, Study, Trial
from reports.html import render
from reports.metrics import figures
from reports.planes import Plane, hours, numbers
from reports.search.choices import Comparison
from reports.search.space import MIN_FOR_MAP, choices_of, parameter_of, searched

SPACE = {
    "lr": {"log_uniform": [1e-4, 1e-2]},
    "width": {"uniform": [0.0, 1.0]},
    "kind": {"choice": ["a", None, [1, 2]]},
    "depth": {"int_uniform": [1, 4]},
}
IMPORTANCE = {"at_epoch": {"parameters": {"width": {"share": 0.7}, "lr": {"share": 0.2}, "depth": {"share": 0.9}}}}


def study_of(chosen, values, *, direction="maximize", space=SPACE, **config):
    tree = {"search": {"metric": "val/auroc", "direction": direction}, "space": space} | config
    events = [{"event": "trial_started", "trial": number, "params": params} for number, params in enumerate(chosen)]
    trials = [
        Trial(number, "COMPLETE", value, 1, 10.0, None, {}, (Epoch(1, "pretrain", value),))
        for number, value in enumerate(values)
    ]
    return Study("runs/s", tree, tuple(events), 0, tuple(trials), {}, {}, {})


def compared(values):
    return Comparison(1, "pretrain", dict(enumerate(values)), len(values), 0)


def spread(num, *, seed=0):
    draw = np.random.default_rng(seed)
    chosen = [
        {"lr": float(10 ** draw.uniform(-4, -2)), "width": float(draw.uniform()), "kind": ("a", None, [1, 2])[at % 3]}
        | ({"depth": int(draw.integers(1, 5))} if at % 2 else {})
        for at in range(num)
    ]
    return chosen, [round(float(one["width"]), 4) for one in chosen]


def test_an_axis_is_what_a_parameter_was_drawn_from_and_options_stand_side_by_side():
    chosen, values = spread(12)
    study = study_of(chosen, values)
    known = choices_of(study)
    axes = {name: parameter_of(study, name, known, range(12)) for name in SPACE}
    assert axes["lr"].place(1e-3) == pytest.approx(0.5)
    assert axes["width"].place(0.25) == pytest.approx(0.25)
    assert [axes["kind"].place(option) for option in ("a", None, [1, 2])] == pytest.approx([1 / 6, 0.5, 5 / 6])
    assert axes["kind"].place("never") is None
    assert axes["depth"].place(4) == 1.0


def test_without_a_configuration_axes_follow_from_what_was_chosen_and_one_value_makes_none():
    chosen = [{"n": 2, "s": "x", "b": True, "one": 5}, {"n": 6, "s": "y", "b": False, "one": 5}]
    study = study_of(chosen, [0.1, 0.2], space={})
    known = choices_of(study)
    axes = {name: parameter_of(study, name, known, (0, 1)) for name in chosen[0]}
    assert (axes["n"].low, axes["n"].high) == (2.0, 6.0)
    assert axes["s"].options == ("x", "y")
    assert axes["b"].options == (True, False)
    assert axes["one"] is None


def test_parameters_of_all_trials_come_first_the_most_important_of_them_before_the_others():
    chosen, values = spread(20)
    found = searched(study_of(chosen, values), compared(values), IMPORTANCE)
    assert [entry["name"] for entry in found["parameters"]] == ["width", "lr", "kind", "depth"]
    assert [entry["num_trials"] for entry in found["parameters"]] == [20, 20, 20, 10]


@pytest.mark.parametrize(("direction", "expected"), [("maximize", [2, 4]), ("minimize", [0, 1])])
def test_the_best_are_a_tenth_and_ties_go_to_the_earlier_trial(direction, expected):
    values = [0.1, 0.1, 0.9, 0.5, 0.9, 0.9, *[0.3] * 14]
    chosen, _ = spread(20)
    found = searched(study_of(chosen, values, direction=direction), compared(values), {})
    assert [row["trial"] for row in found["trials"] if row["best"]] == expected


def test_medians_are_of_each_option_and_of_each_fifth():
    chosen, values = spread(60)
    found = {entry["name"]: entry for entry in searched(study_of(chosen, values), compared(values), {})["parameters"]}
    of_a = [value for one, value in zip(chosen, values, strict=True) if one["kind"] == "a"]
    assert found["kind"]["medians"][0] == {"from": 0.0, "to": 1 / 3, "median": np.median(of_a), "num_trials": 20}
    fifths = found["width"]["medians"]
    assert [part["num_trials"] for part in fifths] == [12] * 5
    assert fifths[4]["median"] == pytest.approx(np.median(sorted(values)[-12:]))
    assert found["depth"]["medians"] == []  # 30 trials have it


def test_the_map_shows_means_of_the_trials_in_each_cell_and_no_cell_without_one():
    chosen, values = spread(100)
    drawn = searched(study_of(chosen, values), compared(values), IMPORTANCE)["map"]
    assert (drawn["across"], drawn["up"], drawn["side"], drawn["num_trials"]) == ("width", "lr", 5, 100)
    assert sum(cell["num_trials"] for cell in drawn["cells"]) == 100
    for cell in drawn["cells"]:
        inside = [
            value
            for one, value in zip(chosen, values, strict=True)
            if min(int(one["width"] * 5), 4) == cell["column"]
            and min(int((math.log10(one["lr"]) + 4) / 2 * 5), 4) == cell["row"]
        ]
        assert cell["mean"] == pytest.approx(np.mean(inside))
        assert cell["num_trials"] == len(inside) > 0


def test_no_map_is_drawn_of_few_trials_or_unknown_importance():
    chosen, values = spread(MIN_FOR_MAP - 1)
    study = study_of(chosen, values)
    assert (
        "39 trials have width and lr, and 40 are needed"
        in searched(study, compared(values), IMPORTANCE)["map"]["reason"]
    )
    assert "importance is known" in searched(study, compared(values), {})["map"]["reason"]


@settings(max_examples=100, deadline=None)
@given(st.floats(0.001, 1e6))
def test_axes_from_nothing_hold_what_they_are_made_for(most):
    for axis in (numbers(most), hours(most)):
        assert axis.low == 0
        assert axis.high >= most * (1 - 1e-9)
        assert all(0 <= tick <= axis.high for tick in axis.ticks)
    assert all(tick == int(tick) for tick in numbers(most).ticks)


def test_a_plane_puts_the_largest_value_at_the_top_and_keeps_steps_until_the_next():
    plane = Plane(Axis(0.0, 10.0, ()), Axis(0.0, 1.0, ()), 200)
    assert (plane.top(1.0), plane.top(0.25), plane.top(7.0)) == (0.0, 150.0, 0.0)
    assert plane.steps([(0, 0.0), (5, 0.5)]) == "M0 200H500V100H1000"
    assert plane.steps([]) == plane.dots([]) == ""
    assert plane.dots([(2.5, 0.5)]) == "M250 100h0"


def page_of(study):
    metrics = figures(study, num_resamples=5, seed=0)
    return render(study, metrics), metrics


def sections_of(page):
    return {
        found.group(1): found.group(0) for found in re.finditer(r'<section id="(\w+)".*?</section>', page, re.DOTALL)
    }


def test_the_page_draws_every_compared_trial_and_says_what_conditional_lines_mean():
    chosen, values = spread(50)
    page, metrics = page_of(study_of(chosen, values))
    shown = sections_of(page)["space"]
    assert shown.count("<figure>") == 4
    assert "25 trials have it" in shown
    assert "A line dips below an axis" in shown
    assert shown.count('class="of-best"') == 5
    assert len(metrics["space"]["trials"]) == 50
    assert json.dumps(metrics["space"]["trials"][1]["params"]) == json.dumps(chosen[1])


@pytest.mark.parametrize("num", [0, 1, 2])
def test_a_study_of_hardly_any_trials_has_a_page(num):
    chosen, values = spread(num)
    page, _ = page_of(study_of(chosen, values))
    assert ("space" in sections_of(page)) == (num == 2)
    assert "trials" in sections_of(page)


def test_names_from_the_space_cannot_break_the_page():
    space = {"<b>": {"choice": ["<script>", "&"]}, '"q"': {"uniform": [0, 1]}}
    chosen = [{"<b>": "<script>" if at % 2 else "&", '"q"': at / 10} for at in range(10)]
    page, _ = page_of(study_of(chosen, [at / 10 for at in range(10)], space=space))
    shown = sections_of(page)["space"]
    assert "&lt;b&gt;" in shown
    assert "<b>" not in shown
    assert "&lt;script&gt;" in shown
    assert "<script>" not in shown
