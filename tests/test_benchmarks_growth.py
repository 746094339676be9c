"""benchmarks/growth.py: the study that samplers are asked in, and the windows that are compared."""

import functools
from types import SimpleNamespace


def test_samplers_are_asked_in_a_study_of_completed_and_of_stopped_trials(benchmark):
    study = benchmark.filled(30)
    assert [trial.state.name for trial in study.trials].count("COMPLETE") == 3
    assert {max(trial.intermediate_values) for trial in study.trials} == {3, benchmark.NUM_EPOCHS}
    sampler = benchmark.TpeSampler(name="tpe", num_startup_trials=5)
    assert benchmark.asking_ms(study, functools.partial(benchmark.ours, sampler)) > 0
    assert len(study.trials) == 30 + benchmark.NUM_ASKED


def test_early_and_late_trials_are_compared_in_one_search_each_for_time_and_memory(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, "NUM_TRIALS", 1200)
    figures = {figure.name: figure for figure in benchmark.books()}
    assert set(figures) == {f"driver_{what}_at_{number}" for what in ("time", "memory") for number in (1000, 1200)}
    late = figures["driver_memory_at_1200"]
    assert late.baseline == figures["driver_memory_at_1000"].value
    assert late.target == benchmark.TARGET * late.baseline
    assert late.value > 0


def test_a_search_on_ray_is_watched_trial_by_trial_though_two_may_end_at_once(benchmark, monkeypatch):
    clock, typed = iter(range(10**6)), []

    def search(num_trials, *words, watch):
        typed.extend(words)
        for num_ended in (*range(0, 1000, 2), *range(1000, num_trials + 1)):
            watch(SimpleNamespace(num_ended=num_ended))
            watch(SimpleNamespace(num_ended=num_ended))  # books change without a trial's end

    monkeypatch.setattr(benchmark, "NUM_ON_RAY", 1500)
    monkeypatch.setattr(benchmark, "search_on_ray", search)
    monkeypatch.setattr(benchmark.time, "process_time", lambda: float(next(clock)))
    figures = {figure.name: figure for figure in benchmark.on_ray()}
    assert typed == ["sampler=random"]
    assert figures["ray_driver_time_after_100"].value == 500  # ms: a look for every second trial
    late = figures["ray_driver_time_at_1500"]
    assert (late.value, late.baseline, late.target, late.met) == (1000, 500, 750, False)
    assert {"ray_driver_memory_after_100", "ray_driver_memory_at_1500"} < set(figures)
