import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainables.schedules import learning_rate, weight_decay

RATES = {"peak_lr": 0.4, "min_lr": 0.1}


def test_the_rate_starts_at_zero_peaks_after_the_warm_up_and_ends_at_its_minimum():
    rates = [learning_rate(step, 100, warmup_share=0.2, **RATES) for step in range(101)]
    assert rates[0] == 0.0
    assert rates[10] == pytest.approx(0.2)
    assert rates[20] == pytest.approx(0.4)
    assert rates[60] == pytest.approx(0.25)  # half-way down the cosine
    assert rates[100] == 0.1
    assert max(rates) == rates[20]


def test_the_last_step_that_is_taken_lies_just_above_the_minimum():
    last = learning_rate(99, 100, warmup_share=0.2, **RATES)
    assert last == pytest.approx(0.1 + 0.3 * (1 + math.cos(math.pi * 79 / 80)) / 2)
    assert 0.1 < last < 0.101


def test_without_a_warm_up_the_first_step_is_at_the_peak():
    assert learning_rate(0, 10, warmup_share=0.0, **RATES) == 0.4
    assert learning_rate(5, 10, warmup_share=0.0, **RATES) == pytest.approx(0.25)
    assert learning_rate(10, 10, warmup_share=0.0, **RATES) == 0.1


def test_a_warm_up_over_all_steps_never_falls():
    rates = [learning_rate(step, 8, warmup_share=1.0, **RATES) for step in range(9)]
    assert rates == pytest.approx([0.4 * step / 8 for step in range(9)])


def test_a_warm_up_may_start_above_zero():
    rates = [learning_rate(step, 100, warmup_share=0.2, start_lr=0.2, **RATES) for step in (0, 10, 20)]
    assert rates == pytest.approx([0.2, 0.3, 0.4])


def test_weight_decay_goes_from_one_value_to_the_other_along_half_a_cosine():
    decays = [weight_decay(step, 100, start=0.04, end=0.4) for step in range(101)]
    assert decays[0] == pytest.approx(0.04)
    assert decays[50] == pytest.approx(0.22)
    assert decays[100] == pytest.approx(0.4)
    assert decays == sorted(decays)
    assert {weight_decay(step, 10, start=0.05, end=None) for step in range(11)} == {0.05}


@given(
    num_steps=st.integers(1, 500),
    share=st.floats(0, 1),
    peak_lr=st.floats(1e-6, 1.0),
    min_share=st.floats(0, 1),
)
def test_the_rate_rises_to_the_peak_and_then_only_falls(num_steps, share, peak_lr, min_share):
    min_lr = peak_lr * min_share
    rates = [
        learning_rate(step, num_steps, peak_lr=peak_lr, min_lr=min_lr, warmup_share=share)
        for step in range(num_steps + 1)
    ]
    assert all(0 <= rate <= peak_lr * (1 + 1e-12) for rate in rates)
    warm_up = [rate for step, rate in enumerate(rates) if step < share * num_steps]
    assert warm_up == sorted(warm_up)
    assert rates[len(warm_up) :] == sorted(rates[len(warm_up) :], reverse=True)
    assert rates[-1] == pytest.approx(peak_lr if share == 1 else min_lr)


@pytest.mark.parametrize("step", [-1, 11])
def test_a_step_outside_the_stage_is_refused(step):
    with pytest.raises(ValueError, match=r"step must lie in 0\.\.10, got"):
        learning_rate(step, 10, warmup_share=0.1, **RATES)
    with pytest.raises(ValueError, match=r"step must lie in 0\.\.10, got"):
        weight_decay(step, 10, start=0.1, end=0.2)
