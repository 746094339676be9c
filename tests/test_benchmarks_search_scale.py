"""benchmarks/search_scale.py without Ray: a short trial is a trial like any other, and both sides do the same work."""

from search_spaces.distributions import parse
from trainables.trial import Assignment


def test_a_search_of_short_trials_ends_with_some_complete_and_some_stopped(benchmark, tmp_path):
    launch = benchmark.our_launch(tmp_path, "search.num_trials=12", *benchmark.TYPED)
    ledger = benchmark.open_ledger(launch)
    while (following := ledger.next_trial()) is not None:
        trial, run = following
        folder = ledger.folder.trial(trial.number)
        engine = benchmark.Short(Assignment(trial.number, run, folder, tmp_path, launch.search.metric, True, 0, 1))
        while ledger.report(trial.number, engine.next_epoch()):
            pass
    assert {trial.state for trial in ledger.trials.values()} == {"COMPLETE", "PRUNED"}
    assert {trial.epoch for trial in ledger.trials.values()} <= {1, 2, 3, 4}


def test_both_sides_search_the_same_ranges_and_report_the_same_values(benchmark, tmp_path):
    launch = benchmark.our_launch(tmp_path, *benchmark.TYPED)
    ours = {leaf.key.rpartition(".")[2]: leaf.distribution for leaf in parse(launch.space).leaves}
    assert ours == benchmark.SPACE
    choices = {"lr": 1e-3, "mask_ratio": 0.5, "layer_decay": 0.75}
    stock = benchmark.StockTrial.__new__(benchmark.StockTrial)
    stock.setup(choices)
    reported = [stock.step()["auroc"] for _ in range(benchmark.NUM_EPOCHS)]
    assert reported == [benchmark.value(**choices, epoch=epoch) for epoch in (1, 2, 3, 4)]
    assert reported == sorted(reported)
