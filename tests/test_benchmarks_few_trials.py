"""benchmarks/few_trials.py in miniature: what is to be found, and in how much time."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest

EPOCHS = 9


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Thirty configurations of a second an epoch: the larger x, the better at every epoch."""
    path = tmp_path_factory.mktemp("tables") / "small.parquet"
    rows = [
        {"configuration": number, "epoch": epoch, "value": number + epoch / EPOCHS, "seconds": 1.0, "x": number / 30}
        for number in range(30)
        for epoch in range(1, EPOCHS + 1)
    ]
    pd.DataFrame(rows).to_parquet(path)
    path.with_suffix(".json").write_text(json.dumps({"space": {"x": {"uniform": [0.0, 1.0]}}}))
    return str(path)


def test_random_search_finds_the_best_of_its_trials_when_that_has_come_to_its_best_epoch(benchmark, table):
    _, at_random = benchmark.found(table, "random", "fifo", 5)
    for seed, seconds in enumerate(at_random):
        drawn = np.random.default_rng(seed).permutation(30)[: benchmark.NUM_TRIALS]
        assert seconds == EPOCHS * (int(drawn.argmax()) + 1)


def test_what_stops_nothing_finds_it_whenever_it_trains_as_good_a_trial_and_halving_sooner(benchmark, table):
    of_fifo, _ = benchmark.found(table, "random", "fifo", 20)
    of_asha, _ = benchmark.found(table, "random", "asha", 20)
    assert 0 < np.isfinite(of_fifo).sum() < 20  # 24 of 30: the best one is among them or is not
    both = np.isfinite(of_fifo) & np.isfinite(of_asha)
    assert np.median(of_asha[both]) < np.median(of_fifo[both])


def test_every_sampler_and_policy_has_its_shares_and_more_time_finds_no_less(benchmark, table, monkeypatch):
    monkeypatch.setattr(benchmark, "SAMPLERS", {"tpe": benchmark.TPE})
    monkeypatch.setattr(benchmark, "ProcessPoolExecutor", ThreadPoolExecutor)
    first, *shares = benchmark.figures_of(table, 4)
    assert first.name == "small_random_search"
    assert len(shares) == len(benchmark.POLICIES) * len(benchmark.WITHIN)
    for policy in benchmark.POLICIES:
        of_policy = [figure.value for figure in shares if f"_tpe_{policy}_in_" in figure.name]
        assert of_policy == sorted(of_policy)
        assert 0 <= of_policy[0] <= of_policy[-1] <= 1
