"""benchmarks/end_to_end.py without its minutes: when random finds its best, and when a search has reached a value."""

import json

import numpy as np


def test_random_finds_its_best_after_the_trials_that_came_before_it_and_its_own_epochs_up_to_it(benchmark):
    values = np.array([[0.1, 0.2, np.nan], [0.4, 0.5, 0.3], [0.3, 0.4, 0.4]])  # the first one diverged
    seconds = np.array([[1.0, 1.0, 0.0], [3.0, 3.0, 3.0], [10.0, 10.0, 10.0]])
    drawn = {benchmark.seconds_of_random(values, seconds, np.random.default_rng(seed)) for seed in range(60)}
    assert drawn == {6.0, 8.0, 36.0, 38.0}


def test_trials_are_longer_than_those_of_the_other_table_and_the_rest_is_the_same(benchmark):
    differing = set(benchmark.LARGER) ^ set(benchmark.TYPED)
    assert differing == {"data.max_train_patients=400", "data.max_train_patients=1600", "data.subsample_seed=0"}


def test_the_moment_is_that_of_the_first_epoch_at_the_level_and_half_a_line_is_none(benchmark, tmp_path):
    events = tmp_path / "events.jsonl"
    assert benchmark.moment_of(events, 0.5) is None
    told = [
        {"time": f"1970-01-01T00:00:0{second}+00:00", "event": "epoch", "metrics": {"val/auroc": value}}
        for second, value in enumerate([0.2, 0.6, 0.9])
    ]
    lines = [json.dumps({"time": "1970-01-01T00:00:00+00:00", "event": "study_started"}), *map(json.dumps, told)]
    events.write_text("\n".join(lines) + "\n" + lines[-1][:20])
    assert [benchmark.moment_of(events, level) for level in (0.5, 0.7, 0.95)] == [1.0, 2.0, None]
