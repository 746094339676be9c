"""benchmarks/regret.py: what its figures mean, and that stock is called as Ray Tune calls it."""

import numpy as np
import optuna
import pytest

from search_spaces.distributions import parse
from search_spaces.schedulers import make_policy
from search_spaces.schema import checked
from search_spaces.simulation import Synthetic, simulate


@pytest.fixture(scope="module")
def curves():
    """Curves on which the better configuration is the better one at every epoch."""
    space = parse({"x": {"uniform": [0.0, 1.0]}})
    return Synthetic(space, 32, lambda choices, epoch: choices["x"] - 1 / epoch)


@pytest.mark.filterwarnings("ignore")  # what Ray and Optuna will change
def test_every_arm_searches_and_stock_tells_optuna_that_stopped_trials_are_complete(benchmark, curves):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for name, arm in benchmark.ARMS.items():
        books = arm(curves, 0)
        search = simulate(books, curves, num_workers=4, max_seconds=400)
        epochs = {trial.epoch for trial in search.trials.values()}
        assert 32 in epochs
        assert name == "random" or min(epochs) <= 8
        if name == "stock":
            trials = books._searcher._ot_study.trials
            stopped = [trial for trial in trials if trial.state.is_finished() and max(trial.intermediate_values) < 32]
            assert {trial.state.name for trial in stopped} == {"COMPLETE"}


def test_ours_has_the_rungs_and_the_factor_that_are_shipped(benchmark, compose_run):
    from search_spaces.compose import compose_choices

    launch = checked(compose_choices(["search=stmem_ptbxl_pretrain"]).tree)
    shipped = make_policy(launch.scheduler, launch.task)
    assert shipped.reduction_factor == benchmark.FACTOR
    assert launch.sampler == benchmark.GP
    assert shipped.rungs == benchmark.halving(launch.task.num_epochs).rungs
    assert shipped.rungs[0] > 1


def outcome(benchmark, **reached):
    return benchmark.Outcome(1.0, 0.0, {name: np.array(of_seeds) for name, of_seeds in reached.items()}, {})


def test_the_share_is_of_the_hours_after_which_stock_has_its_final_regret(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, "GRID", np.array([0.1, 0.2, 0.4, 0.8, 1.0]))
    stock = [[0.2, 0.3, 0.5, 0.7, 0.7]] * 4
    ours = [[0.1, 0.7, 0.7, 0.9, 0.9]] * 4
    found = outcome(benchmark, ours=ours, stock=stock)
    assert benchmark.share_of_hours(found, "stock") == pytest.approx(0.2 / 0.8)
    worse = outcome(benchmark, ours=[[0.1] * 5] * 4, stock=stock)
    assert benchmark.share_of_hours(worse, "stock") == benchmark.NOT_REACHED


def test_the_interquartile_mean_leaves_a_quarter_out_at_each_end(benchmark):
    assert benchmark.interquartile_mean(np.array([100.0, 1.0, 2.0, -50.0])) == 1.5


def test_the_best_value_so_far_is_that_of_reports_that_have_come(benchmark, curves):
    search = simulate(benchmark.ARMS["random"](curves, 0), curves, num_workers=1, max_seconds=32)
    best = benchmark.best_so_far(search, 32, -9.0)
    assert best[0] == -9.0
    assert best[-1] == max(result.found.value for result in search.results)
    assert (np.diff(best) >= 0).all()


def test_the_surrogate_gives_curves_of_the_whole_length(benchmark):
    import lcbench

    if lcbench.folder() is None:
        pytest.skip("no surrogate: set HEARTSWEEP_DATASETS to the folder that holds yahpo_lcbench")
    surrogate = lcbench.LcBench(lcbench.folder())
    assert len(surrogate.tasks) == 34
    choices = {leaf.key: leaf.distribution.low for leaf in lcbench.SPACE.leaves}
    whole = lcbench.LcBenchTask(surrogate, "3945").of(choices, set())
    last = whole.epoch(52)
    parts = lcbench.LcBenchTask(surrogate, "3945").of(choices, set())
    found = [parts.epoch(epoch) for epoch in range(1, 53)]  # computed piece by piece
    assert [epoch.value for epoch in found] == pytest.approx([whole.epoch(epoch).value for epoch in range(1, 53)])
    assert [epoch.seconds for epoch in found] == pytest.approx(
        [whole.epoch(epoch).seconds for epoch in range(1, 53)], abs=0.01
    )
    assert 0 < last.value < 100
    assert all(epoch.seconds > 0 for epoch in found)
