"""A short seeded form of benchmarks/coverage.py: do the report's intervals hold the truth as often as they promise?"""

import importlib.util
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(BENCHMARKS))  # it imports figures, which lies beside it
    try:
        spec = importlib.util.spec_from_file_location("benchmark_coverage", BENCHMARKS / "coverage.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["benchmark_coverage"] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCHMARKS))
    return module


@pytest.fixture(scope="module")
def held(benchmark):
    cells = [(20, 0.97), (20, 0.85), (50, 0.93), (8, 0.97)]
    return benchmark.held_in(range(150), 60, cells, 200)


def pooled(benchmark, held, method, metric, at_least):
    """Coverage over the cells with so many expected positives."""
    states = Counter()
    for (of, named, name, num_positive, inside), number in held.items():
        if (of, named) == (method, metric) and name.startswith("class") and num_positive >= at_least:
            states[inside] += number
    return states[True] / states.total()


@pytest.mark.parametrize("metric", ["auroc", "auprc"])
def test_intervals_hold_the_truth_as_often_as_they_promise(benchmark, held, metric):
    assert 0.93 <= pooled(benchmark, held, "ours", metric, 20) <= 0.98
    assert 0.91 <= benchmark.coverage(held, "ours", metric, "macro from 20", 0)[0] <= 0.99


def test_the_percentile_interval_does_not_near_one_and_with_few_positives(benchmark, held):
    ours, num_folds = benchmark.coverage(held, "ours", "auroc", "class 0.97", 8)
    usual, _ = benchmark.coverage(held, "percentile", "auroc", "class 0.97", 8)
    assert num_folds == 150
    assert usual < 0.85 < 0.93 < ours


def test_counting_a_lacking_class_as_one_half_misses_the_truth(benchmark):
    held = benchmark.held_with_rare(range(40), 60, 200)
    half, _ = benchmark.coverage(held, "one_half", "auroc", benchmark.MEAN_WITH_RARE, 0)
    ours, _ = benchmark.coverage(held, "ours", "auroc", benchmark.MEAN_WITH_RARE, 0)
    assert half < 0.75
    assert ours > 0.85


def test_the_truth_is_what_a_large_fold_shows(benchmark):
    cells = [(2000, 0.85), (400, 0.93)]
    fold = benchmark.simulated(0, cells, 40_000)
    for index, cell in enumerate(cells):
        area, average = benchmark.true_values(*cell, 40_000)
        assert roc_auc_score(fold.targets[:, index], fold.scores[:, index]) == pytest.approx(area, abs=0.01)
        assert average_precision_score(fold.targets[:, index], fold.scores[:, index]) == pytest.approx(
            average, abs=0.03
        )
    assert set(np.bincount(fold.patients)) == {1, 2, 3}


def test_every_cell_becomes_a_figure_and_the_promise_is_held_against_its_limits(benchmark, held):
    figures = {
        figure.name: figure for figure in benchmark.figures_of(held, [(20, 0.97), (20, 0.85), (50, 0.93), (8, 0.97)])
    }
    assert figures["auroc, class 0.97, 8 positive"].baseline < figures["auroc, class 0.97, 8 positive"].value
    assert figures["lowest promised"].target == 0.93
    assert figures["highest promised"].target == 0.97


def test_a_difference_of_two_models_holds_the_truth_and_one_of_two_positives_is_hardly_ever_found(benchmark):
    auroc, auprc, held = benchmark.paired_folds(60, 1, 20)
    assert max(auroc, auprc) < 0.15
    assert held > 0.85
    assert max(benchmark.paired_folds(60, 1, 2)[:2]) < 0.06
