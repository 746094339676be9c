"""benchmarks/trial_start.py without Ray: a study of ours with empty trials is a study like any other."""

import pandas as pd

from trainables.trial import Assignment


def test_the_study_timed_is_the_main_search_as_shipped_but_two_trials_at_a_time(benchmark, tmp_path):
    launch = benchmark.our_launch(tmp_path)
    assert launch.search.num_trials == 50
    assert launch.cluster.max_concurrent_trials == 2
    assert launch.sampler.name == "gp"
    assert launch.scheduler.name == "asha"
    assert {"model.mask_ratio", "task.pretrain.lr", "task.finetune.lr", "task.finetune.layer_decay"} <= set(
        launch.space
    )


def test_every_empty_trial_ends_complete_in_the_books_and_the_best_stay_on_the_disk(benchmark, tmp_path):
    launch = benchmark.our_launch(tmp_path, "search.num_trials=5")
    ledger = benchmark.open_ledger(launch)
    while (following := ledger.next_trial()) is not None:
        trial, run = following
        assignment = Assignment(
            number=trial.number,
            run=run,
            folder=ledger.folder.trial(trial.number),
            store=tmp_path / "store",
            metric=launch.search.metric,
            maximize=True,
            num_gpus=0,
            cpus_per_worker=1,
        )
        assert ledger.report(trial.number, benchmark.Empty(assignment).next_epoch()) is False
    assert pd.read_parquet(ledger.folder.trials)["state"].tolist() == ["COMPLETE"] * 5
    kept = sorted(folder.name for folder in ledger.folder.checkpoints.iterdir())
    assert kept == ["best_1", "best_2", "best_3", "default"]
