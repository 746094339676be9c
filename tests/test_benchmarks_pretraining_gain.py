"""benchmarks/pretraining_gain.py in miniature: one row a method, whose gain is the difference of what it compares."""

import argparse

import numpy as np
import pytest

from search_spaces.compose import FOLDER


def arguments(folder, **changes):
    typed = ["data.reader.num_patients=60", f"data.root={folder}/recordings", f"data.store_dir={folder}/stores"]
    told = {"data_root": None, "epochs": 1, "typed": [*typed, "data.leads=[II,V2]", "data.window_s=1.2"]}
    return argparse.Namespace(**(told | changes))


def test_every_method_that_pre_trains_is_measured(benchmark):
    models = {path.stem for path in (FOLDER / "model").glob("[!_]*.yaml")}
    assert set(benchmark.methods()) == models - {"supervised"}
    assert set(benchmark.SETTINGS) < models


def test_a_method_is_held_against_its_own_untrained_encoder_on_the_validation_fold(benchmark, tmp_path):
    told = arguments(tmp_path)
    seeds = [benchmark.measure("mtae", seed, told) for seed in (0, 1)]
    recordings = benchmark.recordings_of(benchmark.run_of("mtae", 0, told))
    for seed in seeds:
        assert seed.untrained.shape == seed.trained.shape == seed.targets.shape
        assert len(seed.patients) == len(recordings.split.valid)
        assert not np.array_equal(seed.untrained, seed.trained)
    assert not np.array_equal(seeds[0].untrained, seeds[1].untrained)
    gain = benchmark.gain_of("mtae", seeds)
    assert gain.value == pytest.approx(np.mean(gain.of_seeds))
    assert gain.low <= gain.high
    assert benchmark.row(gain).startswith("mtae ")


def test_the_verdict_says_what_the_interval_says(benchmark):
    def verdict(low, high):
        return benchmark.Gain("jepa", 0.7, 0.7, low, high, [0.0], 1.0, []).verdict

    assert verdict(0.01, 0.02) == "better than untrained"
    assert verdict(-0.02, -0.01) == "worse than untrained"
    assert verdict(-0.01, 0.01) == "not told apart"


def test_equal_answers_gain_nothing(benchmark):
    generator = np.random.default_rng(0)
    scores, targets = generator.random((60, 2)), (generator.random((60, 2)) < 0.5).astype(float)
    seed = benchmark.Seed("jepa", 0, scores, scores, targets, np.arange(60).astype(str), 1.0, None)
    gain = benchmark.gain_of("jepa", [seed])
    assert (gain.value, gain.low, gain.high) == (0, 0, 0)
