import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reports.charts import Axis, distribution, learning_curves, outcome, parameter_strip
from reports.folder import Epoch, Study, Trial


def trial(number, values, *, state="COMPLETE", reason=None, params=None, num_pretrain=2):
    curve = tuple(
        Epoch(epoch, "pretrain" if epoch <= num_pretrain else "finetune", value)
        for epoch, value in enumerate(values, start=1)
    )
    return Trial(number, state, values[-1], len(values), 1.0, reason, params or {}, curve)


def study(trials, *, space=None, best=None):
    config = {"search": {"metric": "val/auroc", "direction": "maximize"}, "space": space or {}}
    return Study("runs/s", config, (), 0, tuple(trials), {"trial": best} if best is not None else {}, {}, {})


THREE = [
    trial(0, [0.70, 0.71, 0.75, 0.76]),
    trial(1, [0.60, 0.61], state="PRUNED", reason="scheduler"),
    trial(2, [0.72, 0.74, 0.78, 0.80]),
]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.integers(2, 8))
def test_an_axis_holds_all_values_between_its_first_and_last_tick(values, num_ticks):
    axis = Axis.around(values, num_ticks=num_ticks, least=0.0, most=1.0)
    assert axis.low <= min(values) + 1e-9
    assert axis.high >= max(values) - 1e-9
    assert list(axis.ticks) == sorted(axis.ticks)
    assert 2 <= len(axis.ticks) <= num_ticks + 3
    assert len({axis.name(tick) for tick in axis.ticks}) == len(axis.ticks)


def test_a_logarithmic_axis_puts_the_geometric_mean_in_the_middle():
    assert Axis(1e-4, 1e-2, (), logarithmic=True).share(1e-3) == pytest.approx(0.5)
    assert Axis(1e-4, 1e-2, ()).percent(1.0) == "100.00%"


def test_learning_curves_lie_within_the_frame_with_the_best_on_top():
    drawn = learning_curves(study(THREE, best=2), width=400, height=330, reference=0.5)
    assert [curve.trial.number for curve in drawn.curves] == [1, 0, 2]
    assert [curve.kind for curve in drawn.curves] == ["pruned", "default", "best"]
    for curve in drawn.curves:
        for point in curve.points.split():
            x, y = map(float, point.split(","))
            assert drawn.left <= x <= drawn.right
            assert drawn.top <= y <= drawn.bottom
    assert drawn.top <= drawn.reference <= drawn.bottom


def test_the_stages_meet_halfway_between_the_last_epoch_of_one_and_the_first_of_the_other():
    drawn = learning_curves(study(THREE), width=400, height=330, reference=None)
    second, third = (dict((epoch, x) for x, epoch in drawn.x_ticks)[epoch] for epoch in (2, 3))
    assert drawn.boundary == pytest.approx((second + third) / 2, abs=0.1)
    only = learning_curves(study([trial(0, [0.5, 0.6], num_pretrain=2)]), width=400, height=330, reference=None)
    assert (only.boundary, only.only_stage) == (None, "pre-training")


def test_a_study_without_an_epoch_has_no_curves():
    assert learning_curves(study([]), width=400, height=330, reference=None) is None


def test_a_trial_that_diverged_is_not_called_pruned():
    assert outcome(trial(1, [0.5], state="PRUNED", reason="non_finite: the loss is nan")) == "diverged"
    assert outcome(trial(1, [0.5], state="PRUNED", reason="collapsed: val/feature_std is 0")) == "collapsed"
    assert outcome(trial(1, [0.5], state="PRUNED", reason="scheduler")) == "pruned"


def test_a_parameter_lies_on_its_range_as_it_was_drawn():
    space = {"task.lr": {"when": {"task.stages": ["joint"]}, "log_uniform": [1e-4, 1e-2], "step": None}}
    trials = [trial(0, [0.5], params={"task.lr": 1e-3}), trial(1, [0.6], params={"task.lr": 1e-2})]
    strip = parameter_strip(study(trials, space=space, best=1), "task.lr")
    assert [(place, kind) for place, _, kind in strip.dots] == [("50.00%", "default"), ("100.00%", "best")]
    assert distribution(study([], space=space), "task.lr") == "0.0001 to 0.01, logarithmic"


def test_a_choice_among_words_has_options_and_no_range():
    space = {"model.size": {"choice": ["tiny", "small"]}}
    trials = [trial(0, [0.5], params={"model.size": "tiny"})]
    assert parameter_strip(study(trials, space=space), "model.size") is None
    assert distribution(study(trials, space=space), "model.size") == "one of tiny, small"
    assert distribution(study(trials), "model.size") == ""


def test_the_best_trial_follows_the_direction_of_the_search():
    assert study(THREE).best_trial.number == 2
    config = {"search": {"direction": "minimize"}}
    assert Study("s", config, (), 0, tuple(THREE), {}, {}, {}).best_trial.number == 0
    assert math.isclose(study(THREE, best=1).best_trial.value, 0.61)
